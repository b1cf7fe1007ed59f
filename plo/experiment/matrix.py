"""Comparison of variants x seeds on one model and data set, with `reference` and `sft`. It can be resumed at any time."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from filelock import BaseFileLock, Timeout

from plo import caches, distributed, interrupt, store
from plo.backbone.trainer import NonFiniteLoss
from plo.config import ConfigError, Experiment
from plo.environment import environment
from plo.errors import one_line
from plo.evals import EvaluationError
from plo.experiment.cell import run_cell
from plo.experiment.evaluations import evaluate_cells
from plo.experiment.keys import Cell, cell_key, comparison_folder, comparison_key, evaluation_settings
from plo.experiment.looks import judge_cells, seeds_at
from plo.experiment.plugins import DIGESTS, digests
from plo.experiment.preflight import check_columns, check_losses, configured_variants, losses_with_stages
from plo.experiment.progress import Progress
from plo.experiment.tuning import Result, tune
from plo.experiment.workbench import Workbench, prepare, workbench
from plo.faults import disk_fault
from plo.identity import sha256
from plo.registry import load_plugin
from plo.scorers import Variant
from plo.tracking import ActiveRun, RecordedCell, Tracker, closing, unrecorded

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
    for plugin in experiment.plugins:
        load_plugin(plugin)
    plugged = digests(experiment.plugins)
    distributed.on_main(lambda: experiment.out.mkdir(parents=True, exist_ok=True))  # fails before anything is computed
    variants = configured_variants(experiment)
    trained = losses_with_stages(variants)
    check_losses(trained)
    bench = workbench(experiment, progress)
    check_columns(trained, bench.data.train)
    tuning = None
    if experiment.tuning:
        tune_data, test_data = bench.data.split_for_tuning()
        tuning, bench = replace(bench, data=tune_data), replace(bench, data=test_data)
    tracker = distributed.on_main(lambda: Tracker(experiment.store, "plo"), share=False) or unrecorded(Tracker)
    key = comparison_key(bench)
    with _only_one(tracker, key):

        def record(cells: list[Cell]) -> str:
            config = experiment.model_dump(mode="json") | ({DIGESTS: plugged} if plugged else {})
            identities = {**environment(), "plo.data": bench.data.digest, "plo.model": bench.model_identity}
            planned = {cell.key: cell.name for cell in cells}
            return distributed.on_main(lambda: tracker.comparison(experiment.name, key, config, identities, planned))

        looks = experiment.looks or (len(experiment.seeds),)
        parent = record([] if tuning else _cells(bench, variants, looks[0]))
        tracker.data_input(parent, experiment.data.source, bench.data.digest)
        tags = {"plo.data": bench.data.digest, "plo.model": bench.model_identity, **environment()}
        bench.stages.record = lambda key, name, params: tracker.start_stage(parent, key, name, tags, params)
        with closing(tracker, parent) as failed:
            prepare(bench, progress)
            records: dict[str, dict[str, Any]] = {}
            if tuning:
                tuned = tune(
                    tuning,
                    variants,
                    lambda trials, todo: _run(trials, todo, tracker, parent, progress, trial=True),
                    lambda: distributed.on_main(lambda: _results(tracker, parent)),
                )
                records = {one.variant.name: one.record for one in tuned}
                variants = [one.variant for one in tuned]
            for look in looks:
                cells = _cells(bench, variants, look)
                record(cells)
                failed |= _run(bench, cells, tracker, parent, progress, records)
                if bench.model_evaluations:
                    failed |= evaluate_cells(bench, _recorded(tracker, key, cells), tracker, parent)
                judged = _recorded(tracker, key, cells) if experiment.looks else []
                if experiment.looks and distributed.on_main(partial(_look, experiment, judged, look)):
                    break
    return Outcome(parent, failed)


def _recorded(tracker: Tracker, key: str, cells: list[Cell]) -> list[RecordedCell]:
    """Return the recorded cells among `cells` that are finished."""
    wanted = {cell.key for cell in cells}
    found = distributed.on_main(lambda: tracker.comparisons(key)[0].cells(), share=False) or []
    return [cell for cell in found if cell.key in wanted and cell.status == "FINISHED"]


def _look(experiment: Experiment, cells: list[RecordedCell], look: int) -> str | None:
    """Judge the cells of a look, and return why no further seeds are needed; None if the next look is to be taken."""
    found = judge_cells(experiment, cells)
    words = ", ".join(f"{name} {word}" for name, word in found.verdicts.items())
    log.info("look at %d seeds: %s%s", look, words, f" ({found.stop}: no further seeds)" if found.stop else "")
    return found.stop


def _cells(bench: Workbench, variants: list[Variant], look: int) -> list[Cell]:
    """Return the cells seed by seed, so that an interrupted comparison has all variants on its first seeds."""
    seeds = {one: seeds_at(bench.experiment, one, len(variants), look) for one in (None, *variants)}
    order = dict.fromkeys(seed for own in seeds.values() for seed in own)
    return [Cell(one, seed, cell_key(bench, one, seed)) for seed in order for one in seeds if seed in seeds[one]]


def _run(
    bench: Workbench,
    cells: list[Cell],
    tracker: Tracker,
    parent: str,
    progress: Progress,
    tuning: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    trial: bool = False,
) -> dict[str, str]:
    """Run the cells that are not finished, and return {name: error} of those that failed.

    Args:
        tuning: {variant's name: record of its tuning}.
        trial: record the cells as trials. One that diverges is a result, and its trained model is not kept.
    """
    experiment, root = bench.experiment, comparison_folder(bench)
    begin = tracker.start_trial if trial else tracker.start_cell
    finished = distributed.on_main(lambda: _trials(tracker, parent) if trial else tracker.finished(parent))
    failed: dict[str, str] = {}
    references = {cell.seed: finished[cell.key] for cell in cells if cell.variant is None and cell.key in finished}
    todo = [cell for cell in cells if cell.key not in finished]
    if skipped := len(cells) - len(todo):
        log.info("%d of %d cells are finished already.", skipped, len(cells))
    pairs = len(bench.data.train)
    work = [(cell.units(experiment, pairs), cell.steps(experiment, pairs)) for cell in todo]
    with progress.cells(work) as done:
        for cell in todo:
            done.begin(cell.name)
            tags = _tags(bench, cell, (tuning or {}).get(cell.label))
            start = partial(begin, parent, cell.key, cell.name, tags, _params(experiment, cell))
            run = distributed.on_main(start, share=False) or unrecorded(ActiveRun)
            try:
                samples = partial(_reference_samples, tracker, references, cell)
                reference = distributed.on_main(samples, share=False) if cell.variant is not None else None
                note = partial(log.info, "note   %s: %s", cell.name)
                metrics = run_cell(cell, bench, run, root, reference, done.advance, note)
            except BaseException as error:
                if trial and isinstance(error, NonFiniteLoss):  # in all processes at once
                    run.tag("plo.diverged", one_line(error))
                    run.finish()
                    log.info("trial  %s diverged: %s", cell.name, one_line(error))
                    continue
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
                if trial and distributed.is_main():
                    store.remove(cell.folder(root))
            done.end()
    return failed


def _trials(tracker: Tracker, parent: str) -> dict[str, str]:
    """Return {cell key: run id} of the finished trials."""
    return {key: run.run_id for key, run in tracker.trials(parent).items()}


def _results(tracker: Tracker, parent: str) -> dict[str, Result]:
    """Return the results of the finished trials by the keys of their cells."""
    found = {}
    for key, run in tracker.trials(parent).items():
        values = {}
        if "plo.diverged" not in run.tags:
            samples = tracker.table(run.run_id, "samples.json")
            values = {name: by.to_numpy() for name, by in samples.groupby("prompt_id").mean(numeric_only=True).items()}
        found[key] = Result(dict(run.metrics), values, float(run.tags.get("plo.seconds", 0)))
    return found


def _reference_samples(tracker: Tracker, references: dict[int, str], cell: Cell) -> pd.DataFrame:
    if cell.seed not in references:
        raise EvaluationError(f"the reference cell of seed {cell.seed} failed, and win rates need its samples")
    return tracker.table(references[cell.seed], "samples.json")


def _tags(bench: Workbench, cell: Cell, tuning: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        **({"plo.tuning": json.dumps(tuning)} if tuning is not None else {}),
        "plo.loss": cell.variant.registered_name if cell.variant is not None else cell.label,
        "plo.variant": cell.label,
        "plo.seed": str(cell.seed),
        "plo.data": bench.data.digest,
        "plo.model": bench.model_identity,
        "plo.evaluation": sha256(evaluation_settings(bench)),
        **environment(),
    }


def _params(experiment: Experiment, cell: Cell) -> dict[str, str]:
    if cell.variant is None:
        return {}
    train = cell.train(experiment)
    return {
        **{f"loss.{name}": str(value) for name, value in cell.variant.params.items()},
        **{f"train.{name}": str(value) for name, value in train.model_dump(mode="json").items()},
        "lr": f"{train.lr:g}",
        "beta": str(cell.variant.params.get("beta", "-")),
        "peft": experiment.model.peft,
    }


def _line(metrics: dict[str, float]) -> str:
    shown = ("reward", "gold_win_rate", "preference_accuracy", "kl", "ref_nll", "tokens")
    return ", ".join(f"{n} {metrics[n]:.3f}" for n in shown if n in metrics and not math.isnan(metrics[n]))


@contextmanager
def _only_one(tracker: Tracker, key: str) -> Iterator[None]:
    """Let one launch at a time run a comparison of a store, in whatever folder launches are started."""
    lock = distributed.on_main(lambda: _locked(tracker, key), share=False)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _locked(tracker: Tracker, key: str) -> BaseFileLock:
    try:
        lock = caches.named_lock(tracker.uri, key)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Another process is running this comparison in {tracker.uri}: wait for it, or give another `name`."
        ) from None
    return lock
