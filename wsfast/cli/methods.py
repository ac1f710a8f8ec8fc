"""From the command line's words to a CAM method, or to what is made around or beside one."""

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from .._check import check_choice, check_range, value_error
from ..cam import (
    CAM,
    METHODS,
    MSCA,
    RACAM,
    CAMMethod,
    CAMResult,
    PerturbationCAM,
    attention_map,
    attention_rollout,
    filtered_backprop,
    multiscale,
)
from ..cam.attention import any_size, check_model, on_images
from ..cam.capture import logits_of
from ..cam.filtering import FILTERED
from ..cam.targets import Target
from ..cam.tokens import patch_size
from ..train.classifier import takes_percentile
from .classifier import Classifier, open_transformer

# Of vision transformers, beside METHODS; with their names in results.
TRANSFORMER_METHODS = {
    "attention": "Attention",
    "rollout": "Rollout",
    "tscam": "TSCAM",
    "msca": "MSCA",
}
CLASSLESS = ("attention", "rollout")
_SCALES = (0.25, 0.5, 1.0)  # of MS-CA

Explain = Callable[[Tensor, Target], CAMResult]


class Composed(CAMMethod):
    """What a command makes around a method of wsfast.cam or beside them, called like one.

    Args:
        model: the classifier.
        name: of the method.
        explain: what a call does.
        inner: the method inside, where there is one.
        settings: what was chosen, for the results.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        explain: Explain,
        inner: CAMMethod | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self.method_name = name
        self.inner: CAMMethod | None = getattr(inner, "inner", inner)
        self.settings: dict[str, Any] = {**getattr(inner, "settings", {}), **settings}
        self._explain = explain

    @property
    def layer_names(self) -> tuple[str, ...] | None:
        """Of the method inside."""
        return self.inner.layer_names if self.inner else ()

    def __call__(
        self, images: Tensor, target: Target = None, *, create_graph: bool = False
    ) -> CAMResult:
        """Explain one batch; not differentiable."""
        return self._explain(images, target)


def method_inside(method: Any) -> Any:
    """The CAM method that a command or a run has made something around, or the method itself."""
    return getattr(method, "inner", None) or getattr(method, "cam", None) or method


def method_settings(method: Any) -> dict[str, Any]:
    """What a method is and what was chosen of it, as results tell it."""
    inner = method_inside(method)
    percentile = getattr(inner, "percentile", None)
    return {
        "method": getattr(method, "method_name", type(method).__name__),
        "layers": list(inner.layer_names or ()),
        **({} if percentile is None else {"percentile": percentile}),
        **getattr(method, "settings", {}),
    }


def parse_layers(text: str) -> str | list[str]:
    """``stages``, ``last`` or a list of module names."""
    return text if text in ("stages", "last") else [name.strip() for name in text.split(",")]


def parse_scales(text: str) -> tuple[float, ...]:
    """Positive factors.

    >>> parse_scales("0.5,1")
    (0.5, 1.0)
    """
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        value_error("localize", "--scales", "positive factors with commas, as 0.5,1", text)
    return scales


def default_layers() -> str:
    """Which layers the methods take by default, as ``--layers`` tells it.

    >>> default_layers().split("; ")[-1]
    'stages for the others'
    """
    kinds: dict[str, list[str]] = {"last": ["MS-CA"]}
    for method in METHODS.values():
        layers = inspect.signature(method).parameters["layers"].default
        kinds.setdefault(layers, []).append(method.__name__)
    *rest, most = sorted(kinds, key=lambda layers: len(kinds[layers]))
    told = [f"{layers} for {', '.join(kinds[layers])}" for layers in sorted(rest, reverse=True)]
    return f"{'; '.join(told)}; {most} for the others"


def method_names(text: str) -> list[str]:
    """Names as :data:`wsfast.cam.METHODS` has them, from a list with commas or ``all``.

    ``all`` leaves TS-CAM out: it is another model than the classifier, with a head of its own.

    >>> method_names("Grad-CAM++,ra-cam")
    ['gradcamplusplus', 'racam']
    """
    every = [*METHODS, *TRANSFORMER_METHODS]
    names = []
    for part in text.lower().split(","):
        name = part.strip().replace("-", "").replace("_", "").replace("+", "plus")
        if name == "all":
            names += [method for method in every if method != "tscam"]
            continue
        check_choice("localize", "--method", name, every)
        names.append(name)
    return list(dict.fromkeys(names))


def title_of(name: str) -> str:
    """A method's name in results."""
    return METHODS[name].__name__ if name in METHODS else TRANSFORMER_METHODS[name]


