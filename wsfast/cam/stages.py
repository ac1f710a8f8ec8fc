"""Finds the stages of a model: the last layer of each resolution."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .._check import value_error
from .capture import undisturbed
from .tokens import is_token_model, token_stages

# Area ratio of two neighbouring stages at least: half a pooling step, so that the rims cut off by
# unpadded convolutions open no stage while 5x5 after 3x3 still does.
_STAGE_RATIO = 2.0

# torch's, timm's and most people's own: MaxPool2d, AvgPool2dSame, BlurPool2d, GlobalAvgPooling ...
_POOL_NAME = re.compile(r"pool(ing)?(2d)?(same)?$", re.IGNORECASE)


def stage_names(where: str, model: nn.Module, images: Tensor) -> list[str]:
    """Module names of the stages, shallow to deep.

    timm's ``feature_info`` less a trailing pool where the model has one (VGG: the last ReLU before
    each pool), else what a dry run on the first image shows.

    Args:
        where: name of the calling function, for messages.
        model: the module to run, without wrappers.
        images: a batch the model takes.

    Raises:
        ValueError: the dry run meets no (N, C, h, w) tensor.
    """
    names = timm_stages(model) or dry_run_stages(model, images[:1])
    if not names:
        value_error(where, "layers", "given by name for this model", "no (N, C, h, w) feature maps")
    return names


def timm_stages(model: nn.Module) -> list[str]:
    """The last module of each resolution in timm's ``feature_info`` less a trailing pool.

    Empty without one. Of a vision transformer, whose blocks all have one resolution, the last norm
    that counts.
    """
    if is_token_model(model):
        return token_stages(model)
    info = getattr(model, "feature_info", None)
    if not isinstance(info, (list, tuple)):
        return []
    named = [entry for entry in info if entry.get("module")]  # TResNet's stem has no name
    last = {entry.get("reduction", entry["module"]): entry for entry in named}
    names = [entry["module"] for entry in last.values()]
    modules = dict(model.named_modules())
    if any(name not in modules for name in names):
        return []
    return names[:-1] if names and _is_pool(modules[names[-1]]) else names


@dataclass
class _Call:
    """One call of a module in the dry run, with the calls made inside it."""

    name: str
    module: nn.Module
    area: int = 0
    pooled: bool = False
    last: bool = False
    inside: list["_Call"] = field(default_factory=list)


def dry_run_stages(model: nn.Module, images: Tensor) -> list[str]:
    """The last layer of each resolution, from one forward pass without gradients.

    Blocks stand for what is inside them (ResNet: ``layer1``, not its last ReLU) unless they hide a
    stage of higher resolution or end with a pool. Pools are no layers of their own; neither are
    1 x 1 outputs (squeeze-and-excitation, heads), outputs of another shape than the image
    (channels-last blocks) nor, once the resolution has dropped, higher ones (decoders).
    """
    stages: list[_Call] = []
    _add_stages(_record_calls(model, images), stages)
    return [call.name for call in stages]


def _add_stages(call: _Call, stages: list[_Call]) -> None:
    """Go through the calls inside ``call`` from image to logits, at the coarsest useful level."""
    for child in call.inside:
        hides_one = any(
            inner.area >= _STAGE_RATIO * child.area and _opens_stage(inner, stages)
            for inner in _descendants(child)
        )
        # An earlier call of a reused module cannot be captured.
        if child.area <= 1 or child.pooled or not child.last or hides_one:
            _add_stages(child, stages)
        elif _opens_stage(child, stages):
            stages.append(child)
        elif child.area < _STAGE_RATIO * stages[-1].area:
            stages[-1] = child


def _opens_stage(call: _Call, stages: list[_Call]) -> bool:
    return not stages or stages[-1].area >= _STAGE_RATIO * call.area


def _descendants(call: _Call) -> Iterator[_Call]:
    for child in call.inside:
        yield child
        yield from _descendants(child)


def _record_calls(model: nn.Module, images: Tensor) -> _Call:
    """Run the model and return its tree of module calls."""
    root = _Call("", model)
    stack = [root]
    latest: dict[str, _Call] = {}
    previous: list[Any] = [None, False]  # output of the last finished call, and whether pooled
    thread = threading.get_ident()

    def enter(name: str, module: nn.Module) -> None:
        if threading.get_ident() != thread:
            return  # somebody else's forward pass
        call = _Call(name, module)
        stack[-1].inside.append(call)
        stack.append(call)
        latest[name] = call

    def leave(output: Any) -> None:
        if threading.get_ident() != thread:
            return
        call = stack.pop()
        call.area = _area(output, images)
        # A block that returns its pool's output is pooled too.
        call.pooled = _is_pool(call.module) or (output is previous[0] and previous[1])
        previous[:] = [output, call.pooled]

    handles = []
    try:
        for name, module in model.named_modules():
            if not name:
                continue
            handles.append(module.register_forward_pre_hook(lambda m, _, name=name: enter(name, m)))
            handles.append(module.register_forward_hook(lambda _m, _i, output: leave(output)))
        with undisturbed(model, images.device):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    for call in latest.values():
        call.last = True
    return root


def _area(value: Any, images: Tensor) -> int:
    """Pixels of an (N, C, h, w) tensor of the images' shape, 0 for anything else."""
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return 0
    height, width = value.shape[2:]
    expected = height * images.shape[3] / images.shape[2]
    return height * width if abs(width - expected) <= max(1.0, expected / 2) else 0


def _is_pool(module: nn.Module) -> bool:
    return _POOL_NAME.search(type(module).__name__) is not None
