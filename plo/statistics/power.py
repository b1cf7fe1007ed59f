"""Power of a comparison before it is run: the smallest difference a design detects, and the cheapest design for a wanted one."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from plo.statistics.comparisons import Comparison
from plo.statistics.intervals import Array, StatisticsError, critical
from plo.statistics.moderated import LEAST_ROWS, MOST

NEEDED = ("loss x seed", "loss x prompt", "residual")


@dataclass(frozen=True)
class Design:
    """A design of a comparison: its size, its minimal detectable difference and its cost."""

    seeds: int
    prompts: int
    samples: int
    detectable: float
    cost: float


def detectable_difference(
    of_seeds: float,
    of_prompts: float,
    prompts: int,
    degrees: float,
    tests: int,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """Return the true difference that a test finds with probability `power` at the first step of Holm's correction.

    In that step each of m differences is tested at alpha / m, two-sided. The result is the smallest D with
    P(|D + SE_true z| > c SE) >= power, where SE and its critical value c at alpha / m vary with the seeds' variance as
    chi^2_df / df.

    Args:
        of_seeds, of_prompts: the two parts of the variance of a difference, SE_true^2 = of_seeds + of_prompts.
        degrees: df of the seeds' part; 0: there is one seed, whose part does not vary.
        tests: m.
    """
    true = math.sqrt(of_seeds + of_prompts)
    levels = (np.arange(400) + 0.5) / 400
    drawn: Array = of_seeds * (stats.chi2.ppf(levels, degrees) / degrees if degrees > 0 else np.ones(400))
    variance = np.maximum(drawn + of_prompts, 1e-300)
    threshold = critical(alpha / tests, drawn / variance, prompts, degrees + 1) * np.sqrt(variance)

    def lacking(difference: float) -> float:
        found = stats.norm.sf(threshold, difference, true) + stats.norm.cdf(-threshold, difference, true)
        return power - float(np.mean(found))

    return float(optimize.brentq(lacking, 0, threshold.max() + 10 * true))


def family_detectable(compared: Iterable[Comparison], *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the minimal detectable difference of a family of comparisons, from their standard errors.

    See `detectable_difference`. The parts of the variance and the degrees of freedom are medians over the family, so that one
    noisy variant does not make the design look weaker for the others. It describes the design and decides nothing.

    Args:
        compared: the results of `compare`; those without a test do not count.

    Returns:
        The difference in the metric's units; NaN for a family without tests.
    """
    tests = [one for one in compared if np.isfinite(one.se)]
    if not tests:
        return math.nan
    of_seeds = float(np.median([one.share * one.se**2 for one in tests]))
    of_prompts = float(np.median([(1 - one.share) * one.se**2 for one in tests]))
    degrees = float(np.median([0.0 if math.isnan(one.degrees) else one.degrees for one in tests]))
    prompts = max(2, int(np.median([one.prompts for one in tests])))
    return detectable_difference(of_seeds, of_prompts, prompts, degrees, len(tests), power=power, alpha=alpha)


