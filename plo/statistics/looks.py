"""Looks at a comparison while its number of seeds grows: the level of each look, and when to stop."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from scipy import stats

from plo.statistics.comparisons import Comparison
from plo.statistics.intervals import StatisticsError, critical
from plo.statistics.verdicts import EQUIVALENCE, Verdict

SHARES: dict[tuple[int, ...], tuple[float, ...]] = {(3, 5, 8): (0.2, 0.3, 0.5)}


def look_levels(looks: Sequence[int], alpha: float = 0.05) -> dict[int, float]:
    """Return the level of each look; they add up to alpha, so errors over all looks hold whatever their dependence.

    Looks at 3, 5 and 8 seeds have .2, .3 and .5 of alpha: .010, .015, .025. Others have shares in proportion to their
    numbers of seeds.

    Args:
        looks: numbers of seeds, increasing.

    Raises:
        StatisticsError: the numbers do not increase from at least 1, or there are none.
    """
    if not looks or looks[0] < 1 or any(b <= a for a, b in pairwise(looks)):
        raise StatisticsError(f"Looks are increasing numbers of seeds, such as 3, 5, 8; these are {list(looks)}.")
    shares = SHARES.get(tuple(looks)) or [seeds / sum(looks) for seeds in looks]
    return {seeds: alpha * share for seeds, share in zip(looks, shares, strict=True)}


def settled(earlier: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Return the verdicts after another look: what an earlier look has settled stays, the others are those of now."""
    return {
        name: word if earlier.get(name, "undecided") == "undecided" else earlier[name] for name, word in now.items()
    }


def chance_to_settle(one: Comparison, seeds: int, level: float, margin: float | None = None) -> float:
    """Return the predicted probability that a look at a later number of seeds settles a difference.

    More seeds shrink the seeds' part of the variance, the prompts' part remains. Given the difference d after n seeds, that
    after N is predicted as N(d, se^2 share (1 - n / N)); it is settled if it is significant at `level` (no correction for
    other rows, so the probability is an upper one) or lies within the margin by two one-sided tests.

    Args:
        seeds: N, of the later look.
        level: that look's level.
    """
    if math.isnan(one.se) or one.seeds < 2:
        return 1.0  # unknown: a further look may show it
    part = one.se**2 * one.share
    moves = math.sqrt(part * (1 - one.seeds / seeds))
    later = math.sqrt(max(one.se**2 - moves**2, 1e-300))
    share = min(part * one.seeds / seeds / later**2, 1.0)
    degrees = 1 + one.degrees * (seeds - 1) / (one.seeds - 1)
    two_sided, one_sided = (
        later * float(critical(tail, share, max(one.prompts, 2), degrees)) for tail in (level, 2 * EQUIVALENCE * level)
    )
    inside = -1.0 if margin is None else margin - one_sided
    drawn = stats.norm(one.mean, max(moves, 1e-300))
    significant = float(drawn.sf(two_sided) + drawn.cdf(-two_sided))
    equivalent = float(drawn.cdf(min(inside, two_sided)) - drawn.cdf(-min(inside, two_sided))) if inside > 0 else 0.0
    return significant + equivalent


Reason = Literal["settled", "futile", "last"]


def stop(
    compared: Mapping[str, Comparison],
    verdicts: Mapping[str, Verdict],
    looks: Sequence[int],
    look: int,
    *,
    margin: float | None = None,
    chance: float = 0.05,
) -> Reason | None:
    """Return why no further seeds are needed after a look, or None if the next look should be taken.

    | reason  | condition                                                                                       |
    |---------|-------------------------------------------------------------------------------------------------|
    | settled | every row is better, worse or equivalent                                                        |
    | last    | this was the last look                                                                          |
    | futile  | for no undecided row does any later look settle it with more than the probability `chance`      |

    Stopping early because it is futile never adds a wrong verdict.

    Args:
        compared: the differences at this look.
        verdicts: the words after this look, with those of earlier looks kept (`settled`).
        looks: all numbers of seeds, as for `look_levels`; `look` is the one just taken.

    Raises:
        StatisticsError: `look` is not among `looks`.
    """
    levels = look_levels(looks)
    if look not in levels:
        raise StatisticsError(f"{look} seeds are not among the looks {list(looks)}.")
    open_rows = [compared[name] for name, word in verdicts.items() if word == "undecided"]
    if not open_rows:
        return "settled"
    later = [(seeds, level) for seeds, level in levels.items() if seeds > look]
    if not later:
        return "last"
    hopeful = any(chance_to_settle(one, *then, margin) > chance for one in open_rows for then in later)
    return None if hopeful else "futile"
