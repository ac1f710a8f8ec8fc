"""Options and settings for the whole suite."""

import os

import pytest
import torch

from tests.native.emulator import emulator  # noqa: F401 (a fixture for every room)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op tests: cpu or cuda")
    parser.addoption(
        "--only-device", action="store_true", help="leave out tests that do not take a device"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from a run on the CPU: what is to be equal there need not be on a device."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --only-device, keep the tests that ask for the `device` fixture."""
    if not config.getoption("--only-device"):
        return
    others = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test; CUDA runs only where it is asked for, its convolutions in float32."""
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return chosen


@pytest.fixture(autouse=True)
def _seed_and_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
