"""Evaluations of a policy, one file per suite. Importing this package registers the built-in ones."""

from plo import extras

extras.require("train", "plo.evals")

from plo.evals import (  # noqa: F401  (registers them)
    alpaca,
    arena_hard,
    avg_at_k,
    credit,
    diversity,
    harness,
    mt_bench,
    pocket,
    reward_bench,
    sentiment,
    win_rate_curve,
    win_rates,
)
from plo.evals.findings import Findings
from plo.evals.model_level import ModelEvaluation, get_model_evaluation
from plo.evals.registry import (
    EVALUATIONS,
    EvaluationError,
    EvaluationFacts,
    describe_metric,
    describe_metrics,
    register_evaluation,
)
from plo.evals.sample_level import SampleResults, evaluate
from plo.subjects import Subject

__all__ = [
    "EVALUATIONS",
    "EvaluationError",
    "EvaluationFacts",
    "Findings",
    "ModelEvaluation",
    "SampleResults",
    "Subject",
    "describe_metric",
    "describe_metrics",
    "evaluate",
    "get_model_evaluation",
    "register_evaluation",
]
