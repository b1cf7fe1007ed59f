"""Lack of memory: what ran out of it is computed once more with half as much at a time, which changes numbers by rounding at most."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from plo import distributed
from plo.backbone.steps import micro_batches
from plo.config import TrainConfig
from plo.errors import PloError
from plo.faults import is_out_of_memory
from plo.losses import Loss

Item = TypeVar("Item")
Result = TypeVar("Result")
T = TypeVar("T")
log = logging.getLogger(__name__)


class OutOfMemory(PloError, RuntimeError):
    """An error for a computation that does not fit into memory, even where half as much was computed at a time."""


def train_within_memory(
    train: Callable[[TrainConfig], T], config: TrainConfig, loss: Loss, name: str
) -> tuple[T, list[str]]:
    """Return `train(config)`, and notes about it. If memory runs out, `train` is called once more with half of the micro-batch.

    Args:
        train: trains from the last checkpoint or the start. A step has the same pairs with any micro-batch.
        name: name of what is trained, for the note.

    Raises:
        OutOfMemory: memory ran out twice, or the micro-batch cannot be halved.
    """
    micro, passes = micro_batches(config, loss)
    halves = (size for size in range(micro // 2, 0, -1) if micro * passes % size == 0)
    half = next(halves, 0) if loss.level != "batch" else 0  # such a loss needs the whole batch in one pass
    lower = "Lower data.max_length" if micro == 1 else "Lower train.micro_batch_size or data.max_length"

    def with_micro_batch(size: int) -> T:
        return train(config if size == micro else config.model_copy(update={"micro_batch_size": size}))

    about = f"the training of {name}", "pairs in a forward pass", f"{lower}, or use a smaller model"
    trained, note = halving(with_micro_batch, micro, half, *about)
    return trained, [note] if note else []


@dataclass
class Passes:
    """Passes over items, of at most `size` of them; after memory ran out once, of half as many.

    Attributes:
        what: what the passes compute, for messages: "sampling".
        unit: what an item is: "sequences at a time".
        remedy: what the user can do where even half of the items are too many, without a full stop.
    """

    size: int
    what: str
    unit: str
    remedy: str
    halved: bool = field(default=False, init=False)

    def over(self, items: Sequence[Item], compute: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """Return what `compute` returns for the passes, joined, in the order of the items.

        Raises:
            OutOfMemory: memory ran out with half of the items too, or with a single one.
        """
        results, start = [], 0
        while start < len(items):
            part = items[start : start + self.size]

            def in_passes(size: int, part: Sequence[Item] = part) -> list[Result]:
                return [result for first in range(0, len(part), size) for result in compute(part[first : first + size])]

            half = 0 if self.halved else self.size // 2
            found, note = halving(in_passes, self.size, half, self.what, self.unit, self.remedy)
            if note:
                self.size, self.halved = half, True
            results += found
            start += len(part)
        return results


def halving(call: Callable[[int], T], size: int, half: int, what: str, unit: str, remedy: str) -> tuple[T, str | None]:
    """Return `call(size)` and None; if memory runs out in it, `call(half)` and a note, which is logged.

    Several processes of one launch are not in the same place when memory runs out in one of them; there nothing is halved.

    Args:
        half: 0: `size` cannot be halved.

    Raises:
        OutOfMemory: memory ran out, and `call(half)` was no way out.
    """
    try:
        return call(size), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if not half or distributed.processes() > 1:
            raise OutOfMemory(f"Memory ran out in {what} with {size} {unit}. {remedy}.") from error
    # The error, whose traceback held the tensors of the failed pass, is gone after the clause.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    note = f"Memory ran out in {what} with {size} {unit}: it was done with {half}, which changes numbers by rounding at most."
    log.warning("%s", note)
    try:
        return call(half), note
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"Memory ran out in {what} with {size} {unit}, and again with {half}. {remedy}.") from error
