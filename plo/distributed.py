"""Several processes, as `accelerate launch` and `torchrun` start them: which one speaks, and what all of them agree on.

In a single process every function returns at once, so that no caller needs to ask how many processes there are.
"""

import os
import pickle
import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, overload

import psutil
import torch
import torch.distributed as dist

from plo.borrowed import TORCH
from plo.errors import PloError


class LaunchError(PloError, ValueError):
    """An error in how processes were started."""


T = TypeVar("T")
_c10d = TORCH.require("torch.distributed.distributed_c10d", "_get_default_store")
PATIENCE = timedelta(days=7)  # how long processes wait while the main one works on its own, as when it judges


def start() -> None:
    """Join the processes that the launcher started; all must call it, before transformers reads the environment."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    is_sharding_requested()
    os.environ["ACCELERATE_USE_FSDP"] = "false"  # so that `plo.backbone.sharding` shards, and accelerate does not
    if dist.is_initialized():
        _patient_group()  # all processes have to make it, at the same moment: here they do


def lost_processes() -> str | None:
    """Return a warning if `accelerate launch` was to start several processes and started one, as it does with `--cpu`."""
    if "ACCELERATE_USE_CPU" not in os.environ or processes() > 1:
        return None
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    requested = re.search(r"--num[_-]processes[ =](\d+)", " ".join(command))
    if requested is None or int(requested[1]) < 2:
        return None
    return (
        f"accelerate launch started one process instead of {requested[1]}, as it does with --cpu: on CPUs start them with "
        f"torchrun --nproc_per_node {requested[1]} -m plo ..."
    )


@cache
def is_sharding_requested() -> bool:
    """Return whether `accelerate launch --use_fsdp --fsdp_version 2` started this process, and others with it.

    The first call decides: `start` removes the request from the environment.

    Raises:
        LaunchError: FSDP1, or an option of accelerate that plo lacks.
    """
    requested = flag("ACCELERATE_USE_FSDP") and processes() > 1
    if requested and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("plo shards with FSDP2: add --fsdp_version 2 to accelerate launch.")
    if requested and (
        refused := [name for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING") if flag(name)]
    ):
        raise LaunchError(f"plo has no {' and no '.join(refused)}: leave the option out of accelerate launch.")
    return requested


def flag(name: str, default: bool = False) -> bool:
    """Return a yes or no that the launcher wrote into the environment."""
    return os.environ.get(name, str(default)).lower() in ("true", "1", "yes")


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process records, prints and writes files for all."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of ranks, in every process."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value, group=_patient_group())
    return values


@overload
def on_main(function: Callable[[], T]) -> T: ...


@overload
def on_main(function: Callable[[], T], *, share: bool) -> T | None: ...


def on_main(function: Callable[[], T], *, share: bool = True) -> T | None:
    """Call `function` in the main process alone, and return or raise the same in every process.

    Args:
        share: whether the other processes get the value too; if not, they get None. An error is raised in all of them.
    """
    if processes() == 1:
        return function()
    value = error = None
    if is_main():
        try:
            value = function()
        except Exception as raised:
            error = raised
    message = [(value if share else None, _portable(error))]
    dist.broadcast_object_list(message, src=0, group=_patient_group())
    shared, portable = message[0]
    if portable is not None:
        raise error or portable
    return value if is_main() else shared


def all_failed(seconds: float = 30) -> bool:
    """Return whether all processes failed within some seconds, so that they can continue with the next task together.

    If only some failed, the others wait for them for good in the midst of a step. The caller should then let its process
    end, and the launcher ends the rest.
    """
    if processes() == 1:
        return True
    # A store is not a collective: a process in the midst of one can be read.
    store = _c10d._get_default_store()
    number = store.add(f"plo/failures/{rank()}", 1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(store.add(f"plo/failures/{other}", 0) >= number for other in range(processes())):
            return True
        time.sleep(0.05)
    return False


@cache
def _patient_group() -> dist.ProcessGroup:
    """Return a group with a long limit; the limit of torch's own group, some minutes, detects processes that hang."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)  # pyright: ignore[reportReturnType] (this process is in it)


def _portable(error: Exception | None) -> Exception | None:
    """Return the error, or if pickle cannot carry it a `RuntimeError` with its message."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
