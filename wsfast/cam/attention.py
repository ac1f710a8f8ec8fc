"""Attention of vision transformers: the class token's row, and rollout.

Of the last block only the query of the class token and the keys are computed, O(tokens) memory
instead of the whole attention matrix, so the other blocks keep their fused attention.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from .._check import check_choice, check_count, value_error
from .base import check_images, finite
from .borrowing import changed_attributes
from .capture import undisturbed
from .tokens import is_token_model, patch_size, prefix_tokens
from .wrappers import unwrap


class _Reached(Exception):  # no error: the rest of the model has nothing to add
    """The forward pass has come to the last block that is asked for."""


def load_attention_model(
    name: str = "vit_small_patch8_224.dino", *, pretrained: bool = True
) -> nn.Module:
    """A timm vision transformer to take attention from; MS-CA's is DINO's ViT-S/8.

    Args:
        name: a timm model.
        pretrained: load timm's weights of that name (downloaded on first use).

    Returns:
        The model without a head, in evaluation mode, frozen.

    Raises:
        ValueError: a model that is no vision transformer with a class token.
        RuntimeError: timm's, for unknown names and weights that cannot be had.
    """
    import timm

    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    check_model("cam.load_attention_model", model)
    return model.eval().requires_grad_(False)


def cls_attention(model: nn.Module, images: Tensor) -> Tensor:
    r"""Attention of the class token to the patches in the last block (MS-CA eq. 5).

    .. math:: A_h = \mathrm{softmax}(q^h_{cls} K_h^T / \sqrt{d})

    Args:
        model: a timm vision transformer with a class token.
        images: (N, 3, H, W); H and W are cut to whole patches, at the right and at the bottom.
            Position embeddings are interpolated for sizes other than the model's own.

    Returns:
        (N, heads, h, w) float32, h and w in patches, without history: of the whole patches, not of
        what is cut off. The rows sum to less than 1: what the class token and other tokens beside
        the patches get is left out.

    Raises:
        ValueError: another kind of model; images smaller than a patch.
        TypeError: images that are not floating point.

    Note:
        The model's mode, flags and RNG are left as found; it runs in evaluation mode up to the
        last block.
    """
    model, images = _prepared("cam.cls_attention", model, images)
    last = len(model.blocks) - 1  # type: ignore[arg-type]
    (entered,) = attention_inputs(model, images, [last], stop=True)
    with torch.no_grad():
        rows = cls_rows(_attention(model, last), entered)
    return to_patches(model, rows, images)


def attention_map(
    model: nn.Module,
    images: Tensor,
    *,
    size: tuple[int, int] | None = None,
    head_norm: Literal["minmax", "max"] | None = None,
    norm: Literal["minmax", "max"] | None = "minmax",
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """The mean over heads of :func:`cls_attention` as a map (MS-CA eq. 5).

    Each patch keeps its place in the image; what was cut off takes the nearest values.

    Args:
        model: see :func:`cls_attention`.
        images: see :func:`cls_attention`.
        size: (H, W) of the map; the images' by default.
        head_norm: normalisation of each head before the mean.
        norm: normalisation of the map. Rows of attention sum to 1 over thousands of patches, so
            without it a map has no weight beside a CAM.
        mode: of the resizing, half-pixel bilinear, or nearest as DINO's own pictures.

    Returns:
        (N, H, W) float32, zero for an image whose attention is not finite.

    Raises:
        ValueError: see :func:`cls_attention`; unknown options.
        TypeError: see :func:`cls_attention`.
    """
    attention, _ = map_and_valid(model, images, size, head_norm, norm, mode)
    return attention


def map_and_valid(
    model: nn.Module,
    images: Tensor,
    size: tuple[int, int] | None,
    head_norm: Literal["minmax", "max"] | None,
    norm: Literal["minmax", "max"] | None,
    mode: Literal["bilinear", "nearest"],
) -> tuple[Tensor, Tensor]:
    """:func:`attention_map`, and (N,) bool: whether an image's attention is finite."""
    where = "cam.attention_map"
    check_choice(where, "mode", mode, ["bilinear", "nearest"])
    if size is not None:
        if not isinstance(size, (list, tuple)) or len(size) != 2:
            value_error(where, "size", "(height, width)", f"{size}")
        for side in size:
            check_count(where, "size", side, 1)
    heads = cls_attention(model, images)
    valid = finite(heads)
    heads = heads.masked_fill(~valid[:, None, None, None], 0.0)
    if head_norm is not None:
        heads = ops.normalize_cams(heads.flatten(0, 1), mode=head_norm).view_as(heads)
    size = size or (images.shape[2], images.shape[3])
    attention = on_images(model, heads.mean(dim=1), images, size, mode=mode)
    return ops.fuse_cams([attention], size, layer_norm=None, reduce="sum", norm=norm), valid


