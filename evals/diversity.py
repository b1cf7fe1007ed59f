"""Diversity of a model's answers, among the samples of a prompt and across prompts."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeFloat, PositiveInt

from plo.evals.answers import ANSWER_DIRECTIONS, ANSWER_MEANINGS, THINK_END, draw_answers
from plo.evals.embeddings import cosine_distance, embed, vendi_score
from plo.evals.findings import Findings, means
from plo.evals.ngrams import (
    VOCABULARY,
    compression_ratio,
    distinct,
    expectation_adjusted_distinct,
    self_bleu_multi,
    self_bleu_pairwise,
)
from plo.evals.prompts import load_prompts
from plo.evals.registry import register_evaluation
from plo.subjects import Subject

ORDERS = range(1, 6)  # of n-grams


def measures(texts: list[str], vectors: np.ndarray, vocabulary: int = VOCABULARY) -> dict[str, float]:
    """Compute all diversity measures of a set of texts; NaN where undefined (one text, no words).

    Args:
        vectors: (texts, d) embeddings of the texts, unit vectors.
        vocabulary: V of EAD.
    """
    return {
        **{f"distinct_{n}": distinct(texts, n) for n in ORDERS},
        **{f"ead_{n}": expectation_adjusted_distinct(texts, n, vocabulary) for n in ORDERS},
        "self_bleu_pairwise": self_bleu_pairwise(texts),
        "self_bleu_multi": self_bleu_multi(texts),
        "cosine_distance": cosine_distance(vectors),
        "vendi_score": vendi_score(vectors),
        "compression_ratio": compression_ratio(texts),
    }


@register_evaluation(
    "diversity",
    level="model",
    main_score="vendi_score",
    license="MIT",
    citation="Kirk et al. 2024, arXiv:2310.06452",
    higher_is_better={
        "distinct_*": True,
        "ead_*": True,
        "self_bleu_*": False,
        "cosine_distance*": True,
        "vendi_score*": True,
        "compression_ratio*": False,
        "entropy": None,
        "length": None,
        **ANSWER_DIRECTIONS,
    },
    meaning={
        "distinct_*": "unique / all n-grams over a prompt's answers",
        "ead_*": "unique n-grams / those expected of as many random words",
        "self_bleu_*": "mean BLEU among a prompt's answers, 0 to 100",
        "cosine_distance*": "mean 1 - cosine of embeddings among a prompt's answers",
        "vendi_score*": "effective number of different answers to a prompt, from embeddings",
        "compression_ratio*": "bytes of a prompt's answers / those of the same texts by gzip",
        "entropy": "nats a token: entropy of the policy's prediction",
        "length": "characters of an answer, mean",
        **ANSWER_MEANINGS,
    },
)
def diversity(
    subject: Subject,
    *,
    source: str = "hh",
    path: Path | None = None,
    prompts: PositiveInt = 100,
    samples: PositiveInt = 5,
    temperature: NonNegativeFloat = 1.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95,
    max_new_tokens: PositiveInt = 128,
    vocabulary: Annotated[int, Field(ge=2)] = VOCABULARY,
    think_end_token: str | None = THINK_END,
) -> Findings:
    """Measure the diversity of `samples` answers to each of `prompts` held-out prompts (by default TBPO's protocol).

    Per input: each measure among the samples of a prompt, averaged over the prompts where it is defined. Across inputs
    (`..._across`): the measure over the first samples of all prompts, one number (Kirk et al. 2024).

    Metrics:
        distinct_1 to 5, in (0, 1]; ead_1 to 5; self_bleu_pairwise, self_bleu_multi: 0 to 100;
        cosine_distance, vendi_score (effective number of texts): of all-MiniLM-L6-v2 embeddings;
        compression_ratio: of gzip; all as in `plo.evals.ngrams` and `plo.evals.embeddings`, each also `_across`;
        entropy: predictive, nats per token, where the subject reports it; length: characters per answer, on which most
        of the above depend; empty, truncated: shares of answers without text, and of answers cut at the token limit.

    Args:
        source: data source of the prompts, with files in `path`: see `plo.evals.prompts.load_prompts`.
        vocabulary: V of EAD.
        think_end_token: end of a thought at the beginning of an answer, which is removed first; None: the thought stays.

    Raises:
        EvaluationError: there are no prompts, or the packages of the embeddings are not installed.
    """
    asked = load_prompts(subject, source, path, prompts)
    settings = {"samples": samples, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    drawn, notes = draw_answers("diversity", subject, asked.prompts, think_end_token, **settings)
    drawn = drawn.reset_index(drop=True)
    drawn["prompt_id"], drawn["text"] = np.array(asked.ids)[drawn["prompt_id"]], drawn["text"].str.strip()
    drawn["length"] = drawn["text"].str.len()
    vectors = embed(drawn["text"].tolist())

    groups = drawn.groupby("prompt_id", sort=True)
    items = pd.DataFrame(
        {prompt: measures(group["text"].tolist(), vectors[group.index], vocabulary) for prompt, group in groups}
    ).T
    numbers = [column for column in ("entropy", "length", "empty", "truncated") if column in drawn]
    items = items.join(groups[numbers].mean().astype(float)).rename_axis("prompt_id")
    first = groups.head(1)
    across = measures(first["text"].tolist(), vectors[first.index], vocabulary)
    metrics = means(items) | {f"{name}_across": value for name, value in across.items()}
    table = drawn[["prompt_id", "sample", "text", *numbers]]
    return Findings(metrics, items.reset_index(), (*asked.notes, *notes), {"diversity_samples.json": table})
