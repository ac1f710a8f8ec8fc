"""Options, fixtures and pytest-benchmark hooks of the benchmark run."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch

from . import machine
from .harness import Case, Settings
from .laboratory import LABORATORY, PLAYBACK, Laboratory
from .records import GRIDS, Grid

SETTINGS = pytest.StashKey[Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("wsfast benchmarks")
    group.addoption("--threads", type=int, default=2, help="threads of every contender (default 2)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    group.addoption("--room", action="append", help="measure this room (repeatable; default: all)")
    group.addoption("--quick", action="store_true", help="headline sizes only, few rounds")
    group.addoption(
        "--grid",
        default="headlines",
        choices=GRIDS,
        help="of the grids of models, batches and sizes: headlines (default), axes or all",
    )
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    group.addoption(
        "--compile", action="store_true", help="with --quick: torch.compile's contenders, too"
    )
    group.addoption(
        "--allocator",
        default="keep",
        choices=machine.ALLOCATORS,
        help="keep freed memory in the process as tuned allocators do (default), or the system's",
    )


def pytest_configure(config: pytest.Config) -> None:
    device = torch.device(config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device here")
    torch.backends.cudnn.allow_tf32 = False  # its 10 bits are not what the oracles allow
    quick = config.getoption("--quick")
    compiles = config.getoption("--compile") or not quick
    settings = Settings(
        device=device, compile=compiles and not config.getoption("--no-compile"), quick=quick
    )
    config.stash[SETTINGS] = settings


@pytest.fixture(scope="session")
def laboratory(pytestconfig: pytest.Config) -> Laboratory:
    """The one place where cases are timed."""
    threads, allocator = pytestconfig.getoption("--threads"), pytestconfig.getoption("--allocator")
    machine.use_threads(threads)
    machine.use_allocator(allocator)
    pytestconfig.stash[LABORATORY] = Laboratory(pytestconfig.stash[SETTINGS], threads, allocator)
    return pytestconfig.stash[LABORATORY]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("--quick")
    grid: Grid = metafunc.config.getoption("--grid")
    rooms: Sequence[str] | None = metafunc.config.getoption("--room")
    cases: Sequence[Case] = getattr(metafunc.module, "CASES", ())
    sizes = {
        case.operation: (
            case,
            case.chosen_sizes("headlines" if quick else grid if case.grid else "full"),
        )
        for case in cases
        if rooms is None or case.room in rooms
    }
    if "size" in metafunc.fixturenames:
        runs = [
            pytest.param(
                case, size, contender, id=f"{case.operation}-{size.label}-{contender.name}"
            )
            for case, chosen in sizes.values()
            for size in chosen
            for contender in case.entries(size)
        ]
        metafunc.parametrize(("case", "size", "contender"), runs)
    elif "contender" in metafunc.fixturenames:
        limits = [
            pytest.param(case, contender, id=f"{case.operation}-{contender}")
            for case, chosen in sizes.values()
            if case.memory and chosen and not quick
            for contender in case.memory.contenders
        ]
        metafunc.parametrize(("case", "contender"), limits)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "laboratory" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=PLAYBACK))
            # A size is timed within the test of its first contender, however long it takes.
            item.add_marker(pytest.mark.timeout(0))


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    laboratory = config.stash[LABORATORY]
    output_json["wsfast"] = {
        "machine": laboratory.facts,
        "absent": [row.to_json() for row in laboratory.rows() if row.state == "absent"],
        "memory": [asdict(row) for row in laboratory.memory],
        "declared": [asdict(declared) for declared in laboratory.declared.values()],
    }
