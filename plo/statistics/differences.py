"""Differences from a baseline: paired, corrected for their number, with the smallest difference that could be detected."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from plo.statistics.comparisons import holm
from plo.statistics.intervals import Estimate, Table, estimate, paired
from plo.statistics.power import detectable_difference

Name = TypeVar("Name")


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference from a baseline.

    Attributes:
        p_holm: p adjusted for the family of differences it belongs to; NaN where p is.
        detectable: the family's `minimal_detectable_difference`.
    """

    p_holm: float = math.nan
    detectable: float = math.nan

    @property
    def resolved(self) -> bool:
        """True if the difference is at least the minimal detectable one, and significant at .05 after Holm.

        In simulations (1 and 5 differences, 3 and 5 seeds, 100 and 805 prompts) a true difference as large as the design's
        MDD is resolved in 52 to 62% of cases, one 1.5 times as large in 88 to 96%, one twice as large in more than 97%.
        """
        return abs(self.mean) >= self.detectable and self.p_holm < 0.05


def differences(
    tables: Mapping[Name, Table], baseline: Table, *, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> dict[Name, Difference]:
    """Return the difference of each table from the baseline; together they are one family for Holm's correction.

    Args:
        tables, baseline: tables as for `estimate`, paired by prompt and seed as `paired` does.
        bounds: least and greatest possible value of the metric; intervals are cut to the range of its differences.

    Raises:
        ValueError: a table shares no seed or no prompt with the baseline.
    """
    width = bounds[1] - bounds[0]
    found = {name: estimate(paired(table, baseline), bounds=(-width, width)) for name, table in tables.items()}
    adjusted = holm([one.p for one in found.values()])
    detectable = minimal_detectable_difference(found.values())
    return {
        name: Difference(**vars(one), p_holm=p, detectable=detectable)
        for (name, one), p in zip(found.items(), adjusted, strict=True)
    }


def minimal_detectable_difference(found: Iterable[Estimate], *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the true difference that this design finds with probability `power` at the first step of Holm's correction.

    In that step each of m differences is tested at alpha / m, two-sided. The MDD is the smallest D with
    P(|D + SE_true z| > c SE) >= power, where SE and its critical value c at alpha / m vary with the seeds' mean square as
    chi^2_{S-1} / (S-1): the exact form of (t_{1 - alpha/2m} + t_{power}) SE, which falls short of its power with few seeds.

    SE_true^2 and the seeds' part of it are unknown and replaced by their means over the family, so the result is itself an
    estimate. With one difference and 3 seeds, 80% of the estimates are .35 to 1.5 times the design's MDD.

    Args:
        found: the family. One without a standard error is no test and does not count; one with a single seed counts only in
            m where others have more, because its standard error is for new prompts alone.

    Returns:
        The MDD in the metric's units, for the fewest prompts and seeds of the family; NaN for an empty one.
    """
    usable = [one for one in found if np.isfinite(one.se)]
    if not usable:
        return math.nan
    tests, usable = len(usable), [one for one in usable if one.seeds > 1] or usable
    prompts, seeds = min(one.prompts for one in usable), min(one.seeds for one in usable)
    of_seeds = float(np.mean([one.share * one.se**2 for one in usable]))
    of_prompts = float(np.mean([(1 - one.share) * one.se**2 for one in usable]))
    return detectable_difference(of_seeds, of_prompts, prompts, seeds - 1, tests, power=power, alpha=alpha)
