"""Tensors that stay alive: what a call leaves behind must not grow with the number of calls."""

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path

from torch import Tensor


def live_tensors() -> list[Tensor]:
    """Every tensor that Python can reach."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


def tracked_objects() -> int:
    """How many objects the garbage collector follows."""
    gc.collect()
    return len(gc.get_objects())


def resident_bytes() -> int:
    """The process's memory in use; 0 where no /proc tells."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def assert_no_growth(call: Callable[[], object], times: int = 10) -> None:
    """Many calls leave as many new tensors alive as one does.

    Only tensors younger than the first call count: those that earlier tests left may go away.
    """
    call()
    older = {id(tensor): weakref.ref(tensor) for tensor in live_tensors()}

    def younger() -> int:
        return sum(id(t) not in older or older[id(t)]() is not t for t in live_tensors())

    call()
    left = younger()
    for _ in range(times):
        call()
    assert younger() == left
