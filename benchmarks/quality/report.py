"""From the numbers of all runs to the tables and the figure of ``docs/results.md``."""

import io
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.measure import CURVES, PERCENTILES
from benchmarks.quality.models import Models
from wsfast._files import write_atomically

Run = dict[str, Any]
Runs = dict[str, list[Run]]

BEGIN, END = "<!-- measured -->", "<!-- end -->"
BOUNDS = {"otsu": "Otsu", "validation": "threshold from validation", "oracle": "oracle threshold"}
CURVE_BOUNDS = {
    **{bound: BOUNDS[bound] for bound in ("otsu", "validation")},
    "training": "Otsu, training images",
}


def spread(values: Iterable[float], digits: int = 1, factor: float = 100.0) -> str:
    """Mean and standard deviation over seeds, in percent by default."""
    scaled = [factor * value for value in values]
    mean = f"{statistics.fmean(scaled):.{digits}f}"
    return f"{mean} ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else mean


def mean(values: Iterable[float], factor: float = 100.0) -> str:
    """Mean over seeds, in percent by default."""
    return f"{factor * statistics.fmean(values):.1f}"


def table(header: list[str], rows: Iterable[list[str]], words: int = 1) -> str:
    """A Markdown table with figures to the right of its first columns."""
    lines = [header, [":--"] * words + ["--:"] * (len(header) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def threshold_table(runs: list[Run], bound: str) -> str:
    """All methods at one choice of threshold, in the order of their mean IoU."""
    names = list(runs[0]["methods"])

    def scores(name: str, score: str) -> list[float]:
        return [run["methods"][name][bound][score] for run in runs]

    names.sort(key=lambda name: -statistics.fmean(scores(name, "iou")))
    header = ["method", "IoU", "IoU per image", "precision", "recall", "F1", "on good images"]
    return table(
        header,
        (
            [
                name,
                spread(scores(name, "iou")),
                spread(scores(name, "iou_per_image")),
                *(mean(scores(name, score)) for score in ("precision", "recall", "f1")),
                mean(scores(name, "false_on_good")),
            ]
            for name in names
        ),
    )


def time_table(runs: list[Run]) -> str:
    """Milliseconds per image of all methods, and the thresholds that were found."""
    rows = []
    for name in runs[0]["methods"]:
        entries = [run["methods"][name] for run in runs]
        limits = [
            f"{statistics.fmean(entry[b]['threshold'] for entry in entries):.2f}" for b in BOUNDS
        ]
        rows.append([name, mean((e["milliseconds"] for e in entries), 1.0), *limits])
    return table(["method", "ms per image", *BOUNDS.values()], rows)


def curve_table(runs: list[Run], bound: str) -> str:
    """Pooled IoU and, in brackets, F1 by percentile."""
    rows = []
    for i, percentile in enumerate(PERCENTILES):
        cells = []
        for name in CURVES:
            points = [run["curves"][name][i][bound] for run in runs]
            iou, f1 = ([point[score] for point in points] for score in ("iou", "f1"))
            cells.append(f"{spread(iou)} ({mean(f1)})")
        rows.append([str(percentile), *cells])
    rows.append(["chosen on validation", *(chosen(runs, name, bound) for name in CURVES)])
    return table(["percentile", *CURVES], rows)


def chosen(runs: list[Run], name: str, bound: str) -> str:
    """The IoU at the percentile that each run's validation images would have chosen."""
    best = []
    for run in runs:
        points = run["curves"][name]
        best.append(max(range(len(points)), key=lambda i, p=points: p[i]["validation_iou"]))
    values = [run["curves"][name][i][bound]["iou"] for run, i in zip(runs, best, strict=True)]
    return f"{spread(values)} at {', '.join(str(PERCENTILES[i]) for i in best)}"


def classifier_line(runs: list[Run]) -> str:
    """What was trained and tested on, in words."""
    first = runs[0]
    sizes, explained = first["images"], first["explained"]
    accuracy = {
        name: spread(run[name]["balanced_accuracy"] for run in runs) for name in Models._fields
    }
    share = mean(run["defect_share"] for run in runs)
    return (
        f"{sizes['train']} training, {sizes['validation']} validation and {sizes['test']} test "
        f"images; {first['epochs']} epochs; seeds {', '.join(str(run['seed']) for run in runs)}. "
        "Balanced accuracy on the test images: "
        f"SmallVGG {accuracy['classifier']} %, transformer {accuracy['transformer']} %, "
        f"TS-CAM {accuracy['tscam']} %. Explained: {explained['defects']} "
        f"defective test images ({share} % of their pixels are defect, which is the IoU of "
        "marking every pixel), "
        f"{explained['validation']} defective validation images, {explained['good']} good test "
        "images."
    )


def section(title: str, runs: list[Run]) -> str:
    """Everything about one data set."""
    parts = [f"### {title}", classifier_line(runs)]
    for bound, words in BOUNDS.items():
        parts += [f"#### Masks at {words}", threshold_table(runs, bound)]
    parts += ["#### Times and thresholds", time_table(runs)]
    for bound, words in CURVE_BOUNDS.items():
        heading = f"#### By percentile, {words}: pooled IoU (F1)"
        parts += [heading, curve_table(runs, bound)]
    return "\n\n".join(parts)


def write_page(page: Path, runs: Runs, titles: dict[str, str]) -> None:
    """All data sets' tables into a page."""
    body = "\n\n".join(section(titles[name], of_set) for name, of_set in runs.items())
    replace_between(page, BEGIN, END, body)


def replace_between(page: Path, begin: str, end: str, body: str) -> None:
    """Replace what stands between two marks of a page, and nothing else."""
    text = page.read_text()
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page} has no {begin} ... {end}")
    write_atomically(page, f"{head}{begin}\n\n{body}\n\n{end}{tail}".encode())


def write_figure(path: Path, runs: Runs, titles: dict[str, str]) -> None:
    """Pooled IoU by percentile, beside the plain methods of the same stages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(CURVE_BOUNDS)
    figure, axes = pyplot.subplots(
        rows, len(runs), figsize=(4.6 * len(runs), 2.8 * rows), sharex=True, squeeze=False
    )
    for column, (name, of_set) in enumerate(runs.items()):
        for row, (bound, words) in enumerate(CURVE_BOUNDS.items()):
            draw_curves(axes[row][column], of_set, bound)
            axes[row][column].set_title(f"{titles[name]}\n{words}", fontsize=9)
        axes[-1][column].set_xlabel("percentile")
    for line in axes:
        line[0].set_ylabel("IoU of defect pixels, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    write_atomically(path, picture.getvalue())


def draw_curves(axis: Any, runs: list[Run], bound: str) -> None:
    """One line per method with a band of one standard deviation over seeds."""
    for colour, name in zip(("C0", "C1", "C2", "C3"), CURVES, strict=True):
        values = [[100 * point[bound]["iou"] for point in run["curves"][name]] for run in runs]
        means = [statistics.fmean(column) for column in zip(*values, strict=True)]
        axis.plot(PERCENTILES, means, colour, marker=".", label=name)
        if len(runs) > 1:
            off = [statistics.stdev(column) for column in zip(*values, strict=True)]
            low = [m - o for m, o in zip(means, off, strict=True)]
            high = [m + o for m, o in zip(means, off, strict=True)]
            axis.fill_between(PERCENTILES, low, high, color=colour, alpha=0.15, linewidth=0)
    for colour, name in (("C0", "GradCAM"), ("C1", "FullGrad"), ("C2", "LayerCAM")):
        if bound not in runs[0]["methods"][name]:
            continue
        level = 100 * statistics.fmean(run["methods"][name][bound]["iou"] for run in runs)
        told = f"{name}, not truncated"
        axis.axhline(level, color=colour, linestyle="--", linewidth=1, label=told)
    axis.grid(alpha=0.3)
