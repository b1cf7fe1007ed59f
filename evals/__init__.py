"""Evaluations of sampled continuations: one file a suite. Importing this registers the built-in ones."""

from plo.evals import alpaca, diversity, harness, sentiment, win_rates  # noqa: F401  (registers them)
from plo.evals.evaluation import (
    EVALUATIONS,
    EvaluationError,
    ModelEvaluation,
    SampleResults,
    describe_metric,
    describe_metrics,
    evaluate,
    get_model_evaluation,
    register_evaluation,
)
from plo.evals.findings import Findings
from plo.subjects import Subject

__all__ = [
    "EVALUATIONS",
    "EvaluationError",
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
