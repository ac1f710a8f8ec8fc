"""Cross-entropy over the few pixels that have a label."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .._check import (
    check_choice,
    check_floating,
    check_rank,
    check_same_device,
    check_tensor,
    check_whole,
    type_error,
    value_error,
)

IGNORE = -255  # the label of a pixel that is not to be learnt, as sample_seeds writes it


def partial_cross_entropy(
    logits: Tensor, seeds: Tensor, *, ignore_index: int = IGNORE, reduction: str = "mean"
) -> Tensor:
    r"""Cross-entropy averaged over the labelled pixels of a batch (F-CAM eq. 3, DiPS L_CPA).

    .. math:: -\frac{1}{|\Omega'|} \sum_{p \in \Omega'} \log \mathrm{softmax}(z_p)_{y_p}

    Args:
        logits: (N, K, H, W) floating point.
        seeds: (N, H, W) int64 classes of 0 to K-1, ``ignore_index`` where there is no label.
        ignore_index: value of the pixels left out.
        reduction: ``"mean"`` over the labelled pixels of all images, or their ``"sum"``.

    Returns:
        A scalar on the device of ``logits``, float32 for half types. Without a labelled pixel it is
        0 and so is its gradient, where ``torch.nn.functional.cross_entropy`` gives NaN.

    Raises:
        ValueError: wrong shapes or devices; on the CPU, where it is not compiled, also a label
            that is no class.
        TypeError: wrong dtypes.

    Example:
        >>> seeds = torch.tensor([[[1, -255]]])
        >>> round(partial_cross_entropy(torch.zeros(1, 2, 1, 2), seeds).item(), 4)
        0.6931
        >>> partial_cross_entropy(torch.zeros(1, 2, 1, 2), torch.full((1, 1, 2), -255))
        tensor(0.)
    """
    where = "nn.partial_cross_entropy"
    check_tensor(where, "logits", logits)
    check_tensor(where, "seeds", seeds)
    check_floating(where, "logits", logits)
    check_rank(where, "logits", logits, 4)
    if seeds.dtype != torch.int64:
        type_error(where, "seeds", "int64", f"{seeds.dtype}")
    expected = (logits.shape[0], *logits.shape[2:])
    if seeds.shape != expected:
        value_error(where, "seeds", f"of shape {list(expected)}", f"shape {list(seeds.shape)}")
    check_same_device(where, "logits", logits, "seeds", seeds)
    check_whole(where, "ignore_index", ignore_index)
    check_choice(where, "reduction", reduction, ["mean", "sum"])
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        # The labelled pixels are few: take them out first (elsewhere that waits for the device).
        flat = seeds.flatten()
        pixels = (flat != ignore_index).nonzero()[:, 0]
        seeds, count = flat[pixels], torch.tensor(len(pixels), device=flat.device)
        area = expected[1] * expected[2]
        logits = logits.flatten(2)[pixels // max(area, 1), :, pixels % max(area, 1)]
        check_classes(where, "seeds", seeds, logits.shape[1])
        total = F.cross_entropy(logits, seeds, ignore_index=ignore_index, reduction="sum")
    else:
        labelled = seeds != ignore_index
        count = labelled.sum()
        picked = log_probabilities(logits, torch.where(labelled, seeds, 0))
        total = -torch.where(labelled, picked, 0.0).sum()
    return total if reduction == "sum" else total / count.clamp_min(1)


def log_probabilities(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-probabilities (N, H, W) of int64 classes (N, H, W) under logits (N, K, H, W).

    ``F.cross_entropy`` of such logits has no deterministic form on CUDA.
    """
    return logits.log_softmax(1).gather(1, classes[:, None])[:, 0]


def check_classes(where: str, argument: str, labels: Tensor, classes: int) -> None:
    """Raise ValueError unless labels, whose values are looked at, are class numbers."""
    if labels.numel() == 0:
        return
    low, high = (int(extreme) for extreme in labels.aminmax())
    if low < 0 or high >= classes:
        value_error(where, argument, f"classes of 0 to {classes - 1}", f"{low} to {high}")
