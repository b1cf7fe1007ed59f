"""Verdicts of a comparison: better, worse, equivalent or undecided."""

import math
from collections.abc import Mapping
from typing import Literal

from plo.statistics.comparisons import Comparison

Verdict = Literal["better", "worse", "equivalent", "undecided"]
# Share of alpha: quantiles that join prompts and seeds let through up to 5.4% at 5% (python benchmarks/verdicts.py ranks).
EQUIVALENCE = 0.9


def verdict(
    one: Comparison, *, higher_is_better: bool = True, margin: float | None = None, alpha: float = 0.05
) -> Verdict:
    """Return what a difference from the baseline shows, in one of four words.

    | word             | condition                                                                              |
    |------------------|----------------------------------------------------------------------------------------|
    | better, worse    | p adjusted by Holm < alpha; the metric's direction says which                          |
    | equivalent       | otherwise, `equivalence_p` < .9 alpha: the true difference lies within the margin      |
    | undecided        | otherwise                                                                              |

    A difference that is significant and also lies within the margin is "better" or "worse".

    Args:
        margin: largest difference, in units of the metric, that the experiment declares to be of no account; None: nothing
            is equivalent.
        alpha: level of each decision; with several looks at growing numbers of seeds, the level of this look (`looks`).
    """
    if one.p_holm < alpha:
        return "better" if (one.mean > 0) == higher_is_better else "worse"
    if margin is not None and equivalence_p(one, margin) < EQUIVALENCE * alpha:
        return "equivalent"
    return "undecided"


def verdicts(
    compared: Mapping[str, Comparison],
    *,
    higher_is_better: bool = True,
    margin: float | None = None,
    alpha: float = 0.05,
) -> dict[str, Verdict]:
    """Return the `verdict` of every difference of a family, as `compare` returns it."""
    return {
        name: verdict(one, higher_is_better=higher_is_better, margin=margin, alpha=alpha)
        for name, one in compared.items()
    }


def equivalence_p(one: Comparison, margin: float) -> float:
    """Return p of the hypothesis that a difference lies outside +-margin: the larger of two one-sided tests' p-values.

    Both tests have the difference's own standard error and degrees of freedom. NaN where the difference has no test.

    Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987).
    """
    if math.isnan(one.se):
        return math.nan
    inside = margin - abs(one.mean)
    two_sided = one.two_sided(inside)
    return two_sided / 2 if inside > 0 else 1 - two_sided / 2
