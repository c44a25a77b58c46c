"""What a process that computes is set to, before it does."""

import ctypes
import sys

import torch

TRIM, MMAP = -1, -3
"""malloc's names for its thresholds: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
KEPT = 2**30
"""Bytes of freed memory that stay with the process."""
MAPPED = 2**25
"""Larger blocks are given back as they are freed; malloc takes no larger threshold."""


def on_one_core() -> None:
    """Compute on one thread, and keep memory that is freed for what needs it next.

    More threads than free cores can be fifty times slower. malloc, left to itself, gives megabytes back after each task
    and is given other pages for the next, thousands of them, each with a fault and its zeros, which took up to a third
    of the time (benchmarks/README.md). Where malloc is not glibc's it is left as it is.
    """
    torch.set_num_threads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(TRIM, KEPT)
        mallopt(MMAP, MAPPED)
