"""Evaluations of sampled continuations: one file a suite. Importing this registers the built-in ones."""

from plo.evals import diversity, sentiment, win_rates  # noqa: F401  (registers them)
from plo.evals.evaluation import (
    EVALUATIONS,
    Evaluation,
    EvaluationError,
    OnModel,
    evaluate,
    on_model,
    register_evaluation,
)
from plo.evals.statistics import Difference, Spread, paired_difference, spread
from plo.evals.subject import Findings, Subject

__all__ = [
    "EVALUATIONS",
    "Difference",
    "Evaluation",
    "EvaluationError",
    "Findings",
    "OnModel",
    "Spread",
    "Subject",
    "evaluate",
    "on_model",
    "paired_difference",
    "register_evaluation",
    "spread",
]
