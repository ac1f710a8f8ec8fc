"""Writes one self-contained HTML page of a run: charts, targets and every row; no network.

Charts show headline sizes; losses are drawn like wins, on the other side of 1×.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from wsfast._files import write_atomically

from .charts import (
    OTHERS,
    Line,
    Mark,
    Series,
    amount_chart,
    dot_chart,
    scaling_chart,
    speedup_chart,
)
from .figures import Axis, amount, median, scaling, series, time_ratio
from .layout import (
    PREAMBLE,
    faster_or_slower,
    in_order,
    machine_lines,
    row_tables,
    sizes_of,
    target_table,
)
from .records import OURS, RoomResults, Rooms, Row
from .tables import Section, Table, bytes_text, ratio_text, seconds_text

STYLE = Path(__file__).with_name("page.css")
Styles = dict[str, str]


def write(rooms: Rooms, path: Path, comparison: Section | None = None) -> None:
    """Write the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html(rooms, comparison).encode())


def html(rooms: Rooms, comparison: Section | None = None) -> str:
    """Return the page: summary, the comparison with another run if there is one, every room."""
    facts = {tuple(machine_lines(results.machine)) for results in rooms.values()}
    links = " ".join(f'<a href="#{escape(room)}">{escape(room)}</a>' for room in rooms)
    parts = [
        "<h1>wsfast, side by side</h1>",
        f"<p>{escape(PREAMBLE.replace('*', ''))}</p>",
        _facts(facts.pop()) if len(facts) == 1 else "",
        f"<nav>{links}</nav>",
        summary_table(rooms).html(),
        _comparison(comparison) if comparison else "",
        *(_room(room, results, own_facts=bool(facts)) for room, results in rooms.items()),
    ]
    head = '<meta charset="utf-8"/><title>wsfast, side by side</title>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    head += f"<style>\n{STYLE.read_text()}</style>"
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def summary_table(rooms: Rooms) -> Table:
    """Lay out one line per room: how often wsfast was faster and slower, and its targets."""
    lines = []
    for room, results in rooms.items():
        ratios = [time_ratio(peer, ours).value for ours, peer in _pairs(results.rows)]
        targets = target_table(results)
        verdicts = [line[-1] for line in targets.rows] if targets else []
        wrong = sum(row.state == "wrong" and row.ours for row in results.rows)
        faster = sum(ratio >= 1 for ratio in ratios)
        met = sum(verdict in ("met", "aim met") for verdict in verdicts)
        counts = (faster, len(ratios) - faster, met, verdicts.count("MISSED"), wrong)
        lines.append([room, *(str(count) for count in counts)])
    header = ["room", "wsfast faster", "wsfast slower", "targets met", "missed", "wrong results"]
    return Table("Comparisons with others that do the same work, all sizes", header, lines)


def _pairs(rows: Sequence[Row]) -> Iterable[tuple[Row, Row]]:
    """Ours and each other contender that did the same work and was timed."""
    for together in sizes_of(rows).values():
        ours = _ours(together)
        for row in together:
            if ours and not row.ours and row.state == "timed" and row.same_work:
                yield ours, row


def _ours(rows: Iterable[Row]) -> Row | None:
    return next((row for row in rows if row.contender == OURS and row.state == "timed"), None)


