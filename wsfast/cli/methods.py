"""From the command line's words to a CAM method."""

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from .._check import check_choice, value_error
from ..cam import METHODS, CAMMethod
from ..train.classifier import takes_percentile
from .classifier import Classifier


def parse_layers(text: str) -> str | list[str]:
    """``stages``, ``last`` or a list of module names."""
    return text if text in ("stages", "last") else [name.strip() for name in text.split(",")]


def default_layers() -> str:
    """Which layers the methods take by default, as ``--layers`` tells it.

    >>> default_layers().split("; ")[-1]
    'stages for the others'
    """
    kinds: dict[str, list[str]] = {}
    for method in METHODS.values():
        layers = inspect.signature(method).parameters["layers"].default
        kinds.setdefault(layers, []).append(method.__name__)
    *rest, most = sorted(kinds, key=lambda layers: len(kinds[layers]))
    told = [f"{layers} for {', '.join(kinds[layers])}" for layers in sorted(rest, reverse=True)]
    return f"{'; '.join(told)}; {most} for the others"


def method_names(text: str) -> list[str]:
    """Names as :data:`wsfast.cam.METHODS` has them, from a list with commas or ``all``.

    >>> method_names("Grad-CAM++,ra-cam")
    ['gradcamplusplus', 'racam']
    """
    if text == "all":
        return list(METHODS)
    names = []
    for part in text.lower().split(","):
        name = part.strip().replace("-", "").replace("_", "").replace("+", "plus")
        check_choice("localize", "--method", name, list(METHODS))
        names.append(name)
    return list(dict.fromkeys(names))


def check_percentile(names: Sequence[str], options: argparse.Namespace) -> None:
    """Raise ValueError for a percentile that none of the methods takes."""
    if options.percentile is not None and not any(map(takes_percentile, names)):
        expected = f"left out with --method {','.join(names)}"
        value_error("localize", "--percentile", expected, f"{options.percentile}")


def build_method(name: str, options: argparse.Namespace, classifier: Classifier) -> CAMMethod:
    """A method on the classifier's model, with those of the options that it takes."""
    method = METHODS[name]
    chosen: dict[str, Any] = {}
    if options.layers is not None:
        chosen["layers"] = parse_layers(options.layers)
    if takes_percentile(name) and options.percentile is not None:
        chosen["percentile"] = options.percentile
    return method(classifier.model, **chosen)
