"""Estimate of a plan: seconds, memory, disk, judge calls and money of each unit of work, and of all of them together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from plo.experiment.answers import ANSWERS
from plo.experiment.costs import Costs
from plo.experiment.makespan import Unit, makespan
from plo.experiment.plan import Plan, PlannedCell
from plo.experiment.plan_stages import PlannedStage

SCORE_BYTES = 4  # of a token's weight
CHECKPOINTS = 2  # that a training keeps at a time


@dataclass
class Estimated:
    """Estimate of one unit of work. Numbers that are not known are None, and NaN for money.

    Attributes:
        name: name of the unit.
        row: what it is one of: a variant, a stage, "trials in full".
        kind: "stage", "trial", "cell" or "evaluation".
        needs: names of the units that it waits for.
        look: look of a cell or an evaluation; 0 for the others.
        memory: peak memory in GB.
        disk: bytes that stay on disk.
        sources: {source: seconds that are estimated from it}, where the numbers were measured.
    """

    name: str
    row: str
    kind: str
    needs: tuple[str, ...] = ()
    look: int = 0
    seconds: float | None = 0.0
    memory: float | None = None
    disk: float = 0.0
    calls: int | None = 0
    money: float = 0.0
    sources: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, source: str) -> None:
        """Add seconds that are estimated from a source."""
        self.seconds = (self.seconds or 0.0) + seconds
        self.sources[source] = self.sources.get(source, 0.0) + seconds


@dataclass(frozen=True)
class Total:
    """Estimate of several units together.

    Attributes:
        wall: seconds until all are done by the workers; None if nothing is known.
        device: seconds of all workers together.
        memory: peak memory in GB of one worker.
        disk: bytes on disk, with the checkpoints of running trainings.
        unknown: rows whose seconds are not known, and not counted.
    """

    wall: float | None
    device: float | None
    memory: float | None
    disk: float
    calls: int
    money: float
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """Estimate of what is left of a plan, for a number of workers that share it."""

    plan: Plan
    costs: Costs
    workers: int = 1

    def units(self, cells: Iterable[PlannedCell]) -> list[Estimated]:
        """Return the units that are left up to these cells, in the order in which they run."""
        cells = list(cells)
        trials = list(self._trials())
        before = tuple(trial.name for trial in trials)
        finished = [cell for cell in self.plan.cells if cell.state == "finished"]
        evaluations = [one for cell in finished for one in self._evaluations(cell)]
        trained: list[Estimated] = []
        for cell in cells:
            judged = tuple(one.name for one in evaluations if one.look < cell.look)  # before a further look is taken
            trained.append(self._cell(cell, (*before, *judged)))
            evaluations += self._evaluations(cell)
        stages = {stage.unit: self._stage(stage) for stage in self.plan.waited_for(cells)}
        return [*_each_after_its_needs([*trials, *trained], stages), *evaluations]

    def total(self, units: Sequence[Estimated]) -> Total:
        """Return the estimate of units together."""
        known = [unit for unit in units if unit.seconds is not None]
        start = self.costs.get("start") or 0.0
        wall = device = None
        if known and self.costs.figures:
            wall = makespan([Unit(one.name, one.seconds or 0.0, one.needs) for one in units], self.workers, start)
            device = sum(one.seconds or 0.0 for one in known) + self.workers * start
        if not units:
            wall = device = 0.0
        memory = max((one.memory for one in units if one.memory is not None), default=None)
        running = CHECKPOINTS * self.workers * (self.costs.get("bytes of a checkpoint") or 0.0)
        return Total(
            wall,
            device,
            memory,
            sum(one.disk for one in units) + (running if units else 0.0),
            sum(one.calls or 0 for one in units),
            sum(one.money for one in units),
            tuple(dict.fromkeys(one.row for one in units if one.seconds is None or one.calls is None)),
        )

    def step_seconds(self) -> float:
        """Return the seconds of the longest optimiser step; 0 if they are not known."""
        pairs = {cell.cost: min(cell.batch, self.plan.pairs) for cell in self.plan.cells if cell.cost}
        costs = {cost: self.costs.of_class("training", cost) or 0.0 for cost in pairs}
        return max((costs[cost] * pairs[cost] * self.plan.shape.tokens for cost in pairs), default=0.0)

    def _stage(self, stage: PlannedStage) -> Estimated:
        unit, shape = Estimated(stage.unit, stage.name, "stage", stage.needs), self.plan.shape
        tokens = stage.pairs * shape.tokens
        if stage.steps:
            self._train(unit, stage.cost, stage.steps, stage.batch)
            self._add(unit, "stage", 1.0)
            unit.disk += self.costs.get("bytes of a stage") or self.costs.get("bytes of a model") or 0.0
        elif stage.name == ANSWERS:
            self._add(unit, "evaluation of the reference", stage.pairs)
            unit.calls, unit.money, unit.memory = stage.calls, stage.money, self.costs.get("memory")
        elif stage.name.startswith("scores "):
            self._add(unit, f"scoring {stage.cost}", tokens)
            unit.memory = self.costs.get(f"memory scoring {stage.cost}")
            unit.disk += stage.pairs * shape.responses * SCORE_BYTES
        else:
            self._add(unit, "reference", tokens)
            if stage.name == "drawn pairs":
                self._add(unit, "draw", 1.0)
            kind = "bytes of hidden states" if stage.name == "hidden states" else "bytes of reference"
            unit.disk += (self.costs.get(kind) or 0.0) * shape.responses * stage.pairs
            unit.memory = self.costs.get("memory")
        return unit

    def _trials(self) -> Iterator[Estimated]:
        """Estimate the trials that are left; those of a rung wait for the rung before."""
        tuning = self.plan.tuning
        rungs = {0: "trial of the reference", 1: "trials, first rung", 2: "trials in full"}
        before: dict[int, list[str]] = {rung: [] for rung in rungs}
        for number, trial in enumerate(tuning.left if tuning else ()):
            needs = (*self.plan.trials_need[number], *(name for rung in range(trial.rung) for name in before[rung]))
            unit = Estimated(f"trial {number + 1}", rungs[trial.rung], "trial", needs)
            before[trial.rung].append(unit.name)
            self._measured(unit, trial.cost, trial.steps, trial.batch, 1)
            yield unit

    def _cell(self, cell: PlannedCell, before: tuple[str, ...]) -> Estimated:
        unit = Estimated(cell.name, cell.variant, "cell", (*cell.needs, *before), cell.look)
        points = [max(1, round(point * cell.steps)) for point in self.plan.experiment.points] if cell.steps else [1]
        self._measured(
            unit,
            cell.cost,
            cell.steps - cell.done,
            cell.batch,
            sum(p > cell.done for p in points) * (cell.best_of or 1),
        )
        unit.disk += (self.costs.get("bytes of a model") or 0.0) if cell.steps else 0.0
        return unit

    def _evaluations(self, cell: PlannedCell) -> Iterator[Estimated]:
        config = self.plan.experiment.evaluation
        for one in self.plan.model_evaluations if cell.best_of is None else ():
            if (cell.name, one.name) in self.plan.evaluated:
                continue
            unit = Estimated(f"{one.name} of {cell.name}", one.name, "evaluation", (cell.name,), cell.look)
            unit.calls, unit.money, unit.memory = one.calls, one.money, self.costs.get("memory")
            if one.texts is None:
                self._add(unit, f"evaluating {one.name}", 1.0)
            else:
                self._add(unit, "evaluation of the reference", one.texts * one.tokens / config.max_new_tokens)
            yield unit

    def _measured(self, unit: Estimated, cost: str, steps: int, batch: int, evaluations: int) -> None:
        """Add the training and the evaluations of a cell; without a cost class it is the reference's."""
        evaluated = evaluations * self.plan.shape.samples
        unit.disk += self.costs.get("bytes of a cell") or 0.0
        if not cost:
            unit.memory = self.costs.get("memory")
            self._add(unit, "evaluation of the reference", evaluated)
            return
        self._train(unit, cost, steps, batch)
        self._add(unit, "cell", 1.0)
        self._add(unit, "evaluation", evaluated)
        between = steps // self.plan.experiment.train.checkpoint_every
        self._add(unit, "checkpoint", max(0, between - evaluations))

    def _train(self, unit: Estimated, cost: str, steps: int, batch: int) -> None:
        tokens = steps * min(batch, self.plan.pairs) * self.plan.shape.tokens
        seconds = self.costs.of_class("training", cost)
        if seconds is None or unit.seconds is None:
            unit.seconds = None
        else:
            unit.add(seconds * tokens, self.costs.source("training", cost))
        memories = [self.costs.of_class("memory", cost), self.costs.get("memory")]
        unit.memory = max((memory for memory in memories if memory is not None), default=None)

    def _add(self, unit: Estimated, name: str, amount: float) -> None:
        """Add seconds of a figure; those that do not count need not be known."""
        value = self.costs.get(name)
        if not amount or (value is None and name in ("checkpoint", "draw", "cell", "stage") and self.costs.figures):
            return
        if value is None or unit.seconds is None:
            unit.seconds = None
            return
        unit.add(value * amount, self.costs.figures[name].source)


def _each_after_its_needs(work: Iterable[Estimated], left: dict[str, Estimated]) -> Iterator[Estimated]:
    """Iterate over units, each preceded by the stages that it needs. Those that came are removed from `left`."""
    for unit in work:
        needed = [left.pop(need) for need in unit.needs if need in left]
        yield from _each_after_its_needs(needed, left)
        yield unit
