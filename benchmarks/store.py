"""Reads and writes the files of benchmark runs.

A results file is ``{"schema": 1, "rooms": {room: {machine, declared, rows, memory}}}``; the JSON of
``pytest benchmarks/bench_*.py --benchmark-json=FILE`` is read as well.
"""

import json
import re
from pathlib import Path
from typing import Any

from wsfast._files import write_atomically

from . import machine
from .records import Declared, MemoryRow, RoomResults, Rooms, Row, by_room

SCHEMA = 1


class BadFile(ValueError):
    """A file that holds no results of a benchmark run."""


def load(path: Path) -> Rooms:
    """Read the results of a run, by room.

    Raises:
        BadFile: The file cannot be read, holds no results or has another schema.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadFile(f"{path}: not JSON") from error
    try:
        rooms = _rooms_of_run(content) if "wsfast" in content else _rooms_of_results(path, content)
        for found in rooms.values():
            machine.check_facts(found.machine)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path}: holds no benchmark results") from error
    if not rooms:
        raise BadFile(f"{path}: nothing was measured in this run")
    return rooms


def _rooms_of_run(content: dict[str, Any]) -> Rooms:
    ours = content["wsfast"]
    rows = [Row.from_json(entry["extra_info"]) for entry in content["benchmarks"]]
    rows += [Row.from_json(row) for row in ours["absent"]]
    declared = [Declared.from_json(values) for values in ours["declared"]]
    return by_room(ours["machine"], declared, rows, [MemoryRow(**row) for row in ours["memory"]])


def _rooms_of_results(path: Path, content: dict[str, Any]) -> Rooms:
    if content["schema"] != SCHEMA:
        raise BadFile(f"{path}: schema {content['schema']}, expected {SCHEMA}")
    return {room: RoomResults.from_json(found) for room, found in content["rooms"].items()}


def save(rooms: Rooms, path: Path) -> None:
    """Write a results file, whole or not at all."""
    content = {"schema": SCHEMA, "rooms": {room: found.to_json() for room, found in rooms.items()}}
    text = _in_short_lines(json.dumps(content, indent=1, default=float)) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _in_short_lines(content: str) -> str:
    """JSON with every list of numbers on one line."""
    return re.sub(r"\[[-+.\deE,\s]+\]", lambda found: "".join(found[0].split()), content)


def merge(rooms: Rooms, folder: Path) -> tuple[Path, Rooms]:
    """Write ``<machine>.json`` in ``folder``, keeping its rooms that were not measured now.

    Every room carries the commit and date of its own run.

    Returns:
        The file and all that it holds now.

    Raises:
        BadFile: The existing file holds no results or has another schema.
    """
    path = folder / f"{machine.slug(next(iter(rooms.values())).machine)}.json"
    merged = dict(sorted(({**(load(path) if path.exists() else {}), **rooms}).items()))
    save(merged, path)
    return path, merged
