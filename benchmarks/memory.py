"""Peak extra memory of one contender, measured in a process of its own.

On the CPU this is the high-water mark of the resident set (``VmHWM`` of Linux, reset through
``/proc/self/clear_refs``) minus what was resident before the call and minus the bytes of the
result. Unlike a profiler of torch's allocator it sees scratch that native code takes with ``new``;
the kernel's counters are exact to about a megabyte. A call on a small input comes first, so that
code pages and thread stacks are in place, and freed memory is handed back before the mark is set.
On CUDA it is the peak of torch's allocator.
"""

import argparse
import ctypes
import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .harness import Case, Run
from .machine import use_threads
from .records import MemoryRow

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER_MARK = "5"
RESIDENT_SET = "resident-set high-water mark"
CUDA_ALLOCATOR = "peak of torch's CUDA allocator"


def measure_in_subprocess(
    module: str, case: Case, contender: str, threads: int, device: str
) -> MemoryRow:
    """Run :func:`extra_bytes` for one contender in a fresh interpreter."""
    command = [sys.executable, "-m", __name__, module, case.operation, contender]
    command += ["--threads", str(threads), "--device", device]
    root = Path(__file__).resolve().parents[__name__.count(".")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if found.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{found.stderr}")
    return MemoryRow(**json.loads(found.stdout.splitlines()[-1]))


def measure_here(case: Case, contender: str, device: torch.device) -> MemoryRow:
    """Measure one contender of ``case`` in this process, which should be fresh."""
    limit = case.memory
    if limit is None:
        raise ValueError(f"{case.operation} declares no memory limit")
    entry = case.contender(contender)
    entry.build(case.make_inputs(limit.warm_up, device))()
    inputs = case.make_inputs(limit.size, device)
    return MemoryRow(
        room=case.room,
        operation=case.operation,
        size=limit.size.label,
        contender=contender,
        extra_bytes=extra_bytes(entry.build(inputs), device),
        unit_bytes=limit.unit_bytes(inputs),
        unit=limit.unit,
        at_most=limit.at_most,
        method=CUDA_ALLOCATOR if device.type == "cuda" else RESIDENT_SET,
    )


def extra_bytes(run: Run, device: torch.device) -> int | None:
    """Return the peak bytes that ``run`` takes beyond its result; None where that is unknown."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    elif CLEAR_REFS.exists():
        _give_back_freed_memory()
        CLEAR_REFS.write_text(RESET_HIGH_WATER_MARK)
        before = _status_bytes("VmRSS")
        result = run()
        peak = _status_bytes("VmHWM")
    else:
        return None
    return max(0, peak - before - _bytes(result))


def _give_back_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def _bytes(result: Any) -> int:
    """Return the bytes of the storages under ``result``, each counted once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(result)
    }
    return sum(storages.values())


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)


def main() -> None:
    """Print the memory row of one contender as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="bench module, such as benchmarks.bench_truncation")
    parser.add_argument("operation", help="title of the case")
    parser.add_argument("contender", help="name of the contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    use_threads(options.threads)
    cases: list[Case] = importlib.import_module(options.module).CASES
    case = next(case for case in cases if case.operation == options.operation)
    print(json.dumps(asdict(measure_here(case, options.contender, torch.device(options.device)))))


if __name__ == "__main__":
    main()
