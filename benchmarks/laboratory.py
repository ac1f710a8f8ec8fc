"""Measures each case once for pytest, whose tests are single contenders, and keeps the results."""

from collections.abc import Iterator
from typing import Any

import pytest

from . import machine, memory
from .harness import Case, Contender, Settings, measure, why_memory_absent
from .records import Declared, MemoryRow, Rooms, Row, Size, by_room


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


class Laboratory:
    """Measures each case and size once and keeps what the report needs."""

    def __init__(self, settings: Settings, threads: int, allocator: machine.Allocator) -> None:
        self.settings = settings
        self.threads = threads
        self.facts = machine.facts(settings.device, threads, allocator)
        self.memory: list[MemoryRow] = []
        self.declared: dict[tuple[str, str], Declared] = {}
        self._rows: dict[tuple[str, str, str], dict[str, Row]] = {}

    def row(self, case: Case, size: Size, contender: Contender) -> Row:
        """Return the row of one contender, timing all of its size on the first call."""
        key = (case.room, case.operation, size.label)
        if key not in self._rows:
            rows = measure(case, size, self.settings)
            self._rows[key] = {row.contender: row for row in rows}
            self.declared[key[:2]] = Declared(case.room, case.operation, case.targets)
        return self._rows[key][contender.name]

    def record_time(self, benchmark: Any, case: Case, size: Size, contender: Contender) -> None:
        """Hand the times of one contender to pytest-benchmark; fail if ours are wrong."""
        row = self.row(case, size, contender)
        if row.broken:
            pytest.fail(row.reason)
        if row.state == "absent":
            pytest.skip(row.reason)
        PLAYBACK.load(row.seconds)
        benchmark.group = f"{case.operation}, {size.label}"
        benchmark.extra_info = row.to_json()
        benchmark.pedantic(PLAYBACK.advance, rounds=len(row.seconds))
        if row.state == "wrong" and row.ours:
            pytest.fail(f"relative error {row.error:.2e} exceeds {row.tolerance:.0e}")

    def record_memory(self, module: str, case: Case, contender: str) -> None:
        """Measure the extra memory of one contender in a fresh process."""
        reason = why_memory_absent(case, contender, self.settings)
        if reason:
            pytest.skip(reason)
        device = self.settings.device.type
        row = memory.measure_in_subprocess(module, case, contender, self.threads, device)
        self.memory.append(row)

    def rows(self) -> list[Row]:
        """Return every row so far, the absent ones too."""
        return [row for rows in self._rows.values() for row in rows.values()]

    def results(self) -> Rooms:
        """Return all that was measured so far, by room."""
        return by_room(self.facts, [*self.declared.values()], self.rows(), self.memory)


LABORATORY = pytest.StashKey[Laboratory]()
