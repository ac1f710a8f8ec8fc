"""Gathers what the steps of the GPU pass left behind into summary.json and summary.md."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.figures import quartiles
from benchmarks.records import OURS, Row
from scripts.gpu.steps import Status

Json = Any


def read_json(path: Path) -> Json:
    """The file's content, None where there is none yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def benchmark_rows(files: Iterable[Json]) -> list[dict[str, Json]]:
    """Medians, spread and errors of every contender that was timed or is missing."""
    rows = []
    for data in files:
        timed = [entry["extra_info"] for entry in data.get("benchmarks", [])]
        for values in (*timed, *data.get("wsfast", {}).get("absent", [])):
            rows.append(benchmark_row(Row.from_json(values)))
    return rows


def benchmark_row(row: Row) -> dict[str, Json]:
    """One contender's row with its quartiles in milliseconds."""
    low, middle, high = quartiles(row.seconds) if row.seconds else (None, None, None)
    in_ms = [None if value is None else 1e3 * value for value in (low, middle, high)]
    return {
        "room": row.room, "operation": row.operation, "size": row.size.label,
        "contender": row.contender, "state": row.state, "reason": row.reason,
        "median_ms": in_ms[1], "quartiles_ms": [in_ms[0], in_ms[2]], "error": row.error,
        "same_work": row.same_work,
    }  # fmt: skip


def gather(out: Path, statuses: Sequence[Status]) -> dict[str, Json]:
    """Everything known so far of these sources: what a step wrote for others is left out."""
    ran = [status.name for status in statuses if status.state != "not run"]
    found = {name: read_json(out / f"{name}.json") for name in ran}
    benchmarks = [found[name] or {} for name in sorted(found) if name.startswith("bench-")]
    return {
        "facts": found.get("facts"),
        "steps": [asdict(status) for status in statuses],
        "kernels": found.get("kernels"),
        "roofline": found.get("roofline"),
        "levels": found.get("levels"),
        "benchmarks": benchmark_rows(benchmarks),
    }


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return [*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows), ""]


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many digits, a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"


def facts_lines(facts: dict[str, Json] | None) -> list[str]:
    """Device, driver, versions and commit; peers that are missing."""
    if facts is None:
        return ["No facts yet.", ""]
    lines = [f"- {key}: {value}" for key, value in facts.items() if key != "peers"]
    there = [
        f"{name} {version}" for name, version in facts["peers"].items() if version != "missing"
    ]
    gone = [name for name, version in facts["peers"].items() if version == "missing"]
    peers = [f"- peers: {', '.join(there) or 'none'}", f"- missing: {', '.join(gone) or 'none'}"]
    return [*lines, *peers, ""]


def roofline_lines(roofline: dict[str, Json] | None) -> list[str]:
    """Every op's time, bandwidth and verdict."""
    if roofline is None:
        return []
    rows = []
    for work in roofline["work"]:
        if "failed" in work:
            rows.append((work["room"], work["name"], work["size"], "FAILED", work["failed"],
                         *("–",) * 6))  # fmt: skip
            continue
        bound = work["bound"]
        wanted = "" if bound["share"] is None else f"≥ {bound['share']:.0%} of copy"
        if bound["milliseconds"] is not None:
            wanted = f"≤ {bound['milliseconds']} ms"
        verdict = {True: f"{wanted}: reached", False: f"{wanted}: MISSED", None: ""}
        judgement = "WRONG" if work["wrong"] else verdict[work["reached"]]
        low, high = work["quartiles"]
        graph = (work["graph_note"] or "–") if work["graph"] is None else number(work["graph"])
        limit = work["extra_limit"]
        extra = work["extra_bytes"]
        memory = "–" if extra is None else f"{extra / 1e6:.2f} MB"
        if limit is not None and extra is not None:
            memory += f" ({'within' if extra <= limit else 'OVER'} {limit / 1e6:.2f})"
        rows.append((work["room"], work["name"], work["size"], number(work["median"]),
                     f"{number(low)}–{number(high)}", graph, f"{work['must_move'] / 1e6:.1f} MB",
                     f"{work['bandwidth'] / 1e9:.0f}",
                     f"{work['share_of_copy']:.0%}{' (L2)' if work['fits_in_l2'] else ''}",
                     memory, f"{work['error']:.1e}", judgement))  # fmt: skip
    header = ("room", "op", "size", "ms", "quartiles", "graph ms", "must move", "GB/s",
              "of copy", "extra memory", "error", "bound")  # fmt: skip
    rows = [(*row, *("",) * (len(header) - len(row))) for row in rows]
    copy = f"Copy bandwidth: {roofline['copy_bandwidth'] / 1e9:.0f} GB/s."
    if roofline.get("clocks"):
        copy += f" Clocks right after the timings: {roofline['clocks']}."
    return ["## Roofline", "", copy, "", *table(header, rows)]


