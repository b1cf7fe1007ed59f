"""Memory of a training step: its peak, what it will need, and reuse of what the last step freed."""

import contextlib
import ctypes
import gc
import re
import resource
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc's malloc, if there is one, reuse freed blocks instead of returning them to the system.

    By default every tensor of more than 32 MB is mapped anew in every step, and its pages are zeroed one fault at a time.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_gb() -> float:
    """Return the peak memory since `reset_peak_memory`, of the GPU if there is one, else the resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 / 1e9
    except (OSError, LookupError):  # not Linux: the peak of the whole process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory, after freeing what is unused."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc: what malloc keeps counts as used
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak stays that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def saved_bytes(module: torch.nn.Module, batch: Any) -> int:
    """Return the bytes that a forward pass of `batch` keeps for its backward pass, including casts of parameters.

    Parameters themselves are excluded. The bytes are counted, so that they are right for any architecture, dtype and adapter.
    """
    storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}
    kept: list[Tensor] = []  # else another tensor might come to lie where a counted one was

    def count(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # a function that keeps its own result, which knows the function, is never freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(batch)
    return sum(storages.values())


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_by_torch
    return psutil.virtual_memory().available
