"""Finds the stages of a model: the last layer of each resolution."""

import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .._check import value_error
from .capture import undisturbed
from .tokens import token_stages

# Area ratio of two neighbouring stages at least: half a pooling step, so that the rims cut off by
# unpadded convolutions open no stage while 5x5 after 3x3 still does.
_STAGE_RATIO = 2.0

# Class, distillation and register tokens.
_MOST_PREFIX_TOKENS = 16

# Of rows of tokens.
_NORMS = (nn.LayerNorm, nn.RMSNorm)

# torch's, timm's and most people's own: MaxPool2d, AvgPool2dSame, BlurPool2d, GlobalAvgPooling ...
_POOL_NAME = re.compile(r"pool(ing)?(2d)?(same)?$", re.IGNORECASE)


def stage_names(where: str, model: nn.Module, images: Tensor) -> list[str]:
    """Module names of the stages, shallow to deep.

    timm's ``feature_info`` less a trailing pool where the model has one (VGG: the last ReLU before
    each pool), else what a dry run on the first image, twice, shows. Of a transformer inside a
    wrapper that is its stem alone, so its own stages are taken.

    Args:
        where: name of the calling function, for messages.
        model: the module to run, without wrappers.
        images: a batch the model takes.

    Raises:
        ValueError: the dry run meets no (N, C, h, w) tensor, or none but a transformer's patches.

    Warns:
        UserWarning: rows of tokens follow the last of these layers.
    """
    if names := timm_stages(model):
        return names
    calls = record_calls(model, images)
    found = dry_run_stages(calls)
    found = _known_inside(model, calls, found) or found
    if not found:
        value_error(where, "layers", "given by name for this model", "no (N, C, h, w) feature maps")
    if found[-1].area:  # not rows of tokens or channels-last maps themselves
        _check_what_follows(where, calls, found)
    return [stage.name for stage in found]


def _known_inside(model: nn.Module, calls: "_Call", found: list["_Call"]) -> list["_Call"]:
    """Stages of the one known network in which all layers lie that a dry run has found.

    None where not all of them run, as the model uses a part of that network, or give a tensor.
    """
    last = {call.name: call for call in _descendants(calls) if call.last}
    for prefix, part in model.named_modules():
        dotted = f"{prefix}." if prefix else ""
        if all(call.name.startswith(dotted) for call in found) and (inside := timm_stages(part)):
            names = [dotted + name for name in inside]
            usable = all(name in last and last[name].is_tensor for name in names)
            return [last[name] for name in names] if usable else []
    return []


def _is_convolution(module: nn.Module) -> bool:
    """Whether it is one alone, as those that make patches or mix tokens are."""
    if isinstance(module, nn.Sequential) and len(module) == 1:
        module = module[0]
    return isinstance(module, nn.Conv2d)


def _makes_patches(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride
        and max(module.kernel_size) > 1
    )


def _check_what_follows(where: str, calls: "_Call", found: list["_Call"]) -> None:
    """Warn, or raise of nothing but convolutions, where rows of tokens follow the last maps.

    The explanation lies in them.
    """
    last, order = found[-1], list(_descendants(calls))
    start = 1 + next(place for place, call in enumerate(order) if call is last)
    after = order[start + len(list(_descendants(last))) :]
    norms = [call for call in after if isinstance(call.module, _NORMS) and call.tokens > 1]
    if not any(call.tokens >= last.area for call in norms):
        return
    told = ", ".join(f"'{call.name}'" for call in norms[-3:])
    if not (_makes_patches(last.module) or all(_is_convolution(call.module) for call in found)):
        warnings.warn(
            f"wsfast.{where}: layers ends with '{last.name}', behind which rows of tokens follow "
            f"(the last norms of such: {told}); a norm and reshape= explain those",
            stacklevel=2,
        )
        return
    (h, w), before = last.grid, norms[-1].tokens - last.area
    by_image = norms[-1].by_image
    reshape = f"reshape= from ({'N, tokens' if by_image else 'tokens, N'}, C) to (N, C, h, w)"
    if by_image and 0 <= before <= _MOST_PREFIX_TOKENS:
        reshape = f"reshape=lambda x: x[:, {before}:].unflatten(1, ({h}, {w})).movedim(3, 1)"
    expected = f"given by name for this model: a norm inside its last block, with {reshape}"
    actual = f"the convolution '{last.name}' (the last norms of tokens behind it: {told})"
    value_error(where, "layers", expected, actual)


