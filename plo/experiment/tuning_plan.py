"""Plan of a tuning: how many trials it takes, and which of them are left, without training anything."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from plo.experiment.costs import cost_class
from plo.experiment.keys import Cell, Inputs, other_models, train_settings, training_pairs
from plo.experiment.tuning import Results, first_round, trial_steps, tune
from plo.scorers import Variant


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that is left.

    Attributes:
        variant: the variant as the experiment gives it; None: the reference.
        rung: 0 for the reference, 1 for a trial of a share of the steps, 2 for one in full.
        cost: cost class of its loss; "" for the reference.
        batch: pairs in an optimiser step.
    """

    variant: Variant | None
    rung: int
    steps: int
    cost: str = ""
    batch: int = 0


@dataclass(frozen=True)
class PlannedTuning:
    """Plan of a tuning.

    Attributes:
        trials: number of trials of all losses, and one of the reference.
        left: those that are not recorded, in the order in which they run.
        tried: variants of those that are recorded.
    """

    trials: int
    left: tuple[PlannedTrial, ...]
    tried: tuple[Variant, ...] = ()

    @property
    def finished(self) -> int:
        """Number of trials that are recorded."""
        return self.trials - len(self.left)

    @property
    def steps(self) -> int:
        """Number of optimiser steps that are left."""
        return sum(trial.steps for trial in self.left)


class _Missing(Exception):
    """Trials are missing, so that the next ones are not known yet."""


def plan_tuning(inputs: Inputs, variants: Sequence[Variant], results: Results) -> tuple[PlannedTuning, list[Variant]]:
    """Return the plan of a tuning, and its variants: as it chose them where all trials are recorded, else as given.

    Args:
        inputs: settings and data of the tuning.
        results: recorded trials by the keys of their cells.
    """
    asked: list[Cell] = []

    def run(_: Any, cells: list[Cell]) -> dict[str, str]:
        known = {cell.key for cell in asked}
        asked.extend(cell for cell in cells if cell.key not in known)
        if any(cell.key not in results for cell in cells):
            raise _Missing
        return {}

    chosen = list(variants)
    if inputs.model_identity and not any(other_models(inputs.experiment, one) for one in variants):
        with suppress(_Missing):
            chosen = [one.variant for one in tune(inputs, variants, run, lambda: results)]
    trials = _trials(inputs, variants)
    # Trials are asked for in the order of `trials`, as far as they are known.
    recorded = [cell.key in results for cell in asked] + [False] * (len(trials) - len(asked))
    left = [trial for trial, known in zip(trials, recorded, strict=False) if not known]
    done = [
        trial.variant for trial, known in zip(trials, recorded, strict=False) if known and trial.variant is not None
    ]
    return PlannedTuning(len(trials), tuple(left), tuple(dict.fromkeys(done))), chosen


def _trials(inputs: Inputs, variants: Sequence[Variant]) -> list[PlannedTrial]:
    """Return all trials of a tuning in the order in which they run."""
    experiment = inputs.experiment
    first, full = list[PlannedTrial](), list[PlannedTrial]()
    for variant in {one.name: one for one in map(first_round, variants)}.values():
        steps = trial_steps(experiment, variant, training_pairs(inputs, variant))
        cost, batch = cost_class(variant.loss), train_settings(experiment, variant).batch_size
        short = experiment.tuning.trials if experiment.tuning and len(steps) > 1 else 0
        first += [PlannedTrial(variant, 1, count, cost, batch) for count in steps[:short]]
        full += [PlannedTrial(variant, 2, count, cost, batch) for count in steps[short:]]
    return [PlannedTrial(None, 0, 0), *first, *full]
