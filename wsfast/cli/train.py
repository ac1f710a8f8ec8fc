"""Train a classifier on image labels, and from it a model that gives sharp maps.

A classifier comes first; the other recipes start from its run:
  classifier  cross-entropy on image labels
  fcam        a decoder on the frozen classifier learns from a few pixels of its CAM (F-CAM)
  dips        a localizer learns from region proposals that the classifier recognises (DiPS)
  pseudo      a segmenter learns from masks made of heat maps (RA-CAM's pseudo-labels)

RUN gets config.yaml (every setting), learnt.txt (files of the images that are trained on),
log.jsonl (a line per epoch), last.safetensors and best.safetensors (models) and last.pt (what
--resume needs). A run that was killed or stopped goes
on with --resume as if nothing had happened; SIGTERM and Ctrl-C finish the step in progress, save
and end with exit code 143 or 130.
"""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..train.classifier import ClassifierConfig
from ..train.config import TrainConfig, documented
from ..train.distributed import started_as_writer
from ..train.images import TrainingSample
from ..train.interrupt import Interrupted
from ..train.localizer import Preview, ProposalPreview
from ..train.runs import CONFIGS, configure, preview
from ..train.runs import run as train
from .arguments import read_size
from .drawing import Image, contact_sheet, draw_boxes, enlarge, heat_overlay, write_png, write_text
from .messages import one_line
from .outputs import check_file, check_folder

_PREVIEW_SIDE = 256  # small images are enlarged to about this

EXAMPLES = """examples:
  wsfast train classifier --data synthetic --channels 1 --epochs 10 --out runs/classifier
  wsfast train fcam --classifier runs/classifier --data synthetic --channels 1 --preset small \\
      --epochs 6 --out runs/fcam
  wsfast train pseudo --classifier runs/classifier --data synthetic --channels 1 --out runs/pseudo
  wsfast train classifier --config scripts/recipes/cub_classifier.yaml --data CUB/ --out runs/cub
  wsfast train fcam --config scripts/recipes/cub_fcam.yaml --data CUB/ --classifier runs/cub \\
      --out runs/cub_fcam --resume
  torchrun --nproc-per-node 4 -m wsfast train classifier --config my.yaml --out runs/four
`wsfast train RECIPE ... --preview seeds.png`, not of classifier, shows what would be learnt from.
`wsfast train RECIPE --help` explains every setting of a recipe.
"""

