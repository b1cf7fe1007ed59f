"""Calibration of an experiment: what its parts cost on this machine, measured once in a short run and kept."""

import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from plo import caches, store
from plo.backbone.steps import longest, tokens_of
from plo.config import Experiment
from plo.data import Pair
from plo.environment import environment
from plo.errors import PloError
from plo.experiment.costs import Costs
from plo.identity import settings_identity, sha256
from plo.paths import plo_home
from plo.scorers import Variant

VERSION = 2  # of what is measured
DIGITS = 2  # of the numbers that describe the data, so that a few pairs more are not calibrated anew
OTHERS = {"judge", "judge_calls", "judge_money"}  # evaluation settings without effect on what is measured
WARM = (
    "models",
    "tokens",
    "checks",
)  # caches that the short run uses: what they hold is made once in the life of a machine
WHERE = "plo.experiment.calibration_run"


class CalibrationError(PloError, RuntimeError):
    """An error in a calibration's short run."""


def kept_calibration(key: str) -> Costs | None:
    """Return the costs that an earlier calibration measured; None if there is none, or it is damaged."""
    found = store.read_json(caches.CACHES["calibrations"].path(key))
    return None if found is None else Costs.of(found["figures"], f"calibrated {_day(found['day'])}")


def calibrate(experiment: Experiment, key: str) -> Costs:
    """Measure what the parts of an experiment cost in a process of its own, keep the costs, and return them.

    Raises:
        CalibrationError: the short run failed; the message has its error.
    """
    path = caches.CACHES["calibrations"].path(key)
    with caches.lock(path):
        if (known := kept_calibration(key)) is not None:  # another process has measured meanwhile
            return known
        with tempfile.TemporaryDirectory(prefix="calibration-", dir=plo_home()) as scratch:
            figures = _measured(experiment, Path(scratch))
        today = datetime.date.today().isoformat()
        store.write_json(path, {"day": today, "figures": figures})
    return Costs.of(figures, "calibrated today")


def calibration_key(experiment: Experiment, variants: Iterable[Variant], pairs: Iterable[Pair]) -> str:
    """Return the hash of what a calibration depends on: machine, model, shape of the data, and settings."""
    import torch

    train = settings_identity(experiment.train, exclude={"lr", "epochs", "steps", "schedule", "warmup"})
    losses = sorted({variant.loss.name for variant in variants} | {one.scorer.name for one in variants if one.scorer})
    stages = [experiment.stages, experiment.reference, experiment.share_stages, experiment.sft]
    evaluation = settings_identity(experiment.evaluation, exclude=OTHERS)
    shape = [experiment.data.source, *_shape(list(pairs), experiment.model.packed)]
    machine = [{k: v for k, v in environment().items() if k != "plo.git"}, torch.get_num_threads()]
    model = settings_identity(experiment.model)
    return sha256([VERSION, machine, model, shape, train, evaluation, losses, stages, str(experiment.store)])


def _shape(pairs: list[Pair], packed: bool) -> list[float]:
    """Return numbers that describe the pairs: how many, their mean tokens, and the longest sequence."""
    numbers = [len(pairs), fmean(tokens_of(pair, packed) for pair in pairs), max(map(longest, pairs))]
    return [float(f"{number:.{DIGITS}g}") for number in numbers]


def _measured(experiment: Experiment, scratch: Path) -> dict[str, float]:
    """Run the short run in a process of its own, with caches, store and folders below `scratch`."""
    for cache in map(caches.CACHES.__getitem__, WARM):
        cache.folder.mkdir(exist_ok=True)
        (scratch / cache.folder.name).symlink_to(cache.folder)
    changes = {"out": scratch / "runs", "store": str(scratch / "plo.db"), "name": "calibration"}
    settings, result = scratch / "experiment.json", scratch / "result.json"
    settings.write_text(experiment.model_copy(update=changes).model_dump_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", WHERE, settings, result],
        env=os.environ | {"PLO_HOME": str(scratch)},
        capture_output=True,
        text=True,
    )
    found = json.loads(result.read_text("utf-8")) if result.exists() else {}
    if "figures" in found:
        return found["figures"]
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise CalibrationError(f"The calibration failed: {found.get('error', last)}")


def _day(day: str) -> str:
    return "today" if day == datetime.date.today().isoformat() else day
