"""This machine and this process, named so that other processes can tell whether they still run."""

import hashlib
import os
import platform
import time
from functools import cache
from pathlib import Path

import psutil


@cache
def machine() -> str:
    """Return the name of this machine: its host name, and a hash that changes with every start of the system or container."""
    parts = []
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(file)
        if path.is_symlink():
            parts.append(os.readlink(path))
        elif path.exists():
            parts.append(path.read_text("utf-8").strip())
    parts = parts or [str(int(psutil.boot_time()))]
    return f"{platform.node()} {hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def waited() -> float:
    """Return the seconds that this thread has waited for a processor which others used; 0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text("ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or a kernel without the statistic
        return 0.0


def undisturbed() -> float:
    """Return a clock, in seconds, that stands still while this thread waits for a processor which others use."""
    return time.perf_counter() - waited()


def process() -> str:
    """Return the name of this process on its machine: its number and the time of its start, as numbers are used again."""
    return _name(os.getpid())


def is_alive(process: str) -> bool:
    """Return whether a process of this machine still runs."""
    pid, _, started = process.partition(":")
    try:
        found = psutil.Process(int(pid))
        return f"{found.create_time():.2f}" == started and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


@cache
def _name(pid: int) -> str:
    return f"{pid}:{psutil.Process(pid).create_time():.2f}"
