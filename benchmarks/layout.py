"""Lays out the results of a room as tables: targets, times side by side, scaling and memory.

For every operation and size the median time of each contender with its interquartile range, the
relative error against a float64 oracle, and how many times faster or slower wsfast is. A row
outside its tolerance reads WRONG in place of a time, and rows that wsfast loses are laid out like
the others.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from .figures import judge, quartiles, scaling, time_ratio
from .records import OURS, MemoryRow, RoomResults, Row, Target
from .tables import Section, Table, bytes_text, ratio_text, seconds_text


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
    verdict = "" if ours is None or row is ours else faster_or_slower(row, ours)
    rate = f"{row.traffic / middle / 1e9:.1f}" if row.traffic and row.same_work else ""
    remark = _joined("" if row.same_work else "not the same work", row.note)
    spread = seconds_text(high - low)
    columns = [row.contender, seconds_text(middle), spread, rounds, error, *figures]
    return [*columns, verdict, rate, remark]


def faster_or_slower(row: Row, ours: Row) -> str:
    """Say how many times faster or slower ours is than the contender of ``row``."""
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
    for operation in in_order(row.operation for row in rows):
        here = [row for row in rows if row.operation == operation]
        for contender in in_order(row.contender for row in here):
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


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once, in order of appearance."""
    return list(dict.fromkeys(names))


def row_tables(results: RoomResults) -> list[Table]:
    """Lay out every row of a room: times per operation and size, scaling and memory."""
    tables = [time_table(rows) for rows in sizes_of(results.rows).values()]
    others = (scaling_table(results.rows), memory_table(results.memory))
    return [*tables, *(table for table in others if table)]


def sizes_of(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows by operation and size."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.operation, row.size.label), []).append(row)
    return found


def room_section(room: str, results: RoomResults) -> Section:
    """Lay out one room: targets first, then all rows."""
    targets = target_table(results)
    tables = [*([targets] if targets else []), *row_tables(results)]
    return Section(room, machine_lines(results.machine), tables)


def machine_lines(facts: dict[str, Any]) -> list[str]:
    """Say where, when and with what a room was measured."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    where = facts.get("gpu") or f"{facts['cpu']} ({' '.join(facts['simd'])})"
    native = facts["wsfast"]
    libraries = ", ".join(f"{name} {state}" for name, state in native["libraries"].items())
    slow = ", ".join(native.get("fallbacks", ()))
    return [
        f"{where}, {facts['cores']} cores, {facts['threads']} threads, {facts['system']}",
        f"wsfast {native['wsfast']} at {facts['commit']} ({libraries}; SIMD {native['cpu_simd']})",
        f"Python {facts['python']}, {packages}",
        f"{facts['date']}; load average before the run {facts['load_before']}; freed memory: "
        + ("kept in the process" if facts["allocator"] == "keep" else "the C library's default"),
        f"copy bandwidth {facts['copy_bandwidth'] / 1e9:.1f} GB/s (read plus written)",
        *([f"run by their references here, as they are not native: {slow}"] if slow else []),
    ]


PREAMBLE = (
    "All contenders of a size ran in one process with the same threads, in interleaved rounds. "
    "Times are medians of one call; *rounds* reads rounds·calls per round. *rel. error* is the "
    "largest difference from a float64 oracle over the oracle's largest value. *GB/s* is the "
    "least traffic any implementation needs over the median. Ratios are medians of paired rounds."
)
