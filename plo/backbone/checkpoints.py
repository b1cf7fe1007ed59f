"""Checkpoints of a training, which hold everything that is trained; the last two are kept, as one may be damaged."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from plo import distributed, store
from plo.backbone import sharding
from plo.backbone.borrowed import OPTIMIZER_FILE, SCHEDULER_FILE
from plo.backbone.head import ModelError
from plo.backbone.model import Backbone

TRAINED = "trained.safetensors"


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of a training's checkpoints, the newest first, whole or not."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_checkpoint(folder: Path, lacking: Callable[[int, int], str | None] = lambda step, steps: None) -> Path | None:
    """Return the newest checkpoint to continue from, after removing newer ones that are damaged or incomplete.

    Args:
        lacking: returns, for a step and the steps of the whole training, what is missing to continue from there, or None.
    """
    for step, path in checkpoints(folder):
        if not store.is_sealed(path):
            store.drop(path, "was not written to its end")
        elif store.intact(path):
            steps = json.loads((path / "trainer_state.json").read_text())["max_steps"]
            wrong = lacking(step, steps)
            if wrong is None:
                return path
            store.drop(path, wrong)
    return None


class Checkpoints:
    """Writes and reads the checkpoints of a training, in its folder."""

    def __init__(self, backbone: Backbone, folder: Path):
        self.backbone, self.folder = backbone, folder

    def begin(self) -> None:
        """Remove all checkpoints but the newest before another is written: the disk never holds more than two."""
        if distributed.is_main():
            for _, older in checkpoints(self.folder)[1:]:
                store.remove(older)

    def end(self, step: int) -> None:
        """Declare the checkpoint of a step whole."""
        if distributed.is_main():
            store.seal(self.folder / f"checkpoint-{step}")

    def save_weights(self, folder: Path) -> None:
        """Write everything that training changes, from the main process."""
        trained = sharding.on_main(self.backbone.trained())
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained, folder / TRAINED)

    def load_weights(self, folder: Path) -> None:
        """Read back what `save_weights` wrote; raise a ModelError if it belongs to another model or loss."""
        saved = load_file(folder / TRAINED)
        trained = self.backbone.trained()
        if saved.keys() != trained.keys():
            different = sorted(saved.keys() ^ trained.keys())[:5]
            raise ModelError(f"The checkpoint {folder} is of another model or loss: {different} ...")
        sharding.copy(saved, trained)

    def save_optimizer(self, folder: Path, optimizer: Any, schedule: Any) -> None:
        """Write a sharded optimiser's state in full, so that another number of processes, sharded or not, can continue."""
        state = optimizer.state_dict()
        state["state"] = sharding.on_main(state["state"])
        if distributed.is_main():
            torch.save(state, folder / OPTIMIZER_FILE)
            torch.save(schedule.state_dict(), folder / SCHEDULER_FILE)

    def load_optimizer(self, folder: Path, optimizer: Any, schedule: Any) -> None:
        """Read back what `save_optimizer` wrote, sharded as the optimiser's parameters are."""
        state = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number, values in state["state"].items():
            state["state"][number] = {name: sharding.like(v, parameters[number]) for name, v in values.items()}
        optimizer.load_state_dict(state)
        schedule.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
