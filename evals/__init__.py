"""Evaluations of sampled continuations: one file a suite. Importing this registers the built-in ones."""

from plo.evals import diversity, sentiment  # noqa: F401  (registers them)
from plo.evals.evaluation import EVALUATIONS, Evaluation, EvaluationError, evaluate, register_evaluation
from plo.evals.statistics import Difference, Spread, paired_difference, spread

__all__ = [
    "EVALUATIONS",
    "Difference",
    "Evaluation",
    "EvaluationError",
    "Spread",
    "evaluate",
    "paired_difference",
    "register_evaluation",
    "spread",
]
