"""Comparison of variants x seeds on one model and data set, with `reference` and `sft`. It can be resumed at any time."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from filelock import Timeout

from plo import caches, distributed
from plo.config import ConfigError, Experiment
from plo.environment import environment
from plo.experiment.evaluations import evaluate_cells
from plo.experiment.keys import Cell, cell_key, comparison_key
from plo.experiment.looks import judge_cells, seeds_in_order
from plo.experiment.plugins import DIGESTS, digests
from plo.experiment.preflight import check_columns, checked_variants
from plo.experiment.progress import Progress
from plo.experiment.runner import Runner
from plo.experiment.tuning import Tuned, tune
from plo.experiment.workbench import Workbench, prepare, workbench
from plo.scorers import Variant
from plo.tracking import RecordedCell, Tracker, closing, unrecorded

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


def compare(experiment: Experiment, progress: Progress | None = None, *, only_tuning: bool = False) -> Outcome:
    """Run and record every cell of a comparison that is not finished. A failing cell does not stop the others.

    Calling it again skips finished cells and resumes interrupted ones from their last checkpoint. With several processes,
    only the main one records.

    Args:
        only_tuning: stop after the tuning; a later call goes on from there.

    Raises:
        ConfigError: the experiment cannot be run as it is written, or another process is running it.
        TuningError: a trial failed, so no settings were chosen.
    """
    if only_tuning and not experiment.tuning:
        raise ConfigError("tuning: the experiment has none; add `tuning: {trials: 8}` to it, or give tuning.trials=8.")
    distributed.start()
    progress = progress or Progress()
    distributed.on_main(lambda: experiment.out.mkdir(parents=True, exist_ok=True))  # fails before anything is computed
    variants, trained = checked_variants(experiment)
    plugged = digests(experiment.plugins)
    bench = workbench(experiment, progress)
    check_columns(trained, bench.data.train)
    tracker = distributed.on_main(lambda: Tracker(experiment.store, "plo"), share=False) or unrecorded(Tracker)
    tuning, tuned = None, list[Tuned]()
    if experiment.tuning:
        for_tuning, for_test = bench.data.split_for_tuning()
        tuning, bench = replace(bench, data=for_tuning), replace(bench, data=for_test)
    key, looks = comparison_key(bench), experiment.looks or (len(experiment.seeds),)
    settings = experiment.model_dump(mode="json") | ({DIGESTS: plugged} if plugged else {})
    tags = {"plo.data": bench.data.digest, "plo.model": bench.model_identity, **environment()}

    def begin(cells: list[Cell]) -> str:
        names = {cell.key: cell.name for cell in cells}
        return distributed.on_main(lambda: tracker.comparison(experiment.name, key, settings, tags, names))

    with distributed.on_main(lambda: _only_one(tracker, key), share=False) or nullcontext():
        parent = begin([] if tuning else _cells(bench, variants, looks[0]))
        tracker.data_input(parent, experiment.data.source, bench.data.digest)
        bench.stages.record = lambda key, name, params: tracker.start_stage(parent, key, name, tags, params)
        runner = Runner(tracker, parent, tags, progress)
        with closing(tracker, parent) as failed:
            prepare(bench, progress)
            if tuning:
                tuned = tune(tuning, variants, runner.trials, runner.results)
                variants = [one.variant for one in tuned]
                runner.tuning = {one.variant.name: one.record for one in tuned}
            for look in () if only_tuning else looks:
                cells = _cells(bench, variants, look)
                begin(cells)
                failed |= runner.cells(bench, cells)
                if bench.model_evaluations:
                    failed |= evaluate_cells(bench, _finished(tracker, key, cells), tracker, parent)
                judged = (
                    _finished(tracker, key, cells) if experiment.looks else []
                )  # read again: with what was evaluated
                if experiment.looks and distributed.on_main(partial(_look, experiment, judged, look)):
                    break
    return Outcome(parent, failed, tuned)


def _finished(tracker: Tracker, key: str, cells: list[Cell]) -> list[RecordedCell]:
    """Return the recorded cells among `cells` that are finished; none in a process that records nothing."""
    keys = {cell.key for cell in cells}
    recorded = distributed.on_main(lambda: tracker.comparisons(key)[0].cells(), share=False) or []
    return [cell for cell in recorded if cell.key in keys and cell.status == "FINISHED"]


def _look(experiment: Experiment, cells: list[RecordedCell], look: int) -> str | None:
    """Judge the cells of a look, and return why no further seeds are needed; None if the next look is to be taken."""
    found = judge_cells(experiment, cells)
    words = ", ".join(f"{name} {word}" for name, word in found.verdicts.items())
    log.info("look at %d seeds: %s%s", look, words, f" ({found.stop}: no further seeds)" if found.stop else "")
    return found.stop


def _cells(bench: Workbench, variants: list[Variant], look: int) -> list[Cell]:
    """Return the cells of a look in the order in which they run."""
    planned = seeds_in_order(bench.experiment, variants, look)
    return [Cell(variant, seed, cell_key(bench, variant, seed)) for variant, seed in planned]


def _only_one(tracker: Tracker, key: str) -> AbstractContextManager[object]:
    """Let one launch at a time run a comparison of a store, in whatever folder launches are started."""
    try:
        return caches.named_lock(tracker.uri, key).acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Another process is running this comparison in {tracker.uri}: wait for it, or give another `name`."
        ) from None