def design_detectable(
    components: Mapping[str, float],
    *,
    rows: int,
    seeds: int,
    prompts: int,
    samples: int = 1,
    measured_samples: int = 1,
    d0: float = math.inf,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """Return the minimal detectable difference of a design, from components of variance.

    A difference of two rows over S seeds, P prompts and K samples per prompt has the variance

        2 [ls / S + lp / P + (text + sample / K) / (P S)],

    ls and lp the components "loss x seed" and "loss x prompt". The degrees of freedom of its seeds' part are those of
    `compare_pairs`, S - 1 with fewer than 5 rows.

    Args:
        components: the result of `variance_components`, optionally with "sample" (`sample_variance`). Then the residual is
            text + sample / measured_samples. Without it, more samples are assumed not to help.
        rows: number of rows with the baseline: all others are tested against it.
        measured_samples: number of samples of each prompt behind the components.
        d0: as in `Pool`; inf: all rows have the same seed variance.

    Raises:
        StatisticsError: a component is missing or NaN, or the design has fewer than 2 rows, seeds or prompts.
    """
    if missing := [name for name in NEEDED if math.isnan(components.get(name, math.nan))]:
        raise StatisticsError(
            f"The components of variance lack {', '.join(missing)}. They need at least 2 losses, 2 seeds and 2 prompts."
        )
    if min(rows, seeds, prompts) < 2 or samples < 1:
        raise StatisticsError(
            f"A design needs 2 rows, seeds and prompts; this has {rows} rows, {seeds} seeds, {prompts} prompts, {samples} samples."
        )
    residual, sample = components["residual"], components.get("sample", 0.0)
    noise = (max(residual - sample / measured_samples, 0.0) + sample / samples) / prompts
    own = components["loss x seed"] + noise
    rho = components["loss x seed"] / own if own > 0 else 1.0
    degrees = seeds - 1.0
    if rows >= LEAST_ROWS:
        degrees = min(min(d0, MOST / max(rho, 1e-9) ** 2) + seeds - 1, (rows - 1 - rho) * (seeds - 1))
    of_prompts = 2 * components["loss x prompt"] / prompts
    return detectable_difference(2 * own / seeds, of_prompts, prompts, degrees, rows - 1, power=power, alpha=alpha)


def cheapest_design(
    components: Mapping[str, float],
    wanted: float,
    *,
    rows: int,
    cell_cost: float,
    sample_cost: float,
    seeds: Iterable[int] = range(2, 17),
    samples: Iterable[int] = (1, 2, 4, 8),
    most_prompts: int = 2000,
    measured_samples: int = 1,
    d0: float = math.inf,
    power: float = 0.8,
    alpha: float = 0.05,
) -> Design:
    """Return the cheapest design whose minimal detectable difference is at most `wanted`.

    The cost of S seeds, P prompts and K samples is rows * S * (cell_cost + P K sample_cost). All numbers of seeds and of
    samples are tried; for each the fewest prompts that suffice are found by bisection.

    Args:
        components, rows, measured_samples, d0, power, alpha: as for `design_detectable`.
        cell_cost: cost of a cell (a variant and a seed) before its evaluation, in any unit.
        sample_cost: cost of one sample of one prompt, drawn and scored, in the same unit.

    Raises:
        StatisticsError: no design within the limits detects so little; the message names the least difference that one does.
    """
    best: Design | None = None
    least = math.inf
    for s in seeds:
        for k in samples:

            def detectable(prompts: int, s: int = s, k: int = k) -> float:
                return design_detectable(
                    components,
                    rows=rows,
                    seeds=s,
                    prompts=prompts,
                    samples=k,
                    measured_samples=measured_samples,
                    d0=d0,
                    power=power,
                    alpha=alpha,
                )

            least = min(least, smallest := detectable(most_prompts))
            if smallest > wanted:
                continue
            low, high = 1, most_prompts
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if detectable(middle) <= wanted else (middle, high)
            cost = rows * s * (cell_cost + high * k * sample_cost)
            if best is None or cost < best.cost:
                best = Design(s, high, k, detectable(high), cost)
    if best is None:
        raise StatisticsError(
            f"No design with at most {most_prompts} prompts detects a difference of {wanted:g}; the least is {least:.3g}. Allow "
            f"more seeds or prompts, or want less."
        )
    return best


def sample_variance(frame: pd.DataFrame, value: str = "value") -> float:
    """Return the variance between samples of the same loss, seed and prompt, pooled over all of them; NaN without repetition.

    Args:
        frame: one row per sample, with columns loss, seed, prompt and `value`.
    """
    groups = frame.groupby(["loss", "seed", "prompt"])[value]
    free = len(frame) - groups.ngroups
    squares = float(((frame[value] - groups.transform("mean")) ** 2).sum())
    return squares / free if free else math.nan
