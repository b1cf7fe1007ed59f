"""Uncertainty of a comparison: intervals for new seeds and new prompts, differences, components of variance, ratings."""

from plo import extras

extras.require("report", "plo.statistics")

from plo.statistics.components import variance_components
from plo.statistics.differences import Difference, differences, holm, minimal_detectable_difference
from plo.statistics.intervals import Estimate, Spread, critical, estimate, p_value, paired, spread, two_way
from plo.statistics.ratings import Ratings, head_to_head, ratings

__all__ = [
    "Difference",
    "Estimate",
    "Ratings",
    "Spread",
    "critical",
    "differences",
    "estimate",
    "head_to_head",
    "holm",
    "minimal_detectable_difference",
    "p_value",
    "paired",
    "ratings",
    "spread",
    "two_way",
    "variance_components",
]
