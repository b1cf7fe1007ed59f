"""Plan of a comparison, made without training anything or loading weights. `plo compare --dry-run` prints it."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from plo import store
from plo.backbone.checkpoints import checkpoints
from plo.backbone.steps import tokens_of
from plo.config import Experiment
from plo.experiment.keys import Cell, Inputs, cell_key, comparison_folder, optimiser_steps, other_models, train_settings
from plo.experiment.looks import judge_cells, seeds_in_order
from plo.experiment.recorded import Recorded, find_recorded
from plo.experiment.runner import trial_results
from plo.experiment.stages import stage_pairs, stage_params, stage_settings
from plo.experiment.tuning import Result
from plo.experiment.tuning_plan import Pace, PlannedTuning, plan_tuning
from plo.experiment.workbench import sft_stage
from plo.scorers import Stage, Variant
from plo.tracking import RecordedCell, Run, Tracker, store_uri

State = Literal["finished", "resumes", "to do"]


@dataclass(frozen=True)
class PlannedCell:
    """A variant with a seed."""

    variant: str
    seed: int
    state: State
    steps: int  # of the optimiser, in the whole training; 0 for the reference
    done: int  # steps that need not be computed again
    look: int = 0  # number of seeds at the first look that has it
    seconds: float | None = None  # estimate for what is left of it


@dataclass(frozen=True)
class PlannedStage:
    """A training or a scoring that cells wait for."""

    name: str  # as recorded: "sft", "oracle" or "scores NAME"
    variants: tuple[str, ...]  # that need it
    steps: int  # of the optimiser; 0 for a scoring
    pairs: int
    state: State


@dataclass(frozen=True)
class Plan:
    """Plan of a comparison: what it would do, without doing it. Cells and stages are in the order in which they run.

    With looks the cells are those of all looks, or of those up to the one at which recorded verdicts ended the comparison.
    """

    experiment: Experiment  # with the value of every setting
    data: str  # summary of the data source
    pairs: int
    store: str  # MLflow URI
    comparison: str | None  # run id of the recorded comparison that would continue
    cells: tuple[PlannedCell, ...]
    stages: tuple[PlannedStage, ...]
    evaluations: tuple[str, ...]  # names of those at every point of training
    model_evaluations: tuple[str, ...]  # names of those of each trained model
    tuning: PlannedTuning | None = None
    stop: str | None = None  # why recorded verdicts need no further seeds

    @property
    def left(self) -> list[PlannedCell]:
        """Cells that are not finished."""
        return [cell for cell in self.cells if cell.state != "finished"]

    @property
    def least(self) -> list[PlannedCell]:
        """Cells that are not finished and belong to the next look, after which the comparison may end."""
        return [cell for cell in self.left if cell.look == self.left[0].look]

    def steps(self, cells: Iterable[PlannedCell]) -> int:
        """Return the number of optimiser steps to do for cells, including those of stages and of the tuning."""
        stages = sum(stage.steps for stage in self.stages if stage.state != "finished")
        return sum(cell.steps - cell.done for cell in cells) + stages + (self.tuning.steps if self.tuning else 0)

    def seconds(self, cells: Iterable[PlannedCell]) -> float | None:
        """Estimate the seconds of cells and of the tuning, at the speed of recorded ones; None if none is recorded."""
        parts = [cell.seconds for cell in cells] + ([self.tuning.seconds] if self.tuning else [])
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None


def plan_comparison(experiment: Experiment) -> Plan:
    """Return what `compare` would do with an experiment.

    Raises:
        PloError: the comparison would fail before anything is trained.
    """
    known = find_recorded(experiment)
    inputs, variants, attempts = known.inputs, known.variants, known.cells
    pace, tuning, results = _pace(known), None, dict[str, Result]()
    if known.tracker is not None and known.comparison is not None:
        results = trial_results(known.tracker, known.comparison.run_id)
    if known.tuning is not None:
        tuning, variants = plan_tuning(known.tuning, variants, results, pace)
    cells, stop = dict[tuple[Variant | None, int], PlannedCell](), None
    for look in experiment.looks or (len(experiment.seeds),):
        order = seeds_in_order(experiment, variants, look)
        new = {one: _cell(inputs, attempts, *one) for one in order if one not in cells}
        cells |= {
            one: replace(cell, look=look, seconds=_seconds(inputs, one[0], cell, pace)) for one, cell in new.items()
        }
        if experiment.looks and all(cell.state == "finished" for cell in cells.values()):
            keys = {cell_key(inputs, *one) for one in cells}
            if stop := judge_cells(experiment, [one for one in attempts if one.key in keys]).stop:
                break
    return Plan(
        experiment=experiment,
        data=str(inputs.data.summary()),
        pairs=len(inputs.data.train),
        store=known.tracker.uri if known.tracker is not None else store_uri(experiment.store),
        comparison=known.comparison.run_id if known.comparison is not None else None,
        cells=tuple(cells.values()),
        stages=tuple(_stages(inputs, variants, known.tracker)),
        evaluations=inputs.suite,
        model_evaluations=tuple(evaluation.name for evaluation in inputs.model_evaluations),
        tuning=tuning,
        stop=stop,
    )


def _cell(inputs: Inputs, attempts: list[RecordedCell], variant: Variant | None, seed: int) -> PlannedCell:
    known = inputs.model_identity and not other_models(variant)
    cell = Cell(variant, seed, cell_key(inputs, variant, seed) if known else "")
    steps = cell.steps(inputs.experiment, len(inputs.data.train))
    alike = [one for one in attempts if one.key == cell.key] if known else [a for a in attempts if a.name == cell.name]
    if any(one.status == "FINISHED" for one in alike):
        return PlannedCell(cell.label, seed, "finished", steps, steps)
    saved = checkpoints(cell.folder(comparison_folder(inputs))) if known else ()
    done = next((step for step, path in saved if store.is_sealed(path)), 0)
    state: State = "resumes" if done else "to do"
    return PlannedCell(cell.label, seed, state, steps, done)


def _stages(inputs: Inputs, variants: list[Variant], tracker: Tracker | None) -> list[PlannedStage]:
    """Return the stages in the order in which they run, each with the variants that need it."""
    experiment, pairs = inputs.experiment, len(inputs.data.train)
    needed: list[tuple[str, str, Stage | None, dict[str, Any]]] = []  # variant, name and parameters of the recorded run
    if "sft" in experiment.stages:
        for seed in experiment.seeds:
            first = sft_stage(experiment, seed)
            needed += [(variant.name, "sft", first, stage_params(experiment.train, first)) for variant in variants]
    for variant, seed in itertools.product(variants, experiment.seeds):
        for scorer in _with_inner(Cell(variant, seed, "").scorer(experiment)):
            for label, stage in scorer.stages.items():
                needed.append((variant.name, label, stage, stage_params(experiment.train, stage)))
            params = {"scorer": scorer.name, "seed": seed if scorer.seeded else "all", "pairs": pairs}
            needed.append((variant.name, f"scores {scorer.name}", None, params))
    made = tracker.stages() if tracker is not None else []
    planned: dict[str, PlannedStage] = {}
    for variant_name, name, stage, params in needed:
        texts = {key: str(value) for key, value in params.items()}
        key = f"{name} {sorted(texts.items())}"
        known = planned.get(key) or _stage(inputs, made, name, stage, texts)
        planned[key] = replace(known, variants=tuple(dict.fromkeys([*known.variants, variant_name])))
    return list(planned.values())


def _with_inner(scorer: Any) -> list[Any]:
    """Return a scorer, preceded by the scorers inside it."""
    return [*_with_inner(scorer.inner), scorer] if scorer is not None else []


def _stage(
    inputs: Inputs, made: list[dict[str, Any]], name: str, stage: Stage | None, params: dict[str, str]
) -> PlannedStage:
    ours = {"plo.data": inputs.data.digest, "plo.model": inputs.model_identity}
    finished = any(
        run["name"] == name
        and run["status"] == "FINISHED"
        and params.items() <= run["params"].items()
        and ours.items() <= run["tags"].items()
        for run in made
    )
    pairs, steps = len(inputs.data.train), 0
    if stage is not None:
        pairs = stage_pairs(stage, pairs)
        steps = optimiser_steps(stage_settings(inputs.experiment.train, stage), pairs)
    return PlannedStage(name, (), steps, pairs, "finished" if finished else "to do")


def _seconds(inputs: Inputs, variant: Variant | None, cell: PlannedCell, pace: Pace) -> float | None:
    """Estimate the seconds of what is left of a cell."""
    if cell.state == "finished":
        return 0.0
    pairs = (cell.steps - cell.done) * train_settings(inputs.experiment, variant).batch_size
    return pace(pairs, len(inputs.experiment.points) if variant is not None else 1)


def _pace(known: Recorded) -> Pace:
    """Return a function that estimates seconds from those of recorded cells and trials.

    A reference takes as long as one evaluation of samples; the speed of a training is recorded with each cell.
    """
    runs: list[RecordedCell | Run] = [cell for cell in known.cells if cell.status == "FINISHED"]
    if known.tracker is not None and known.comparison is not None:
        runs += known.tracker.trials(known.comparison.run_id).values()
    speeds = [speed for one in runs if (speed := one.metrics.get("tokens_per_second"))]
    references = [one for one in runs if one.tags.get("plo.variant") == "reference"]
    evaluations = [float(one.tags["plo.seconds"]) for one in references if "plo.seconds" in one.tags]
    pairs = known.inputs.data.train
    tokens = sum(tokens_of(pair, known.inputs.experiment.model.packed) for pair in pairs) / len(pairs)

    def pace(pairs: int, evaluations_left: int) -> float | None:
        if not speeds:
            return None
        return pairs * tokens / fmean(speeds) + evaluations_left * (fmean(evaluations) if evaluations else 0.0)

    return pace
