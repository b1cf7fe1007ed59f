"""Mathematics of tuning: points of a search space, the choice among trials, and what stands beside a tuned score."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats import qmc

from plo.statistics.intervals import Array, Estimate, StatisticsError

DIMENSIONS = 8  # always drawn, so that a loss with one knob and one with five have the same first coordinate
Space = Mapping[str, tuple[float, float]]


class Optimism(NamedTuple):
    """Score on the tuning prompts minus score on the test prompts, with a 95% interval."""

    difference: float
    low: float
    high: float


def search_points(space: Space, trials: int = 8, seed: int = 0) -> list[dict[str, float]]:
    """Return trials spread evenly over a search space, on logarithmic scales.

        value_i = low_i (high_i / low_i)^u_i,    u the points of a scrambled Sobol sequence in [0, 1)^8

    The coordinates depend on `trials` and `seed` alone: the i-th hyper-parameter of every loss has the same u_i, so name the
    one they share (the learning rate) first. The first n of 2^k points are those of a search of n trials.

    Args:
        space: name of each hyper-parameter with its least and greatest value, both positive; at most 8.

    Raises:
        StatisticsError: a range is not positive and increasing, or there are too many hyper-parameters or no trials.

    Source: Owen (1995) for the scrambling; `scipy.stats.qmc.Sobol`.
    """
    wrong = [name for name, (low, high) in space.items() if not 0 < low <= high < math.inf]
    if wrong or len(space) > DIMENSIONS or trials < 1:
        raise StatisticsError(
            f"A search needs at least 1 trial and 1 to {DIMENSIONS} ranges with 0 < low <= high; this has {trials} trials and "
            f"{len(space)} ranges" + (f", of which {', '.join(wrong)} is not one." if wrong else ".")
        )
    drawn = qmc.Sobol(DIMENSIONS, rng=np.random.default_rng(seed)).random_base2(math.ceil(math.log2(trials)))
    return [
        {name: low * (high / low) ** float(u) for (name, (low, high)), u in zip(space.items(), point, strict=False)}
        for point in drawn[:trials]
    ]


def select_trial(trials: pd.DataFrame, most_kl: float | None = None) -> Hashable | None:
    """Return the label of the trial to use: the least KL among those within one standard error of the best utility.

    Trials with a KL above `most_kl`, and diverged ones (utility or KL not finite), are never selected. None: no trial is left.

    Args:
        trials: a row per trial with the columns utility (higher is better), se (its standard error; NaN counts as 0) and kl.
    """
    finite = np.isfinite(trials[["utility", "kl"]].to_numpy(dtype=float)).all(axis=1)
    within = trials["kl"].to_numpy(dtype=float) <= (math.inf if most_kl is None else most_kl)
    allowed = trials.iloc[np.flatnonzero(finite & within)]
    if allowed.empty:
        return None
    utility, se = allowed["utility"].to_numpy(dtype=float), allowed["se"].to_numpy(dtype=float)
    best = int(utility.argmax())
    near = utility >= utility[best] - (0.0 if math.isnan(se[best]) else se[best])
    kl = np.where(near, allowed["kl"].to_numpy(dtype=float), math.inf)
    labels: list[Hashable] = allowed.index.tolist()
    return labels[int(np.lexsort((-utility, kl))[0])]


def expected_best(utilities: Sequence[float], diverged: float | None = None) -> Array:
    """Return the expected best utility of n trials drawn with replacement from N trials, for n = 1 to N.

        E_n = sum_i v_(i) [(i / N)^n - ((i - 1) / N)^n],    v_(1) <= ... <= v_(N) the sorted utilities

    Args:
        utilities: of all trials; NaN for one that diverged.
        diverged: utility of a trial that diverged; None: that of the worst other one.

    Returns:
        (N,), NaN if all trials diverged and `diverged` is None.

    Source: Dodge et al., Show your work (2019), https://arxiv.org/abs/1909.03004.
    """
    v = np.asarray(utilities, dtype=float)
    worst = v[np.isfinite(v)].min(initial=math.inf) if diverged is None else diverged
    v = np.sort(np.where(np.isfinite(v), v, worst if math.isfinite(worst) else math.nan))
    place = np.arange(len(v) + 1) / len(v)
    powers = place ** np.arange(1, len(v) + 1)[:, None]
    return np.diff(powers, axis=1) @ v


def optimism(score: float, se: float, test: Estimate) -> Optimism:
    """Return how much better a tuned variant looks on the prompts it was selected on than on others.

        (score - test) +- 1.96 sqrt(se^2 + se_test^2),    as prompts are disjoint and seeds fresh

    Args:
        score: of the chosen trial; `se` its standard error over prompts. It has one seed, so the interval lacks that part.
        test: mean on the other prompts; where it has no standard error the interval is NaN.
    """
    half = stats.norm.isf(0.025) * math.hypot(se, test.se)
    return Optimism(score - test.mean, score - test.mean - half, score - test.mean + half)


def robustness(utilities: Sequence[float], baseline: float) -> float:
    """Return the share of trials with more utility than the tuned baseline; a diverged trial (NaN) has not."""
    return float((np.asarray(utilities, dtype=float) > baseline).mean())


def edges(space: Space, winner: Mapping[str, float], trials: int = 8) -> list[str]:
    """Return the hyper-parameters in which the winner lies at the border of its range.

    Of N trials, the winner is at the border if its coordinate u on the logarithmic scale is in the first or last N-th of
    the range. Sobol points have one trial in each N-th (N a power of 2), so no other trial lies further out, and the
    optimum may lie outside. A winner that is any trial by chance has this in a hyper-parameter with probability 2 / N.
    """
    found: list[str] = []
    for name, (low, high) in space.items():
        u = math.log(winner[name] / low) / math.log(high / low) if high > low else 0.5
        if u < 1 / trials or u >= 1 - 1 / trials:
            found.append(name)
    return found
