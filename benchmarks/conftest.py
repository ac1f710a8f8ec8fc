"""Options, fixtures and pytest-benchmark hooks of the benchmark run."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import machine, memory
from benchmarks.harness import Case, Contender, Settings, Size, measure
from benchmarks.records import Declared, Row


class Playback:
    """A clock that plays recorded times to pytest-benchmark.

    pytest-benchmark times one test after the other, but contenders have to run in interleaved
    rounds. So all contenders of a size are timed together, and each test then plays the times of
    its contender.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._recorded: Iterator[float] = iter(())

    def __call__(self) -> float:
        """Return the present time."""
        return self.now

    def load(self, seconds: list[float]) -> None:
        """Set the times to play."""
        self._recorded = iter(seconds)

    def advance(self) -> None:
        """Let the next recorded time pass."""
        self.now += next(self._recorded)


PLAYBACK = Playback()
SETTINGS = pytest.StashKey[Settings]()
LABORATORY = pytest.StashKey["Laboratory"]()


class Laboratory:
    """Measures each case and size once and keeps what the report needs."""

    def __init__(self, settings: Settings, threads: int, allocator: machine.Allocator) -> None:
        self.settings = settings
        self.threads = threads
        self.facts = machine.facts(settings.device, threads, allocator)
        self.absent: list[Row] = []
        self.memory: list[dict[str, Any]] = []
        self.declared: dict[tuple[str, str], Declared] = {}
        self._rows: dict[tuple[str, str, str], dict[str, Row]] = {}

    def row(self, case: Case, size: Size, contender: Contender) -> Row:
        """Return the row of one contender, timing all of its size on the first call."""
        key = (case.room, case.operation, size.label)
        if key not in self._rows:
            self.declared[key[:2]] = Declared(case.room, case.operation, case.targets)
            rows = measure(case, size, self.settings)
            self._rows[key] = {row.contender: row for row in rows}
        return self._rows[key][contender.name]

    def record_time(self, benchmark: Any, case: Case, size: Size, contender: Contender) -> None:
        """Hand the times of one contender to pytest-benchmark; fail if ours are wrong."""
        row = self.row(case, size, contender)
        if row.state == "absent":
            self.absent.append(row)
            pytest.skip(row.reason)
        PLAYBACK.load(row.seconds)
        benchmark.group = f"{case.operation}, {size.label}"
        benchmark.extra_info = row.to_json()
        benchmark.pedantic(PLAYBACK.advance, rounds=len(row.seconds))
        if row.state == "wrong" and contender.name in ("wsfast", "reference"):
            pytest.fail(f"relative error {row.error:.2e} exceeds {row.tolerance:.0e}")

    def record_memory(self, module: str, case: Case, contender: str) -> None:
        """Measure the extra memory of one contender in a fresh process."""
        device = self.settings.device.type
        row = memory.measure_in_subprocess(module, case, contender, self.threads, device)
        self.memory.append(asdict(row))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("wsfast benchmarks")
    group.addoption("--threads", type=int, default=2, help="threads of every contender (default 2)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    group.addoption("--quick", action="store_true", help="headline sizes only, few rounds")
    group.addoption(
        "--grid",
        default="headlines",
        choices=("headlines", "full"),
        help="of the grids of models, batches and sizes: their headlines (default) or all, hours",
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
    full = metafunc.config.getoption("--grid") == "full"
    sizes = {
        case.operation: (case, case.chosen_sizes(headlines=quick or (case.grid and not full)))
        for case in getattr(metafunc.module, "CASES", ())
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
        "absent": [row.to_json() for row in laboratory.absent],
        "memory": laboratory.memory,
        "declared": [asdict(declared) for declared in laboratory.declared.values()],
    }
