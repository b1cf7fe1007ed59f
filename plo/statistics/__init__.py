"""Uncertainty of a comparison: intervals for new seeds and new prompts, differences, components of variance, ratings."""

from plo import extras

extras.require("report", "plo.statistics")

from plo.statistics.comparisons import Comparison, compare, compare_pairs, holm
from plo.statistics.components import variance_components
from plo.statistics.differences import Difference, differences, minimal_detectable_difference
from plo.statistics.intervals import Estimate, Spread, critical, estimate, p_value, paired, spread, two_way
from plo.statistics.looks import chance_to_settle, look_levels, settled, stop
from plo.statistics.moderated import Pool, pool
from plo.statistics.ranks import rank_intervals
from plo.statistics.ratings import Ratings, head_to_head, ratings
from plo.statistics.verdicts import Verdict, equivalence_p, verdict, verdicts

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "Pool",
    "Ratings",
    "Spread",
    "Verdict",
    "chance_to_settle",
    "compare",
    "compare_pairs",
    "critical",
    "differences",
    "equivalence_p",
    "estimate",
    "head_to_head",
    "holm",
    "look_levels",
    "minimal_detectable_difference",
    "p_value",
    "paired",
    "pool",
    "rank_intervals",
    "ratings",
    "settled",
    "spread",
    "stop",
    "two_way",
    "variance_components",
    "verdict",
    "verdicts",
]
