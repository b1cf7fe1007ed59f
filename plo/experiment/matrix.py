"""Comparison of variants x seeds on one model and data set, with `reference` and `sft`. It can be resumed at any time."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from plo import distributed
from plo.config import ConfigError, Experiment
from plo.experiment.answers import check_budget
from plo.experiment.engines import Engine, InProcess, run_units
from plo.experiment.keys import Cell
from plo.experiment.looks import judge_cells
from plo.experiment.progress import Progress
from plo.experiment.runner import trial_results
from plo.experiment.session import Session
from plo.experiment.tuning import Tuned, tune
from plo.experiment.units import Unit
from plo.tracking import RecordedCell, closing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of a comparison.

    Attributes:
        parent: run id of its parent run.
        failed: errors of failed cells by their names.
        tuned: the variants with the settings that tuning chose; empty without tuning.
    """

    parent: str
    failed: dict[str, str]
    tuned: Sequence[Tuned] = ()


def compare(
    experiment: Experiment,
    progress: Progress | None = None,
    *,
    only_tuning: bool = False,
    engine: Engine | None = None,
) -> Outcome:
    """Run and record every cell of a comparison that is not finished. A failing cell does not stop the others.

    Calling it again skips finished cells and resumes interrupted ones from their last checkpoint. Several calls at once, on
    one machine or on many, share the cells of one store. In a launch of several processes, only the main one records.

    Args:
        only_tuning: stop after the tuning; a later call goes on from there.
        engine: runs the cells in processes (`plo.experiment.engines.get_engine`); None runs them in this one.

    Raises:
        ConfigError: the experiment cannot be run as it is written.
        TuningError: a trial failed, so no settings were chosen.
    """
    if only_tuning and not experiment.tuning:
        raise ConfigError("tuning: the experiment has none; add `tuning: {trials: 8}` to it, or give tuning.trials=8.")
    distributed.start()
    engine, progress = engine or InProcess(), progress or Progress()
    distributed.on_main(lambda: experiment.out.mkdir(parents=True, exist_ok=True))  # fails before anything is computed
    session = Session.open(experiment, progress)
    session.engine = engine.name
    bench, tracker, variants = session.bench, session.tracker, session.variants
    if engine.several and any(variant.origin.round for variant in variants):
        check_budget(experiment)
    looks, tuned, origins = experiment.looks or (len(experiment.seeds),), list[Tuned](), dict[str, Cell]()
    if bench.model_evaluations and distributed.processes() > 1:
        names = ", ".join(evaluation.name for evaluation in bench.model_evaluations)
        log.info("%s: to be run afterwards in one process: plo eval %s --suite ...", names, experiment.name)
    session.begin([] if session.tuning else session.units(session.cells(variants, looks[0])))

    def run(_: object, cells: Sequence[Cell]) -> dict[str, str]:
        return _run(engine, session, session.units(cells, trial=True, stages=engine.several), progress)

    interrupted = True
    try:
        with closing(tracker, session.parent) as failed:
            if session.tuning is not None:
                results = partial(distributed.on_main, lambda: trial_results(tracker, session.parent))
                tuned = tune(session.tuning, variants, run, results)
                variants = [one.variant for one in tuned]
                origins = {one.variant.name: Cell(None, 0, "", one.given.name, one.record["point"]) for one in tuned}
            records = {one.variant.name: one.record for one in tuned}
            for look in () if only_tuning else looks:
                cells = session.cells(variants, look, origins)
                units = session.units(cells, tuning=records, stages=engine.several)
                session.begin(units)
                failed |= _run(engine, session, units, progress)
                if experiment.looks:
                    judged = distributed.on_main(partial(_finished, session, cells), share=False) or []
                    if distributed.on_main(partial(_look, experiment, cells, judged, look)):
                        break
        interrupted = False
    finally:
        engine.close(interrupted)
    return Outcome(session.parent, failed, tuned)


def _run(engine: Engine, session: Session, units: Sequence[Unit], progress: Progress) -> dict[str, str]:
    """Run the units that are not finished, with a bar for cells and trials, and return the errors of failed ones."""
    cells = [unit for unit in units if unit.kind in ("cell", "trial")]
    tracker, kinds = session.tracker, {unit.kind for unit in cells}
    finished = distributed.on_main(lambda: [key for kind in kinds for key in tracker.finished(session.parent, kind)])
    todo = {unit.name: session.work(unit) for unit in cells if unit.key not in finished}
    if len(todo) < len(cells) and "cell" in kinds:
        log.info("%d of %d cells are finished already.", len(cells) - len(todo), len(cells))
    config = session.experiment.evaluation
    budget = engine.several and (config.judge_calls or config.judge_money)
    apart = [unit for unit in units if unit.kind == "evaluations"] if budget else []  # one budget is of one process
    with progress.cells(todo) as bar:
        failed = run_units(engine, session, [unit for unit in units if unit not in apart], finished, bar)
        return failed | run_units(InProcess(), session, apart, finished, bar)


def _finished(session: Session, cells: Sequence[Cell]) -> list[RecordedCell]:
    """Return the recorded cells among `cells` that are finished."""
    keys = {cell.key for cell in cells}
    recorded = session.tracker.comparisons(session.key)[0].cells()
    return [cell for cell in recorded if cell.key in keys and cell.status == "FINISHED"]


def _look(experiment: Experiment, cells: Sequence[Cell], finished: Sequence[RecordedCell], look: int) -> str | None:
    """Judge the cells of a look, and return why no further seeds are needed; None if the next look is to be taken.

    Rows with failed cells are left behind. If no cell of the baseline is finished, nothing can be judged.
    """
    done = {cell.key for cell in finished}
    ended = {cell.variant.name for cell in cells if cell.variant is not None and cell.key not in done}
    if ended and not any(experiment.baseline in (cell.tags["plo.variant"], cell.tags["plo.loss"]) for cell in finished):
        log.error(
            "look at %d seeds: every cell of the baseline %s failed, so there are no verdicts.",
            look,
            experiment.baseline,
        )
        return "no baseline"
    found = judge_cells(experiment, finished, ended)
    words = ", ".join(f"{name} {word}" for name, word in found.verdicts.items())
    log.info("look at %d seeds: %s%s", look, words, f" ({found.stop}: no further seeds)" if found.stop else "")
    return found.stop
