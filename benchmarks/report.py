"""Prints what a benchmark run measured, side by side, and writes it to ``benchmarks/results/``.

Reads what ``wsfast bench --json FILE`` writes and what ``pytest benchmarks/bench_*.py
--benchmark-json=FILE`` writes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wsfast._files import write_atomically

from . import page, store
from .layout import PREAMBLE, memory_table, room_section, target_table
from .records import Rooms

RESULTS = Path(__file__).resolve().parent / "results"


def markdown(rooms: Rooms) -> str:
    """Return the whole report as Markdown."""
    sections = [room_section(room, results).markdown() for room, results in rooms.items()]
    return "\n\n".join(["# Benchmark results", PREAMBLE, *sections]) + "\n"


def text(rooms: Rooms) -> str:
    """Return the whole report as plain text."""
    return "\n\n\n".join(room_section(room, results).text() for room, results in rooms.items())


def write(rooms: Rooms, folder: Path) -> Path:
    """Write ``<machine>.json`` and ``.md``, keeping rooms of the file that were not measured now.

    Raises:
        BadFile: The existing file holds no results or has another schema.
    """
    path, merged = store.merge(rooms, folder)
    write_atomically(path.with_suffix(".md"), markdown(merged).encode())
    return path


def failures(rooms: Rooms, *, strict: bool) -> list[str]:
    """Return what fails a run: our wrong and broken rows and, if strict, missed targets."""
    found = []
    for results in rooms.values():
        for row in results.rows:
            if row.broken or (row.ours and row.state == "wrong"):
                what = "is wrong" if row.state == "wrong" else row.reason
                found.append(f"{row.operation}, {row.size.label}: {row.contender} {what}")
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
    parser.add_argument("--html", type=Path, help="write the page with plots as well")
    parser.add_argument("--write", action="store_true", help="write <machine>.json and .md as well")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder to write to (default benchmarks/results)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args(arguments)
    rooms: Rooms = {}
    try:
        for path in options.runs:
            rooms |= store.load(path)
        print(markdown(rooms) if options.markdown else text(rooms))
        if options.html:
            page.write(rooms, options.html)
            print(f"\nwritten: {options.html}")
        if options.write:
            print(f"\nwritten: {write(rooms, options.out)} and .md")
    except (store.BadFile, OSError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    found = failures(rooms, strict=options.strict)
    for line in found:
        print(f"benchmarks.report: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
