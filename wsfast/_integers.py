"""Tensors of any integer type as the int32 that kernels read."""

import torch
from torch import Tensor


def is_integer(tensor: Tensor) -> bool:
    """Whether the dtype is an integer's; bool is none."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def saturated_int32(tensor: Tensor) -> Tensor:
    """Integers as int32; what does not fit becomes the nearest that does."""
    wide = tensor
    if tensor.dtype == torch.uint64 or tensor.dtype == torch.uint32:  # no arithmetic of their own
        wide = tensor.long()
    if tensor.dtype == torch.uint64:
        wide = torch.where(wide < 0, 2**31 - 1, wide)  # 2^63 and above have wrapped
    if wide.dtype == torch.int64:
        wide = wide.clamp(-(2**31), 2**31 - 1)
    return wide.to(torch.int32)
