"""Keeps the memory of one step for the next, on a CPU."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed memory back to the system after every step.

    A training step on a CPU frees and takes again hundreds of megabytes of activations; by default each
    large block goes back to the kernel and comes again as fresh zeroed pages. With a teacher beside the
    student that costs a tenth of the step. Numbers do not change; the process keeps its peak.

    Returns:
        Whether it was done; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL("libc.so.6")
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _NEVER))
