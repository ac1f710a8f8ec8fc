"""A pytest plugin: `cuda` is a device that the host stands in for.

    python -m pytest -p tests.stand_in_gpu.plugin --device cuda --only-device tests/ops

The CUDA library's code runs, kernels on the emulator, called by torch as on a GPU; torch's own
operators run on the CPU. Fresh memory is garbage, tensors of both devices in one call are refused,
and so is waiting for the device while a CUDA graph is captured. There is one stream, compiled
models run without Triton, and times mean nothing.
"""

import ctypes
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401 (its operators get a device, too)

from tests.native.build import Unavailable

from . import graphs
from .build import build_library

GIB = 1 << 30
HOPPER = SimpleNamespace(
    name="stand-in", major=9, minor=0, multi_processor_count=132, total_memory=80 * GIB,
    L2_cache_size=50 << 20, uuid="0",
)  # fmt: skip


class Event:
    """torch.cuda.Event: everything has happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _: "Event") -> float:
        return 1.0


class Stream:
    """torch.cuda.Stream: the only one."""

    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, _: "Stream") -> None: ...
    def wait_event(self, _: Event) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def record_event(self, *_: Any) -> Event:
        return Event()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...


def _does_nothing(*_: Any, **__: Any) -> None: ...


def _returns(value: Any) -> Any:
    return lambda *_, **__: value


def replace_cuda_module() -> None:
    """Let `torch.cuda` answer without a driver."""
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "current_stream": Stream(), "default_stream": Stream(), "stream": nullcontext(),
        "is_bf16_supported": True, "get_device_capability": (9, 0), "get_device_name": "stand-in",
        "get_device_properties": HOPPER, "mem_get_info": (64 * GIB, 80 * GIB),
        "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, _returns(answer))
    for name in ("_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed",
                 "manual_seed_all", "reset_peak_memory_stats", "set_rng_state"):  # fmt: skip
        setattr(torch.cuda, name, _does_nothing)
    torch._C._cuda_init = _does_nothing
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.device = _returns(nullcontext())
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.CUDAGraph, torch.cuda.graph = graphs.CUDAGraph, graphs.graph
    torch.cuda.is_current_stream_capturing = graphs.is_capturing


def _clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    fresh = torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device)
    return fresh.untyped_storage().copy_(storage)


def allocate_by_tensors() -> None:
    """A storage of its own, as of models that are copied, comes from the driver."""
    torch.storage._StorageBase.clone = _clone_storage


def leave_out_compilers() -> None:
    """No code is generated for the device: Triton, NVRTC, cuDNN and fused attention need a GPU."""
    torch.backends.cudnn.enabled = False
    for attention in ("cudnn", "flash", "mem_efficient"):
        getattr(torch.backends.cuda, f"enable_{attention}_sdp")(False)
    torch._C._jit_set_texpr_fuser_enabled(False)
    torch._C._jit_override_can_fuse_on_gpu(False)
    compile_by = torch.compile

    def compile_eagerly(model: Any = None, **options: Any) -> Any:
        if options.get("backend", "inductor") == "inductor":
            options = {"backend": "aot_eager", "fullgraph": options.get("fullgraph", False),
                       "dynamic": options.get("dynamic")}  # fmt: skip
        return compile_by(model, **options)

    torch.compile = compile_eagerly


def take_the_place_of_cuda_library() -> None:
    """The wsfast library for GPUs is not loaded: the stand-in's holds the same operators."""
    load = torch.ops.load_library

    def load_others(path: str | Path) -> None:
        if not Path(path).name.startswith("_C_cuda"):
            load(path)

    torch.ops.load_library = load_others


def install() -> None:
    """Make `cuda` a device, before wsfast is imported.

    Raises:
        Unavailable: Without a compiler.
    """
    library = build_library()
    replace_cuda_module()
    allocate_by_tensors()
    leave_out_compilers()
    take_the_place_of_cuda_library()
    ctypes.CDLL(str(library)).install()


def pytest_load_initial_conftests() -> None:
    """Before the first test file is read."""
    try:
        install()
    except Unavailable as reason:
        raise pytest.UsageError(str(reason)) from None
