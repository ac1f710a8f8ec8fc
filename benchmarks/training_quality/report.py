"""From the numbers of all seeds to the tables of a page."""

import statistics
from typing import Any

from benchmarks.quality.report import mean, spread, table
from benchmarks.training_quality.settings import CAMS

Run = dict[str, Any]

BEGIN, END = "<!-- trained -->", "<!-- end of trained -->"
PRESETS = ("F-CAM, paper preset", "F-CAM, small-object preset")
SEEDS_FROM = "LTGrad-CAM"  # what the small-object preset learns from


def section(title: str, runs: list[Run]) -> str:
    """Everything about one data set."""
    return "\n\n".join(
        [
            f"### {title}",
            description(runs),
            "#### Masks at the threshold from validation",
            threshold_table(runs, "validation"),
            "#### Masks at Otsu",
            threshold_table(runs, "otsu"),
            "#### F-CAM's preset that validation chooses, beside LTGrad-CAM",
            difference_table(runs),
            "#### Training, and what validation chose",
            time_table(runs),
        ]
    )


def description(runs: list[Run]) -> str:
    """What was trained and tested on, in words."""
    sizes, explained = runs[0]["images"], runs[0]["explained"]
    accuracy = spread(run["classifier"]["balanced_accuracy"] for run in runs)
    share = mean(run["defect_share"] for run in runs)
    epochs, map_epochs = runs[0]["epochs"]
    return (
        f"{sizes['train']} training, {sizes['val']} validation and {sizes['test']} test images; "
        f"{epochs} epochs for the classifier, {map_epochs} for each method that learns from it; "
        f"seeds {', '.join(str(run['seed']) for run in runs)}. Balanced accuracy of the "
        f"classifiers on the test images: {accuracy} %. Scored: {explained['defects']} defective "
        f"test images ({share} % of their pixels are defect, which is the IoU of marking every "
        f"pixel) and {explained['good']} good ones; thresholds are from "
        f"{explained['validation']} defective validation images."
    )


def threshold_table(runs: list[Run], bound: str) -> str:
    """All methods at one choice of threshold, CAM methods first."""
    header = ["method", "IoU", "IoU per image", "precision", "recall", "F1"]
    boxes = bound == "validation"
    header += ["box accuracy", "MaxBoxAcc"] if boxes else []
    rows = []
    for name in runs[0]["methods"]:
        entries = [run["methods"][name] for run in runs]
        scores = [entry[bound] for entry in entries]
        row = [name, spread(s["iou"] for s in scores), spread(s["iou_per_image"] for s in scores)]
        row += [mean(s[score] for s in scores) for score in ("precision", "recall", "f1")]
        if boxes:
            row += [
                spread(entry[score] for entry in entries) for score in ("box_acc", "max_box_acc")
            ]
        rows.append([*row, mean(s["false_on_good"] for s in scores)])
    return table([*header, "on good images"], rows)


def chosen_preset(run: Run) -> str:
    """F-CAM's preset of highest IoU on the validation images."""
    return max(PRESETS, key=lambda name: float(run["methods"][name]["validation_iou"]))


def difference_table(runs: list[Run]) -> str:
    """IoU of F-CAM's chosen preset minus that of LTGrad-CAM, seed by seed."""
    rows = [["preset chosen", "", *(chosen_preset(run).split(", ")[1] for run in runs)]]
    for words, ours, theirs in (
        ("F-CAM at validation's threshold, LTGrad-CAM at Otsu", "validation", "otsu"),
        ("both at validation's threshold", "validation", "validation"),
        ("both at Otsu", "otsu", "otsu"),
    ):
        gaps = [
            run["methods"][chosen_preset(run)][ours]["iou"]
            - run["methods"][SEEDS_FROM][theirs]["iou"]
            for run in runs
        ]
        rows.append([words, spread(gaps), *(f"{100 * gap:+.1f}" for gap in gaps)])
    return table(["pooled IoU, points", "mean", *(f"seed {run['seed']}" for run in runs)], rows)


def time_table(runs: list[Run]) -> str:
    """Seconds of training, the epochs kept, IoU on validation and the thresholds."""
    rows = [["classifier", mean((run["seconds"] for run in runs), 1.0), "", "", "", ""]]
    for name in runs[0]["methods"]:
        entries = [run["methods"][name] for run in runs]
        seconds = "" if name in CAMS else mean((entry["seconds"] for entry in entries), 1.0)
        epochs = "" if name in CAMS else ", ".join(str(entry["epoch"]) for entry in entries)
        limits = [
            f"{statistics.fmean(entry[bound]['threshold'] for entry in entries):.2f}"
            for bound in ("validation", "otsu")
        ]
        seen = spread(entry["validation_iou"] for entry in entries)
        rows.append([name, seconds, epochs, seen, *limits])
    header = ["method", "seconds of training", "best epochs", "IoU on validation"]
    return table([*header, "threshold from validation", "Otsu"], rows)
