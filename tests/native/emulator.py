"""The `emulator` fixture: CUDA kernels on the CPU under AddressSanitizer and UBSan.

    def test_truncate(emulator):
        out = emulator.call("truncate_gradients", grads_numpy, 50.0, False)

The functions come from the `bind_<room>.cpp` files beside this one. Arrays are NumPy's; half and
bfloat16 arrays travel as uint16 bits (`to_bits`, `from_bits`) and their functions end in `_half`
and `_bfloat16`. A sanitizer report or a crash fails the test with the report's text.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .build import Unavailable, build_module, compiler, runtime_library

ORDERS = ("forward", "reverse", "random")
DEFAULT_ORDER = os.environ.get("WSFAST_EMULATOR_ORDER", "forward")
SUFFIX = {torch.float16: "_half", torch.bfloat16: "_bfloat16"}


class SanitizerError(AssertionError):
    """The kernel read or wrote where it must not, overflowed, or crashed."""


def to_bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as the emulator takes it: half types as uint16, all others as they are."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype in SUFFIX else tensor).numpy()


def from_bits(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `to_bits`."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype in SUFFIX else tensor


class Emulator:
    """A worker process with the test module, started when first needed and after a crash."""

    def __init__(self, module: Path, timeout: float = 120.0) -> None:
        self._module = module
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (kept for the session)

    def call(self, name: str, *arguments: Any, dtype: torch.dtype | None = None) -> Any:
        """Result of the module's function; `dtype` of a half type picks that type's variant."""
        suffix = "" if dtype is None else SUFFIX.get(dtype, "")
        return self._request(name + suffix, arguments)

    def call_in_every_order(
        self, name: str, *arguments: Any, dtype: torch.dtype | None = None
    ) -> Any:
        """Like `call`, in forward, reverse and random order; asserts one and the same result."""
        results = []
        for order in ORDERS:
            with self.order(order):
                results.append(self.call(name, *arguments, dtype=dtype))
        for order, result in zip(ORDERS[1:], results[1:], strict=True):
            message = f"{name} gives another result when threads and blocks run in {order} order"
            np.testing.assert_equal(result, results[0], err_msg=message)
        return results[0]

    @contextmanager
    def order(self, name: str, seed: int = 0) -> Iterator[None]:
        """Run threads, warps and blocks in "forward", "reverse" or "random" order."""
        self._request("set_order", (name, seed))
        try:
            yield
        finally:
            self._request("set_order", (DEFAULT_ORDER, 0))

    def stop(self) -> None:
        """End the worker."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _request(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if self._process is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send((name, arguments))
        except BrokenPipeError:
            self._fail(name)
        return self._receive(name)

    def _start(self) -> None:
        self._errors.seek(0)
        self._errors.truncate()
        self._connection, theirs = Pipe()
        worker = str(Path(__file__).with_name("worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", worker, str(self._module), str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=_worker_environment(),
        )
        theirs.close()
        self._receive("import")

    def _receive(self, name: str) -> Any:
        assert self._connection is not None
        try:
            if not self._connection.poll(self._timeout):
                self.stop()
                raise TimeoutError(f"{name} did not end within {self._timeout:.0f} s")
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._fail(name)
        if kind == "error":
            raise value
        return value

    def _fail(self, name: str) -> None:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        report = self._errors.read().decode(errors="replace")
        self.stop()
        raise SanitizerError(f"{name} ended the emulator (exit status {code}):\n{report}") from None


def _worker_environment() -> dict[str, str]:
    cxx = compiler()
    # libstdc++ too: ASan looks for the function that throws exceptions when it starts.
    preload = [runtime_library(cxx, name) for name in ("libasan.so", "libstdc++.so")]
    options = "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=0"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "OPENBLAS_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """CUDA kernels on the CPU; skips without a C++ compiler or pybind11 (fails where CI is set)."""
    try:
        module = build_module()
    except Unavailable as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    running = Emulator(module)
    yield running
    running.stop()
