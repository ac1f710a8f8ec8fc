"""Schemas, fallbacks, fake kernels, autograd and autocast of the crf room.

All operators are linear in the values, so a backward is the same operator with its adjoint, and
gradients of any order follow. Features and lattices carry no gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import native
from . import reference

_ADJOINT = {"symmetric": "symmetric", "forward": "transpose", "transpose": "forward"}

native.register_op(
    "dense_crf_energy(Tensor image, Tensor values, Tensor? roi, float[] sigma_rgb,"
    " float sigma_xy, str direction, bool with_filtered) -> (Tensor, Tensor)",
    reference.dense_crf_energy,
)
native.register_op(
    "build_lattice(Tensor features) -> (Tensor, Tensor, Tensor, Tensor)", reference.build_lattice
)
native.register_op(
    "build_bilateral_lattice(Tensor image, float[] sigma_rgb, float sigma_xy, bool in_double)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference.build_bilateral_lattice,
)
native.register_op(
    "lattice_filter(Tensor values, Tensor vertices, Tensor weights, Tensor neighbours,"
    " Tensor offsets, str direction) -> Tensor",
    reference.lattice_filter,
)


def _gaussian_filter(values: Tensor, features: Tensor, method: str) -> Tensor:
    return reference.gaussian_filter(values, features, method)


# Made of torch's own operators on every device: one matrix product per block is all there is to it.
_gaussian = torch.library.custom_op(
    "wsfast::gaussian_filter",
    _gaussian_filter,
    mutates_args=(),
    schema="(Tensor values, Tensor features, str method) -> Tensor",
)

for _name in ("dense_crf_energy", "build_lattice", "build_bilateral_lattice", "gaussian_filter"):
    native.keep_out_of_cuda_graphs(_name)  # numbers of vertices are read back
# Reads nothing back; but torch.compile would record a graph for every number of vertices it meets.
native.keep_out_of_cuda_graphs("lattice_filter")


@torch.library.register_fake("wsfast::dense_crf_energy")
def _(
    image: Tensor,
    values: Tensor,
    roi: Tensor | None,
    sigma_rgb: Sequence[float],
    sigma_xy: float,
    direction: str,
    with_filtered: bool,
) -> tuple[Tensor, Tensor]:
    energy = values.new_empty(values.shape[:2], dtype=reference.accumulate_dtype(values.dtype))
    return energy, values.new_empty(values.shape if with_filtered else (0,))


def _fake_lattice(
    like: Tensor, corners: int, points: Any, dtype: torch.dtype
) -> reference.LatticeTensors:
    vertices = torch.library.get_ctx().new_dynamic_size()
    shape = (like.shape[0], points, corners)
    return (
        like.new_empty(shape, dtype=torch.int32),
        like.new_empty(shape, dtype=dtype),
        like.new_empty((corners, 2, vertices), dtype=torch.int32),
        like.new_empty((like.shape[0] + 1,), dtype=torch.int64),
    )


@torch.library.register_fake("wsfast::build_lattice")
def _(features: Tensor) -> reference.LatticeTensors:
    dtype = reference.accumulate_dtype(features.dtype)
    return _fake_lattice(features, features.shape[1] + 1, features.shape[2], dtype)


@torch.library.register_fake("wsfast::build_bilateral_lattice")
def _(
    image: Tensor, sigma_rgb: Sequence[float], sigma_xy: float, in_double: bool
) -> reference.LatticeTensors:
    dtype = torch.float64 if in_double else torch.float32
    return _fake_lattice(image, image.shape[1] + 3, image.shape[2] * image.shape[3], dtype)


@torch.library.register_fake("wsfast::lattice_filter")
def _(
    values: Tensor,
    vertices: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    offsets: Tensor,
    direction: str,
) -> Tensor:
    return values.new_empty(values.shape)


@_gaussian.register_fake
def _(values: Tensor, features: Tensor, method: str) -> Tensor:
    return values.new_empty(values.shape)


def _save_energy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, values, roi, sigma_rgb, sigma_xy, direction, with_filtered = inputs
    ctx.set_materialize_grads(False)  # nobody asks for the gradient of what was filtered: no filter
    ctx.save_for_backward(image, roi, output[1] if with_filtered else values)
    ctx.options = (sigma_rgb, sigma_xy, direction, with_filtered)


def _energy_backward(
    ctx: Any, grad: Tensor | None, grad_filtered: Tensor | None
) -> tuple[Any, ...]:
    """2 A s per energy, and the adjoint of the filter where its result was used.

    A graph that was captured without a gradient has no A s: it is filtered here.
    """
    image, roi, filtered = ctx.saved_tensors
    sigma_rgb, sigma_xy, direction, with_filtered = ctx.options
    total = None
    if grad is not None:
        if not with_filtered:
            _, filtered = torch.ops.wsfast.dense_crf_energy(
                image, filtered, roi, sigma_rgb, sigma_xy, direction, True
            )
        total = (filtered * (2 * grad[:, :, None, None])).to(filtered.dtype)
    if grad_filtered is not None and with_filtered:
        _, back = torch.ops.wsfast.dense_crf_energy(
            image, grad_filtered, roi, sigma_rgb, sigma_xy, _ADJOINT[direction], True
        )
        total = back if total is None else total + back
    return None, total, None, None, None, None, None


torch.library.register_autograd(
    "wsfast::dense_crf_energy", _energy_backward, setup_context=_save_energy
)


def _save_lattice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)  # an energy's gradient needs none of what was filtered
    ctx.save_for_backward(*inputs[1:5])
    ctx.direction = inputs[5]


def _lattice_backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None, None
    back = torch.ops.wsfast.lattice_filter(grad, *ctx.saved_tensors, _ADJOINT[ctx.direction])
    return back, None, None, None, None, None


torch.library.register_autograd(
    "wsfast::lattice_filter", _lattice_backward, setup_context=_save_lattice
)


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.method = inputs[2]


def _gaussian_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (features,) = ctx.saved_tensors
    return torch.ops.wsfast.gaussian_filter(grad, features, ctx.method), None, None


_gaussian.register_autograd(_gaussian_backward, setup_context=_save_features)

for _device in ("cpu", "cuda"):  # sums over whole images: float32, as torch's losses
    for _name in ("dense_crf_energy", "lattice_filter", "gaussian_filter"):
        torch.library.register_autocast(f"wsfast::{_name}", _device, torch.float32)
