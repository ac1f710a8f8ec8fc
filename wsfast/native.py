"""Loads the compiled libraries and keeps every op callable without them.

``_C`` holds the schemas and CPU kernels, ``_C_cuda`` the CUDA kernels; both are built on the
LibTorch Stable ABI and loaded once, when ``wsfast`` is imported. Where a kernel is missing, the
dispatcher runs the op's pure-PyTorch reference and warns once per op and device. With
``WSFAST_REQUIRE_NATIVE=1`` in the environment a missing kernel is an error instead.
"""

import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _installation
from ._version import __version__

LIBRARIES = ("_C", "_C_cuda")
SIMD_LEVELS = ("scalar", "avx2", "avx512")

_status: dict[str, str] = {}
_schemas: dict[str, str] = {}
_references: dict[str, Callable[..., Any]] = {}
_cuda_ways: dict[str, str] = {}
_warned: set[tuple[str, str]] = set()


class NativeFallbackWarning(RuntimeWarning):
    """An op ran its pure-PyTorch reference because its native kernel is missing."""


def native_required() -> bool:
    """Whether ``WSFAST_REQUIRE_NATIVE`` asks for an error instead of a fallback."""
    return os.environ.get("WSFAST_REQUIRE_NATIVE", "0") not in ("", "0")


def library_path(name: str) -> Path | None:
    """The built library file inside the package, or None where it was not built."""
    found = sorted(Path(__file__).parent.glob(f"{name}.*"))  # .so, on Windows .pyd
    built = [path for path in found if path.suffix in (".so", ".pyd")]
    return built[0] if built else None


def _why_not(error: OSError) -> str:
    reason = str(error).splitlines()[0]
    if "libtorch_cuda" in reason and torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    return reason


def loaded_libraries() -> list[Path]:
    """The files of the libraries that are loaded, ``_C`` first: what a C++ program has to open."""
    files = [library_path(name) for name in LIBRARIES if _status[name] == "loaded"]
    return [file for file in files if file is not None]


def load_libraries() -> None:
    """Load what was built and remember, library by library, why the rest is absent."""
    for name in LIBRARIES:
        path = library_path(name)
        if path is None:
            _status[name] = "not built"
            continue
        try:
            torch.ops.load_library(path)
            _status[name] = "loaded"
        except OSError as error:
            _status[name] = f"cannot be loaded: {_why_not(error)}"
    if _status["_C"] != "loaded" and native_required():
        raise ImportError(f"wsfast: WSFAST_REQUIRE_NATIVE=1, but _C is {_status['_C']}")


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"wsfast::{name}", key)


def _first_device(args: tuple[Any, ...]) -> str:
    for arg in args:
        if isinstance(arg, Tensor):
            return arg.device.type
        if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor):
            return arg[0].device.type
    return "cpu"


def _announce_fallback(name: str, device: str) -> None:
    library = _status.get("_C_cuda" if device == "cuda" else "_C", "not built")
    reason = "has no kernel for it" if library == "loaded" else library
    message = f"wsfast.{name}: no native kernel on {device} (library {reason})"
    if native_required():
        raise RuntimeError(f"{message} and WSFAST_REQUIRE_NATIVE=1")
    if (name, device) not in _warned:
        _warned.add((name, device))
        warnings.warn(
            f"{message}; the slower PyTorch reference is used", NativeFallbackWarning, stacklevel=3
        )


def keep_out_of_cuda_graphs(name: str) -> None:
    """Make ``torch.compile`` run an op that waits for the device between its CUDA graphs."""
    getattr(torch.ops.wsfast, name).default.tags.append(torch.Tag.cudagraph_unsafe)


def register_op(schema: str, reference: Callable[..., Any]) -> None:
    """Make ``torch.ops.wsfast.<name>`` exist on every backend.

    Args:
        schema: the op's schema, equal to the one in ``csrc`` (a test compares them).
        reference: pure-PyTorch function with the op's positional arguments and results; runs on
            backends without a native kernel.
    """
    name = schema.split("(", 1)[0]
    if _status.get("_C") != "loaded" or not hasattr(torch.ops.wsfast, name):
        torch.library.define(f"wsfast::{name}", schema[len(name) :])

    def fallback(*args: Any) -> Any:
        _announce_fallback(name, _first_device(args))
        return reference(*args)

    torch.library.impl(f"wsfast::{name}", "CompositeExplicitAutograd")(fallback)
    if not _has_kernel(name, "CUDA"):  # the host's kernel or plain PyTorch, which may wait
        keep_out_of_cuda_graphs(name)
    _schemas[name] = schema
    _references[name] = reference


def register_cuda_way(name: str, way: str, kernel: Callable[..., Any]) -> None:
    """Serve an op's CUDA tensors without a CUDA kernel of its own, where there is a CPU kernel.

    Args:
        name: the op, registered before.
        way: ``"host"`` if ``kernel`` calls the CPU kernel on copies, ``"torch"`` if it is made of
            torch's own operators on the device.
        kernel: takes the op's arguments on CUDA and returns its results on CUDA.
    """
    if _has_kernel(name, "CPU"):
        torch.library.impl(f"wsfast::{name}", "CUDA")(kernel)
        _cuda_ways[name] = way


def reference_of(name: str) -> Callable[..., Any]:
    """The pure-PyTorch function that an op falls back to."""
    return _references[name]


def kernel_kind(name: str, device: str) -> str:
    """How an op runs on ``"cpu"`` or ``"cuda"``; the words are those of :func:`info`."""
    if not _has_kernel(name, device.upper()):
        return "reference"
    return _cuda_ways.get(name, "native") if device == "cuda" else "native"


def registered_schemas() -> dict[str, str]:
    """The schema of every op that Python registered, by op name."""
    return dict(_schemas)


def info() -> dict[str, Any]:
    """What is installed and native here, and why the rest is not.

    Returns:
        Versions; ``distribution``: the wheel or folder it comes from; the state of both
        ``libraries`` (``"loaded"`` or the reason), and ``builds``: wsfast, torch, compiler and GPU
        architectures they were built with; the CPU instruction set in use, the visible CUDA
        device; ``problems``: what does not fit, in words; and for every op ``"native"`` or
        ``"reference"`` on ``cpu`` and ``cuda``; on ``cuda`` also ``"host"`` (copies go through the
        CPU kernel) and ``"torch"`` (torch's own operators on the device).
    """
    loaded = _status.get("_C") == "loaded"
    level = SIMD_LEVELS[torch.ops.wsfast._cpu_simd_level()] if loaded else "none"
    kernels = {
        name: {device: kernel_kind(name, device) for device in ("cpu", "cuda")}
        for name in sorted(_schemas)
    }
    return {
        "wsfast": __version__,
        **_installation.summary(_status, {name: library_path(name) for name in LIBRARIES}),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "libraries": dict(_status),
        "cpu_simd": level,
        "threads": torch.get_num_threads(),
        "gpu": _installation.gpu(),
        "ops": kernels,
    }


load_libraries()
