"""The machine side of a run: threads, allocator, copy bandwidth and the facts to print."""

import ctypes
import datetime
import gc
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any, Literal

import torch

from .clocks import cuda_clock, wall_clock, warm_up

Allocator = Literal["keep", "system"]
ALLOCATORS: tuple[Allocator, ...] = ("keep", "system")
PACKAGES = ("torch", "torchvision", "numpy", "grad-cam", "torchcam")
SIMD_FLAGS = ("sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512vbmi2", "asimd", "sve")
FACTS = (
    *("cpu", "simd", "cores", "threads", "allocator", "system", "python", "packages", "wsfast"),
    *("commit", "date", "load_before", "device", "copy_bandwidth"),
)
WSFAST_FACTS = ("wsfast", "libraries", "cpu_simd")
# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def use_threads(threads: int) -> None:
    """Give torch and OpenCV the same number of threads."""
    torch.set_num_threads(threads)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(threads)


def use_allocator(allocator: Allocator) -> None:
    """Choose whether freed memory stays with the process (``keep``) or not (``system``).

    glibc hands every freed block above 32 MB back to the kernel, so that each large result costs
    page faults that take several times as long as a copy of it. ``keep`` holds on to freed memory,
    as the allocators recommended by PyTorch's tuning guide do; it holds for every contender.
    """
    if allocator == "keep":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is None or not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1)):
            raise RuntimeError("this C library has no mallopt: use --allocator system")


def copy_bandwidth(device: torch.device, *, megabytes: int = 256, rounds: int = 15) -> float:
    """Return the bytes per second (read plus written) of ``Tensor.copy_`` on ``device``."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    destination = torch.empty_like(source)
    # On a GPU one copy is over so soon that its launch would count.
    clock, calls = (cuda_clock, 8) if device.type == "cuda" else (wall_clock, 1)

    def copy() -> None:
        destination.copy_(source)

    warm_up(copy, clock)
    seconds = [clock(copy, calls) / calls for _ in range(rounds)]
    return 2 * source.nbytes / statistics.median(seconds)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can be taken without swapping, None where that is unknown.

    What cycles of the contenders before and ``keep`` still hold is free as well.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def facts(device: torch.device, threads: int, allocator: Allocator) -> dict[str, Any]:
    """Return what a reader needs to judge the figures, and no name of host or user."""
    return {
        **identity(device, threads),
        "simd": _cpu()[1],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "allocator": allocator,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES} | {"opencv": _opencv_version()},
        "wsfast": _wsfast_facts(device),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": round(os.getloadavg()[0], 2),
        "copy_bandwidth": copy_bandwidth(device),
    }


def identity(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the facts that tell one machine's results from another's."""
    known: dict[str, Any] = {"cpu": _cpu()[0], "threads": threads, "device": device.type}
    if device.type == "cuda":
        known["gpu"] = torch.cuda.get_device_name(device)
        known["cuda"] = torch.version.cuda
    return known


def check_facts(known: dict[str, Any]) -> None:
    """Raise a KeyError or TypeError if ``known`` is not what :func:`facts` returns."""
    missing = {*FACTS} - {*known} or {*WSFAST_FACTS} - {*known["wsfast"]}
    if missing:
        raise KeyError(f"no {', '.join(sorted(missing))}")


def slug(known: dict[str, Any]) -> str:
    """Return the file name stem for results of this machine."""
    if known["device"] == "cuda":
        name = known["gpu"]
    else:
        name = f"{known['cpu']} {known['threads']} threads"
    words = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _cpu() -> tuple[str, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    name = found.group(1) if found else platform.machine()
    return name, [flag for flag in SIMD_FLAGS if flag in present]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _opencv_version() -> str:
    # Several distributions provide cv2, so the module is asked.
    if importlib.util.find_spec("cv2") is None:
        return "not installed"
    import cv2

    return str(cv2.__version__)


def _wsfast_facts(device: torch.device) -> dict[str, Any]:
    import wsfast

    found = wsfast.info()
    slow = [op for op, backends in found["ops"].items() if backends[device.type] == "reference"]
    return {**{key: found[key] for key in WSFAST_FACTS}, "fallbacks": slow}


def commit(otherwise: str = "an installed package") -> str:
    """Return the commit of this checkout, or what WSFAST_COMMIT holds where git does not tell."""
    root = Path(__file__).resolve().parent.parent
    checked_out = (root / ".git").exists()  # a folder above, a user's project, tells nothing
    found = ""
    if checked_out and shutil.which("git"):
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
        found = done.stdout.strip()
    unknown = "unknown" if checked_out else otherwise
    return found or os.environ.get("WSFAST_COMMIT") or unknown
