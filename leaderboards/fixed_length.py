"""Diversity at one length: distinct n-grams of samples that are cut to the same number of words for all rows."""

from collections.abc import Mapping, Sequence

import pandas as pd

from plo.leaderboards.board import FixedLength, Row
from plo.ngrams import distinct_share, words
from plo.statistics import cut_to_common_length, spread
from plo.statistics.intervals import StatisticsError

N = 2  # bigrams: single words of a few hundred short texts are soon all used
TEXTS = 20_000  # half a second's work; a table with more of them is measured on its first prompts


def diversity_at_fixed_length(rows: Sequence[Row], samples: Mapping[str, pd.DataFrame]) -> FixedLength | None:
    """Return distinct-2 of each row's samples, cut to the first m words that at least half of the prompts have in every row.

    A seed's value is over all its prompts together. None where fewer than two rows recorded samples, or their texts have no
    common length.

    Args:
        samples: {run id: samples with the columns prompt_id and text}.
    """
    frames = {
        (row.name, seed): (samples[run]["prompt_id"].tolist(), samples[run]["text"].tolist())
        for row in rows
        for seed, run in row.runs.items()
        if run in samples
    }
    if len({name for name, _ in frames}) < 2:
        return None
    prompts = sorted(set.intersection(*(set(ids) for ids, _ in frames.values())))
    a_prompt = sum(len(texts) for _, texts in frames.values()) / max(
        1, max(len(set(ids)) for ids, _ in frames.values())
    )
    measured = prompts[: max(1, int(TEXTS / a_prompt))]
    try:
        length, cut = cut_to_common_length({key: _words(*frame, measured) for key, frame in frames.items()})
    except StatisticsError:
        return None
    found: dict[str, list[float]] = {}
    for (name, _), by_prompt in cut.items():
        found.setdefault(name, []).append(distinct_share([text for own in by_prompt.values() for text in own], N))
    kept = len(next(iter(cut.values())))
    return FixedLength(N, length, kept, {name: spread(values) for name, values in found.items()})


def _words(ids: Sequence[int], texts: Sequence[str], prompts: Sequence[int]) -> dict[int, list[list[str]]]:
    found: dict[int, list[list[str]]] = {prompt: [] for prompt in prompts}
    for prompt, text in zip(ids, texts, strict=True):
        if prompt in found:
            found[prompt].append(words(text))
    return found