def attention_rollout(model: nn.Module, images: Tensor) -> Tensor:
    r"""Attention from the class token through all blocks to the patches (Abnar 2020, eq. 1).

    .. math:: r = e_{cls} \hat A_L \cdots \hat A_1, \qquad
              \hat A_l = \tfrac12 \mathrm{mean}_h A^h_l + \tfrac12 I

    Args:
        model: see :func:`cls_attention`.
        images: see :func:`cls_attention`.

    Returns:
        (N, h, w) float32, of the whole patches as in :func:`cls_attention`.

    Raises:
        ValueError: see :func:`cls_attention`.
        TypeError: see :func:`cls_attention`.

    Note:
        Row times matrix from the last block to the first: one head's attention is held at a time.
    """
    model, images = _prepared("cam.attention_rollout", model, images)
    blocks = range(len(model.blocks))  # type: ignore[arg-type]
    entered = attention_inputs(model, images, blocks)
    return rollout(model, images, entered)


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, entered: list[Tensor]) -> Tensor:
    """:func:`attention_rollout` from the inputs of all blocks' attention."""
    row = torch.zeros(entered[0].shape[:2], device=images.device)
    row[:, 0] = 1
    for i in reversed(range(len(entered))):
        row = 0.5 * row + 0.5 * _through(_attention(model, i), entered[i], row)
    return to_patches(model, row[:, None], images)[:, 0]


def attention_inputs(
    model: nn.Module, images: Tensor, blocks: Sequence[int], *, stop: bool = False
) -> list[Tensor]:
    """What enters the attention of some blocks, (N, tokens, D) each.

    Args:
        model: a vision transformer, checked.
        images: in whole patches.
        blocks: numbers of the blocks, ascending.
        stop: leave the forward pass at the last of them.
    """
    with recorded_inputs(model, blocks, stop=stop) as entered:
        try:
            with undisturbed(model, images.device), any_size(model):
                model.forward_features(images)  # type: ignore[operator]
        except _Reached:
            pass
    return entered


@contextmanager
def recorded_inputs(
    model: nn.Module, blocks: Sequence[int], *, stop: bool = False
) -> Iterator[list[Tensor]]:
    """A list that fills with what enters the blocks' attention in this thread."""
    entered: list[Tensor] = []
    thread = threading.get_ident()

    def keep(last: bool) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if threading.get_ident() != thread:
                return
            entered.append(inputs[0].detach())
            if last and stop:
                raise _Reached

        return hook

    handles = [
        _attention(model, i).register_forward_pre_hook(keep(i == blocks[-1])) for i in blocks
    ]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def any_size(model: nn.Module) -> Iterator[None]:
    """A timm vision transformer that takes any size in whole patches, by ``dynamic_img_size``.

    Position embeddings are interpolated then. What is changed for it comes back at the end.
    """
    if not hasattr(model, "dynamic_img_size"):
        yield
        return
    embed: Any = model.patch_embed
    changes = [
        (embed, "strict_img_size", False),
        (embed, "flatten", False),
        (embed, "output_fmt", type(embed.output_fmt).NHWC),
        (model, "dynamic_img_size", True),
    ]
    with changed_attributes(changes):
        yield


def cls_rows(attention: nn.Module, tokens: Tensor) -> Tensor:
    """(N, heads, tokens) float32: the first token's attention, from its query and all keys."""
    query, key = _queries_and_keys(attention, tokens, 1)
    return (query @ key.transpose(-2, -1)).softmax(dim=-1)[:, :, 0]


def _through(attention: nn.Module, tokens: Tensor, row: Tensor) -> Tensor:
    """(N, tokens) row times the mean over heads of the attention matrix."""
    query, key = _queries_and_keys(attention, tokens, tokens.shape[1])
    heads = query.shape[1]
    result = torch.zeros_like(row)
    for head in range(heads):
        weights = (query[:, head] @ key[:, head].transpose(-2, -1)).softmax(dim=-1)
        result += torch.bmm(row[:, None], weights)[:, 0] / heads
    return result


