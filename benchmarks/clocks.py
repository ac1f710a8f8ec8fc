"""Clocks that time calls on the CPU and on a GPU, and the warm-up before them."""

import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]
Clock = Callable[[Run, int], float]
WARM_UP_SECONDS = 0.1  # in which a GPU that was idle raises its clocks


def wall_clock(run: Run, calls: int) -> float:
    """Return the seconds of ``calls`` calls by the wall clock."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def cuda_clock(run: Run, calls: int) -> float:
    """Return the seconds of ``calls`` calls between two CUDA events of the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def warm_up(run: Run, clock: Clock, seconds: float = WARM_UP_SECONDS) -> None:
    """Call ``run`` for so long, once at least."""
    end = time.perf_counter() + seconds
    clock(run, 1)
    while time.perf_counter() < end:
        clock(run, 1)