def timm_stages(model: nn.Module) -> list[str]:
    """The last module of each resolution in timm's ``feature_info`` less a trailing pool.

    Empty without one. Of a vision transformer, timm's or torchvision's, whose blocks all have one
    resolution, the last norm that counts; of torchvision's Swin, what a dry run would pass over.
    """
    if names := token_stages(model) or _torchvision_swin_stages(model):
        return names
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


def _torchvision_swin_stages(model: nn.Module) -> list[str]:
    """The stages between steps that merge patches, all (N, h, w, C), and what is pooled."""
    features = getattr(model, "features", None)
    if not isinstance(features, nn.Sequential):
        return []
    if not isinstance(getattr(model, "permute", None), nn.Module):  # no other model calls one so
        return []
    return [f"features.{place}" for place in range(1, len(features) - 1, 2)] + ["permute"]


@dataclass
class _Call:
    """One call of a module in the dry run, with the calls made inside it."""

    name: str
    module: nn.Module
    grid: tuple[int, int] = (0, 0)
    tokens: int = 0
    by_image: bool = False  # tokens are (N, tokens, C), not (tokens, N, C)
    is_tensor: bool = False
    pooled: bool = False
    last: bool = False
    inside: list["_Call"] = field(default_factory=list)

    @property
    def area(self) -> int:
        return self.grid[0] * self.grid[1]


def dry_run_stages(calls: _Call) -> list[_Call]:
    """The last layer of each resolution, from the calls of one forward pass.

    Blocks stand for what is inside them (ResNet: ``layer1``, not its last ReLU) unless they hide a
    stage of higher resolution or end with a pool. Pools are no layers of their own; neither are
    1 x 1 outputs (squeeze-and-excitation, heads), outputs of another shape than the image
    (channels-last blocks) nor, once the resolution has dropped, higher ones (decoders).
    """
    stages: list[_Call] = []
    _add_stages(calls, stages)
    return stages


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


def record_calls(model: nn.Module, images: Tensor) -> _Call:
    """Run the model on the first image, twice, and return its tree of module calls.

    Two images tell what is theirs from tables of parameters and the like.
    """
    images = images[:1].repeat(2, 1, 1, 1)
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
        call.grid = _grid(output, images)
        call.tokens, call.by_image = _tokens(output, images)
        call.is_tensor = isinstance(output, Tensor)
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


def _grid(value: Any, images: Tensor) -> tuple[int, int]:
    """Rows and columns of an (N, C, h, w) tensor of the images' shape, 0 for anything else."""
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return (0, 0)
    height, width = value.shape[2:]
    expected = height * images.shape[3] / images.shape[2]
    fits = abs(width - expected) <= max(1.0, expected / 2) and len(value) == len(images)
    return (height, width) if fits else (0, 0)


def _tokens(value: Any, images: Tensor) -> tuple[int, bool]:
    """Tokens of an (N, tokens, C) or (tokens, N, C) tensor, 0 for anything else; which it is."""
    if not isinstance(value, Tensor) or value.dim() != 3 or len(images) not in value.shape[:2]:
        return 0, False
    by_image = len(value) == len(images)
    return int(value.shape[1 if by_image else 0]), by_image


def _is_pool(module: nn.Module) -> bool:
    return _POOL_NAME.search(type(module).__name__) is not None
