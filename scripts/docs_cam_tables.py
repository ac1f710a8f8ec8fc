"""The tables of CAM methods in ``docs/guides/benchmarking.md``, from a file of results.

``python -m scripts.docs_cam_tables`` writes them between two marks of the page, so that its figures
are the report's: medians, and ratios of paired rounds.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.bench_cam_grid import IN_GRAD_CAM
from benchmarks.bench_cam_others import METHODS_HERE
from benchmarks.cam_formulas import FORMULAS
from benchmarks.cam_models import ARCHITECTURES, BATCHES, FROZEN_GRAD_CAM, GRAD_CAM, SHAPES
from benchmarks.figures import median, time_ratio
from benchmarks.quality.report import replace_between, table
from benchmarks.records import OURS, MemoryRow, Row
from benchmarks.store import load
from benchmarks.tables import bytes_text, ratio_text, seconds_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/guides/benchmarking.md"
RESULTS = ROOT / "benchmarks/results/amd-epyc-2-threads.json"
BEGIN, END = "<!-- cam tables -->", "<!-- end of cam tables -->"
PEER, OTHER, REFERENCE = GRAD_CAM, "torchcam", "reference"

Timed = dict[str, Row]  # by contender


def main() -> None:
    """Write the page."""
    replace_between(PAGE, BEGIN, END, tables(RESULTS))


def tables(results: Path) -> str:
    """All that stands between the marks."""
    rooms = load(results)
    grid = by_size(rooms["cam_grid"].rows)
    memory = rooms["cam_grid"].memory
    others = f"{beside_others(grid)} {peaks(memory)}"
    parts = [whole_table(grid), others, extractor_table(grid)]
    if "cam_others" in rooms:
        parts.append(others_table(by_size(rooms["cam_others"].rows)))
    return "\n\n".join(parts)


def by_size(rows: Iterable[Row]) -> dict[tuple[str, str], Timed]:
    """Timed rows by operation and size."""
    found: dict[tuple[str, str], Timed] = {}
    for row in rows:
        if row.state == "timed":
            found.setdefault((row.operation, row.size.label), {})[row.contender] = row
    return {key: rows for key, rows in found.items() if OURS in rows}


def whole_table(grid: dict[tuple[str, str], Timed]) -> str:
    """GradCAM end to end: time and ratio along batches and image sizes."""
    points = [(batch, *SHAPES[0]) for batch in BATCHES] + [(1, *shape) for shape in SHAPES[1:]]
    header = ["", *(f"{n} x {height} x {width}" for n, height, width in points)]
    rows = []
    for architecture in ARCHITECTURES:
        cells = []
        for n, height, width in points:
            operation = f"GradCAM, {architecture.title}, {height}x{width}, end to end"
            cells.append(cell(grid.get((operation, f"{n}x{height}x{width}"), {}), PEER))
        rows.append([architecture.title, *cells])
    return table(header, rows)


def beside_others(grid: dict[tuple[str, str], Timed]) -> str:
    """Times of the same by those that make no gradients of the weights either, as ranges."""
    told = []
    for name, who in (
        (FROZEN_GRAD_CAM, "pytorch-grad-cam of frozen weights"),
        (OTHER, "torchcam, which fuses the layers in another way,"),
    ):
        ratios = [
            time_ratio(rows[name], rows[OURS]).value
            for (operation, _), rows in grid.items()
            if operation.startswith("GradCAM,") and "end to end" in operation and name in rows
        ]
        told += [f"{who} takes {span(ratios, '')} times our time."] if ratios else []
    return " ".join(told)


def peaks(memory: Iterable[MemoryRow]) -> str:
    """Memory of GradCAM end to end beyond the image, of ours and the peer's."""
    found = {(row.operation, row.contender): row.extra_bytes for row in memory}
    told = []
    for architecture in ARCHITECTURES:
        height, width = SHAPES[0]
        operation = f"GradCAM, {architecture.title}, {height}x{width}, end to end"
        ours = bytes_text(found[operation, OURS] or 0)
        theirs = "; ".join(
            f"{name} {bytes_text(found[operation, name] or 0)}"
            for name in (PEER, FROZEN_GRAD_CAM)
            if (operation, name) in found
        )
        told.append(f"{architecture.title} {ours} ({theirs})")
    return f"Beyond the image, one of {height} x {width} takes with {', '.join(told)}."


def extractor_table(grid: dict[tuple[str, str], Timed]) -> str:
    """Ranges of ratios of the extractors alone."""
    header = ["", "beside", *(architecture.title for architecture in ARCHITECTURES)]
    rows = []
    for name in FORMULAS:
        beside = PEER if name in IN_GRAD_CAM else REFERENCE
        cells = []
        for architecture in ARCHITECTURES:
            ratios = [
                time_ratio(found[beside], found[OURS]).value
                for (operation, _), found in grid.items()
                if operation.startswith(f"{name}, {architecture.title},")
                and "extractor alone" in operation
                and beside in found
            ]
            cells.append(span(ratios, "×"))
        rows.append([f"`{name}`", beside, *cells])
    return table(header, rows, words=2)


def others_table(others: dict[tuple[str, str], Timed]) -> str:
    """The methods of more than one formula per layer."""
    labels = ["1x224x224", "8x224x224", "1x512x1408"]
    header = ["", "", "beside", *(label.replace("x", " x ") for label in labels)]
    rows = []
    for method in METHODS_HERE:
        beside = PEER if method.grad_cam else OTHER if method.torchcam else REFERENCE
        for architecture in method.architectures:
            operation = f"{method.name}, {architecture.title}"
            cells = [cell(others.get((operation, label), {}), beside) for label in labels]
            if any(cells):
                rows.append([f"`{method.name}`", architecture.title, beside, *cells])
    return table(header, rows, words=3)


def cell(rows: Timed, beside: str) -> str:
    """Our time, and how many times longer the other one takes."""
    if OURS not in rows:
        return ""
    time = seconds_text(median(rows[OURS]))
    if beside not in rows:
        return time
    return f"{time}, {ratio_text(time_ratio(rows[beside], rows[OURS]).value)}"


def span(ratios: Sequence[float], unit: str) -> str:
    """Lowest to highest ratio."""
    if not ratios:
        return ""
    low, high = (ratio_text(value).removesuffix("×") for value in (min(ratios), max(ratios)))
    return f"{low}{unit} to {high}{unit}"


if __name__ == "__main__":
    main()
