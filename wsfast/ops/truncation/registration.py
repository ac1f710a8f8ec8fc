"""Schemas, fallbacks, fake kernels, autograd and autocast of the truncation ops.

The mask of kept gradients is a constant of the derivative (it is piecewise constant in the
gradients). Backward formulas are plain torch ops, so they can be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ... import native
from . import reference


def _scope(per_sample: bool) -> str:
    return "sample" if per_sample else "map"


def _cam_dtype(grads: Tensor, accumulate_output: bool) -> torch.dtype:
    half = grads.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if accumulate_output and half else grads.dtype


# --- pure-PyTorch fallbacks, with the ops' own results ---------------------------------------


def _positive_percentile(grads: Tensor, percentile: float, per_sample: bool) -> Tensor:
    return reference.positive_percentile(grads, percentile, scope=_scope(per_sample))


def _truncate_gradients(
    grads: Tensor, percentile: float, per_sample: bool
) -> tuple[Tensor, Tensor]:
    threshold = reference.kept_threshold(grads, percentile, _scope(per_sample))
    return reference.keep_at_least(grads, threshold), threshold


def _truncated_gradcam(
    activations: Tensor, grads: Tensor, percentile: float, per_sample: bool, accumulate_output: bool
) -> tuple[Tensor, Tensor, Tensor]:
    threshold = reference.kept_threshold(grads, percentile, _scope(per_sample))
    weights = reference.map_weights(grads, threshold)
    cams = reference.weighted_cam(activations, weights)
    return cams.to(_cam_dtype(grads, accumulate_output)), weights, threshold


def _truncated_layercam(
    activations: Tensor, grads: Tensor, percentile: float, per_sample: bool, accumulate_output: bool
) -> tuple[Tensor, Tensor]:
    threshold = reference.kept_threshold(grads, percentile, _scope(per_sample))
    cams = reference.elementwise_cam(activations, grads, threshold)
    return cams.to(_cam_dtype(grads, accumulate_output)), threshold


native.register_op(
    "positive_percentile(Tensor grads, float percentile, bool per_sample) -> Tensor",
    _positive_percentile,
)
native.register_op(
    "truncate_gradients(Tensor grads, float percentile, bool per_sample) -> (Tensor, Tensor)",
    _truncate_gradients,
)
native.register_op(
    "truncated_gradcam(Tensor activations, Tensor grads, float percentile, bool per_sample,"
    " bool accumulate_output) -> (Tensor, Tensor, Tensor)",
    _truncated_gradcam,
)
native.register_op(
    "truncated_layercam(Tensor activations, Tensor grads, float percentile, bool per_sample,"
    " bool accumulate_output) -> (Tensor, Tensor)",
    _truncated_layercam,
)


# --- fake kernels ----------------------------------------------------------------------------


def _fake_rows(grads: Tensor, per_sample: bool) -> Tensor:
    shape = grads.shape[:1] if per_sample else grads.shape[:2]
    return grads.new_empty(shape)


def _fake_cams(grads: Tensor, accumulate_output: bool) -> Tensor:
    n, _, height, width = grads.shape
    return grads.new_empty((n, height, width), dtype=_cam_dtype(grads, accumulate_output))


@torch.library.register_fake("wsfast::positive_percentile")
def _(grads: Tensor, percentile: float, per_sample: bool) -> Tensor:
    return _fake_rows(grads, per_sample)


@torch.library.register_fake("wsfast::truncate_gradients")
def _(grads: Tensor, percentile: float, per_sample: bool) -> tuple[Tensor, Tensor]:
    return grads.new_empty(grads.shape), _fake_rows(grads, per_sample)


@torch.library.register_fake("wsfast::truncated_gradcam")
def _(
    activations: Tensor, grads: Tensor, percentile: float, per_sample: bool, accumulate_output: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weights = grads.new_empty(grads.shape[:2], dtype=_cam_dtype(grads, True))
    return _fake_cams(grads, accumulate_output), weights, _fake_rows(grads, per_sample)


@torch.library.register_fake("wsfast::truncated_layercam")
def _(
    activations: Tensor, grads: Tensor, percentile: float, per_sample: bool, accumulate_output: bool
) -> tuple[Tensor, Tensor]:
    return _fake_cams(grads, accumulate_output), _fake_rows(grads, per_sample)


# --- autograd --------------------------------------------------------------------------------


def _save_truncation(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


def _truncate_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    grads, threshold = ctx.saved_tensors
    kept = grads >= reference.expand_threshold(threshold)
    return torch.where(kept, grad, 0), None, None


def _save_cam(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    activations, grads = inputs[:2]
    ctx.save_for_backward(activations, grads, *output)
    ctx.mark_non_differentiable(*output[1:])


def _through_relu(cams: Tensor, grad: Tensor) -> Tensor:
    return torch.where(cams > 0, grad, 0).unsqueeze(1)


def _gradcam_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    activations, grads, cams, weights, threshold = ctx.saved_tensors
    upstream = _through_relu(cams, grad)
    grad_activations = grad_grads = None
    if ctx.needs_input_grad[0]:
        if torch.is_grad_enabled():  # a second derivative also reaches grads through the weights
            weights = reference.map_weights(grads, threshold)
        grad_activations = (weights[:, :, None, None] * upstream).to(activations.dtype)
    if ctx.needs_input_grad[1]:
        products = reference.accumulate(activations) * reference.accumulate(upstream)
        grad_weights = products.mean(dim=(2, 3), keepdim=True)
        kept = grads >= reference.expand_threshold(threshold)
        grad_grads = torch.where(kept, grad_weights, 0).to(grads.dtype)
    return grad_activations, grad_grads, None, None, None


def _layercam_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    activations, grads, cams, threshold = ctx.saved_tensors
    upstream = _through_relu(cams, grad)
    grad_activations = grad_grads = None
    if ctx.needs_input_grad[0]:
        kept_grads = reference.keep_at_least(grads, threshold)
        grad_activations = (kept_grads * upstream).to(activations.dtype)
    if ctx.needs_input_grad[1]:
        kept = grads >= reference.expand_threshold(threshold)
        grad_grads = torch.where(kept, activations * upstream, 0).to(grads.dtype)
    return grad_activations, grad_grads, None, None, None


def _mark_percentile(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _no_backward(ctx: Any, *_: Any) -> tuple[None, None, None]:
    return None, None, None


torch.library.register_autograd(
    "wsfast::positive_percentile", _no_backward, setup_context=_mark_percentile
)
torch.library.register_autograd(
    "wsfast::truncate_gradients", _truncate_backward, setup_context=_save_truncation
)
torch.library.register_autograd(
    "wsfast::truncated_gradcam", _gradcam_backward, setup_context=_save_cam
)
torch.library.register_autograd(
    "wsfast::truncated_layercam", _layercam_backward, setup_context=_save_cam
)


# --- autocast: the sums come out in float32, as torch's own reductions do --------------------


def _accumulating_autocast(name: str, key: str) -> None:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    op = getattr(torch.ops.wsfast, name).default

    def autocast(
        activations: Tensor, grads: Tensor, percentile: float, per_sample: bool, _: bool
    ) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(activations, grads, percentile, per_sample, True)

    _autocast.impl(name, autocast, key)


_autocast = torch.library.Library("wsfast", "IMPL")
for _key in ("AutocastCPU", "AutocastCUDA"):
    for _name in ("truncated_gradcam", "truncated_layercam"):
        _accumulating_autocast(_name, _key)
