"""Schemas, fallbacks, fake kernels, autograd and autocast of the crf room.

All operators are linear in the values, so a backward is the same operator with its adjoint, and
gradients of any order follow. Features and lattices carry no gradient.
"""

from collections.abc import Callable, Sequence
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
native.register_op(
    "lattice_energy(Tensor values, Tensor vertices, Tensor weights, Tensor neighbours,"
    " Tensor offsets, str direction, bool with_filtered) -> (Tensor, Tensor)",
    reference.lattice_energy,
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
# Read nothing back; but torch.compile would record a graph for every number of vertices it meets.
for _name in ("lattice_filter", "lattice_energy"):
    native.keep_out_of_cuda_graphs(_name)


def _fake_energy(values: Tensor, with_filtered: bool) -> tuple[Tensor, Tensor]:
    energy = values.new_empty(values.shape[:2], dtype=reference.accumulate_dtype(values.dtype))
    return energy, values.new_empty(values.shape if with_filtered else (0,))


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
    return _fake_energy(values, with_filtered)


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


@torch.library.register_fake("wsfast::lattice_energy")
def _(
    values: Tensor,
    vertices: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    offsets: Tensor,
    direction: str,
    with_filtered: bool,
) -> tuple[Tensor, Tensor]:
    return _fake_energy(values, with_filtered)


@_gaussian.register_fake
def _(values: Tensor, features: Tensor, method: str) -> Tensor:
    return values.new_empty(values.shape)


def _gradient_of_values(
    ctx: Any, kept: Tensor, grads: Sequence[Tensor | None], apply: Callable[[Tensor, str], Tensor]
) -> Tensor | None:
    """2 A s per energy, and the adjoint of the filter where its result was used.

    ``kept`` is A s; of a graph that was captured without a gradient s, which is filtered here.
    """
    grad, grad_filtered = grads
    total = None
    if grad is not None:
        filtered = kept if ctx.with_filtered else apply(kept, ctx.direction)
        factors = (2 * grad).reshape(*grad.shape, *(1 for _ in filtered.shape[2:]))
        total = (filtered * factors).to(filtered.dtype)
    if grad_filtered is not None and ctx.with_filtered:
        back = apply(grad_filtered, _ADJOINT[ctx.direction])
        total = back if total is None else total + back
    return total


def _save_energy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, values, roi, sigma_rgb, sigma_xy, ctx.direction, ctx.with_filtered = inputs
    ctx.set_materialize_grads(False)  # nobody asks for the gradient of what was filtered: no filter
    ctx.save_for_backward(output[1] if ctx.with_filtered else values, image, roi)
    ctx.sigmas = (sigma_rgb, sigma_xy)


def _energy_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    kept, image, roi = ctx.saved_tensors

    def apply(values: Tensor, direction: str) -> Tensor:
        options = (*ctx.sigmas, direction, True)
        return torch.ops.wsfast.dense_crf_energy(image, values, roi, *options)[1]

    back = _gradient_of_values(ctx, kept, grads, apply)
    return None, back, None, None, None, None, None


torch.library.register_autograd(
    "wsfast::dense_crf_energy", _energy_backward, setup_context=_save_energy
)


def _save_lattice_energy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.direction, ctx.with_filtered = inputs[5:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1] if ctx.with_filtered else inputs[0], *inputs[1:5])


def _lattice_energy_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    kept, *lattice = ctx.saved_tensors

    def apply(values: Tensor, direction: str) -> Tensor:
        return torch.ops.wsfast.lattice_filter(values, *lattice, direction)

    back = _gradient_of_values(ctx, kept, grads, apply)
    return back, None, None, None, None, None, None


torch.library.register_autograd(
    "wsfast::lattice_energy", _lattice_energy_backward, setup_context=_save_lattice_energy
)


def _save_lattice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:5])
    ctx.direction = inputs[5]


def _lattice_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
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
    for _name in ("dense_crf_energy", "lattice_energy", "lattice_filter", "gaussian_filter"):
        torch.library.register_autocast(f"wsfast::{_name}", _device, torch.float32)
