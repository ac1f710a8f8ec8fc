"""The CUDA library's own code behind torch's dispatcher, from the Python functions to the kernels.

The emulated tests of each room hold the kernels to their references; what surrounds them, launches
and workspaces, gradients, guards and captures, runs here.
"""

import os

import pytest
import torch

from tests.native.build import Unavailable
from tests.processes import python

from .build import build_library

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="torch has no device called cuda: it was built without"
)
SYSTEMS = ["tests/cam", "tests/deploy", "tests/metrics", "tests/models", "tests/nn"]
# Values of many sizes, which take their time and pass through the same code as those of few.
LONG = ("forward_matches_reference", "kernel_matches_autograd", "gradcheck", "large", "percentile",
        "sorting_oracle", "energies", "every_level", "emulated")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    """Skip without a compiler (fail where CI is set)."""
    try:
        build_library()
    except Unavailable as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))


def run_module(*command: str, timeout: float) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # a real device stays out of it
    run = python("-m", *command, timeout=timeout, **hidden)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-20_000:]


def run_tests(*arguments: str, timeout: float) -> None:
    plugin = ["-p", "tests.stand_in_gpu.plugin", "--device", "cuda", "--only-device"]
    options = ["-q", "--tb=short", "--show-capture=no", "-o", "timeout=0"]
    run_module("pytest", *plugin, *options, *arguments, timeout=timeout)


def test_stand_in() -> None:
    run_tests("tests/stand_in_gpu/checks.py", timeout=120)


@pytest.mark.timeout(600)
def test_ops() -> None:
    run_tests("tests/ops", "-k", " and ".join(f"not {name}" for name in LONG), timeout=580)


@pytest.mark.timeout(600)
def test_systems() -> None:
    run_tests(*SYSTEMS, timeout=580)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything() -> None:
    run_tests("tests", "-k", "not emulated", timeout=3500)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", ["kernels", "determinism"])
def test_scripts_of_the_gpu_pass(script: str) -> None:
    run_module("tests.stand_in_gpu", f"scripts.gpu.{script}", "--device", "cuda", timeout=1100)