_FIRST = ("data", "format", "epochs", "classifier", "preset")  # what most calls name
_SUMMARIES = {
    "classifier": "cross-entropy on image labels",
    "fcam": "F-CAM: full-resolution maps from a few pixels of a CAM",
    "dips": "DiPS: maps from region proposals that the classifier recognises",
    "pseudo": "a segmenter from masks made of heat maps",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a parser per recipe, with an option for each of its settings."""
    recipes = parser.add_subparsers(dest="recipe", metavar="RECIPE", required=True)
    for name, config in CONFIGS.items():
        one = recipes.add_parser(
            name,
            help=_SUMMARIES[name],
            usage=f"wsfast train {name} --out RUN [--resume] [--config FILE] [settings]",
            description=f"{_SUMMARIES[name]}.",
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        one.add_argument("--out", type=Path, required=True, help="folder of the run")
        one.add_argument(
            "--resume", action="store_true", default=False,
            help="continue the run in --out; begins it where there is none yet",
        )  # fmt: skip
        if name == ClassifierConfig.recipe:
            one.set_defaults(preview=None)  # it learns from no maps
        else:
            one.add_argument(
                "--preview", type=Path, default=None, metavar="FILE",
                help="instead of training, draw maps, boxes and seeds of some images as a PNG; "
                "leaves the maps in --out for the run",
            )  # fmt: skip
        one.add_argument("--config", type=Path, default=None, help="YAML file of settings")
        _add_settings(one, config)


def _add_settings(parser: argparse.ArgumentParser, config: type[TrainConfig]) -> None:
    hints = typing.get_type_hints(config)
    entries = {entry.name: entry for entry in dataclasses.fields(config)}
    group = parser.add_argument_group(
        "settings (they win over --config)",
        "Messages and YAML files write them with _: select_on is --select-on.",
    )
    for name in sorted(entries, key=lambda n: (n not in _FIRST, list(entries).index(n))):
        default = entries[name].default
        shown = f" (default: {default})" if default not in ("", None) else ""
        told = (documented(name, config) + shown).replace("%", "%%")
        if name == "preset":
            told = "settings to start from: " + (", ".join(config.presets) or "none here")
        parse = _parser_of(hints[name])
        metavar = "N|HxW" if parse is _parse_size else "VALUE"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            **({"action": argparse.BooleanOptionalAction} if hints[name] is bool else
               {"type": parse, "metavar": metavar}),
            help=told,
        )  # fmt: skip


def _parser_of(kind: Any) -> Any:
    """What turns an argument's text into a setting; of optional ones, what they are when given."""
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    return _parse_size if typing.get_origin(kind) is tuple else kind


def _parse_size(text: str) -> list[int]:
    """``N`` or ``HxW`` in pixels.

    >>> _parse_size("640x224")
    [640, 224]
    """
    size = read_size(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"must be N or HxW in pixels, got {text}")
    return list(size)


def run(options: argparse.Namespace) -> int:
    """Run the command; 0 when the run is complete, 128 plus the signal when it was stopped."""
    given = {
        name: value
        for name, value in vars(options).items()
        if name in {entry.name for entry in dataclasses.fields(CONFIGS[options.recipe])}
    }
    config = configure(
        options.recipe, given, file=options.config, out=options.out, resume=options.resume
    )
    check_folder("train", "--out", options.out)
    check_file("train", "--preview", options.preview, made=True)
    if options.preview is not None:
        _preview(config, options.out, options.preview)
        return 0
    speaks = started_as_writer()
    try:
        history = train(config, options.out, resume=options.resume)
    except Interrupted as stopped:
        if speaks:
            print(f"wsfast train: {stopped}", file=sys.stderr)
        return stopped.code
    except RuntimeError as error:  # the loss has become NaN, the accelerator is out of memory
        said = one_line(error).removeprefix("RuntimeError: ")
        print(f"wsfast train: error: {said}", file=sys.stderr)
        return 1
    if speaks:
        _report(config, history, options.out)
    return 0


def _preview(config: TrainConfig, out: Path, file: Path) -> None:
    batch, found = preview(config, out)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_png(file, seeds_sheet(batch, found))
    print(f"image, map and seeds (foreground red, background blue): {file}")
    if found.proposals:
        beside = file.with_name(f"{file.stem}-proposals{file.suffix}")
        write_png(beside, proposals_sheet(found.proposals))
        print(f"proposals with the classifier's scores, best one's map and what was seen: {beside}")


def seeds_sheet(batch: TrainingSample, found: Preview) -> Image:
    """Images with their boxes, the maps they are learnt from and the seeds drawn, side by side."""
    rows = []
    for image, box, cam, seeds in zip(
        batch.image.cpu(), batch.box.cpu(), found.maps.cpu(), found.seeds.cpu(), strict=True
    ):
        picture, zoom = _enlarged(image)
        boxed, dotted = picture.copy(), picture.copy()
        if box[2] > box[0]:
            draw_boxes(boxed, box[None].numpy() * zoom)
        for label, colour in ((0, (40, 90, 255)), (1, (255, 40, 40))):
            dotted[enlarge((seeds == label).numpy(), zoom)] = colour
        rows.append([boxed, heat_overlay(picture, enlarge(cam.float().numpy(), zoom)), dotted])
    return contact_sheet(rows, ["image", "map", "seeds"])


def proposals_sheet(proposals: Sequence[ProposalPreview]) -> Image:
    """Whole images with their proposals, the best one's map, and what the classifier saw of it."""
    rows = []
    for image, boxes, scores, cam, seen in proposals:
        picture, zoom = _enlarged(image)
        overlay = heat_overlay(picture, enlarge(cam.numpy(), zoom))
        draw_boxes(picture, boxes.numpy() * zoom)
        draw_boxes(overlay, boxes[:1].numpy() * zoom)
        # Boxes overlap, and so would scores written at them.
        told = " ".join(f"{score:.2f}" for score in scores.tolist())
        write_text(picture, told, (2, 12), (255, 255, 255))
        rows.append([picture, overlay, _enlarged(seen)[0]])
    return contact_sheet(rows, ["proposals\nand scores", "the best\none's map", "as it\nwas seen"])


def _enlarged(image: Tensor) -> tuple[Image, int]:
    """A uint8 (C, H, W) image as an RGB picture of a size to look at, and how often enlarged."""
    zoom = max(1, _PREVIEW_SIDE // max(image.shape[1:]))
    plain = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return enlarge(np.ascontiguousarray(plain), zoom), zoom


def _report(config: TrainConfig, history: list[dict[str, Any]], out: Path) -> None:
    last = history[-1] if history else {}
    hidden = {"epoch", "seconds", "images_per_second", "learning_rate"}
    figures = ", ".join(
        f"{name} {value:.4g}"
        for name, value in last.items()
        if isinstance(value, int | float) and name not in hidden
    )
    print(f"{len(history)} epochs; the last: {figures}")
    print(f"models and log in {out}; best.safetensors is chosen by {config.select_on}")
