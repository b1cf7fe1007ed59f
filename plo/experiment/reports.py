"""Reports of trainings to TensorBoard, Weights & Biases and Trackio, through transformers' callbacks; MLflow keeps the record."""

import contextlib
import copy
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from plo import distributed, interrupt, store
from plo.config import ConfigError
from plo.errors import PloError, one_line
from plo.extras import is_installed
from plo.paths import slug

KEPT_AFTER = 60.0  # seconds after which a tracker has written what it was told, or sent it
PROJECT = "plo"  # of Weights & Biases, unless WANDB_PROJECT names another
log = logging.getLogger(__name__)


def check_installed(trackers: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigError: a package is missing; the message says how to install it.
    """
    if missing := [name for name in trackers if not is_installed(name)]:
        raise ConfigError(
            f"report_to={','.join(trackers)}: {' and '.join(missing)} cannot be imported. Install it: pip install "
            f"{' '.join(missing)}; or leave it out of report_to, as MLflow records everything."
        )


class Reports(TrainerCallback):
    """Shows one training in other trackers while it runs: its log as `train/NAME`, its evaluations as `eval/NAME`.

    A tracker that fails gets nothing more of this training, after a warning; the training goes on. In a launch of several
    processes the main one reports. Use it as a context, which closes what a training that fails leaves open.

    Args:
        trackers: names of trackers, as in `Experiment.report_to`.
        name: name of the training, such as "dpo seed 0".
        group: name of the comparison.
        key: hash that identifies the training: an attempt that resumes it continues its run in each tracker.
        folder: folder for the event files of TensorBoard.
        marks: file for the last steps that each tracker has, so that an attempt that repeats some reports none twice.
        settings: parameters of the variant, shown with the run.
    """

    def __init__(
        self,
        trackers: Sequence[str],
        *,
        name: str,
        group: str,
        key: str,
        folder: Path,
        marks: Path,
        settings: Mapping[str, str],
    ):
        self.trackers = tuple(trackers) if distributed.is_main() else ()
        self.name, self.group, self.key, self.folder, self.settings = name, group, key, folder, dict(settings)
        self._file, self._told = marks, dict[str, int]()  # last step by tracker and kind
        self._before, self._safe = dict[str, int](), dict[str, int]()
        self._waiting = deque[tuple[float, str, int]]()
        self._open: dict[str, TrainerCallback] = {}
        self._run: Any = None  # of Weights & Biases
        self._about: tuple[Any, Any, Any] | None = None
        self._first = 0  # step at which this attempt begins

    def on_train_begin(self, args, state, control, **kwargs):
        self._about, self._first = (args, state, control), state.global_step
        if self.trackers:
            self._safe = self._read_marks()
            self._told = self._safe | self._told  # also those of this process, before it lacked memory
            self._before = dict(self._told)
        args.run_name, args.project = f"{self.name} {self.key[:8]}", slug(self.group)  # read by Trackio's callback
        args.trackio_static_space_id = False  # nothing is uploaded unless the user's environment names a space
        for tracker in self.trackers:
            self._attempt(tracker, lambda tracker=tracker: self._open.update({tracker: self._callback(tracker)}))
        self._each("on_train_begin", args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._log("train", args, state, control, logs=dict(logs or {}), **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        self._each("on_train_end", args, state, control, **kwargs)

    def evaluated(self, metrics: Mapping[str, float], step: int) -> None:
        """Report the metrics of an evaluation at a step, unless it is from before the checkpoint of a resumed training."""
        if self._about is None or step < self._first:
            return
        args, state, control = self._about
        then = copy.copy(state)
        then.global_step = step
        self._log("eval", args, then, control, logs={f"eval_{name}": value for name, value in metrics.items()})

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and self._about is not None:
            self._each("on_train_end", *self._about)
        if (run := self._run) is not None:  # even if a report to it failed: the next training has a run of its own
            self._attempt("wandb", lambda: run.finish(exit_code=int(kind is not None)))
        self._open.clear()
        self._mark(math.inf)

    def _callback(self, tracker: str) -> TrainerCallback:
        """Return transformers' callback of a tracker, for a run that this training has or continues."""
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self.folder), purge_step=self._first + 1)  # hides those of a killed attempt
            writer.add_text("plo", json.dumps(self.settings, indent=1))
            return TensorBoardCallback(writer)
        if tracker == "trackio":
            return TrackioCallback()
        import wandb  # pyright: ignore[reportMissingImports]  (optional)

        if self._run is None:  # else the training begins anew after lack of memory
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                group=self.group,
                name=self.name,
                id=self.key[:16],
                resume="allow",
                config={"plo": self.settings},
            )
        return WandbCallback()

    def _log(self, kind: str, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Report a log to the trackers that do not have it from an earlier attempt."""
        step = state.global_step
        for tracker, callback in list(self._open.items()):
            mark, hides = f"{tracker} {kind}", tracker == "tensorboard" and step > self._first
            if step <= self._before.get(mark, -1) and not hides:
                continue
            self._attempt(tracker, lambda callback=callback: callback.on_log(args, state, control, **keywords))
            if tracker in self._open:
                self._told[mark] = step
                self._waiting.append((time.monotonic(), mark, step))
        self._mark(time.monotonic() - KEPT_AFTER)

    def _mark(self, until: float) -> None:
        """Write down what was reported before a time: the trackers have written it by then, even if this process is killed."""
        found = dict(self._safe)
        while self._waiting and self._waiting[0][0] <= until:
            _, mark, found[mark] = self._waiting.popleft()
        if found != self._safe:
            self._safe = found
            with contextlib.suppress(OSError, PloError):  # a full disk is for the training to say
                store.write_json(self._file, found)

    def _read_marks(self) -> dict[str, int]:
        try:
            return {str(mark): int(step) for mark, step in json.loads(self._file.read_text("utf-8")).items()}
        except (OSError, ValueError, AttributeError):  # there is none, or it is damaged: some steps are reported twice
            return {}

    def _each(self, event: str, *arguments: Any, **keywords: Any) -> None:
        for tracker, callback in list(self._open.items()):
            self._attempt(tracker, lambda callback=callback: getattr(callback, event)(*arguments, **keywords))

    def _attempt(self, tracker: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # each tracker has its own
            interrupt.check()  # a library may have replaced the exception
            self._open.pop(tracker, None)
            self.trackers = tuple(name for name in self.trackers if name != tracker)
            log.warning(
                "%s: %s gets no more reports (%s); MLflow records everything.", self.name, tracker, one_line(error)
            )
