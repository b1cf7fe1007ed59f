"""Uncertainty of a comparison: intervals for new seeds and new prompts, differences, verdicts, ranks, power."""

from plo import extras

extras.require("report", "plo.statistics")

from plo.statistics.comparisons import Comparison, compare, compare_pairs, holm
from plo.statistics.components import variance_components
from plo.statistics.corrected import Corrected, prediction_powered, rogan_gladen
from plo.statistics.fixed_length import cut_to_common_length
from plo.statistics.fragility import Fragility, fragility
from plo.statistics.head_to_head import bradley_terry, schedule
from plo.statistics.intervals import Estimate, RunNoise, Spread, critical, estimate, p_value, paired, spread, two_way
from plo.statistics.jackknife import pseudo_values
from plo.statistics.judge_noise import JudgeNoise, judge_noise
from plo.statistics.length import LengthAdjusted, length_adjusted, rate_range
from plo.statistics.looks import chance_to_settle, look_levels, settled, stop
from plo.statistics.matched import reward_at_kl
from plo.statistics.moderated import Pool, pool
from plo.statistics.power import (
    Design,
    cheapest_design,
    design_detectable,
    detectable_difference,
    family_detectable,
    sample_variance,
)
from plo.statistics.ranks import rank_intervals
from plo.statistics.rerun import Rerun, rerun
from plo.statistics.sequential import Judgement, baseline_seeds, judge
from plo.statistics.tuning import Optimism, edges, expected_best, optimism, robustness, search_points, select_trial
from plo.statistics.verdicts import Verdict, equivalence_p, verdict, verdicts

__all__ = [
    "Comparison",
    "Corrected",
    "Design",
    "Estimate",
    "Fragility",
    "JudgeNoise",
    "Judgement",
    "LengthAdjusted",
    "Optimism",
    "Pool",
    "Rerun",
    "RunNoise",
    "Spread",
    "Verdict",
    "baseline_seeds",
    "bradley_terry",
    "chance_to_settle",
    "cheapest_design",
    "compare",
    "compare_pairs",
    "critical",
    "cut_to_common_length",
    "design_detectable",
    "detectable_difference",
    "edges",
    "equivalence_p",
    "estimate",
    "expected_best",
    "family_detectable",
    "fragility",
    "holm",
    "judge",
    "judge_noise",
    "length_adjusted",
    "look_levels",
    "optimism",
    "p_value",
    "paired",
    "pool",
    "prediction_powered",
    "pseudo_values",
    "rank_intervals",
    "rate_range",
    "rerun",
    "reward_at_kl",
    "robustness",
    "rogan_gladen",
    "sample_variance",
    "schedule",
    "search_points",
    "select_trial",
    "settled",
    "spread",
    "stop",
    "two_way",
    "variance_components",
    "verdict",
    "verdicts",
]
