"""A session is one process's access to a comparison: losses, model, data and store, each opened once."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from plo import distributed
from plo.config import ConfigError, Experiment
from plo.environment import circumstances, environment, hub_revision
from plo.errors import one_line
from plo.evals.judges import JudgeSession
from plo.experiment.answers import check_oracle
from plo.experiment.evaluations import evaluate_cells, judging_of
from plo.experiment.keys import (
    Cell,
    best_of_cells,
    best_of_label,
    cell_key,
    cell_keys,
    comparison_key,
    previous_round,
    training_pairs,
)
from plo.experiment.looks import seeds_in_order
from plo.experiment.plugins import DIGESTS, digests
from plo.experiment.preflight import check_source_columns, checked_variants
from plo.experiment.progress import Progress
from plo.experiment.rounds import Previous, with_pairs
from plo.experiment.runner import Advance, Runner
from plo.experiment.scores import token_weights
from plo.experiment.tuning import for_trials
from plo.experiment.units import Kind, Outcome, Unit, fatal_fault
from plo.experiment.workbench import Workbench, draws_anew, has_own_sft, prepare, workbench
from plo.identity import sha256
from plo.interrupt import check
from plo.origin import Origin
from plo.paths import content_digest
from plo.scorers import Variant
from plo.scorers.space import at_point
from plo.tracking import EXPERIMENT, MADE_WITH, Tracker, made_with_file, plugin_file, unrecorded

NO_FILE = "# There is no file: the settings were given on the command line.\n"
log = logging.getLogger(__name__)


@dataclass
class Session:
    """An experiment, opened by a process that does units of its comparison.

    Attributes:
        variants: as the experiment has them, before tuning.
        bench: what all cells share; with tuning, with the held-out prompts of the test.
        tuning: the same for trials; None without tuning.
        parent: run id of the comparison.
        engine: name of what runs the cells.
    """

    experiment: Experiment
    variants: Sequence[Variant]
    bench: Workbench
    tuning: Workbench | None
    tracker: Tracker
    parent: str = ""
    engine: str = "local"
    progress: Progress = field(default_factory=Progress)
    _prepared: bool = False
    _of_seed: dict[tuple[int, int], Workbench] = field(default_factory=dict)  # the last one

    @classmethod
    def open(cls, experiment: Experiment, progress: Progress | None = None, *, patient: bool = False) -> "Session":
        """Check the experiment, load its model and data, and open its store. Nothing is trained or recorded yet.

        Args:
            patient: whether to wait for a server that does not answer; if not, it is an error.

        Raises:
            ConfigError: the experiment cannot be run as it is written.
        """
        variants, _ = checked_variants(experiment)
        bench = workbench(experiment, progress)
        check_source_columns(variants, bench.data.train)
        if any(variant.origin.round for variant in variants):
            check_oracle(experiment)
        tracker = distributed.on_main(
            lambda: Tracker(experiment.store, "plo", patient=patient), share=False
        ) or unrecorded(Tracker)
        tuning = None
        if experiment.tuning:
            tuning_data, test_data = bench.data.split_for_tuning()
            tuning, bench = for_trials(replace(bench, data=tuning_data)), replace(bench, data=test_data)
        return cls(experiment, variants, bench, tuning, tracker, progress=progress or Progress())

    @cached_property
    def key(self) -> str:
        """Key of the comparison."""
        return comparison_key(self.bench)

    @cached_property
    def tags(self) -> dict[str, str]:
        """Tags of every run: data, model, environment."""
        own = {"plo.data": self.bench.data.digest, "plo.model": self.bench.model_identity}
        return own | {MADE_WITH: self.made_with[0], **environment()}

    @cached_property
    def made_with(self) -> tuple[str, str]:
        """Hash and JSON text of what this process computes with: packages, hardware, model and data."""
        backbone, data, name = self.bench.backbone, self.bench.data, self.experiment.model.name
        facts = circumstances() | {
            "engine": self.engine,
            "processes": distributed.processes(),
            "model": {
                "name": name,
                "revision": hub_revision(name),
                "weights": backbone.base.identity,
                "dtype": str(backbone.compute_dtype or backbone.causal_lm.dtype),
                "device": backbone.device.type,
                "attention": backbone.attention,
                "packed": backbone.packed,
            },
            "data": {
                "source": self.experiment.data.source,
                "revision": hub_revision(self.experiment.data.source, "dataset"),
                **data.fingerprints,
                "digest": data.digest,
                "stats": data.stats,
            },
        }
        return sha256(facts)[:16], json.dumps(facts)

    @cached_property
    def judging(self) -> JudgeSession | None:
        """Judge of the evaluations, with one budget for this process."""
        return judging_of(self.experiment.evaluation)

    def begin(self, units: Sequence[Unit]) -> None:
        """Record the comparison, and the units that are planned."""
        plugged = digests(self.experiment.plugins)
        settings = self.experiment.model_dump(mode="json") | ({DIGESTS: plugged} if plugged else {})
        cells = {unit.key: unit.name for unit in units if unit.kind == "cell"}
        planned = {unit.key: unit.to_dict() for unit in units}
        first, about = not self.parent, (self.experiment.name, self.key, settings, self.tags, cells, planned)
        self.join(distributed.on_main(lambda: self.tracker.comparison(*about)))
        if first:
            self.tracker.data_input(self.parent, self.experiment.data.source, self.bench.data.digest)
            self.tracker.keep(self.parent, EXPERIMENT, self.experiment.text or NO_FILE, anew=True)
            for plugin in map(Path.expanduser, self.experiment.plugins):
                self.tracker.keep(self.parent, plugin_file(content_digest(plugin)), plugin.read_text("utf-8"))

    def recorded(self) -> str | None:
        """Return the run id of the comparison if it is recorded."""
        return next((one.run_id for one in self.tracker.comparisons() if one.key == self.key), None)

    def join(self, parent: str) -> None:
        """Do units of a comparison that is recorded."""
        self.parent = parent
        digest, facts = self.made_with
        distributed.on_main(lambda: self.tracker.keep(parent, made_with_file(digest), facts), share=False)
        stages = self.bench.stages
        stages.record = lambda key, name, params: self.tracker.start_stage(parent, key, name, self.tags, params)

    def cells(self, variants: Sequence[Variant], look: int, origins: Mapping[str, Cell] | None = None) -> list[Cell]:
        """Return the cells of variants at a look, in the order in which they run.

        Args:
            origins: by the names of tuned variants, a cell with `given` and `point`.
        """
        found, key = [], cell_keys(self.bench)
        for variant, seed in seeds_in_order(self.experiment, variants, look):
            cell = Cell(variant, seed, key(variant, seed), variant.name if variant else "")
            origin = (origins or {}).get(cell.label)
            found.append(replace(cell, given=origin.given, point=origin.point) if origin else cell)
        return found + best_of_cells(self.bench, self.experiment.seeds[:look])

    def units(
        self,
        cells: Iterable[Cell],
        *,
        trial: bool = False,
        tuning: Mapping[str, Mapping[str, Any]] | None = None,
        stages: bool = False,
    ) -> list[Unit]:
        """Return the units of cells, and of what they need.

        Args:
            trial: whether the cells are trials of the tuning.
            tuning: records of the tuning, by the names of tuned variants.
            stages: whether stages are units of their own; if not, the first cell that needs one makes it.
        """
        cells = list(cells)
        kind: Kind = "trial" if trial else "cell"
        references = {cell.seed: cell.key for cell in cells if cell.is_reference}
        found: dict[str, Unit] = {}
        for cell in cells:
            needs = [references[cell.seed]] if not cell.is_reference and cell.seed in references else []
            if cell.variant is not None and cell.variant.origin.round > 1:
                needs.append(cell_key(self.bench, previous_round(cell.variant), cell.seed))
            if stages and cell.variant is not None and (unit := self._stages_of(cell)) is not None:
                found.setdefault(unit.key, unit)
                needs.append(unit.key)
            record = (tuning or {}).get(cell.label)
            found[cell.key] = Unit(kind, cell.key, cell.name, cell.given, cell.seed, cell.point, tuple(needs), record)
        if self.bench.model_evaluations and not trial and distributed.processes() == 1:
            for cell in cells:
                if cell.best_of is not None:  # no model writes its samples
                    continue
                own = found[cell.key]
                found[f"evaluations {cell.key}"] = replace(
                    own, kind="evaluations", key=f"evaluations {cell.key}", name=f"evaluations of {cell.name}",
                    needs=(cell.key,),
                )  # fmt: skip
        return list(found.values())

    def unit(self, key: str) -> Unit:
        """Return the unit with this key, or with a key that begins so, or with this name.

        Raises:
            ConfigError: the comparison has no such unit, or several.
        """
        planned = {key: Unit.from_dict(values) for key, values in self.tracker.planned_units(self.parent).items()}
        if self.tuning is None:
            looks = self.experiment.looks or (len(self.experiment.seeds),)
            planned |= {unit.key: unit for unit in self.units(self.cells(self.variants, looks[-1]), stages=True)}
        fitting = [unit for unit in planned.values() if unit.key.startswith(key) or unit.name == key]
        if len(fitting) != 1:
            names = ", ".join(unit.name for unit in (fitting or planned.values()))
            raise ConfigError(
                f"{key} is the key of {'several units' if fitting else 'no unit'} of {self.experiment.name}: name one of {names}."
            )
        return fitting[0]

    def attempt(self, unit: Unit, advance: Advance = lambda units, steps=0: None) -> Outcome:
        """Do a unit, unless it is finished or another process is doing it. An error of the unit is a failed outcome."""
        if unit.kind == "evaluations":
            return self._evaluate(unit)
        self._prepare()
        bench = self._bench(unit)
        cell = self._cell(unit, bench)
        if unit.kind == "stages":
            return self._make_stages(cell, unit.name)
        runner = Runner(self.tracker, self.parent, self.tags)
        pairs = partial(self.with_pairs, bench, cell)
        return runner.attempt(bench, pairs, cell, advance, unit.tuning, unit.kind == "trial")

    def is_free(self, unit: Unit) -> bool:
        """Return whether no living process is doing a cell or trial. The attempt of a lost process is closed.

        The process that waits decides it, as it looks every few seconds; a worker may look once.
        """
        return self.tracker.is_free(self.parent, unit.kind, unit.key)

    def work(self, unit: Unit) -> tuple[int, int]:
        """Return the units of progress and the optimiser steps of a cell or trial."""
        bench = self._bench(unit)
        cell = self._cell(unit, bench)
        pairs = training_pairs(bench, cell.variant)
        return cell.units(bench.experiment, pairs), cell.steps(bench.experiment, pairs)

    def _bench(self, unit: Unit) -> Workbench:
        bench = self.tuning if unit.kind == "trial" else self.bench
        assert bench is not None, "only experiments with tuning have trials"
        return bench

    def _cell(self, unit: Unit, bench: Workbench) -> Cell:
        chosen = next((n for n in self.experiment.best_of if best_of_label(n) == unit.variant), None)
        given = next((one for one in self.variants if one.name == unit.variant), None)
        if given is None and unit.variant and chosen is None:
            raise ConfigError(f"{unit.name}: the experiment {self.experiment.name} has no variant {unit.variant}.")
        variant = at_point(given, unit.point) if given is not None and unit.point else given
        key = cell_key(bench, variant, unit.seed, chosen)
        cell = Cell(variant, unit.seed, key, unit.variant, unit.point, chosen)
        if unit.kind != "stages" and cell.key != unit.key:
            raise ConfigError(
                f"{unit.name} has another key here, {cell.key[:12]} instead of {unit.key[:12]}: the code of plo or of a plug-in, "
                f"the weights of the model or the data differ from those of the process that planned it. Make them equal."
            )
        return cell

    def _seed(self, bench: Workbench, seed: int) -> Workbench:
        """Return the workbench of a seed; the last one is kept, as units come seed by seed."""
        if (id(bench), seed) not in self._of_seed:
            self._of_seed = {(id(bench), seed): bench.of_seed(seed)}
        return self._of_seed[id(bench), seed]

    def with_pairs(self, bench: Workbench, cell: Cell) -> AbstractContextManager[Workbench]:
        """Enter the workbench of a cell, with its training pairs; what is missing is sampled first."""
        self._prepare()
        return with_pairs(self._seed(bench, cell.seed), cell, partial(self._previous, cell))

    def _previous(self, cell: Cell) -> Previous:
        """Return the finished cell of the round before, whose model a cell samples and starts from."""
        assert cell.variant is not None, "the reference has no rounds"
        before = previous_round(cell.variant)
        key = cell_key(self.bench, before, cell.seed)

        def find() -> Previous | str:
            found = self.tracker.comparisons(self.key)[0].cell(key)
            if found is None:
                return "is not finished"
            return Previous(found.name, found.model(), int(found.metrics["oracle_queries"]))

        found = distributed.on_main(find)
        if isinstance(found, str):
            raise ConfigError(f"{cell.name} starts from the model of {before.name} seed {cell.seed}, which {found}.")
        return found

    def _prepare(self) -> None:
        if not self._prepared:
            prepare(self.bench, self.progress, training=any(not one.origin.round for one in self.variants))
            self._prepared = True

    def _stages_of(self, cell: Cell) -> Unit | None:
        """Return the unit of what a cell needs trained or scored first; None if it needs nothing."""
        scorer, origin = cell.scorer(self.experiment), cell.variant.origin if cell.variant is not None else Origin()
        if origin.round > 1 or (scorer is None and not origin.round and not has_own_sft(self.experiment)):
            return None  # what a later round needs is of its model alone
        own = draws_anew(self.experiment) or not self.experiment.share_stages or (scorer is not None and scorer.seeded)
        what = f"token weights {scorer.name}" if scorer is not None else "answers" if origin.round else "sft"
        of_pairs = origin if scorer is not None else replace(origin, flip=0.0)  # noise is a view of the answers
        what += "".join(f" {name}={value}" for name, value in of_pairs.settings.items())
        seed = cell.seed if own else self.experiment.seeds[0]
        source = [scorer.source if scorer is not None else "sft"]
        source += [of_pairs.settings] if of_pairs.settings else []
        key = sha256(["stages", self.key, *source, seed if own else "all"])
        name = f"{what}, seed {seed}" if own else what
        return Unit("stages", key, name, cell.given, seed, cell.point)

    def _make_stages(self, cell: Cell, name: str) -> Outcome:
        try:
            with self.with_pairs(self.bench, cell) as bench:
                if scorer := cell.scorer(self.experiment):
                    token_weights(bench.stages, scorer, cell.seed)
        except Exception as error:
            check()  # a library may have replaced an interruption
            if fatal_fault(error):
                raise
            log.exception("failed %s", name)
            return Outcome("failed", one_line(error))
        return Outcome("done")

    def _evaluate(self, unit: Unit) -> Outcome:
        cell = self.tracker.comparisons(self.key)[0].cell(unit.needs[0])
        if cell is None:
            return Outcome("failed", "its cell is not finished")
        failed = evaluate_cells(self.bench, [cell], self.tracker, self.parent, self.judging, self._prepare)
        self._of_seed.clear()  # the model may start from the SFT of another seed now
        return Outcome("failed", "; ".join(failed.values()), failures=failed) if failed else Outcome("done")


def run_unit(experiment: Experiment, key: str, progress: Progress | None = None) -> Outcome:
    """Do one unit of an experiment's comparison, which is recorded if it is not yet; see `Session.unit` for `key`."""
    session = Session.open(experiment, progress)
    recorded = session.recorded()
    if recorded is None:
        looks = experiment.looks or (len(experiment.seeds),)
        session.begin([] if session.tuning else session.units(session.cells(session.variants, looks[0])))
    else:
        session.join(recorded)
    return session.attempt(session.unit(key))
