"""Verdicts of a comparison whose number of seeds grows, with every look replayed from the values of all seeds."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from plo.statistics.comparisons import Comparison, compare
from plo.statistics.intervals import RunNoise
from plo.statistics.looks import Reason, look_levels, settled, stop
from plo.statistics.moderated import LEAST_ROWS
from plo.statistics.verdicts import Verdict, verdicts


@dataclass(frozen=True)
class Judgement:
    """Verdicts on the rows of a table.

    Attributes:
        compared: each row's difference from the baseline, over the seeds of the last look.
        verdicts: each row's word. What one look has settled stays so at the next.
        look: number of seeds at the last look; 0 if the rows have too few for the first one, and all words are "undecided".
        alpha: level of the last look.
        stop: why no further seeds are needed; None if the next look should be taken.
    """

    compared: dict[str, Comparison]
    verdicts: dict[str, Verdict]
    look: int
    alpha: float
    stop: Reason | None


def baseline_seeds(look: int, rows: int, given: int | None = None) -> int:
    """Return the baseline's number of seeds at a look at which each of the other rows has `look` seeds.

    The baseline is part of every difference, so it has about S sqrt(L - 1) seeds where the others have S. With too few rows to
    share seed variances it has S: their tests are paired by seed, and no other row has its further ones.

    Args:
        rows: L, with the baseline.
        given: the number that an experiment sets; never less than `look`.
    """
    if given is None and rows < LEAST_ROWS:
        return look
    return max(look, given or round(look * math.sqrt(max(rows - 1, 1))))


def judge(
    tables: Mapping[str, pd.DataFrame],
    baseline: str,
    *,
    looks: Sequence[int] = (),
    baseline_seeds: Callable[[int], int] = lambda look: look,
    higher_is_better: bool = True,
    margin: float | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    ended: Collection[str] = (),
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> Judgement:
    """Return the verdicts on all rows but the baseline, as they were or would have been reached look by look.

    Args:
        tables: for each row its values [prompts, seeds], the seeds in the order in which they were run.
        looks: numbers of seeds at which verdicts are reached (`look_levels`); none: once, over all seeds, at level .05.
        baseline_seeds: number of the baseline's seeds at a look.
        margin: see `verdict`.
        bounds, noise: see `compare`.
        ended: rows that get no further seeds, as cells of theirs failed: looks for which they lack seeds are taken without
            them, and what such looks would settle stays undecided.

    Raises:
        StatisticsError: as `compare`.
    """
    others = [name for name in tables if name != baseline]
    counted = [name for name in others if name not in ended] or others
    least = min((tables[name].shape[1] for name in counted), default=0)
    levels = look_levels(looks) if looks else {least: 0.05}
    compared, words = compare(tables, baseline, bounds=bounds, noise=noise), dict[str, Verdict]()
    unsettled: dict[str, Verdict] = dict.fromkeys(others, "undecided")
    look, alpha, reason = 0, min(levels.values()), None
    for seeds, level in levels.items():
        if not seeds or seeds > least:
            break
        counts = {name: seeds if name != baseline else baseline_seeds(seeds) for name in tables}
        there = [name for name in tables if name == baseline or not looks or tables[name].shape[1] >= seeds]
        found = compare(
            {name: tables[name].iloc[:, : counts[name]] if looks else tables[name] for name in there},
            baseline,
            bounds=bounds,
            noise=noise,
        )
        now = settled(words, verdicts(found, higher_is_better=higher_is_better, margin=margin, alpha=level))
        look, alpha, words, compared = seeds, level, words | now, compared | found
        reason = stop(found, now, looks, seeds, margin=margin) if looks else None
        if reason:
            break
    return Judgement(compared, unsettled | words, look, alpha, reason)
