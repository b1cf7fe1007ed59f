"""Comparison of variants x seeds on one model and data set, with `reference` and `sft`. It can be resumed at any time."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

import pandas as pd
from filelock import Timeout

from plo import caches, distributed, interrupt
from plo.config import ConfigError, Experiment
from plo.environment import environment
from plo.errors import one_line
from plo.evals import EvaluationError
from plo.experiment.cell import run_cell
from plo.experiment.evaluations import evaluate_cells
from plo.experiment.keys import Cell, cell_key, comparison_folder, comparison_key, evaluation_settings
from plo.experiment.plugins import DIGESTS, digests
from plo.experiment.preflight import check_columns, checked_variants
from plo.experiment.progress import Progress
from plo.experiment.workbench import Workbench, prepare, workbench
from plo.faults import disk_fault
from plo.identity import sha256
from plo.tracking import ActiveRun, Tracker, closing, unrecorded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of a comparison: the run id of its parent run, and the errors of failed cells by their names."""

    parent: str
    failed: dict[str, str]


def compare(experiment: Experiment, progress: Progress | None = None) -> Outcome:
    """Run and record every cell of a comparison that is not finished. A failing cell does not stop the others.

    Calling it again skips finished cells and resumes interrupted ones from their last checkpoint. With several processes,
    only the main one records.
    """
    distributed.start()
    progress = progress or Progress()
    distributed.on_main(lambda: experiment.out.mkdir(parents=True, exist_ok=True))  # fails before anything is computed
    variants, trained = checked_variants(experiment)
    plugged = digests(experiment.plugins)
    bench = workbench(experiment, progress)
    check_columns(trained, bench.data.train)
    tracker = distributed.on_main(lambda: Tracker(experiment.store, "plo"), share=False) or unrecorded(Tracker)
    # Seed by seed, so that an interrupted comparison has all variants on its first seeds.
    cells = [Cell(v, seed, cell_key(bench, v, seed)) for seed in experiment.seeds for v in (None, *variants)]
    key = comparison_key(bench)
    settings = experiment.model_dump(mode="json") | ({DIGESTS: plugged} if plugged else {})
    tags = {"plo.data": bench.data.digest, "plo.model": bench.model_identity, **environment()}
    names = {cell.key: cell.name for cell in cells}
    with distributed.on_main(lambda: _only_one(tracker, key), share=False) or nullcontext():
        parent = distributed.on_main(lambda: tracker.comparison(experiment.name, key, settings, tags, names))
        tracker.data_input(parent, experiment.data.source, bench.data.digest)
        bench.stages.record = lambda key, name, params: tracker.start_stage(parent, key, name, tags, params)
        with closing(tracker, parent) as failed:
            prepare(bench, progress)
            failed |= _run(bench, cells, tracker, parent, tags, progress)
            if bench.model_evaluations:
                recorded = distributed.on_main(lambda: tracker.comparisons(key)[0].cells(), share=False) or []
                finished = [cell for cell in recorded if cell.key in names and cell.status == "FINISHED"]
                failed |= evaluate_cells(bench, finished, tracker, parent)
    return Outcome(parent, failed)


def _run(
    bench: Workbench, cells: list[Cell], tracker: Tracker, parent: str, tags: dict[str, str], progress: Progress
) -> dict[str, str]:
    experiment, root = bench.experiment, comparison_folder(bench)
    finished = distributed.on_main(lambda: tracker.finished(parent))
    failed: dict[str, str] = {}
    of_seed = lru_cache(maxsize=1)(bench.of_seed)  # cells come seed by seed
    references = {cell.seed: finished[cell.key] for cell in cells if cell.variant is None and cell.key in finished}
    todo = [cell for cell in cells if cell.key not in finished]
    if skipped := len(cells) - len(todo):
        log.info("%d of %d cells are finished already.", skipped, len(cells))
    pairs = len(bench.data.train)
    work = [(cell.units(experiment, pairs), cell.steps(experiment, pairs)) for cell in todo]
    with progress.cells(work) as done:
        for cell in todo:
            done.begin(cell.name)
            about = tags | _tags(bench, cell), _params(experiment, cell)
            start = partial(tracker.start_cell, parent, cell.key, cell.name, *about)
            run = distributed.on_main(start, share=False) or unrecorded(ActiveRun)
            try:
                samples = partial(_reference_samples, tracker, references, cell)
                reference = distributed.on_main(samples, share=False) if cell.variant is not None else None
                metrics = run_cell(cell, of_seed(cell.seed), run, root, reference, done.advance)
            except BaseException as error:
                run.fail(error)
                if not isinstance(error, Exception):
                    raise
                interrupt.check()  # another process of the launch may have ended before this one
                if not distributed.all_failed() or disk_fault(error):  # on a full disk all other cells would fail too
                    raise  # the others are inside a step: after a restart all processes resume the cell together
                failed[cell.name] = one_line(error)
                traceback = f" Traceback: error.txt of run {run.run_id}." if isinstance(run, ActiveRun) else ""
                if distributed.is_main():
                    log.error("failed %s: %s%s", cell.name, failed[cell.name], traceback)
            else:
                if cell.variant is None:
                    references[cell.seed] = run.run_id
                log.info("done   %s: %s", cell.name, _line(metrics))
            done.end()
    return failed


def _reference_samples(tracker: Tracker, references: dict[int, str], cell: Cell) -> pd.DataFrame:
    if cell.seed not in references:
        raise EvaluationError(f"the reference cell of seed {cell.seed} failed, and win rates need its samples")
    return tracker.table(references[cell.seed], "samples.json")


def _tags(bench: Workbench, cell: Cell) -> dict[str, str]:
    return {
        "plo.loss": cell.variant.registered_name if cell.variant is not None else cell.label,
        "plo.variant": cell.label,
        "plo.seed": str(cell.seed),
        "plo.evaluation": sha256(evaluation_settings(bench)),
    }


def _params(experiment: Experiment, cell: Cell) -> dict[str, str]:
    if cell.variant is None:
        return {}
    return {
        **{f"loss.{name}": str(value) for name, value in cell.variant.params.items()},
        **{f"train.{name}": str(value) for name, value in experiment.train.model_dump(mode="json").items()},
        "lr": f"{experiment.train.lr:g}",
        "beta": str(cell.variant.params.get("beta", "-")),
        "peft": experiment.model.peft,
    }


def _line(metrics: dict[str, float]) -> str:
    shown = ("reward", "gold_win_rate", "preference_accuracy", "kl", "ref_nll", "tokens")
    return ", ".join(f"{n} {metrics[n]:.3f}" for n in shown if n in metrics and not math.isnan(metrics[n]))


def _only_one(tracker: Tracker, key: str) -> AbstractContextManager[object]:
    """Let one launch at a time run a comparison of a store, in whatever folder launches are started."""
    try:
        return caches.named_lock(tracker.uri, key).acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Another process is running this comparison in {tracker.uri}: wait for it, or give another `name`."
        ) from None