def _filters(name: str) -> bool:
    """Whether a method has gradients to filter, and does not filter them itself."""
    if name not in METHODS:
        return name == "msca"
    return not issubclass(METHODS[name], (CAM, PerturbationCAM, RACAM))


_TAKES: dict[str, Callable[[str], bool]] = {
    "percentile": lambda name: name in METHODS and takes_percentile(name),
    "layers": lambda name: name in METHODS or name == "msca",
    "target": lambda name: name not in CLASSLESS,
    "filtered_backprop": _filters,
    "attention_model": lambda name: name == "msca",
}


def check_method_options(names: Sequence[str], options: argparse.Namespace) -> None:
    """Raise ValueError for options that none of the methods takes, and for wrong values."""
    for option, takes in _TAKES.items():
        value = getattr(options, option)
        if value is not None and not any(map(takes, names)):
            expected = f"left out with --method {','.join(names)}"
            value_error("localize", "--" + option.replace("_", "-"), expected, f"{value}")
    if options.filtered_backprop is not None:
        check_range("localize", "--filtered-backprop", options.filtered_backprop, 0, 100)
    if options.scales is not None:
        parse_scales(options.scales)


def check_filter(model: nn.Module, options: argparse.Namespace) -> None:
    """Raise ValueError for ``--filtered-backprop`` of a model that has nothing to filter at."""
    percentile = options.filtered_backprop
    if percentile is not None and not any(isinstance(m, FILTERED) for m in model.modules()):
        expected = f"left out with a {type(model).__name__} without ReLU modules"
        value_error("localize", "--filtered-backprop", expected, f"{percentile}")


def applicable(names: Sequence[str], options: argparse.Namespace, model: nn.Module) -> list[str]:
    """The names without those of transformers, where the model is none."""
    try:
        check_model("localize", transformer_in(model))
    except ValueError:
        beside = {"msca"} if options.attention_model is not None else set()
        return [name for name in names if name in METHODS or name in beside]
    return list(names)


def transformer_in(model: nn.Module) -> nn.Module:
    """The transformer of TS-CAM, or the model itself."""
    return getattr(model, "vit", model)


def build_method(name: str, options: argparse.Namespace, classifier: Classifier) -> CAMMethod:
    """A method on the classifier's model, with those of the options that it takes."""
    model = classifier.model
    scales = None if options.scales is None else parse_scales(options.scales)
    method: CAMMethod
    if name in CLASSLESS:
        check_model(f"localize --method {name}", transformer_in(model))
        method = Composed(model, title_of(name), lambda x, _: _attention(model, name, x))
    elif name == "tscam":
        method = Composed(model, title_of(name), model.explain)  # type: ignore[arg-type]
    else:
        method = _cam_method(name, options, model)
    if options.filtered_backprop is not None and _filters(name):
        method = _filtered(method, options.filtered_backprop)
    if name == "msca":
        return _msca(method, options, classifier, scales or _SCALES)
    return method if scales is None else _at_scales(method, scales)


def _cam_method(name: str, options: argparse.Namespace, model: nn.Module) -> CAMMethod:
    chosen: dict[str, Any] = {"layers": "last"} if name == "msca" else {}
    if options.layers is not None:
        chosen["layers"] = parse_layers(options.layers)
    if options.percentile is not None and _TAKES["percentile"](name):
        chosen["percentile"] = options.percentile
    return METHODS["gradcam" if name == "msca" else name](model, **chosen)


