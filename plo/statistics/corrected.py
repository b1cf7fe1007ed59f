"""Win rates of a judge corrected by a few human labels: a rate of what people prefer, with an interval."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from plo.statistics.intervals import Array, StatisticsError


@dataclass(frozen=True)
class Corrected:
    """A rate of wins as people would give it.

    Attributes:
        judged: the judge's rate over all items.
        rate: the corrected rate, in [0, 1].
        low, high: its interval.
        labels: number of human labels behind it.
        method: "prediction-powered" or "Rogan-Gladen".
    """

    judged: float
    rate: float
    low: float
    high: float
    labels: int
    method: str


def prediction_powered(judged: Array, own_judged: Array, human: Array, *, level: float = 0.95) -> Corrected:
    """Return the rate of human wins from n items with a human label and N with the judge's verdict alone.

        theta = lambda mean(f) + mean(y - lambda f'),    SE^2 = lambda^2 var(f) / N + var(y - lambda f') / n

    f are the judge's wins on the unlabelled items, f' and y those of the judge and of people on the labelled ones, and
    lambda = cov(y, f') / ((1 + n/N) var(f')), between 0 and 1: 0 for a judge that knows nothing, whose verdicts then do not
    count. It is right whatever the judge's errors are, if the labelled items are a random part of all. The interval is
    Student's with n - 1 degrees of freedom. It is too short where people's labels hold fewer than ten wins, or losses.

    Args:
        judged: f, [N], the judge's wins on the items without a label.
        own_judged, human: f' and y, [n], wins of the judge and of people on the items with one.

    Raises:
        StatisticsError: there are fewer than two labels.

    Source: Angelopoulos, Duchi, Zrnic, PPI++: Efficient prediction-powered inference (arXiv:2311.01453), example 6.1.
    """
    n, others = len(human), len(judged)
    if n < 2:
        raise StatisticsError(f"A corrected rate needs 2 labels at least, and there are {n}: label more pairs.")
    everything = np.concatenate([judged, own_judged])
    weight, spread = 0.0, float(everything.var(ddof=1))
    if others > 1 and spread > 0:
        covariance = float(np.cov(human, own_judged)[0, 1])
        weight = min(max(covariance / ((1 + n / others) * spread), 0.0), 1.0)
    rest = human - weight * own_judged
    variance = float(rest.var(ddof=1)) / n + (weight**2 * float(judged.var(ddof=1)) / others if weight else 0.0)
    rate = float(rest.mean()) + (weight * float(judged.mean()) if weight else 0.0)
    half = math.sqrt(variance) * float(stats.t.isf((1 - level) / 2, n - 1))
    return _clipped(float(everything.mean()), (rate, rate - half, rate + half), n, "prediction-powered")


def rogan_gladen(judged: float, items: int, wins: Array, losses: Array, *, level: float = 0.95) -> Corrected:
    """Return the rate of human wins from the judge's rate p over n items, and how it errs on pairs that people labelled.

        theta = (p + q0 - 1) / (q0 + q1 - 1),    q1, q0 the judge's accuracy on pairs that people call a win and a loss

    The labelled pairs may be of other models: only q0 and q1 must be the same there. The interval is that of the paper: with
    z the normal quantile, p~ = (n p + z^2 / 2) / (n + z^2), q~ = (m q + 1) / (m + 2), and theta~ of these,

        theta~ + 2 z^2 (theta~ q1~ (1 - q1~) / m1~ - (1 - theta~) q0~ (1 - q0~) / m0~)  +-  z SE,
        SE^2 = (p~ (1 - p~) / n~ + (1 - theta~)^2 q0~ (1 - q0~) / m0~ + theta~^2 q1~ (1 - q1~) / m1~) / (q0~ + q1~ - 1)^2.

    Args:
        judged: p.
        wins, losses: the judge's wins, 1, 1/2 or 0, on the pairs that people call a win, and a loss.

    Raises:
        StatisticsError: there is no win or no loss among the labels, or the judge is no better than chance on them.

    Source: Rogan and Gladen, Am. J. Epidemiol. 107 (1978); Lee et al., How to correctly report LLM-as-a-judge evaluations
    (arXiv:2511.21140).
    """
    if not len(wins) or not len(losses):
        raise StatisticsError(
            "The labels need wins and losses: without both the judge's errors on one of them are not known."
        )
    q1, q0 = float(np.mean(wins)), 1 - float(np.mean(losses))
    m1, m0 = len(wins), len(losses)
    z = float(stats.norm.isf((1 - level) / 2))
    p_, n_ = (items * judged + z**2 / 2) / (items + z**2), items + z**2
    q1_, q0_, m1_, m0_ = (m1 * q1 + 1) / (m1 + 2), (m0 * q0 + 1) / (m0 + 2), m1 + 2, m0 + 2
    if q0 + q1 <= 1 or q0_ + q1_ <= 1:
        raise StatisticsError(
            f"On the labelled pairs the judge agrees with people on {q1:.0%} of the wins and {q0:.0%} of the losses, no more "
            f"than by chance: its rate cannot be corrected. Ask another judge."
        )
    theta, v1, v0 = (p_ + q0_ - 1) / (q0_ + q1_ - 1), q1_ * (1 - q1_) / m1_, q0_ * (1 - q0_) / m0_
    se = math.sqrt(p_ * (1 - p_) / n_ + (1 - theta) ** 2 * v0 + theta**2 * v1) / (q0_ + q1_ - 1)
    shift = 2 * z**2 * (theta * v1 - (1 - theta) * v0)
    rate = (judged + q0 - 1) / (q0 + q1 - 1)
    return _clipped(judged, (rate, theta + shift - z * se, theta + shift + z * se), m0 + m1, "Rogan-Gladen")


def with_draws(found: Corrected, share: float, items: int, *, level: float = 0.95) -> Corrected:
    """Return the rate over all items, of which a share are draws that nobody needs to judge, from the rate of the others.

        theta' = s / 2 + (1 - s) theta,    h'^2 = ((1 - s) h)^2 + z^2 (theta - 1/2)^2 s (1 - s) / n

    h is the distance of an end of the interval from theta; the second term is the sampling error of s.

    Args:
        found: the rate of the items that are no draws.
        share: s.
        items: n, the number of all items.
    """
    z = float(stats.norm.isf((1 - level) / 2))
    of_share = z**2 * (found.rate - 0.5) ** 2 * share * (1 - share) / items

    def whole(rate: float) -> float:
        return share / 2 + (1 - share) * rate

    low, high = (math.sqrt(((1 - share) * (end - found.rate)) ** 2 + of_share) for end in (found.low, found.high))
    rate = whole(found.rate)
    return replace(found, judged=whole(found.judged), rate=rate, low=max(rate - low, 0.0), high=min(rate + high, 1.0))


def _clipped(judged: float, found: tuple[float, float, float], labels: int, method: str) -> Corrected:
    """Return a rate and its interval, cut to [0, 1]."""
    rate, low, high = (min(max(value, 0.0), 1.0) for value in found)
    return Corrected(judged, rate, low, high, labels, method)
