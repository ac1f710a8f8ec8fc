"""Prints what a benchmark run measured, side by side, and writes it to ``benchmarks/results/``.

Reads the JSON files of ``pytest benchmarks/bench_*.py --benchmark-json=FILE`` (what
``scripts/bench.sh`` runs). For every operation and size it prints the median time of each
contender with its interquartile range, the relative error against a float64 oracle, and how many
times faster or slower wsfast is; then the targets, the exponents fitted on the sizes, the extra
memory and the machine. A row outside its tolerance reads WRONG in place of a time, and rows that
wsfast loses are printed like the others.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.figures import judge, quartiles, scaling, time_ratio
from benchmarks.records import OURS, Declared, MemoryRow, Row, Target
from benchmarks.tables import Section, Table, bytes_text, ratio_text, seconds_text

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class RoomResults:
    """All that one run measured in one room, with the facts of that run."""

    machine: dict[str, Any]
    declared: tuple[Declared, ...]
    rows: tuple[Row, ...]
    memory: tuple[MemoryRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, with the figures a reader of the JSON would derive."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RoomResults":
        """Rebuild from :meth:`to_json`."""
        return cls(
            values["machine"],
            tuple(Declared.from_json(declared) for declared in values["declared"]),
            tuple(Row.from_json(row) for row in values["rows"]),
            tuple(MemoryRow(**row) for row in values["memory"]),
        )


class BadFile(Exception):
    """A file that is no result of a benchmark run."""


def load_run(path: Path) -> dict[str, RoomResults]:
    """Read one pytest-benchmark JSON, by room.

    Raises:
        BadFile: The file cannot be read or does not come from ``benchmarks/``.
    """
    try:
        content = json.loads(path.read_text())
        ours = content["wsfast"]
        rows = [Row.from_json(entry["extra_info"]) for entry in content["benchmarks"]]
        rows += [Row.from_json(row) for row in ours["absent"]]
        declared = [Declared.from_json(values) for values in ours["declared"]]
        memory = [MemoryRow(**values) for values in ours["memory"]]
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: not a result of pytest benchmarks/ --benchmark-json") from error
    rooms = sorted({found.room for found in (*declared, *memory)})
    return {
        room: RoomResults(
            ours["machine"],
            tuple(found for found in declared if found.room == room),
            tuple(row for row in rows if row.room == room),
            tuple(row for row in memory if row.room == room),
        )
        for room in rooms
    }


def time_table(rows: Sequence[Row]) -> Table:
    """Lay out one operation at one size, all contenders."""
    ours = next((row for row in rows if row.contender == OURS and row.state == "timed"), None)
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [_time_line(row, ours, names) for row in rows]
    title = f"{rows[0].operation}, {rows[0].size.label}"
    header = ["contender", "median", "IQR", "rounds", "rel. error", *names]
    return Table(title, [*header, "wsfast is", "GB/s", "remarks"], lines)


def _time_line(row: Row, ours: Row | None, names: Sequence[str]) -> list[str]:
    figures = [f"{row.figures[name]:.4g}" if name in row.figures else "" for name in names]
    if row.state == "absent":
        return [row.contender, row.reason, "", "", "", *figures, "", "", row.note]
    error = "" if row.error is None else f"{row.error:.1e}"
    if row.state == "wrong":
        remark = f"error above {row.tolerance:.0e}"
        return [row.contender, "WRONG", "", "", error, *figures, "", "", _joined(remark, row.note)]
    low, middle, high = quartiles(row.seconds)
    rounds = str(len(row.seconds)) + (f"·{row.iterations}" if row.iterations > 1 else "")
    verdict = "" if ours is None or row is ours else _faster_or_slower(row, ours)
    rate = f"{row.traffic / middle / 1e9:.1f}" if row.traffic and row.same_work else ""
    remark = _joined("" if row.same_work else "not the same work", row.note)
    spread = seconds_text(high - low)
    columns = [row.contender, seconds_text(middle), spread, rounds, error, *figures]
    return [*columns, verdict, rate, remark]


def _faster_or_slower(row: Row, ours: Row) -> str:
    ratio = time_ratio(row, ours).value
    if ratio >= 1:
        return f"{ratio_text(ratio)} faster"
    return f"{ratio_text(1 / ratio)} slower"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def target_table(results: RoomResults) -> Table | None:
    """Lay out the targets of a room that are meant for the device it ran on."""
    lines = []
    for declared in results.declared:
        rows = [row for row in results.rows if row.operation == declared.operation]
        for target in declared.targets:
            if target.device == results.machine["device"]:
                lines.append(_target_line(declared.operation, target, rows, results.machine))
    if not lines:
        return None
    header = ["operation", "size", "against", "at least", "aim", "measured", "quartiles", "verdict"]
    return Table("Targets", header, lines, left=3)


def _target_line(
    operation: str, target: Target, rows: Sequence[Row], facts: dict[str, Any]
) -> list[str]:
    verdict = judge(target, rows, facts["copy_bandwidth"])
    measured = "" if verdict.measured is None else _amount(target, verdict.measured)
    spread = "" if verdict.spread is None else " – ".join(f"{edge:.2f}" for edge in verdict.spread)
    against = verdict.against or " / ".join(target.against) or "measured copy bandwidth"
    bounds = [_amount(target, bound) for bound in (target.at_least, target.aim)]
    if target.measure in ("slowdown", "milliseconds"):
        bounds = [f"≤ {bound}" for bound in bounds]
    return [operation, target.size, against, *bounds, measured, spread, verdict.outcome]


def _amount(target: Target, value: float) -> str:
    if target.measure == "copy_bandwidth":
        return f"{100 * value:.0f} %"
    if target.measure == "milliseconds":
        return f"{value:.3g} ms"
    suffix = " its time" if target.measure == "slowdown" else ""
    return ratio_text(value) + suffix


def scaling_table(rows: Sequence[Row]) -> Table | None:
    """Lay out the fitted exponents of every contender with three sizes along an axis."""
    lines = []
    for operation in _in_order(row.operation for row in rows):
        here = [row for row in rows if row.operation == operation]
        for contender in _in_order(row.contender for row in here):
            own = [row for row in here if row.contender == contender]
            fits = [_fit_text(scaling(own, axis)) for axis in ("pixels", "batch")]
            if any(fits):
                lines.append([operation, contender, *fits])
    header = ["operation", "contender", "time ∝ pixels^a", "time ∝ batch^b"]
    return Table("Scaling: exponents fitted in log-log space", header, lines, 2) if lines else None


def _fit_text(fit: tuple[float, list[int]] | None) -> str:
    return "" if fit is None else f"{fit[0]:.2f} ({fit[1][0]}–{fit[1][-1]})"


def memory_table(memory: Sequence[MemoryRow]) -> Table | None:
    """Lay out peak extra memory beside its bound."""
    lines = []
    for row in memory:
        line = [row.operation, row.size, row.contender]
        if row.extra_bytes is None:
            lines.append([*line, "not measured here", "", "", ""])
            continue
        share = row.extra_bytes / row.unit_bytes
        verdict, bound = "", f"of {row.unit}"
        if row.at_most is not None:
            bound = f"≤ {100 * row.at_most:.0f} % {bound}"
            if row.contender == OURS:
                verdict = "met" if share <= row.at_most else "MISSED"
        lines.append([*line, bytes_text(row.extra_bytes), f"{100 * share:.1f} %", bound, verdict])
    if not lines:
        return None
    header = ["operation", "size", "contender", "extra", "share", "bound", "verdict"]
    return Table(f"Extra memory ({memory[0].method})", header, lines, left=3)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def room_section(room: str, results: RoomResults) -> Section:
    """Lay out one room: targets first, then times, scaling and memory."""
    facts = results.machine
    sizes: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        sizes.setdefault((row.operation, row.size.label), []).append(row)
    tables = [time_table(rows) for rows in sizes.values()]
    others = (scaling_table(results.rows), memory_table(results.memory))
    targets = target_table(results)
    all_tables = [*([targets] if targets else []), *tables, *(t for t in others if t)]
    return Section(room, machine_lines(facts), all_tables)


def machine_lines(facts: dict[str, Any]) -> list[str]:
    """Say where, when and with what a room was measured."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    where = facts.get("gpu") or f"{facts['cpu']} ({' '.join(facts['simd'])})"
    native = facts["wsfast"]
    libraries = ", ".join(f"{name} {state}" for name, state in native["libraries"].items())
    return [
        f"{where}, {facts['cores']} cores, {facts['threads']} threads, {facts['system']}",
        f"wsfast {native['wsfast']} at {facts['commit']} ({libraries}; SIMD {native['cpu_simd']})",
        f"Python {facts['python']}, {packages}",
        f"{facts['date']}; load average before the run {facts['load_before']}; freed memory: "
        + ("kept in the process" if facts["allocator"] == "keep" else "the C library's default"),
        f"copy bandwidth {facts['copy_bandwidth'] / 1e9:.1f} GB/s (read plus written)",
    ]


