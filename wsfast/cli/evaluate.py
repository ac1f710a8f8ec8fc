"""Score a run of `wsfast train`, or heat maps by the localisation protocol.

With --run: the run's best model on a split, at the threshold that validation chose and at Otsu's;
of boxes also MaxBoxAcc, top-1 and top-5 localisation, and what is wrong where a box is wrong.
With --scoremaps: MaxBoxAcc and MaxBoxAccV2, or PxAP.

Maps are NumPy files in 0-1, 224 x 224, named after the image ids (cat/1.jpg: cat/1.jpg.npy or
cat/1.npy). The metadata folder holds image_ids.txt, image_sizes.txt and localization.txt as the
benchmark of Choe et al. (CVPR 2020) ships them; with masks in localization.txt PxAP is scored.
The figures equal those of the benchmark's own code.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .._check import check_range, value_error
from .._device import parse_device
from .._files import write_atomically
from ..data import FORMATS, wsol
from ..metrics import MaxBoxAcc, MaxBoxAccV2, PxAP
from ..metrics.localization import BoxAccuracy
from ..train.evaluation import evaluate_run
from .arguments import add_classifier_argument, check_left_out, fill_in
from .outputs import check_file

EXAMPLES = """examples:
  wsfast evaluate --run runs/fcam --out scores.json
  wsfast evaluate --scoremaps train_log/scoremaps --metadata metadata/CUB/test --out scores.json
  wsfast evaluate --scoremaps scoremaps --metadata metadata/OpenImages/test \\
      --masks dataset/OpenImages --plot curve.png
"""

# Options of one way of calling, refused in the other, with their defaults.
_OF_RUNS = {
    "classifier": None, "data": "", "format": "auto", "split": "test", "device": "auto",
}  # fmt: skip
_OF_MAPS = {"scoremaps": None, "interval": 0.001, "plot": None, "batch_size": 64}
_OF_OTHER_DATA = ("format", "metadata", "masks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    formats = ", ".join(FORMATS)
    run = parser.add_argument_group("a run of `wsfast train`")
    run.add_argument("--run", type=Path, dest="folder", help="folder of the run")
    add_classifier_argument(run)
    run.add_argument("--data", help="other data than the run's own: a folder, a CSV file")
    run.add_argument("--format", help=f"of that data: auto (looks), {formats} (default: auto)")
    run.add_argument("--split", help="train, val or test (default: test)")
    run.add_argument("--device", help="auto, cpu, cuda ... (default: auto)")
    maps = parser.add_argument_group("saved heat maps")
    maps.add_argument("--scoremaps", type=Path, help="folder of .npy maps")
    maps.add_argument("--interval", type=float, help="threshold step (default: 0.001)")
    maps.add_argument("--plot", type=Path, help="write the curves as PNG (needs wsfast[plots])")
    maps.add_argument("--batch-size", type=int, help="maps at a time (default: 64)")
    parser.add_argument(
        "--metadata", type=Path, help="folder of the .txt files: of the maps, or of --data"
    )
    masks = "folder of the mask files: of the maps (default: --metadata), or of --data"
    parser.add_argument("--masks", type=Path, help=masks)
    parser.add_argument(
        "--out", type=Path, help="write the figures (of maps the curves too) as JSON"
    )


def map_path(folder: Path, image_id: str) -> Path:
    """The file of an image's map.

    Raises:
        ValueError: there is none.
    """
    candidates = [folder / f"{image_id}.npy", (folder / image_id).with_suffix(".npy")]
    path = next(filter(Path.is_file, candidates), candidates[0])
    if not path.is_file():
        value_error("evaluate", "--scoremaps", "a map for every image id", f"none for {image_id}")
    return path


def read_map(path: Path) -> NDArray[np.floating[Any]]:
    """One map, checked.

    Raises:
        ValueError: not a NumPy file of floating-point values, or of another size.
    """
    try:
        with path.open("rb") as file:  # np.load would open a zip file, too
            found = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise ValueError(f"wsfast.evaluate: {path}: not a readable .npy file") from None
    shape = (wsol.SIDE, wsol.SIDE)
    if found.shape != shape or found.dtype.kind != "f":
        wanted = f"must be a floating-point map of {shape[0]} x {shape[1]}"
        raise ValueError(f"wsfast.evaluate: {path}: {wanted}, got {found.dtype} {found.shape}")
    if not (found.min() >= 0 and found.max() <= 1):
        raise ValueError(f"wsfast.evaluate: {path}: must be free of NaN and within 0-1")
    return np.asarray(found, np.float64)


def batches(folder: Path, ids: Sequence[str], size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Ids and maps (n, 224, 224), with a progress bar.

    Raises:
        ValueError: an image without a map, before the first one is read; a map that will not do.
    """
    paths = {image_id: map_path(folder, image_id) for image_id in ids}
    with tqdm(total=len(ids), unit="map", desc="evaluating") as bar:
        for first in range(0, len(ids), size):
            some = list(ids[first : first + size])
            maps = np.stack([read_map(paths[image_id]) for image_id in some])
            yield some, torch.from_numpy(maps)
            bar.update(len(some))


