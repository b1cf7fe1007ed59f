"""Fragility of a first place: how many values would have to change for another row to take it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from plo.statistics.intervals import Array, StatisticsError, Table, complete


class Fragility(NamedTuple):
    """Least change that moves the first place.

    Attributes:
        first: row with the best mean.
        rival: row that takes its place.
        flips: number of single values (a verdict on a prompt in a seed) that suffice if each may take any possible value.
        values: number of values of the two rows.
        drops: number of prompts whose removal suffices, by the rival that needs fewest; None: no removal does.
    """

    first: str
    rival: str
    flips: int
    values: int
    drops: int | None


def fragility(
    tables: Mapping[str, Table], *, bounds: tuple[float, float] = (0.0, 1.0), higher_is_better: bool = True
) -> Fragility:
    """Return how many values would have to change, or prompts to be dropped, for another row to have the best mean.

    The gap between two means is a sum over values: changing y_i of the first row (n values) to the worst bound lowers it by
    |y_i - worst| / n, changing one of the rival's to the best bound by |best - y_i| / n, each independently of the others.
    So the k largest steps are the most that k changes can do, and the least k whose sum exceeds the gap is exact. Dropping
    prompt p lowers the sum of the paired differences by its own, so the largest differences are dropped first; the sign of
    the mean is that of the sum.

    Args:
        tables: for each row its values [prompts, seeds], as for `estimate`; two at least.
        bounds: least and greatest possible value.

    Raises:
        StatisticsError: fewer than two rows have values, or bounds are infinite.

    Source: Broderick, Giordano, Meager (2020), https://arxiv.org/abs/2011.14999, for the question; for means the greedy
    answer is exact.
    """
    if not np.isfinite(bounds).all():
        raise StatisticsError(f"Fragility needs finite bounds of the metric, not {bounds}.")
    sign = 1.0 if higher_is_better else -1.0
    frames = {name: frame for name, table in tables.items() if (frame := complete(table)).size}
    if len(frames) < 2:
        raise StatisticsError(f"Fragility needs two rows with values; there are {len(frames)}.")
    values = {name: sign * frame.to_numpy(dtype=float).ravel() for name, frame in frames.items()}
    worst, best = sorted(sign * bound for bound in bounds)
    means = {name: float(y.mean()) for name, y in values.items()}
    first = max(means, key=lambda name: means[name])
    found: list[tuple[int, str]] = []
    drops: list[int] = []
    for name, y in values.items():
        if name == first:
            continue
        top = values[first]
        found.append((_fewest(np.r_[(top - worst) / len(top), (best - y) / len(y)], means[first] - means[name]), name))
        prompts = frames[first].index.intersection(frames[name].index)
        gaps: Array = sign * (
            frames[first].reindex(prompts).to_numpy(dtype=float).mean(1)
            - frames[name].reindex(prompts).to_numpy(dtype=float).mean(1)
        )
        if (gaps < 0).any() or gaps.sum() < 0:
            drops.append(_fewest(gaps, float(gaps.sum())))
    flips, rival = min(found)
    return Fragility(first, rival, flips, len(values[first]) + len(values[rival]), min(drops, default=None))


def _fewest(steps: Array, gap: float) -> int:
    """Return the least number of steps whose sum exceeds the gap."""
    sums = np.r_[0.0, np.cumsum(np.sort(steps)[::-1])]
    return int(np.argmax(sums > gap + 1e-12 * max(1.0, abs(gap))))
