"""Plan of a comparison, made without training anything or loading weights: what is finished, what is left, what waits for what."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from plo import store
from plo.backbone.checkpoints import checkpoints
from plo.backbone.steps import tokens_of
from plo.config import Experiment
from plo.experiment.costs import cost_class
from plo.experiment.keys import Cell, Inputs, cell_key, comparison_folder, other_models, previous_round, training_pairs
from plo.experiment.looks import judge_cells, seeds_in_order
from plo.experiment.plan_evaluations import PlannedEvaluation, plan_evaluations
from plo.experiment.plan_stages import PlannedStage, Stages, State, Work
from plo.experiment.recorded import Recorded, find_recorded
from plo.experiment.runner import trial_results
from plo.experiment.tuning import Result
from plo.experiment.tuning_plan import PlannedTuning, plan_tuning
from plo.scorers import Variant
from plo.tracking import RecordedCell, store_uri


@dataclass(frozen=True)
class PlannedCell:
    """A variant with a seed.

    Attributes:
        steps: steps of the optimiser in the whole training; 0 for the reference.
        done: steps that need not be computed again.
        look: number of seeds at the first look that has it.
        cost: cost class of its loss; "" for the reference.
        batch: pairs in an optimiser step.
        needs: names of the units that it waits for.
        best_of: n of a row best_of_n; None for every other cell.
    """

    variant: str
    seed: int
    state: State
    steps: int
    done: int
    look: int = 0
    cost: str = ""
    batch: int = 0
    needs: tuple[str, ...] = ()
    best_of: int | None = None

    @property
    def name(self) -> str:
        """Name in logs and records, such as "dpo seed 0"."""
        return f"{self.variant} seed {self.seed}"


@dataclass(frozen=True)
class Shape:
    """Sizes of the data and of an evaluation, of which costs are made.

    Attributes:
        tokens: mean number of tokens that a forward pass processes for a training pair.
        responses: mean number of response tokens of a training pair.
        samples: number of samples in an evaluation.
    """

    tokens: float = 0.0
    responses: float = 0.0
    samples: int = 0


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
    model_evaluations: tuple[PlannedEvaluation, ...]  # those of each trained model
    tuning: PlannedTuning | None = None
    stop: str | None = None  # why recorded verdicts need no further seeds
    shape: Shape = Shape()
    evaluated: frozenset[tuple[str, str]] = frozenset()  # (cell, evaluation) that are recorded
    trials_need: tuple[tuple[str, ...], ...] = ()  # units that each trial that is left waits for

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
        cells = list(cells)
        stages = sum(stage.steps for stage in self.waited_for(cells))
        return sum(cell.steps - cell.done for cell in cells) + stages + (self.tuning.steps if self.tuning else 0)

    def waited_for(self, cells: Iterable[PlannedCell]) -> list[PlannedStage]:
        """Return the stages that are not finished and that these cells, or trials, wait for."""
        needed = {need for cell in cells for need in cell.needs} | {
            need for needs in self.trials_need for need in needs
        }
        for stage in reversed(self.stages):
            needed |= set(stage.needs) if stage.unit in needed else set()
        return [stage for stage in self.stages if stage.unit in needed and stage.state != "finished"]


def plan_comparison(experiment: Experiment, known: Recorded | None = None) -> Plan:
    """Return what `compare` would do with an experiment.

    Args:
        known: the experiment with what is recorded of it; default: it is looked up.

    Raises:
        PloError: the comparison would fail before anything is trained.
    """
    known = known or find_recorded(experiment)
    inputs, variants, attempts = known.inputs, known.variants, known.cells
    tuning, results = None, dict[str, Result]()
    if known.tracker is not None and known.comparison is not None:
        results = trial_results(known.tracker, known.comparison.run_id)
    if known.tuning is not None:
        tuning, variants = plan_tuning(known.tuning, variants, results)
    cells, stop = dict[tuple[Variant | None, int], PlannedCell](), None
    for look in experiment.looks or (len(experiment.seeds),):
        order = seeds_in_order(experiment, variants, look)
        new = {one: replace(_cell(inputs, attempts, *one), look=look) for one in order if one not in cells}
        cells |= new
        if experiment.looks and all(cell.state == "finished" for cell in cells.values()):
            keys = {cell_key(inputs, *one) for one in cells}
            if stop := judge_cells(experiment, [one for one in attempts if one.key in keys]).stop:
                break
    chosen = [
        replace(_cell(inputs, attempts, None, seed, n), look=cell.look, best_of=n)
        for (one, seed), cell in cells.items()
        for n in experiment.best_of
        if one is None and seed in experiment.seeds
    ]
    trained = {(one, seed) for (one, seed), cell in cells.items() if one is not None and cell.state == "finished"}
    of_trials = list[Work]()
    if tuning is not None and experiment.tuning is not None:
        of_trials = [(trial.variant, experiment.tuning.seed) for trial in tuning.left]
        trained |= {(one, experiment.tuning.seed) for one in tuning.tried}
    stages = Stages(inputs, known.tracker, trained)
    needs = stages.needed_by([*of_trials, *cells])
    return Plan(
        experiment=experiment,
        data=str(inputs.data.summary()),
        pairs=len(inputs.data.train),
        store=known.tracker.uri if known.tracker is not None else store_uri(experiment.store),
        comparison=known.comparison.run_id if known.comparison is not None else None,
        cells=tuple(
            _waiting(cell, cells.values())
            for cell in (
                *(replace(cell, needs=(*needs[one], *_earlier(*one))) for one, cell in cells.items()),
                *chosen,
            )
        ),
        stages=stages.all(),
        evaluations=inputs.suite,
        model_evaluations=plan_evaluations(
            inputs.model_evaluations, experiment.evaluation, inputs.data.eval, len(experiment.points)
        ),
        tuning=tuning,
        stop=stop,
        shape=_shape(inputs),
        evaluated=_evaluated(inputs, attempts),
        trials_need=tuple(needs[work] for work in of_trials),
    )


def _cell(
    inputs: Inputs, attempts: list[RecordedCell], variant: Variant | None, seed: int, best_of: int | None = None
) -> PlannedCell:
    known = inputs.model_identity and not other_models(inputs.experiment, variant)
    cell = Cell(variant, seed, cell_key(inputs, variant, seed, best_of) if known else "", best_of=best_of)
    steps = cell.steps(inputs.experiment, training_pairs(inputs, variant))
    batch = cell.train(inputs.experiment).batch_size
    cost = cost_class(variant.loss) if variant is not None else ""
    alike = [one for one in attempts if one.key == cell.key] if known else [a for a in attempts if a.name == cell.name]
    if any(one.status == "FINISHED" for one in alike):
        return PlannedCell(cell.label, seed, "finished", steps, steps, 0, cost, batch)
    saved = checkpoints(cell.folder(comparison_folder(inputs))) if known else ()
    done = next((step for step, path in saved if store.is_sealed(path)), 0)
    return PlannedCell(cell.label, seed, "resumes" if done else "to do", steps, done, 0, cost, batch)


def _earlier(variant: Variant | None, seed: int) -> tuple[str, ...]:
    """Return the name of the cell of the round before, whose model a cell samples and starts from."""
    later = variant is not None and variant.origin.round > 1
    return (f"{previous_round(variant).name} seed {seed}",) if variant is not None and later else ()


def _waiting(cell: PlannedCell, cells: Iterable[PlannedCell]) -> PlannedCell:
    """Return the cell with the reference of its seed, whose samples it needs, and the cells of the looks before its own."""
    own = [
        one.name for one in cells if one.look < cell.look or (cell.steps and not one.steps and one.seed == cell.seed)
    ]
    return replace(cell, needs=(*cell.needs, *own))


def _shape(inputs: Inputs) -> Shape:
    pairs, config = inputs.data.train, inputs.experiment.evaluation
    prompts = min(config.prompts, len({pair.prompt for pair in inputs.data.eval}))
    return Shape(
        tokens=fmean(tokens_of(pair, inputs.experiment.model.packed) for pair in pairs),
        responses=fmean(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs),
        samples=prompts * config.samples,
    )


def _evaluated(inputs: Inputs, attempts: list[RecordedCell]) -> frozenset[tuple[str, str]]:
    """Return (cell, evaluation) of the evaluations of models that are recorded with the options of the experiment."""
    found: list[tuple[str, str]] = []
    for evaluation in inputs.model_evaluations:
        options: dict[str, Any] = {name: str(value) for name, value in evaluation.changed.items()}
        for cell in attempts:
            if any(
                finding.evaluation == evaluation.entry.name and options.items() <= finding.params.items()
                for finding in cell.findings
            ):
                found.append((cell.name, evaluation.name))
    return frozenset(found)
