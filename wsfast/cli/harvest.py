"""Maps, masks and boxes of a large folder by a run of `wsfast train`, in one memory-mapped file.

OUT gets harvest-*.npy, one record per image: map (uint8, 255 is 1, at the size of the network's
input), mask (a pseudo-label, of the same size), boxes in pixels of the map (half-open, -1 where
there are fewer) with scores, label (the predicted class) with its probability, height and width of
the image, and whether it was readable; and harvest.json with the images' files in the same order.
Called again after it was broken off it makes what is missing; where the run, a setting or an image
has changed since, it makes all anew in another file. Without --target, a classifier's maps are
empty for images that it calls good; learnt maps do not ask it. Under torchrun every process takes
its share.
"""

import argparse
import sys
from pathlib import Path

from .._check import check_range, value_error
from .._device import parse_device
from ..data import expand_inputs
from ..data.inputs import VIDEO_SUFFIXES
from ..train import distributed
from ..train.evaluation import RunMaps
from ..train.harvest import harvest
from .arguments import add_classifier_argument, check_left_out, parse_threshold
from .localize import told_drawn, without_drawn
from .outputs import check_folder

NAME = "harvest"
EXAMPLES = """examples:
  wsfast harvest images/ --run runs/fcam --out harvest
  torchrun --nproc-per-node 4 -m -- wsfast harvest images/ --run runs/fcam --device cuda \\
      --out harvest
(without the -- torchrun takes --run for one of its own options); then, in Python:
  records = numpy.load("harvest/harvest-....npy", mmap_mode="r")
  records["map"][0], records["mask"][0], records["boxes"][0]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", nargs="+", help="image files, folders, glob patterns")
    parser.add_argument("--run", type=Path, dest="folder", required=True, help="folder of the run")
    add_classifier_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--threshold", help="otsu, otsu2 or 0..1 (default: validation's choice)")
    parser.add_argument("--target", type=int, help="class to explain (default: the predicted one)")
    parser.add_argument("--max-boxes", type=int, default=16, help="largest ones kept (default: 16)")
    parser.add_argument("--min-area", type=int, default=1, help="smallest region (default: 1)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    parser.add_argument("--strict", action="store_true", help="unreadable files are an error")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    for name in ("max_boxes", "min_area", "batch_size"):
        check_range("harvest", f"--{name.replace('_', '-')}", getattr(options, name), 1, 10**6)
    check_folder("harvest", "--out", options.out)
    threshold = None if options.threshold is None else parse_threshold(options.threshold, NAME)
    given = expand_inputs(options.images)
    found_files = without_drawn(given)
    files = [file for file in found_files if file.suffix.lower() not in VIDEO_SUFFIXES]
    if not files:
        value_error("harvest", "images", "at least one image", "videos only")
    wanted = parse_device("harvest", "--device", options.device)
    with distributed.process_group(wanted) as device:
        maps = RunMaps(options.folder, device, classifier=options.classifier)
        if not maps.of_classes:
            check_left_out("harvest", options, ("target",), "a run that learnt its maps")
        found = harvest(
            maps, files, options.out, threshold=threshold,
            target=options.target, max_boxes=options.max_boxes, min_area=options.min_area,
            batch_size=options.batch_size, strict=options.strict,
        )  # fmt: skip
    if distributed.started_as_writer():
        for file in found.skipped:
            print(f"wsfast harvest: skipped {file.path} ({file.reason})", file=sys.stderr)
        for line in told_drawn(len(given) - len(found_files)):
            print(f"wsfast harvest: {line}", file=sys.stderr)
        if len(files) < len(found_files):
            videos = len(found_files) - len(files)
            print(f"wsfast harvest: {videos} videos left out", file=sys.stderr)
        done = len(files) - len(found.skipped)
        print(f"{done} images harvested, {len(found.skipped)} files skipped; {found.path}")
    return 0 if len(found.skipped) < len(files) else 2
