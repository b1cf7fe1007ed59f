"""Plan of a tuning: how many trials it takes, and how many of them are recorded, without training anything."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from plo.experiment.keys import Cell, Inputs, other_models, train_settings
from plo.experiment.tuning import Results, trial_steps, tune
from plo.scorers import Variant

Pace = Callable[[int, int], float | None]


@dataclass(frozen=True)
class PlannedTuning:
    """Plan of a tuning.

    Attributes:
        trials: number of trials of all losses, and one of the reference.
        finished: number of those that are recorded.
        steps: number of optimiser steps that are left.
        seconds: estimate for what is left; None if no speed is known.
    """

    trials: int
    finished: int
    steps: int
    seconds: float | None = None


class _Missing(Exception):
    """Trials are missing, so that the next ones are not known yet."""


def plan_tuning(
    inputs: Inputs,
    variants: Sequence[Variant],
    results: Results,
    pace: Pace = lambda pairs, evaluations: None,
) -> tuple[PlannedTuning, list[Variant]]:
    """Return the plan of a tuning, and its variants: as it chose them where all trials are recorded, else as given.

    Args:
        inputs: settings and data of the tuning.
        results: recorded trials by the keys of their cells.
        pace: estimates the seconds of a training on a number of pairs, and of a number of evaluations.
    """
    experiment, pairs = inputs.experiment, len(inputs.data.train)
    asked: dict[str, Cell] = {}

    def run(_: Any, cells: list[Cell]) -> dict[str, str]:
        asked.update({cell.key: cell for cell in cells})
        if any(cell.key not in results for cell in cells):
            raise _Missing
        return {}

    chosen = list(variants)
    if inputs.model_identity and not any(other_models(variant) for variant in variants):
        with suppress(_Missing):
            chosen = [one.variant for one in tune(inputs, variants, run, lambda: results)]
    finished = [cell for key, cell in asked.items() if key in results]
    trials = [(variant, steps) for variant in variants for steps in trial_steps(experiment, variant, pairs)]
    steps = sum(steps for _, steps in trials) - sum(cell.steps(experiment, pairs) for cell in finished)
    passed = sum(steps * train_settings(experiment, variant).batch_size for variant, steps in trials)
    passed -= sum(cell.steps(experiment, pairs) * cell.train(experiment).batch_size for cell in finished)
    count = 1 + len(trials)
    return PlannedTuning(count, len(finished), steps, pace(passed, count - len(finished))), chosen
