"""Running of one cell or trial: it is claimed, trained, evaluated and recorded."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from plo import distributed, interrupt, store
from plo.backbone.trainer import NonFiniteLoss
from plo.config import Experiment
from plo.errors import one_line
from plo.evals import EvaluationError
from plo.experiment.cell import run_cell
from plo.experiment.keys import BEST_OF, Cell, comparison_folder, evaluation_settings
from plo.experiment.tuning import Result
from plo.experiment.units import Outcome, fatal_fault
from plo.experiment.workbench import Workbench
from plo.identity import settings_identity, sha256
from plo.tracking import ActiveRun, ClaimLost, Held, Run, Tracker, unrecorded

log = logging.getLogger(__name__)
Advance = Callable[..., None]


@dataclass
class Runner:
    """Runs and records the cells and trials of one comparison.

    Attributes:
        parent: run id of the comparison.
        tags: tags of every run: data, model, environment.
    """

    tracker: Tracker
    parent: str
    tags: dict[str, str]

    def attempt(
        self,
        bench: Workbench,
        with_pairs: Callable[[], AbstractContextManager[Workbench]],
        cell: Cell,
        advance: Advance,
        tuning: Mapping[str, Any] | None,
        trial: bool,
    ) -> Outcome:
        """Run a cell, unless it is finished or another process is doing it. An error of the cell is a failed outcome.

        A trial that diverges is a result. The trained models of trials are not kept.

        Args:
            bench: workbench of all seeds.
            with_pairs: enters that of the cell, with its training pairs.
            tuning: record of the variant's tuning, which is recorded with the cell.
        """
        tracker, root = self.tracker, comparison_folder(bench)
        begin = tracker.start_trial if trial else tracker.start_cell
        about = self.tags | _tags(bench, cell, tuning), _params(bench.experiment, cell)
        run: ActiveRun | None = None

        def claim() -> Outcome | None:
            nonlocal run
            try:
                run = begin(self.parent, cell.key, cell.name, *about)
            except Held as held:
                return Outcome("done") if held.finished else Outcome("held", str(held))

        if (taken := distributed.on_main(claim)) is not None:
            return taken
        recording = run or unrecorded(ActiveRun)
        try:
            samples = partial(self._reference_samples, cell, trial)
            reference = distributed.on_main(samples, share=False) if not cell.is_reference else None
            with with_pairs() as own:
                metrics = run_cell(cell, own, recording, root, reference, advance)
        except ClaimLost as lost:
            log.warning("%s: %s", cell.name, lost)
            return Outcome("held", str(lost))
        except BaseException as error:
            if trial and isinstance(error, NonFiniteLoss):  # in all processes at once
                recording.tag("plo.diverged", one_line(error))
                recording.finish()
                log.info("trial  %s diverged: %s", cell.name, one_line(error))
                return Outcome("done")
            recording.fail(error)
            if not isinstance(error, Exception):
                raise
            interrupt.check()  # another process of the launch may have ended before this one
            if not distributed.all_failed() or fatal_fault(error):  # all others would fail too
                raise  # the others are inside a step: after a restart all processes resume the cell together
            traceback = f" Traceback: error.txt of run {run.run_id}." if run is not None else ""
            if distributed.is_main():
                log.error("failed %s: %s%s", cell.name, one_line(error), traceback)
            return Outcome("failed", one_line(error))
        log.info("done   %s: %s", cell.name, _line(metrics))
        if trial and distributed.is_main():
            store.remove(cell.folder(root))
        return Outcome("done")

    def _reference_samples(self, cell: Cell, trial: bool) -> pd.DataFrame:
        found = self.tracker.finished_run(self.parent, "trial" if trial else "cell", "reference", cell.seed)
        if found is None:
            raise EvaluationError(f"the reference cell of seed {cell.seed} failed, and win rates need its samples")
        return self.tracker.table(found, "samples.json")


def trial_results(tracker: Tracker, parent: str) -> dict[str, Result]:
    """Return the results of the finished trials of a comparison by the keys of their cells."""
    return {key: _result(tracker, run) for key, run in tracker.trials(parent).items()}


def _result(tracker: Tracker, run: Run) -> Result:
    values = {}
    if "plo.diverged" not in run.tags:
        samples = tracker.table(run.run_id, "samples.json")
        values = {str(name): by.tolist() for name, by in samples.groupby("prompt_id").mean(numeric_only=True).items()}
    return Result(dict(run.metrics), values, float(run.tags.get("plo.seconds", 0)))


def _tags(bench: Workbench, cell: Cell, tuning: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        **({"plo.tuning": json.dumps(tuning)} if tuning is not None else {}),
        **({"plo.ceiling": "true"} if cell.best_of or (cell.variant is not None and cell.variant.ceiling) else {}),
        "plo.loss": cell.variant.row if cell.variant is not None else BEST_OF if cell.best_of else cell.label,
        "plo.variant": cell.label,
        **({"plo.code": sha256(cell.variant.source)[:16]} if cell.variant is not None else {}),
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
        **({"sampled": _sampled(experiment)} if cell.variant.origin.round else {}),
        "lr": f"{train.lr:g}",
        "beta": str(cell.variant.params.get("beta", "-")),
        "peft": experiment.model.peft,
    }


def _sampled(experiment: Experiment) -> str:
    """Return how the answers were sampled, scored and paired, where that differs from the defaults."""
    changed = settings_identity(experiment.data.sample, exclude={"judge_calls", "judge_money"})
    return " ".join(f"{name}={value}" for name, value in sorted(changed.items())) or "defaults"


def _line(metrics: dict[str, float]) -> str:
    shown = ("reward", "gold_win_rate", "preference_accuracy", "kl", "ref_nll", "tokens")
    return ", ".join(f"{n} {metrics[n]:.3f}" for n in shown if n in metrics and not math.isnan(metrics[n]))