def _facts(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="facts">{items}</ul>'


def _comparison(section: Section) -> str:
    tables = "\n".join(table.html() for table in section.tables)
    return f"<h2>{escape(section.title)}</h2>{_facts(section.lines)}{tables}"


def _room(room: str, results: RoomResults, *, own_facts: bool) -> str:
    others = in_order(row.contender for row in results.rows if row.contender != OURS)
    styles = {OURS: "s0", **{name: f"s{1 + i % OTHERS}" for i, name in enumerate(others)}}
    targets = target_table(results)
    tables = "\n".join(table.html() for table in row_tables(results))
    rows = len(results.rows) + len(results.memory)
    parts = [
        f'<h2 id="{escape(room)}">{escape(room)}</h2>',
        _facts(machine_lines(results.machine)) if own_facts else "",
        targets.html() if targets else "",
        speedups(results.rows),
        scalings(results.rows, styles),
        memory(results, styles),
        errors(results.rows, styles),
        f"<details><summary>All {rows} rows</summary>\n{tables}\n</details>",
    ]
    return "\n".join(part for part in parts if part)


def _chart(title: str, note: str, *drawn: str) -> str:
    parts = "\n".join(f'<div class="chart">{part}</div>' for part in drawn)
    return f'<h3>{escape(title)}</h3><p class="note">{escape(note)}</p>{parts}'


def _legend(names: Iterable[str], styles: Styles, texts: dict[str, str] | None = None) -> str:
    swatch = '<svg viewBox="0 0 12 12"><circle class="{}" cx="6" cy="6" r="4"/></svg>'
    items = "".join(
        f"<span>{swatch.format(styles[name])}{escape((texts or {}).get(name, name))}</span>"
        for name in names
    )
    return f'<div class="legend">{items}</div>'


# Speed-up ---------------------------------------------------------------------------------------


def quoted(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of headline sizes by operation and size; all sizes where none is one."""
    headlines = {row.operation for row in rows if row.size.headline}
    return sizes_of(row for row in rows if row.size.headline or row.operation not in headlines)


def speedups(rows: Sequence[Row]) -> str:
    """Draw how many times the time of wsfast each other contender takes."""
    lines = []
    for (operation, size), together in quoted(rows).items():
        ours = _ours(together)
        bars = [_bar(row, ours) for row in together if ours and row is not ours and row.seconds]
        if bars:
            lines += [Line(f"{operation}, {size}"), *bars]
    if not lines:
        return ""
    note = (
        "Their time over the time of wsfast, median of paired rounds; whiskers are quartiles. "
        "Right of 1× wsfast is faster, left of it slower; pale bars do only part of the work or "
        "are wrong."
    )
    return _chart("Speed-up", note, speedup_chart(lines))


def _bar(row: Row, ours: Row) -> Line:
    ratio = time_ratio(row, ours)
    whole = row.same_work and row.state == "timed"
    style = ("win" if ratio.value >= 1 else "loss") + ("" if whole else " part")
    text = "WRONG result" if row.state == "wrong" else faster_or_slower(row, ours)
    tip = (
        f"{row.contender}: {seconds_text(median(row))}, wsfast: {seconds_text(median(ours))}; "
        f"quartiles {ratio_text(ratio.low)} to {ratio_text(ratio.high)}"
    )
    return Line(row.contender, (Mark(ratio.value, style, text, tip, ratio.low, ratio.high),))


# Scaling ----------------------------------------------------------------------------------------

AXES: dict[Axis, str] = {"pixels": "pixels per image", "batch": "images per batch"}


def scalings(rows: Sequence[Row], styles: Styles) -> str:
    """Draw time against size, log-log, for every operation and axis with three sizes."""
    panels = []
    for operation in in_order(row.operation for row in rows):
        own = [row for row in rows if row.operation == operation]
        panels += [_panel(operation, own, axis, styles) for axis in AXES]
    drawn = "\n".join(panel for panel in panels if panel)
    if not drawn:
        return ""
    note = "Medians and the line fitted in log-log space; the exponent 1 is linear."
    title = '<h3>Scaling</h3><p class="note">'
    return f'{title}{note}</p><div class="panels">{drawn}</div>'


def _panel(operation: str, rows: Sequence[Row], axis: Axis, styles: Styles) -> str:
    curves, ticks = [], {}
    for name in in_order(row.contender for row in rows):
        own = [row for row in rows if row.contender == name]
        fit = scaling(own, axis)
        if fit is None:
            continue
        points = series(own, axis)
        for size, _ in points:
            height, width = size.shape
            across = f"{height}²" if height == width else f"{height}×{width}"
            ticks[float(amount(size, axis))] = across if axis == "pixels" else str(size.batch)
        found = tuple((float(amount(size, axis)), seconds) for size, seconds in points)
        curves.append(Series(name, styles[name], found, fit[0]))
    if not curves:
        return ""
    drawn = scaling_chart(curves, sorted(ticks.items()), seconds_text, AXES[axis])
    names = {one.name: f"{one.name}: {one.exponent:.2f}" for one in curves}
    legend = _legend(names, styles, names)
    return f'<div class="chart"><h4>{escape(operation)}</h4>{drawn}{legend}</div>'


# Memory and errors ------------------------------------------------------------------------------


def memory(results: RoomResults, styles: Styles) -> str:
    """Draw peak extra memory, with our bound as a tick."""
    lines: list[Line] = []
    headings = set()
    for row in results.memory:
        if row.extra_bytes is None:
            continue
        heading = f"{row.operation}, {row.size}"
        if heading not in headings:
            headings.add(heading)
            lines.append(Line(heading))
        share = f"{100 * row.extra_bytes / row.unit_bytes:.1f} % of {row.unit}"
        text = f"{bytes_text(row.extra_bytes)}"
        mark = Mark(row.extra_bytes, styles.get(row.contender, "s1"), text, f"{text}, {share}")
        ticks: tuple[Mark, ...] = ()
        if row.at_most is not None and row.contender == OURS:
            bound = row.at_most * row.unit_bytes
            ticks = (Mark(bound, "", tip=f"bound: {bytes_text(int(bound))}"),)
        lines.append(Line(row.contender, (mark,), ticks))
    if not lines:
        return ""
    note = f"Peak beyond inputs and outputs ({results.memory[0].method}); the tick is our bound."
    return _chart("Extra memory", note, amount_chart(lines, lambda value: bytes_text(int(value))))


def errors(rows: Sequence[Row], styles: Styles) -> str:
    """Draw the relative error of every contender, with its tolerance as a tick."""
    checked = [row for row in rows if row.error is not None]
    values = [v for row in checked for v in (row.error, row.tolerance) if v and math.isfinite(v)]
    low, high = min([1e-7, *values]) / 5, max([1e-3, *values]) * 3
    lines = []
    for (operation, size), together in quoted(checked).items():
        dots = tuple(_dot(row, styles) for row in together)
        bounds = {row.tolerance for row in together if row.tolerance is not None}
        ticks = tuple(Mark(bound, "", tip=f"tolerance {bound:.0e}") for bound in sorted(bounds))
        lines.append(Line(f"{operation}, {size}", dots, ticks))
    if not lines:
        return ""
    note = "Relative error against a float64 oracle; ticks are tolerances, 0 is no difference."
    names = in_order(row.contender for row in checked)
    return _chart("Error", note, _legend(names, styles) + dot_chart(lines, low, high))


def _dot(row: Row, styles: Styles) -> Mark:
    error = row.error or 0.0
    tip = f"{row.contender}: {error:.1e}" + (" WRONG" if row.state == "wrong" else "")
    return Mark(error, styles[row.contender], tip=tip)
