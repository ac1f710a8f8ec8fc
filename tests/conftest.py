"""Options and settings for the whole suite."""

import os

import pytest
import torch

from tests.native.emulator import emulator  # noqa: F401 (a fixture for every room)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op tests: cpu or cuda")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test; CUDA runs only where it is asked for."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seed_and_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
