"""What autocast must not round: products whose results are documented in float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast changes no dtype."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _PlainMatmul(torch.autograd.Function):
    """A product whose backward autocast leaves alone as well, wherever it is called."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with without_autocast(a.device):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        a, b = inputs
        for_a, for_b = ctx.needs_input_grad
        ctx.save_for_backward(a if for_b else None, b if for_a else None)
        ctx.shapes = a.shape, b.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        a, b = ctx.saved_tensors
        shape_a, shape_b = ctx.shapes
        grad_a = None if b is None else plain_matmul(grad, b.mT).sum_to_size(shape_a)
        grad_b = None if a is None else plain_matmul(a.mT, grad).sum_to_size(shape_b)
        return grad_a, grad_b


def plain_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices in their own dtype, under autocast too, forward and backward.

    A traced graph has torch's own backward; scripted code takes autocast as it is.
    """
    if torch.jit.is_scripting():
        return a @ b
    else:  # TorchScript leaves out this branch, but not what would follow the `if`
        if torch.jit.is_tracing():  # a Python function could not be saved with the graph
            return _PlainMatmul.forward(a, b)
        return _PlainMatmul.apply(a, b)
