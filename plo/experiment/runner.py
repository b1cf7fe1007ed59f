"""Running of cells and trials: each is trained, evaluated and recorded, or skipped if it is finished."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import pandas as pd

from plo import distributed, interrupt, store
from plo.backbone.trainer import NonFiniteLoss
from plo.config import Experiment
from plo.errors import one_line
from plo.evals import EvaluationError
from plo.experiment.cell import run_cell
from plo.experiment.keys import Cell, comparison_folder, evaluation_settings
from plo.experiment.progress import Progress
from plo.experiment.tuning import Result
from plo.experiment.workbench import Workbench
from plo.faults import disk_fault
from plo.identity import sha256
from plo.tracking import ActiveRun, Run, Tracker, unrecorded

log = logging.getLogger(__name__)


@dataclass
class Runner:
    """Runs and records the cells and trials of one comparison.

    Attributes:
        parent: run id of the comparison.
        tags: tags of every run: data, model, environment.
        tuning: {variant's name: record of its tuning}, recorded with its cells.
    """

    tracker: Tracker
    parent: str
    tags: dict[str, str]
    progress: Progress
    tuning: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def trials(self, bench: Workbench, cells: Sequence[Cell]) -> dict[str, str]:
        """Run cells as trials; see `cells`. One that diverges is a result. Their trained models are not kept."""
        return self.cells(bench, cells, trial=True)

    def results(self) -> dict[str, Result]:
        """Return the results of the finished trials by the keys of their cells."""
        return distributed.on_main(lambda: trial_results(self.tracker, self.parent))

    def cells(self, bench: Workbench, cells: Sequence[Cell], *, trial: bool = False) -> dict[str, str]:
        """Run the cells that are not finished. Return the errors of failed ones by name; they do not stop the others."""
        tracker, parent, root = self.tracker, self.parent, comparison_folder(bench)
        begin = tracker.start_trial if trial else tracker.start_cell
        finished = distributed.on_main(lambda: tracker.finished(parent, "trial" if trial else "cell"))
        failed: dict[str, str] = {}
        of_seed = lru_cache(maxsize=1)(bench.of_seed)  # cells come seed by seed
        references = {cell.seed: finished[cell.key] for cell in cells if cell.variant is None and cell.key in finished}
        todo = [cell for cell in cells if cell.key not in finished]
        if not trial and (skipped := len(cells) - len(todo)):
            log.info("%d of %d cells are finished already.", skipped, len(cells))
        pairs = len(bench.data.train)
        work = [(cell.units(bench.experiment, pairs), cell.steps(bench.experiment, pairs)) for cell in todo]
        with self.progress.cells(work) as done:
            for cell in todo:
                done.begin(cell.name)
                about = self.tags | _tags(bench, cell, self.tuning.get(cell.label)), _params(bench.experiment, cell)
                start = partial(begin, parent, cell.key, cell.name, *about)
                run = distributed.on_main(start, share=False) or unrecorded(ActiveRun)
                try:
                    samples = partial(_reference_samples, tracker, references, cell)
                    reference = distributed.on_main(samples, share=False) if cell.variant is not None else None
                    metrics = run_cell(cell, of_seed(cell.seed), run, root, reference, done.advance)
                except BaseException as error:
                    if trial and isinstance(error, NonFiniteLoss):  # in all processes at once
                        run.tag("plo.diverged", one_line(error))
                        run.finish()
                        log.info("trial  %s diverged: %s", cell.name, one_line(error))
                        done.end()
                        continue
                    run.fail(error)
                    if not isinstance(error, Exception):
                        raise
                    interrupt.check()  # another process of the launch may have ended before this one
                    if not distributed.all_failed() or disk_fault(
                        error
                    ):  # on a full disk all other cells would fail too
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


def trial_results(tracker: Tracker, parent: str) -> dict[str, Result]:
    """Return the results of the finished trials of a comparison by the keys of their cells."""
    return {key: _result(tracker, run) for key, run in tracker.trials(parent).items()}


def _result(tracker: Tracker, run: Run) -> Result:
    values = {}
    if "plo.diverged" not in run.tags:
        samples = tracker.table(run.run_id, "samples.json")
        values = {str(name): by.tolist() for name, by in samples.groupby("prompt_id").mean(numeric_only=True).items()}
    return Result(dict(run.metrics), values, float(run.tags.get("plo.seconds", 0)))


def _reference_samples(tracker: Tracker, references: dict[int, str], cell: Cell) -> pd.DataFrame:
    if cell.seed not in references:
        raise EvaluationError(f"the reference cell of seed {cell.seed} failed, and win rates need its samples")
    return tracker.table(references[cell.seed], "samples.json")


def _tags(bench: Workbench, cell: Cell, tuning: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        **({"plo.tuning": json.dumps(tuning)} if tuning is not None else {}),
        **({"plo.ceiling": "true"} if cell.variant is not None and cell.variant.ceiling else {}),
        "plo.loss": cell.variant.registered_name if cell.variant is not None else cell.label,
        "plo.variant": cell.label,
        "plo.seed": str(cell.seed),
        "plo.evaluation": sha256(evaluation_settings(bench)),
    }


def _params(experiment: Experiment, cell: Cell) -> dict[str, str]:
    if cell.variant is None:
        return {}
    train = cell.train(experiment)
    stages = "sft" in experiment.stages or (cell.variant.scorer is not None and cell.variant.scorer.stages)
    return {
        **({"share_stages": str(experiment.share_stages)} if stages else {}),
        **{f"loss.{name}": str(value) for name, value in cell.variant.params.items()},
        **{f"train.{name}": str(value) for name, value in train.model_dump(mode="json").items()},
        "lr": f"{train.lr:g}",
        "beta": str(cell.variant.params.get("beta", "-")),
        "peft": experiment.model.peft,
    }


def _line(metrics: dict[str, float]) -> str:
    shown = ("reward", "gold_win_rate", "preference_accuracy", "kl", "ref_nll", "tokens")
    return ", ".join(f"{n} {metrics[n]:.3f}" for n in shown if n in metrics and not math.isnan(metrics[n]))
