"""One process or many: the same global batches, figures and files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsfast._check import value_error


def rank() -> int:
    """This process' number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_writer() -> bool:
    """Whether this is the one process that writes files and draws the bar."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started; without it, do nothing.

    NCCL for CUDA, gloo for the CPU. Yields this process' own device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            value_error(
                "train", "torchrun --nproc-per-node", f"at most {torch.cuda.device_count()}, the "
                "number of CUDA devices", f"{local + 1} or more",
            )  # fmt: skip
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # A process may have finished its share of the maps hours before the others: of images of many
    # sizes, or on a busy disk. torch would give them up after ten minutes.
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean over all processes of values of which each has a sum and a count.

    As gradients are averaged over processes afterwards, the result is scaled so that this average
    is the global mean's gradient. 0 where nothing is counted anywhere.
    """
    if world_size() == 1:
        return total / count.clamp_min(1)
    everywhere = count.detach().clone()
    dist.all_reduce(everywhere)
    return total * world_size() / everywhere.clamp_min(1)


def reduce_mean(values: Tensor) -> Tensor:
    """Mean over the processes, of figures for the log."""
    if world_size() == 1:
        return values
    reduced = values.clone()
    dist.all_reduce(reduced)
    return reduced / world_size()


class Agreement:
    """A yes that one process says and all hear at the same step.

    Without it a signal would reach the processes in different steps and each would wait for the
    others. Over gloo, so that no accelerator is waited for.
    """

    def __init__(self) -> None:
        separate = dist.is_initialized() and dist.get_backend() != "gloo"
        self._group: Any = dist.new_group(backend="gloo") if separate else None

    def any(self, flag: bool) -> bool:
        """Whether any process says yes; a collective call."""
        if world_size() == 1:
            return flag
        answer = torch.tensor(int(flag))
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group)
        return bool(answer)


def gather_objects(value: Any) -> list[Any]:
    """Every process' value, in the order of ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes; torch has it for accelerators only."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...) by all processes' batches, in float32 at least."""
        if not self.training:
            return super().forward(input)
        given, input = input.dtype, input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [0, *range(2, input.dim())]
        shape = [-1] + [1] * (input.dim() - 2)
        count = input.numel() // input.shape[1] * world_size()
        mean = _SumOverProcesses.apply(input.sum(dims)) / count
        centred = input - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(given)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class CPUSyncBatchNormAct(CPUSyncBatchNorm):
    """The same of timm's layer that holds the activation, too."""

    act: nn.Module
    drop: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) and apply the activation."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


_ON_CPU: dict[type, type] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), CPUSyncBatchNorm),
    BatchNormAct2d: CPUSyncBatchNormAct,
}
_SYNCHRONIZED = {nn.SyncBatchNorm, SyncBatchNormAct, *_ON_CPU.values()}


def synchronize_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalisation see the global batch, as one process would.

    Raises:
        ValueError: a layer of another kind than torch's and timm's, which would lose what it does
            besides.
    """
    if world_size() == 1:
        return module
    layers = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    for layer in layers:
        if type(layer) not in {*_ON_CPU, *_SYNCHRONIZED}:
            expected = "with torch's or timm's own batch normalisation under torchrun"
            value_error("train", "model", expected, type(layer).__name__)
    if device.type != "cpu":
        converted: nn.Module = convert_sync_batchnorm(module)  # torch's drops timm's activations
        return converted
    for layer in layers:
        # Same state; references to the layer stay valid.
        layer.__class__ = _ON_CPU.get(type(layer), type(layer))
    return module


def started_as_writer() -> bool:
    """Whether this process is the one that writes, also before and after there is a group."""
    return int(os.environ.get("RANK", "0")) == 0