PREAMBLE = (
    "All contenders of a size ran in one process with the same threads, in interleaved rounds. "
    "Times are medians of one call; *rounds* reads rounds·calls per round. *rel. error* is the "
    "largest difference from a float64 oracle over the oracle's largest value. *GB/s* is the "
    "least traffic any implementation needs over the median. Ratios are medians of paired rounds."
)


def markdown(rooms: dict[str, RoomResults]) -> str:
    """Return the whole report as Markdown."""
    sections = [room_section(room, results).markdown() for room, results in rooms.items()]
    return "\n\n".join(["# Benchmark results", PREAMBLE, *sections]) + "\n"


def text(rooms: dict[str, RoomResults]) -> str:
    """Return the whole report as plain text."""
    return "\n\n\n".join(room_section(room, results).text() for room, results in rooms.items())


def write(rooms: dict[str, RoomResults], folder: Path) -> Path:
    """Write ``<machine>.json`` and ``.md``, keeping rooms of the file that were not measured now.

    Every room carries the commit and date of its own run. Files appear whole or not at all.

    Raises:
        BadFile: The existing file has another schema.
    """
    path = folder / (machine.slug(next(iter(rooms.values())).machine) + ".json")
    merged = {**(_load_written(path) if path.exists() else {}), **rooms}
    merged = dict(sorted(merged.items()))
    content = {"schema": SCHEMA, "rooms": {room: found.to_json() for room, found in merged.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(path, _in_short_lines(json.dumps(content, indent=1, default=float)) + "\n")
    _replace(path.with_suffix(".md"), markdown(merged))
    return path


def _in_short_lines(content: str) -> str:
    """JSON with every list of numbers on one line."""
    return re.sub(r"\[[-+.\deE,\s]+\]", lambda found: "".join(found[0].split()), content)


def _load_written(path: Path) -> dict[str, RoomResults]:
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise BadFile(f"{path}: schema {content['schema']}, expected {SCHEMA}")
        return {room: RoomResults.from_json(found) for room, found in content["rooms"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: not a file written by benchmarks.report") from error


def _replace(path: Path, content: str) -> None:
    """Write through a temporary name, so that a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def failures(rooms: dict[str, RoomResults], *, strict: bool) -> list[str]:
    """Return what makes the run a failure: our wrong rows and, if strict, missed targets."""
    found = []
    for results in rooms.values():
        for row in results.rows:
            if row.state == "wrong" and row.contender in (OURS, "reference"):
                found.append(f"{row.operation}, {row.size.label}: {row.contender} is wrong")
        tables = (target_table(results), memory_table(results.memory))
        for table in tables:
            lines = table.rows if table and strict else ()
            found += [f"{', '.join(line[:2])}: MISSED" for line in lines if line[-1] == "MISSED"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.report run.json --write",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="JSON files of benchmark runs")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, not plain text")
    parser.add_argument("--write", action="store_true", help="write <machine>.json and .md as well")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder to write to (default benchmarks/results)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args(arguments)
    try:
        rooms: dict[str, RoomResults] = {}
        for path in options.runs:
            rooms |= load_run(path)
        if not rooms:
            raise BadFile("nothing was measured in these runs")
        print(markdown(rooms) if options.markdown else text(rooms))
        if options.write:
            print(f"\nwritten: {write(rooms, options.out)} and .md")
    except BadFile as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    found = failures(rooms, strict=options.strict)
    for line in found:
        print(f"benchmarks.report: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
