"""Rows and runs of benchmarks that were never measured."""

from typing import Any

from benchmarks.records import Declared, RoomResults, Row, Size

SIZE = Size(2, 4, headline=True)
FACTS: dict[str, Any] = {
    "cpu": "Some Processor (R) 1.0GHz",
    "simd": ["avx2"],
    "cores": 2,
    "threads": 2,
    "allocator": "keep",
    "system": "Linux x86_64",
    "python": "3.11",
    "packages": {"torch": "2.11"},
    "wsfast": {"wsfast": "0", "libraries": {"_C": "loaded"}, "cpu_simd": "avx2"},
    "commit": "abc",
    "date": "today",
    "load_before": 0.0,
    "device": "cpu",
    "copy_bandwidth": 1e9,
}


def row(contender: str, seconds: list[float], **changes: Any) -> Row:
    values = {
        "room": "room",
        "operation": "double",
        "size": SIZE,
        "contender": contender,
        "state": "timed",
        "seconds": seconds,
        "rounds": list(range(len(seconds))),
        "error": 0.0,
        "tolerance": 1e-6,
    }
    return Row(**{**values, **changes})


def results(*rows: Row, memory: tuple = (), targets: tuple = (), **facts: Any) -> RoomResults:
    operations = dict.fromkeys((r.room, r.operation) for r in rows)
    declared = tuple(Declared(room, operation, targets) for room, operation in operations)
    return RoomResults({**FACTS, **facts}, declared, rows, memory)
