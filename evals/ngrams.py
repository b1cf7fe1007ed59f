"""Diversity of texts by their words, and repetition within a text. All measures depend on length; report it with them."""

import gzip
import math
from collections.abc import Sequence
from functools import cache
from itertools import permutations

import numpy as np
import pandas as pd
from sacrebleu.metrics.bleu import BLEU

from plo.evals.registry import register_evaluation
from plo.ngrams import count_ngrams, distinct_share, words

VOCABULARY = 50_257  # size of GPT-2's, the value of V in the code of Kirk et al. (2024)


def distinct(texts: Sequence[str], n: int = 1) -> float:
    """Return unique / total n-grams over all texts together (Li et al. 2016), in (0, 1]; NaN if there are none.

    Example:
        >>> distinct(["a b a", "b c"])
        0.6
    """
    return distinct_share([words(text) for text in texts], n)


def expectation_adjusted_distinct(texts: Sequence[str], n: int = 1, vocabulary: int = VOCABULARY) -> float:
    """Return EAD_n = N / (V (1 - ((V - 1) / V)^C)) (Liu et al. 2022), `distinct` corrected for length; NaN without n-grams.

    N is the number of unique and C of all n-grams over all texts together. The denominator is the expected number of
    unique ones among C draws from V equally likely ones, so the value may exceed 1. V is the same for every n,
    by default the 50,257 of GPT-2's vocabulary as in Kirk et al. (2024), although the n-grams are of words here.
    Compare only values with the same V.

    Example:
        >>> expectation_adjusted_distinct(["a b a"], vocabulary=2)  # 2 / (2 (1 - 1/8))
        1.1428571428571428
    """
    unique, total = count_ngrams([words(text) for text in texts], n)
    return unique / (vocabulary * -math.expm1(total * math.log1p(-1 / vocabulary))) if total else math.nan


def self_bleu_pairwise(texts: Sequence[str]) -> float:
    """Return the mean over all ordered pairs i != j of BLEU(text_i; reference text_j), 0 to 100; lower is more diverse.

    BLEU is sacrebleu's sentence BLEU: tokenizer 13a, exponential smoothing, effective order. NaN for one text. This
    is the *pairwise* self-BLEU; the multi-reference one (each text against all others at once) is far higher.
    """
    return _mean([_bleu(a, [b]) for a, b in permutations(texts, 2)])


def self_bleu_multi(texts: Sequence[str]) -> float:
    """Return the mean over i of BLEU(text_i; all other texts) (Zhu et al. 2018), 0 to 100; lower is more diverse.

    BLEU is as in `self_bleu_pairwise`. The value rises with the number of texts, as an n-gram of any other text counts.
    """
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    return _mean([_bleu(text, rest) for text, rest in zip(texts, others, strict=True) if rest])


def compression_ratio(texts: Sequence[str]) -> float:
    """Return bytes of the texts, one per line, / bytes after gzip -9 (Shaib et al. 2024); lower is more diverse.

    It grows with the amount of text, and for short texts the 18 bytes that gzip adds make it less than 1. NaN if empty.
    """
    data = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(data) / len(gzip.compress(data, 9, mtime=0)) if any(texts) else math.nan


def repetition(text: str, n: int = 3) -> float:
    """Return the share of a text's n-grams that repeat an earlier one: 1 - unique / total; 0 for fewer than n words."""
    share = distinct([text], n)
    return 0.0 if np.isnan(share) else 1 - share


@register_evaluation(
    "ngram_diversity",
    level="prompt",
    main_score="distinct_1",
    higher_is_better={"distinct_1": True, "self_bleu_pairwise": False},
    citation="Li et al. 2016, arXiv:1510.03055; Zhu et al. 2018, arXiv:1802.01886",
)
def ngram_diversity(samples: pd.DataFrame) -> pd.DataFrame:
    """Compute `distinct_1` and `self_bleu_pairwise` among the samples of each prompt, cheaply at every evaluation point."""
    texts = samples.groupby("prompt_id")["text"].agg(list)
    columns = {"distinct_1": texts.map(distinct), "self_bleu_pairwise": texts.map(self_bleu_pairwise)}
    return pd.DataFrame(columns)


@register_evaluation("repetition", higher_is_better=False)
def repetition_of_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """Compute `repetition`, the share of repeated 3-grams within each sample."""
    return samples["text"].map(repetition).to_frame("repetition")


def _mean(scores: list[float]) -> float:
    return float(np.mean(scores)) if scores else math.nan


@cache
def _scorer() -> BLEU:
    return BLEU(effective_order=True)


def _bleu(hypothesis: str, references: list[str]) -> float:
    # Equal texts, empty ones included, have BLEU 100. sacrebleu gives two empty texts 0, so that a policy that has
    # collapsed to empty answers would look perfectly diverse.
    if hypothesis.strip() in (reference.strip() for reference in references):
        return 100.0
    return _scorer().sentence_score(hypothesis, references).score
