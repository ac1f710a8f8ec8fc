"""Layers whose outputs are not (N, C, h, w): tokens of vision transformers, channels-last maps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    """
    if output.dim() == 4:
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
    """Rows and columns of a layer's tokens; None where they are not known."""
    height, width = images.shape[2:]
    if not _TOKEN_STAGES.isdisjoint(kind.__name__ for kind in type(model).__mro__):
        info: Any = model.feature_info
        for stage in info:
            if model.get_submodule(stage["module"]) is module:
                stride = stage["reduction"]
                return -(-height // stride), -(-width // stride)
    patch = patch_size(model)
    return None if patch is None else (height // patch[0], width // patch[1])


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
        and hasattr(blocks[-1], "norm1")
    )


def token_stages(model: nn.Module) -> list[str]:
    """The layer that explains a timm or torchvision vision transformer, none for other models.

    The last block's first norm: what the last block gives out is of no use, as the scores do not
    depend on its patches where the class token alone is read.
    """
    if is_token_model(model):
        return [f"blocks.{len(model.blocks) - 1}.norm1"]  # type: ignore[arg-type]
    layers = getattr(getattr(model, "encoder", None), "layers", None)
    if not isinstance(layers, nn.Sequential) or not hasattr(model, "class_token"):
        return []
    norms = [f"encoder.layers.{name}.ln_1" for name, _ in layers.named_children()]
    return norms[-1:] if hasattr(layers[-1], "ln_1") else []
