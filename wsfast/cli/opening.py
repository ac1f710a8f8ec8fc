"""What a command localizes with: a classifier and a CAM method, or a run of ``wsfast train``."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from .._check import value_error
from ..cam.capture import logits_of
from ..cam.targets import resolve_target
from ..deploy import GradientLocalizer, Localizer, NeedsGradientsError
from ..deploy.base import Boxing
from ..models import GAPClassifier
from ..train.evaluation import RunMaps
from .arguments import check_left_out
from .classifier import Classifier, open_classifier
from .methods import (
    applicable,
    build_method,
    check_filter,
    check_method_options,
    method_names,
    sizes_taken,
)

DEFAULT_METHOD = "ltgradcam"


def open_model(
    options: argparse.Namespace, size: tuple[int, int] | None, device: torch.device
) -> tuple[Classifier, list[str]]:
    """A classifier and the names of the methods that are to explain it."""
    if options.model or options.checkpoint:
        check_left_out("localize", options, ("classifier",), "--model or --checkpoint")
    names = method_names(options.method or ("all" if options.compare else DEFAULT_METHOD))
    if len(names) > 1 and not options.compare:
        value_error("localize", "--method", "one method without --compare", options.method)
    check_method_options(names, options)
    if options.model is None and options.checkpoint is not None:
        check_left_out("localize", options, ("num_classes", "pretrained"), "a wsfast checkpoint")
    classifier = open_classifier(
        options.model,
        pretrained=options.pretrained,
        checkpoint=options.checkpoint,
        num_classes=options.num_classes,
        size=size,
        device=device,
        tscam="tscam" in names,
    )
    check_filter(classifier.model, options)
    if options.model and options.checkpoint is None:
        told = None if options.pretrained else "random weights; give --pretrained or --checkpoint"
        if "tscam" in names:
            told = "TS-CAM's head has random weights; give --checkpoint"
        if told:
            print(f"wsfast localize: warning: {told}", file=sys.stderr)
    if "all" in (options.method or "all").split(","):
        names = applicable(names, options, classifier.model)
    return classifier, names


def open_run(
    options: argparse.Namespace, size: tuple[int, int] | None, device: torch.device
) -> tuple[RunMaps, Classifier]:
    """The maps of a run's best model, and how it is fed."""
    check_run_options(options)
    maps = RunMaps(options.folder, device, classifier=options.classifier)
    if not isinstance(maps.model, GAPClassifier):
        check_left_out("localize", options, ("target",), "a run that learnt its maps")
    saved = maps.checkpoint
    classifier = Classifier(
        maps.model, size or saved.input_size, len(saved.mean), saved.mean, saved.std,
        saved.class_names,
    )  # fmt: skip
    return maps, classifier


def try_model(classifier: Classifier, run: RunMaps | None, target: int | None) -> None:
    """Run the model, or the maps of a run, on an empty image, before anything is written.

    Raises:
        ValueError: a size that the model does not take, or a class that it does not have.
    """
    device = next(classifier.model.parameters()).device
    image = torch.zeros(1, classifier.channels, *classifier.size, device=device)
    with sizes_taken("--size", "x".join(map(str, classifier.size))):
        if run is not None:
            run(image, target)
            return
        with torch.no_grad():
            logits = logits_of("localize", classifier.model(image), image)
    resolve_target("localize", target, logits)


def try_localizer(localizer: Localizer | GradientLocalizer) -> None:
    """Localize one picture of noise, before anything is written.

    Not an empty one: CAM looks at the first picture whether its maps are exact, and of a constant
    picture many would be.

    Raises:
        ValueError: a size that the model does not take, or a method that cannot explain it.
    """
    height, width = localizer.input_size
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(
        256, (1, localizer.channels, height, width), dtype=torch.uint8, generator=generator
    )
    with sizes_taken("--size", f"{height}x{width}"):
        localizer(picture.to(localizer.mean.device))


def check_run_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options that a run decides."""
    decided = ("model", "checkpoint", "pretrained", "num_classes", "method", "layers")
    of_methods = ("percentile", "filtered_backprop", "scales", "attention_model", "compare")
    check_left_out("localize", options, (*decided, *of_methods), "--run")


def open_localizer(
    options: argparse.Namespace,
    threshold: float | str,
    size: tuple[int, int] | None,
    device: torch.device,
) -> Localizer | GradientLocalizer:
    """The same as one module from images to boxes; without gradients where the maps need none."""
    boxing: Boxing = {"max_boxes": options.max_boxes, "min_area": options.min_area}
    if options.folder is not None:
        check_run_options(options)
        if options.threshold is not None:
            boxing["threshold"] = threshold
        return _localizer_of_run(options, size, boxing).to(device)
    classifier, names = open_model(options, size, device)
    boxing["threshold"] = threshold
    feed: dict[str, Any] = {
        "mean": classifier.mean,
        "std": classifier.std,
        "input_size": classifier.size,
        "class_names": classifier.class_names or (),
        "target": options.target,
    }
    if names[0] == "cam" and options.layers is None and options.scales is None:
        return Localizer.from_model(classifier.model, **feed, **boxing).to(device)
    method = build_method(names[0], options, classifier)
    return GradientLocalizer(method, **feed, **boxing).to(device)


def _localizer_of_run(
    options: argparse.Namespace, size: tuple[int, int] | None, boxing: Boxing
) -> Localizer | GradientLocalizer:
    folder: Path = options.folder
    if not folder.is_dir():
        value_error("localize", "--run", "the folder of a run", f"{folder}")
    try:
        return Localizer.from_checkpoint(
            folder, classifier=options.classifier, target=options.target, input_size=size, **boxing
        )
    except NeedsGradientsError:
        return GradientLocalizer.from_checkpoint(
            folder, target=options.target, input_size=size, **boxing
        )
