"""Layers whose outputs are not (N, C, h, w): tokens of vision transformers, channels-last maps."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import dropwhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from .._check import value_error
from .channels_last import Rerun, is_channels_last

Reshape = Callable[[Tensor], Tensor]

_TOKEN_STAGES = {"Levit", "EfficientFormer"}  # timm's classes whose stages end in rows of tokens


class Layout(NamedTuple):
    """How a layer's output holds its feature maps.

    Attributes:
        to_maps: from the output, or its gradient, to an (N, C, h, w) view.
        channels: the output's dimension of channels; None where only ``to_maps`` knows.
    """

    to_maps: Reshape
    channels: int | None


def _unchanged(output: Tensor) -> Tensor:
    return output


def _channels_forward(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


MAPS = Layout(_unchanged, 1)
CHANNELS_LAST = Layout(_channels_forward, 3)


def find_layout(
    where: str, owners: list[nn.Module], output: Tensor, images: Tensor, at_twice_the_height: Rerun
) -> Layout:
    """The layout of a layer's output, :data:`MAPS` where nothing else is known.

    See :func:`is_channels_last` for the arguments.

    Raises:
        ValueError: four dimensions that are no maps, or maps that could be of either layout.
    """
    if output.dim() == 4:
        if _is_per_head(owners, output):
            expected = "of (N, C, h, w) outputs (reshape= makes such of others)"
            actual = f"{list(output.shape)}, per head of attention, from a "
            value_error(where, "layers", expected, actual + type(owners[-1]).__name__)
        last = is_channels_last(where, owners, output, images, at_twice_the_height)
        return CHANNELS_LAST if last else MAPS
    if output.dim() == 3:
        for owner in owners:  # a wrapper knows nothing of the transformer in it
            layout = _rolled_layout(owner, owners[-1]) or _rows(owner, owners[-1], output, images)
            if layout is not None:
                return layout
    return MAPS


def enclosing(model: nn.Module, name: str) -> list[nn.Module]:
    """The model and what lies in it around a module, down to the module itself."""
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]


def _is_per_head(owners: list[nn.Module], output: Tensor) -> bool:
    """Whether the heads of an attention module around the layer give one matrix of tokens each.

    Queries and weights are (N, heads, tokens, d or tokens) or (N, tokens, heads, d); linear layers
    that mix the heads give (N, tokens, tokens, heads).
    """
    layer = owners[-1]
    if isinstance(layer, (nn.Conv2d, _BatchNorm)):
        return False
    mixed = output.shape[3 if isinstance(layer, nn.Linear) else 1]
    for owner in owners[1:-1]:
        heads = getattr(owner, "num_heads", None)
        if heads is None or hasattr(owner, "mlp"):  # a whole block may know its heads, too
            continue
        if heads == mixed or (heads, getattr(owner, "head_dim", None)) == output.shape[2:]:
            return True
    return False


def _rows(owner: nn.Module, module: nn.Module, output: Tensor, images: Tensor) -> Layout | None:
    """Layout of rows of tokens whose grid is known and fits."""
    grid = _token_grid(owner, module, images)
    if grid is None:
        return None
    prefix = output.shape[1] - grid[0] * grid[1]
    if prefix not in (0, prefix_tokens(owner)):  # 0: the class token comes later (XCiT, CaiT)
        return None
    return token_layout(grid, prefix)


def token_layout(grid: tuple[int, int], prefix: int) -> Layout:
    """Layout of (N, prefix + h w, C) tokens.

    >>> import torch
    >>> token_layout((2, 3), 1).to_maps(torch.zeros(4, 7, 5)).shape
    torch.Size([4, 5, 2, 3])
    """

    def to_maps(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)

    return Layout(to_maps, 2)


def channel_dimension(reshape: Reshape, output: Tensor) -> int | None:
    """The dimension of a layer's output that ``reshape`` makes the channels; None if there is none.

    Found by what comes of tensors that hold their own index along a dimension.

    >>> import torch
    >>> tokens = torch.ones(2, 7, 5)
    >>> channel_dimension(lambda x: x[:, 1:].unflatten(1, (2, 3)).movedim(3, 1), tokens)
    2
    """
    for dim in range(1, output.dim()):
        index = torch.arange(output.shape[dim], dtype=torch.float32, device=output.device)
        along = (-1, *(1,) * (output.dim() - dim - 1))
        maps = reshape(index.view(along).expand(output.shape))
        if maps.shape[1] == len(index) and bool((maps == index.view(-1, 1, 1)).all()):
            return dim
    return None


def _rolled_layout(model: nn.Module, module: nn.Module) -> Layout | None:
    """Layout of a block of Hiera, whose tokens lie in the order of its windows, not of rows."""
    reroll, blocks = getattr(model, "reroll", None), getattr(model, "blocks", None)
    if not isinstance(reroll, nn.Module) or not isinstance(blocks, nn.ModuleList):
        return None
    places = [place for place, block in enumerate(blocks) if block is module]
    if not places:
        return None
    return Layout(lambda tokens: reroll(tokens, places[0]).permute(0, 3, 1, 2), 2)


def _token_grid(model: nn.Module, module: nn.Module, images: Tensor) -> tuple[int, int] | None:
    """Rows and columns of a layer's tokens; None where they are not known.

    With timm's ``dynamic_img_pad`` they cover the padded image. A map of them is stretched over the
    image like any other, so it lies less than a patch off at the right and at the bottom.
    """
    height, width = images.shape[2:]
    if not _TOKEN_STAGES.isdisjoint(kind.__name__ for kind in type(model).__mro__):
        info: Any = model.feature_info
        for stage in info:
            if model.get_submodule(stage["module"]) is module:
                stride = stage["reduction"]
                return -(-height // stride), -(-width // stride)
    patch = patch_size(model)
    if patch is None:
        return None
    if getattr(getattr(model, "patch_embed", None), "dynamic_img_pad", False):
        return -(-height // patch[0]), -(-width // patch[1])
    return height // patch[0], width // patch[1]


def patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the pixels of one token; None for models without patches.

    timm's vision transformers, those behind a convolutional network, and MLP-Mixers; torchvision's.
    """
    embed = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    # A hybrid's patch_size counts pixels of its network's map, its feat_ratio those of the image.
    ratio = getattr(embed, "feat_ratio", None)
    size = getattr(embed, "patch_size", None) if ratio is None else ratio(as_scalar=False)
    if size is None and hasattr(model, "class_token"):  # torchvision
        size = getattr(model, "patch_size", None)
    if isinstance(size, int):
        return (size, size)
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else None


def prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens before the patches."""
    count = getattr(model, "num_prefix_tokens", None)
    return 1 if count is None else int(count)


def is_token_model(model: nn.Module) -> bool:
    """Whether this is a timm vision transformer: blocks of one resolution on patch tokens."""
    blocks = getattr(model, "blocks", None)
    return (
        patch_size(model) is not None
        and hasattr(model, "num_prefix_tokens")
        and isinstance(blocks, (nn.Sequential, nn.ModuleList))
        and len(blocks) > 0
    )


def token_stages(model: nn.Module) -> list[str]:
    """The layer that explains a timm or torchvision vision transformer, none for other models.

    The norm that the last block begins with, or the block before it where there is none: what the
    last block gives out is of no use, as the scores do not depend on its patches where the class
    token alone is read.
    """
    found = _blocks(model)
    if found is None:
        return []
    path, blocks = found
    *earlier, (last, block) = blocks.named_children()
    first, norm = next(block.named_children(), ("", block))
    if "norm" in type(norm).__name__.lower():
        return [f"{path}.{last}.{first}"]
    return [f"{path}.{earlier[-1][0] if earlier else last}"]


def _blocks(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and container of a vision transformer's blocks, timm's or torchvision's."""
    if is_token_model(model):
        return "blocks", model.blocks  # type: ignore[return-value]
    layers = getattr(getattr(model, "encoder", None), "layers", None)
    if hasattr(model, "class_token") and isinstance(layers, nn.Sequential) and len(layers) > 0:
        return "encoder.layers", layers
    return None


def warn_of_unread_patches(
    where: str, model: nn.Module, layers: Iterable[str]
) -> list[RemovableHandle]:
    """Hooks that warn of layers whose patches no score depends on, so that their maps are zero.

    They sit on the transformer as a whole: what calls a part of it has a head of its own.

    Args:
        where: name of the calling function, for messages.
        model: the module to run, without wrappers.
        layers: names of the layers.
    """
    handles = []
    for name in layers:
        parts = name.split(".")
        *owners, layer = enclosing(model, name)
        for depth, owner in enumerate(owners):
            if any(layer is part for part in _behind_the_attention(owner)):
                instead = ".".join([*parts[:depth], *token_stages(owner)])
                message = (
                    f"wsfast.{where}: the head reads the class token alone, so that no score "
                    f"depends on the patches of '{name}' and maps are zero; take '{instead}'"
                )
                handles.append(owner.register_forward_hook(partial(_warn, message)))
    return handles


def _warn(message: str, *_: Any) -> None:
    warnings.warn(message, stacklevel=2)


def _behind_the_attention(model: nn.Module) -> list[Any]:
    """What follows the last attention of a transformer whose head reads the class token alone."""
    found = _blocks(model)
    if found is None or getattr(model, "global_pool", "token") != "token":
        return []
    encoder = getattr(model, "encoder", None)  # torchvision's
    behind = [encoder, getattr(encoder, "ln", None), getattr(model, "norm", None)]
    if hasattr(model, "blocks_token_only") or hasattr(model, "cls_attn_blocks"):
        return behind  # CaiT, XCiT: the class token looks at what the last block gives out
    blocks: Any = found[1]
    parts = dropwhile(lambda part: "att" not in part[0], blocks[-1].named_children())
    return [*behind, blocks, blocks[-1], *(part for _, part in parts)]
