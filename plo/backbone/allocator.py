"""Memory that a training step frees is kept for the next one."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc's malloc hand freed blocks out again instead of returning them to the system.

    By default every tensor of more than 32 MB (weights cast, gradients, logits) is mapped anew and its pages are zeroed one
    fault at a time, each step again. Elsewhere than under glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