def levels_lines(levels: list[dict[str, Json]] | None) -> list[str]:
    """The ways for CUDA maps through the levels room."""
    if not levels:
        return []
    names = list(levels[0]["milliseconds"])
    rows = [(name, *(number(entry["milliseconds"][name]) for entry in levels)) for name in names]
    found = [f"- {entry['maps']}: fastest {entry['fastest']}; the CPU search is "
             f"{entry['search_share']:.0%} of the present way; results "
             f"{'agree' if entry['same_results'] else 'DIFFER'}"
             for entry in levels]  # fmt: skip
    header = ("milliseconds", *(entry["maps"] for entry in levels))
    return ["## Levels on CUDA", "", *table(header, rows), *found, ""]


def benchmark_lines(rows: list[dict[str, Json]]) -> list[str]:
    """Contenders beside each other, ours first named."""
    if not rows:
        return []
    ours = {(row["room"], row["operation"], row["size"]): row["median_ms"]
            for row in rows if row["contender"] == OURS}  # fmt: skip
    lines = []
    for row in rows:
        own, theirs = ours.get((row["room"], row["operation"], row["size"])), row["median_ms"]
        times = f"{theirs / own:.2f}" if own and theirs else "–"
        state = row["reason"] if row["state"] == "absent" else row["state"]
        low, high = row["quartiles_ms"]
        lines.append((row["room"], row["operation"], row["size"], row["contender"], state,
                      number(theirs), f"{number(low)}–{number(high)}", times,
                      "–" if row["error"] is None else f"{row['error']:.1e}"))  # fmt: skip
    header = ("room", "operation", "size", "contender", "state", "ms", "quartiles",
              "× of wsfast", "error")  # fmt: skip
    return ["## Benchmarks", "", *table(header, lines)]


def kernels_lines(kernels: dict[str, Json] | None) -> list[str]:
    """What the profiler saw launched."""
    if kernels is None:
        return []
    if "note" in kernels:
        return ["## Kernels", "", f"Which were launched is not known: {kernels['note']}.", ""]
    lines = ["## Kernels", "", f"{len(kernels['launched'])} template instances launched."]
    for kind in ("missing_kernels", "missing_instances"):
        lines.append(f"{kind.replace('_', ' ')}: {', '.join(kernels[kind]) or 'none'}.")
    return [*lines, ""]


def markdown(summary: dict[str, Json]) -> str:
    """The summary for people."""
    steps = table(
        ("step", "state", "seconds", "reason"),
        ((s["name"], s["state"], s["seconds"], s["reason"]) for s in summary["steps"]),
    )
    lines = ["# GPU pass", "", *facts_lines(summary["facts"]), "## Steps", "", *steps]
    lines += kernels_lines(summary["kernels"]) + roofline_lines(summary["roofline"])
    lines += levels_lines(summary["levels"]) + benchmark_lines(summary["benchmarks"])
    return "\n".join(lines)


def write_summary(out: Path, statuses: Sequence[Status]) -> None:
    """Write both summaries."""
    summary = gather(out, statuses)
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    (out / "summary.md").write_text(markdown(summary) + "\n")
