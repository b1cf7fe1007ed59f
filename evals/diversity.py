"""How diverse a prompt's samples are, how repetitive each is. All depend on length: read `tokens` beside."""

import re
from functools import cache
from itertools import permutations

import numpy as np
import pandas as pd
from sacrebleu.metrics import BLEU

from plo.evals.evaluation import register_evaluation

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-cased words (a contraction is one) and punctuation marks, each mark a word of its own."""
    return _WORD.findall(text.lower())


def distinct(texts: list[str], n: int = 1) -> float:
    """Unique / total n-grams over the texts together (Li et al. 2016), in (0, 1]; NaN if there are none.

    Example:
        >>> distinct(["a b a", "b c"])
        0.6
    """
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu_pairwise(texts: list[str]) -> float:
    """Mean over all ordered pairs i != j of BLEU(text_i; reference text_j), 0 to 100; lower is more diverse.

    sacrebleu's sentence BLEU: tokenizer 13a, exponential smoothing, effective order. NaN for one text. This
    is the *pairwise* self-BLEU; the multi-reference one (each text against all others at once) is far higher.
    """
    scores = [_bleu(a, b) for a, b in permutations(texts, 2)]
    return float(np.mean(scores)) if scores else float("nan")


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams that repeat an earlier one: 1 - unique / total; 0 for fewer than n words."""
    share = distinct([text], n)
    return 0.0 if np.isnan(share) else 1 - share


@register_evaluation("diversity", level="prompt", higher_is_better={"distinct_1": True, "self_bleu_pairwise": False})
def diversity(samples: pd.DataFrame) -> pd.DataFrame:
    """`distinct_1` and `self_bleu_pairwise` among the samples of each prompt."""
    texts = samples.groupby("prompt_id")["text"].agg(list)
    columns = {"distinct_1": texts.map(distinct), "self_bleu_pairwise": texts.map(self_bleu_pairwise)}
    return pd.DataFrame(columns)


@register_evaluation("repetition", higher_is_better=False)
def repetition_of_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """`repetition`: share of repeated 3-grams within each sample."""
    return samples["text"].map(repetition).to_frame("repetition")


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


@cache
def _scorer() -> BLEU:
    return BLEU(effective_order=True)


def _bleu(hypothesis: str, reference: str) -> float:
    # Equal texts, empty ones too, are as alike as can be; sacrebleu gives two empty texts 0, so that a policy
    # that has collapsed to saying nothing would look perfectly diverse.
    if hypothesis.strip() == reference.strip():
        return 100.0
    return _scorer().sentence_score(hypothesis, [reference]).score