def _queries_and_keys(attention: Any, tokens: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """(N, heads, queries, d) scaled queries of the first tokens and (N, heads, tokens, d) keys."""
    query, key = _projected(attention.qkv, tokens, queries)
    query, key = (x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key))
    return attention.q_norm(query).float() * attention.scale, attention.k_norm(key).float()


def _projected(qkv: nn.Module, tokens: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """(N, queries, C) queries of the first tokens and (N, tokens, C) keys of all."""
    if type(qkv) is not nn.Linear:  # an adapter: its weight is not all that it does
        with undisturbed(qkv, tokens.device):  # it may drop out
            query, key, _ = qkv(tokens).chunk(3, dim=2)
        return query[:, :queries], key
    width = qkv.out_features // 3
    weights = qkv.weight[: 2 * width].split(width)
    biases = (None, None) if qkv.bias is None else qkv.bias[: 2 * width].split(width)
    query = F.linear(tokens[:, :queries], weights[0], biases[0])
    return query, F.linear(tokens, weights[1], biases[1])


def _attention(model: nn.Module, block: int) -> nn.Module:
    attention: nn.Module = model.blocks[block].attn  # type: ignore[index,union-attr]
    return attention


def to_patches(model: nn.Module, rows: Tensor, images: Tensor) -> Tensor:
    """(N, M, h, w) of (N, M, tokens), without class and register tokens."""
    patch = patch_size(model)
    assert patch is not None
    grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
    return rows[:, :, prefix_tokens(model) :].unflatten(2, grid).contiguous()


def on_images(
    model: nn.Module,
    maps: Tensor,
    images: Tensor,
    size: tuple[int, int],
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """(M, H, W) of maps (M, h, w) in whole patches, each patch in its place in the images.

    What is left of the images behind the last whole patch takes the nearest values.

    Args:
        model: that the maps come from.
        maps: of the patches that :func:`whole_patches` leaves.
        images: before they were cut.
        size: (H, W) of the result, which shows the whole images.
        mode: of the resizing.
    """
    patch = patch_size(model)
    assert patch is not None
    # Stretched by h patches of the cut images, not by the images: one more row and column then
    # reach past the end.
    scales = [to * p / side for to, p, side in zip(size, patch, images.shape[2:], strict=True)]
    longer = F.pad(maps[:, None], (0, 1, 0, 1), mode="replicate")
    corners = False if mode == "bilinear" else None
    larger = F.interpolate(longer, scale_factor=scales, mode=mode, align_corners=corners)
    return larger[:, 0, : size[0], : size[1]]


def _prepared(where: str, model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The module that runs and the images cut to whole patches, checked."""
    model = unwrap(where, model)
    check_model(where, model)
    check_images(where, images)
    return model, whole_patches(where, model, images)


def whole_patches(where: str, model: nn.Module, images: Tensor) -> Tensor:
    """Images cut at the right and at the bottom to whole patches."""
    patch = patch_size(model)
    assert patch is not None
    height, width = (side // p * p for side, p in zip(images.shape[2:], patch, strict=True))
    if height == 0 or width == 0:
        value_error(where, "images", f"of at least {patch} pixels", f"{list(images.shape[2:])}")
    return images[:, :, :height, :width]


def check_model(where: str, model: nn.Module) -> None:
    """Raise unless attention can be taken from the model.

    Other kinds of attention (relative positions, biases of their own, rotary embeddings) have a
    ``qkv`` too, but another matrix: only timm's plain class is known to be softmax(q k).
    """
    expected = "a timm vision transformer with a class token and plain attention"
    name = type(model).__name__
    if not is_token_model(model) or getattr(model, "cls_token", None) is None:
        value_error(where, "model", expected, name)
    from timm.models.vision_transformer import Attention

    kinds = {type(getattr(block, "attn", None)) for block in model.blocks}  # type: ignore[union-attr]
    if kinds != {Attention} or getattr(model, "rope", None) is not None:
        others = ", ".join(sorted(f"{kind.__module__}.{kind.__name__}" for kind in kinds))
        value_error(where, "model", expected, f"{name} with {others}")
