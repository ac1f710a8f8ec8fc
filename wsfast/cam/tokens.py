"""Layers whose outputs are not (N, C, h, w): tokens of vision transformers, channels-last maps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


MAPS = Layout(_unchanged, 1)


def find_layout(model: nn.Module, module: nn.Module, output: Tensor, images: Tensor) -> Layout:
    """The layout of a layer's output, :data:`MAPS` where nothing else is known."""
    if output.dim() == 4 and (
        _looks_channels_last(module, output, images)
        or (is_channels_last(model) and not isinstance(module, nn.Conv2d))
    ):
        return Layout(lambda x: x.permute(0, 3, 1, 2), 3)
    if output.dim() != 3:
        return MAPS
    rolled = _rolled_layout(model, module)
    if rolled is not None:
        return rolled
    grid = _token_grid(model, module, images)
    if grid is None:
        return MAPS
    prefix = output.shape[1] - grid[0] * grid[1]
    if prefix not in (0, prefix_tokens(model)):  # 0: the class token comes later (XCiT, CaiT)
        return MAPS
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


def is_channels_last(model: nn.Module) -> bool:
    """Whether a timm model says that its feature maps are (N, h, w, C) (Swin)."""
    return getattr(model, "output_fmt", None) == "NHWC"


def _looks_channels_last(module: nn.Module, output: Tensor, images: Tensor) -> bool:
    """Whether only (N, h, w, C) has the images' shape, and layer norms run over C (VOLO)."""
    height, width, channels = output.shape[1:]
    aspect = images.shape[3] / images.shape[2]
    skewed = abs(channels - width * aspect) > max(1.0, width * aspect / 2)
    if not skewed or abs(width - height * aspect) >= 1:
        return False
    norms = (norm for norm in module.modules() if isinstance(norm, nn.LayerNorm))
    return any(tuple(norm.normalized_shape) == (channels,) for norm in norms)


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
    """The layer that explains a timm vision transformer: the last block's first norm.

    What the last block gives out is of no use: where the class token alone is read, the scores do
    not depend on its patches.
    """
    blocks = model.blocks
    assert isinstance(blocks, (nn.Sequential, nn.ModuleList))
    return [f"blocks.{len(blocks) - 1}.norm1"]