def evaluate_boxes(
    options: argparse.Namespace, metadata: wsol.WSOLMetadata, thresholds: Tensor
) -> tuple[dict[str, Any], list[BoxAccuracy]]:
    """Figures and metrics of a split with boxes."""
    metrics: list[BoxAccuracy] = [
        MaxBoxAcc(thresholds=thresholds),
        MaxBoxAccV2(thresholds=thresholds),
    ]
    for ids, maps in batches(options.scoremaps, metadata.image_ids, options.batch_size):
        boxes = [torch.tensor(metadata.boxes[image_id]) for image_id in ids]
        for metric in metrics:
            metric.update(maps, boxes)
    figures: dict[str, Any] = {"images": len(metadata.image_ids)}
    for metric in metrics:
        figures[type(metric).__name__] = {
            "percent": 100 * metric.compute().item(),
            "iou_levels": list(metric.iou_levels),
            "best_thresholds": metric.best_thresholds().tolist(),
        }
    accuracies = {type(metric).__name__: metric.curve()[1].tolist() for metric in metrics}
    figures["curves"] = {"thresholds": thresholds.tolist(), "accuracies": accuracies}
    return figures, metrics


def evaluate_masks(
    options: argparse.Namespace, metadata: wsol.WSOLMetadata, thresholds: Tensor
) -> tuple[dict[str, Any], list[PxAP]]:
    """Figures and metric of a split with masks."""
    root = options.masks or options.metadata
    metric = PxAP(thresholds=thresholds)
    for ids, maps in batches(options.scoremaps, metadata.image_ids, options.batch_size):
        masks = [
            wsol.read_protocol_mask(root, metadata.masks[image_id], metadata.ignore[image_id])
            for image_id in ids
        ]
        metric.update(maps, torch.from_numpy(np.stack(masks)))
    if not metric.histograms[1].any():
        value_error("evaluate", "--masks", "masks with a foreground pixel", "none")
    # Ascending, of the scores at or above each threshold and 1; the curve's first point is of 2.
    precision, recall = (values.flip(0)[:-1].tolist() for values in metric.curve())
    figures = {
        "images": len(metadata.image_ids),
        "PxAP": {"percent": 100 * metric.compute().item()},
        "curves": {
            "thresholds": [*thresholds.tolist(), 1.0],
            "precision": precision,
            "recall": recall,
        },
    }
    return figures, [metric]


def as_json(figures: dict[str, Any]) -> bytes:
    """A line per figure, the curves last: the head of the file is what people look for."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in figures.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def plot_curves(path: Path, metrics: Sequence[BoxAccuracy | PxAP]) -> None:
    """Write the metrics' curves side by side, by matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    for place, metric in enumerate(metrics, start=1):
        metric.plot(ax=figure.add_subplot(1, len(metrics), place))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())


def check_options(options: argparse.Namespace) -> None:
    """Raise before any work where an option cannot do."""
    if options.scoremaps is not None:
        check_left_out("evaluate", options, _OF_RUNS, "--scoremaps")
    fill_in(options, _OF_MAPS)
    check_range("evaluate", "--interval", options.interval, 1e-4, 1)
    check_range("evaluate", "--batch-size", options.batch_size, 1, 4096)
    for name in ("scoremaps", "metadata"):
        folder: Path | None = getattr(options, name)
        if folder is None:
            value_error("evaluate", f"--{name}", "given, or --run", "nothing")
        elif not folder.is_dir():
            value_error("evaluate", f"--{name}", "a folder", f"{folder}")
    if options.plot is not None:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            expected = 'left out, or matplotlib installed (pip install "wsfast[plots]")'
            value_error("evaluate", "--plot", expected, f"{options.plot}")


def run(options: argparse.Namespace) -> int:
    """Evaluate a run, or a folder of maps."""
    out, plot = options.out, options.plot
    for name, path in (("--out", out), ("--plot", plot)):
        check_file("evaluate", name, path)
    if out is not None and plot is not None and out.resolve() == plot.resolve():
        value_error("evaluate", "--plot", "another file than --out", f"{plot}")
    if options.folder is not None:
        check_left_out("evaluate", options, _OF_MAPS, "--run")
        if not options.data:
            check_left_out("evaluate", options, _OF_OTHER_DATA, "the run's own data")
        fill_in(options, _OF_RUNS)
        return _evaluate_run(options)
    check_options(options)
    metadata = wsol.read_wsol_metadata(options.metadata)
    if not metadata.image_ids:
        value_error("evaluate", "--metadata", "of at least one image", "an empty image_ids.txt")
    thresholds = torch.from_numpy(np.arange(0, 1, options.interval))
    if not metadata.masks:
        check_left_out("evaluate", options, ("masks",), "boxes in --metadata")
    evaluate = evaluate_masks if metadata.masks else evaluate_boxes
    figures, metrics = evaluate(options, metadata, thresholds)
    for name, scores in figures.items():
        if isinstance(scores, dict) and "percent" in scores:
            print(f"{name:<12}{scores['percent']:8.3f} %")
    if out is not None:
        write_atomically(out, as_json(figures))
    if plot is not None:
        plot_curves(plot, metrics)
    return 0


def _evaluate_run(options: argparse.Namespace) -> int:
    figures = evaluate_run(
        options.folder,
        classifier=options.classifier,
        data=options.data,
        format=options.format,
        metadata=str(options.metadata or ""),
        masks=str(options.masks or ""),
        split=options.split,
        device=parse_device("evaluate", "--device", options.device),
    )
    for name, value in figures.items():
        for part, number in value.items() if isinstance(value, dict) else ((("", value)),):
            shown = f"{number:.4f}" if isinstance(number, float) else str(number)
            print(f"{(name + ' ' + part).strip():<24}{shown:>10}")
    if options.out is not None:
        write_atomically(options.out, as_json(figures))
    return 0
