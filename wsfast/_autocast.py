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


def plain_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in their own dtype, under autocast too; scripted code takes autocast as it is."""
    if torch.jit.is_scripting():
        return a @ b
    else:  # TorchScript leaves out this branch, but not what would follow the `if`
        with without_autocast(a.device):
            return a @ b
