"""More than one process, as `accelerate launch` and `torchrun` start them: who speaks, who waits, what all agree on.

Alone, every function here does the obvious thing at once, so that no caller asks how many processes there are.
"""

import os
import pickle
import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

from plo.errors import PloError


class LaunchError(PloError, ValueError):
    """Processes that were started in a way that plo cannot use."""


T = TypeVar("T")
PATIENCE = timedelta(days=7)  # of processes that wait while the main one does something of its own, such as judging


def start() -> None:
    """Join the processes that the launcher started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    wants_shards()  # takes it off the environment before transformers and accelerate look
    if dist.is_initialized():
        _patient_group()  # all processes have to make it, at the same moment: here they do


def lost_processes() -> str | None:
    """Say in a sentence that `accelerate launch` was asked for several processes and started one; None where it was not.

    It does so with `--cpu`, without a word.
    """
    if "ACCELERATE_USE_CPU" not in os.environ or processes() > 1:
        return None
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    asked = re.search(r"--num[_-]processes[ =](\d+)", " ".join(command))
    if asked is None or int(asked[1]) < 2:
        return None
    return (
        f"accelerate launch was asked for {asked[1]} processes and started this one alone, as it does with --cpu: on CPUs "
        f"start them with torchrun --nproc_per_node {asked[1]} -m plo ..."
    )


@cache
def wants_shards() -> bool:
    """Whether `accelerate launch --use_fsdp --fsdp_version 2` started this process, and others with it.

    Raises:
        LaunchError: FSDP1, or an option of accelerate's that plo does not have.
    """
    wanted = flag("ACCELERATE_USE_FSDP") and processes() > 1
    os.environ["ACCELERATE_USE_FSDP"] = "false"  # plo.backbone.sharding does it
    if wanted and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("plo shards with FSDP2: add --fsdp_version 2 to accelerate launch.")
    if wanted and (
        refused := [name for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING") if flag(name)]
    ):
        raise LaunchError(f"plo has no {' and no '.join(refused)}: leave the option out of accelerate launch.")
    return wanted


def flag(name: str, default: bool = False) -> bool:
    """A yes or no of the launcher's in the environment."""
    return os.environ.get(name, str(default)).lower() in ("true", "1", "yes")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def everyone(value: T) -> list[T]:
    """Each process's value, in the order of ranks, in every process."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value, group=_patient_group())
    return values


def on_main(function: Callable[[], T], *, share: bool = True) -> T | None:
    """What `function` returns or raises in the main process, in every process; it is called nowhere else.

    Args:
        share: False: what it returns stays in the main process, the others get None; what it raises is raised in all.
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
    """Whether the other processes failed just now too, so that all can go on to something else together.

    Where only some did, the others wait for them in the midst of a step, for good: the caller should let its process
    end, whereupon the launcher ends the rest.
    """
    if processes() == 1:
        return True
    store = dist.distributed_c10d._get_default_store()  # not a collective: a process in the midst of one may be asked
    number = store.add(f"plo/failures/{rank()}", 1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(store.add(f"plo/failures/{other}", 0) >= number for other in range(processes())):
            return True
        time.sleep(0.05)
    return False


@cache
def _patient_group() -> dist.ProcessGroup:
    """Beside torch's own group, whose limit of some minutes tells of processes that hang in training."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _portable(error: Exception | None) -> Exception | None:
    """The error, or one that says the same where pickle cannot carry it."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