def _attention(model: nn.Module, name: str, images: Tensor) -> CAMResult:
    """Attention of the class token to the patches, the same for every class."""
    with torch.no_grad():
        logits = logits_of("localize", model(images), images)
    if name == "attention":
        cams = attention_map(transformer_in(model), images)
    else:
        vit = transformer_in(model)
        patches = attention_rollout(vit, images)
        cams = on_images(vit, patches, images, (images.shape[2], images.shape[3]))
        cams = ops.normalize_cams(cams)
    valid = logits.isfinite().all(1) & cams.isfinite().flatten(1).all(1)
    cams = cams.masked_fill(~valid[:, None, None], 0.0)
    return CAMResult(cams, [cams], logits, None, valid)


def _name_of(method: CAMMethod) -> str:
    return str(method_settings(method)["method"])


def _filtered(method: CAMMethod, percentile: float) -> Composed:
    def explain(images: Tensor, target: Target) -> CAMResult:
        with filtered_backprop(method.model, percentile):
            return method(images, target)

    return Composed(method.model, _name_of(method), explain, method, filtered_backprop=percentile)


def _at_scales(method: CAMMethod, scales: tuple[float, ...]) -> Composed:
    def explain(images: Tensor, target: Target) -> CAMResult:
        with _scales_taken(scales, images):
            return multiscale(sized, images, target, scales=scales)

    sized = _of_any_size(method)
    return Composed(method.model, _name_of(method), explain, method, scales=list(scales))


def _msca(
    method: CAMMethod, options: argparse.Namespace, classifier: Classifier, scales: Sequence[float]
) -> Composed:
    text = options.attention_model
    vit, feed = transformer_in(classifier.model), None
    if text is not None:
        vit, feed = open_transformer(text, classifier)
    else:
        try:
            check_model("localize", vit)
        except ValueError:
            actual = f"none with a {type(classifier.model).__name__}"
            value_error("localize", "--attention-model", "given with --method msca", actual)
    fuse = MSCA(_of_any_size(method), vit, scales=scales)

    def explain(images: Tensor, target: Target) -> CAMResult:
        seen = None if feed is None else feed(images)
        with _scales_taken(scales, images):
            found = fuse(images, target, attention_images=seen)
        return found.cam._replace(cams=found.scores, valid=found.valid)

    return Composed(
        classifier.model, title_of("msca"), explain, method, scales=list(scales),
        attention_model=text or "the model itself",
    )  # fmt: skip


def _of_any_size(method: CAMMethod) -> CAMMethod:
    """A vision transformer's method, for images of any size: resized to whole patches."""
    model = transformer_in(method.model)
    patch = patch_size(model)
    if patch is None or not hasattr(model, "dynamic_img_size"):
        return method

    def explain(images: Tensor, target: Target) -> CAMResult:
        sides = zip(images.shape[2:], patch, strict=True)
        size = [max(1, round(side / p)) * p for side, p in sides]
        if size != list(images.shape[2:]):
            images = F.interpolate(
                images, size, mode="bilinear", align_corners=False, antialias=True
            )
        with any_size(model):
            return method(images, target)

    return Composed(method.model, _name_of(method), explain, method)


def _scales_taken(scales: Sequence[float], images: Tensor) -> AbstractContextManager[None]:
    actual = f"{','.join(map(str, scales))} of {images.shape[2]}x{images.shape[3]}"
    return sizes_taken("--scales", actual, "of sizes that the model takes")


@contextmanager
def sizes_taken(
    argument: str, size: str, expected: str = "one that the model takes"
) -> Iterator[None]:
    """What layers and timm's checks raise for a size, as one plain error of the argument."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        actual = f"{size} ({str(error).splitlines()[0]})"
        value_error("localize", argument, expected, actual)
