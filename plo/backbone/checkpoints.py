"""Checkpoints of a training: they hold everything that is trained, and nothing else.

The last two are kept, so that a damaged one costs its steps and not the training.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from plo import distributed, store
from plo.backbone import sharding
from plo.backbone.head import ModelError
from plo.backbone.model import Backbone

TRAINED = "trained.safetensors"


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of a training's checkpoints, the newest first, whole or not."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_checkpoint(folder: Path, lacking: Callable[[int, int], str | None] = lambda step, steps: None) -> Path | None:
    """Return the newest checkpoint to go on from. Those after it that are damaged, or were not written whole, are removed.

    Args:
        lacking: says of a step, and the steps of the whole training, what is gone that going on from there would need.
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


def remove_older(folder: Path) -> None:
    """Remove all checkpoints but the newest, before another is written: the disk never holds more than two."""
    for _, older in checkpoints(folder)[1:]:
        store.remove(older)


def save_trained(backbone: Backbone, folder: Path) -> None:
    """Write everything that training changes, from the main process."""
    trained = sharding.on_main(backbone.trained())
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED)


def load_trained(backbone: Backbone, folder: Path) -> None:
    """Read back what `save_trained` wrote.

    Raises:
        ModelError: it is of another model or loss.
    """
    saved = load_file(folder / TRAINED)
    trained = backbone.trained()
    if saved.keys() != trained.keys():
        different = sorted(saved.keys() ^ trained.keys())[:5]
        raise ModelError(f"The checkpoint {folder} is of another model or loss: {different} ...")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(sharding.like(saved[name], parameter))


def save_sharded(optimizer: Optimizer, file: Path) -> None:
    """Write a sharded optimiser's state in full, so that another number of processes, sharded or not, can go on with it."""
    state = optimizer.state_dict()
    state["state"] = sharding.on_main(state["state"])
    if distributed.is_main():
        torch.save(state, file)


def load_sharded(optimizer: Optimizer, file: Path) -> None:
    """Read back what `save_sharded` wrote."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        state["state"][number] = {name: sharding.like(v, parameters[number]) for name, v in values.items()}
    optimizer.load_state_dict(state)
