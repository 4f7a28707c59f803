"""Measuring the memory that some work takes: its peak, above what the process has already."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.measure import in_fresh_process, process_memory


def in_counting_process(function: Callable[..., Any], *args: Any) -> Any:
    """Result of a module's function in a new interpreter that gives what it frees back to the system at once.

    Else memory that something has freed before would be used again, and the work would seem to take none.
    """
    # A threshold that is set stays as it is, and larger blocks are never kept; for glibc.
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        return in_fresh_process(function, *args)


def growth(work: Callable[[], Any], device: str = "cpu") -> float:
    """Most MiB that some work has at a time on top of what is there already, on the device.

    On the CPU only in a process from `in_counting_process`.
    """
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    now, peak = process_memory()
    # An earlier peak would hide this one: so much is filled that any more is a new peak.
    filling = np.ones(max(peak - now, 0) // 8 + 2**18)
    now = process_memory()[0]
    work()
    peak = process_memory()[1]
    del filling
    return (peak - now) / 2**20
