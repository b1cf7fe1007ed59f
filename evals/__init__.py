"""Evaluations of sampled continuations: one file a suite. Importing this registers the built-in ones."""

from plo.evals import alpaca, diversity, harness, sentiment, win_rates  # noqa: F401  (registers them)
from plo.evals.evaluation import (
    EVALUATIONS,
    Evaluation,
    EvaluationError,
    OnModel,
    described,
    evaluate,
    metrics_of,
    on_model,
    register_evaluation,
)
from plo.evals.subject import Findings, Subject

__all__ = [
    "EVALUATIONS",
    "Evaluation",
    "EvaluationError",
    "Findings",
    "OnModel",
    "Subject",
    "described",
    "evaluate",
    "metrics_of",
    "on_model",
    "register_evaluation",
]
