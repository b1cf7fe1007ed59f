"""Plan of a comparison, made without training anything or loading weights. `plo compare --dry-run` prints it.

Keys depend on the weights. The plan takes those of the recorded comparison, and is right if the model still has them.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

from plo import store
from plo.backbone.checkpoints import checkpoints
from plo.backbone.head import ModelError
from plo.backbone.pretrained import pretrained_tokenizer
from plo.backbone.steps import tokens_of
from plo.config import Experiment
from plo.experiment.keys import Cell, Inputs, cell_key, comparison_folder, comparison_key, optimiser_steps, other_models
from plo.experiment.preflight import check_columns, checked_variants
from plo.experiment.stages import stage_pairs, stage_params, stage_settings
from plo.experiment.workbench import read_data, sft_stage, suites
from plo.faults import reason
from plo.scorers import Stage, Variant
from plo.tracking import Comparison, NothingRecorded, RecordedCell, Tracker, store_uri

State = Literal["finished", "resumes", "to do"]


@dataclass(frozen=True)
class PlannedCell:
    """One variant with one seed."""

    variant: str
    seed: int
    state: State
    steps: int  # of the optimiser, in the whole training; 0 for the reference
    done: int  # steps that need not be computed again


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
    """Plan of a comparison: what it would do, without doing it. Cells and stages are in the order in which they run."""

    experiment: Experiment  # with the value of every setting
    data: str  # summary of the data source
    pairs: int
    store: str  # MLflow URI
    comparison: str | None  # run id of the recorded comparison that would continue
    cells: tuple[PlannedCell, ...]
    stages: tuple[PlannedStage, ...]
    evaluations: tuple[str, ...]  # names of those at every point of training
    model_evaluations: tuple[str, ...]  # names of those of each trained model
    training_seconds: float | None  # estimate for the cells to do, at the speed of recorded ones

    @property
    def steps(self) -> int:
        """Number of optimiser steps to do, including those of stages."""
        cells = sum(cell.steps - cell.done for cell in self.cells)
        return cells + sum(stage.steps for stage in self.stages if stage.state != "finished")


def plan_comparison(experiment: Experiment) -> Plan:
    """Return what `compare` would do with an experiment.

    Raises:
        PloError: the comparison would fail before anything is trained.
    """
    variants, trained = checked_variants(experiment)
    names, of_models = suites(experiment)
    try:
        tokenizer, generation = pretrained_tokenizer(experiment.model.name)
    except (OSError, ValueError) as error:
        raise ModelError(f"The model {experiment.model.name!r} cannot be found: {reason(error)}.") from error
    data = read_data(experiment, tokenizer, generation)
    check_columns(trained, data.train)
    inputs = Inputs(experiment, tokenizer, data, names, of_models, model_identity="")
    address, recorded, tracker = _recorded(inputs)
    if recorded is not None:
        inputs = replace(inputs, model_identity=recorded.tags["plo.model"])
    attempts = recorded.cells() if recorded is not None else []
    cells = [_cell(inputs, attempts, variant, seed) for seed in experiment.seeds for variant in (None, *variants)]
    stages = _stages(inputs, variants, tracker)
    return Plan(
        experiment=experiment,
        data=str(data.summary()),
        pairs=len(data.train),
        store=address,
        comparison=recorded.run_id if recorded is not None else None,
        cells=tuple(cells),
        stages=tuple(stages),
        evaluations=names,
        model_evaluations=tuple(evaluation.name for evaluation in of_models),
        training_seconds=_seconds(inputs, cells, attempts),
    )


def _recorded(inputs: Inputs) -> tuple[str, Comparison | None, Tracker | None]:
    """Return the store's URI, and the newest recorded comparison that is equal to the experiment except for weights."""
    experiment = inputs.experiment
    try:
        tracker = Tracker(experiment.store, "plo", create=False)
    except NothingRecorded:
        return store_uri(experiment.store), None, None
    for comparison in reversed(tracker.comparisons()):
        alike = replace(inputs, model_identity=comparison.tags.get("plo.model", ""))
        if comparison.name == experiment.name and comparison.key == comparison_key(alike):
            return tracker.uri, comparison, tracker
    return tracker.uri, None, tracker


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


def _seconds(inputs: Inputs, cells: list[PlannedCell], attempts: list[RecordedCell]) -> float | None:
    """Estimate the seconds of the training that is left, at the mean speed of the recorded cells."""
    speeds = [speed for one in attempts if (speed := one.metrics.get("tokens_per_second"))]
    if not speeds:
        return None
    experiment, pairs = inputs.experiment, inputs.data.train
    tokens = sum(tokens_of(pair, experiment.model.packed) for pair in pairs) / len(pairs)
    steps = sum(cell.steps - cell.done for cell in cells)
    return steps * experiment.train.batch_size * tokens / (sum(speeds) / len(speeds))
