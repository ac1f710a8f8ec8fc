"""Percentile truncation: against copying, nanquantile, NumPy and the reference.

Gradients are Gaussian, which leaves every element to look at; the "max-pooled" variant has three
zeros in four, as gradients of a layer before a 2x2 max-pool do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import wsfast
from wsfast.ops.truncation import reference

from .harness import Case, Contender, MemoryLimit, Run, compiled, eager, over_threads
from .inputs import MAX_POOLED, gradients, stages
from .records import Size, Target

PERCENTILE = 50.0
HEADLINE = Size(8, 224, headline=True)
SIZES = (
    Size(8, 56),
    Size(8, 112),
    HEADLINE,
    Size(2, 224),
    Size(4, 224),
    Size(8, 224, MAX_POOLED),
)
Pairs = list[tuple[Tensor, Tensor]]


def one_layer(size: Size, generator: torch.Generator) -> Pairs:
    """The largest stage alone: 64 channels at image size."""
    return stages(size, generator)[:1] if size.variant else _gaussian_layer(size, generator)


def _gaussian_layer(size: Size, generator: torch.Generator) -> Pairs:
    grads = gradients(size.batch, 64, size.side, generator)
    return [(grads, grads)]


# Peers ------------------------------------------------------------------------------------------


def nanquantile_percentile(grads: Tensor) -> Tensor:
    positive = torch.where(grads > 0, grads, torch.nan).flatten(2)
    return torch.nanquantile(positive, PERCENTILE / 100, dim=2).nan_to_num(torch.inf)


def nanquantile_truncate(grads: Tensor) -> Tensor:
    return torch.where(grads >= nanquantile_percentile(grads)[:, :, None, None], grads, 0)


def nanquantile_gradcam(activations: Tensor, grads: Tensor) -> Tensor:
    weights = nanquantile_truncate(grads).mean(dim=(2, 3))
    return torch.einsum("nc,nchw->nhw", weights, activations).relu()


def nanquantile_layercam(activations: Tensor, grads: Tensor) -> Tensor:
    return torch.einsum("nchw,nchw->nhw", nanquantile_truncate(grads), activations).relu()


def numpy_percentile(grad: np.ndarray) -> float:
    positive = grad[grad > 0]
    if positive.size == 0:
        return np.inf
    return float(np.percentile(positive, PERCENTILE, overwrite_input=True))


def numpy_percentiles(grads: np.ndarray) -> np.ndarray:
    maps = grads.reshape(-1, *grads.shape[2:])
    return np.array([numpy_percentile(grad) for grad in maps]).reshape(grads.shape[:2])


def numpy_truncate(grads: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(grads)
    sources, results = (a.reshape(-1, *a.shape[2:]) for a in (grads, kept))
    for grad, result in zip(sources, results, strict=True):
        np.copyto(result, grad, where=grad >= np.float32(numpy_percentile(grad)))
    return kept


def partition_percentile(grad: np.ndarray) -> float:
    """By one selection, where ``np.percentile`` makes four."""
    positive = grad[grad > 0]
    if positive.size == 0:
        return np.inf
    place, share = divmod(PERCENTILE / 100 * (positive.size - 1), 1)
    below = int(place)
    positive.partition(below)
    low = float(positive[below])
    return low + share * (float(positive[below + 1 :].min()) - low) if share else low


def partition_percentiles(pairs: Pairs) -> Run:
    """Build the percentiles map by map, over threads: NumPy lets go of the interpreter's lock."""
    layers = [over_threads(partition_percentile, maps) for maps in numpy_maps(pairs)]
    shapes = [grads.shape[:2] for _, grads in pairs]
    return lambda: [
        np.array(run()).reshape(shape) for run, shape in zip(layers, shapes, strict=True)
    ]


def partition_truncate(pairs: Pairs) -> Run:
    """Build the truncation map by map, over threads."""

    def truncated(grad: np.ndarray) -> np.ndarray:
        return grad * (grad >= np.float32(partition_percentile(grad)))

    layers = [over_threads(truncated, maps) for maps in numpy_maps(pairs)]
    shapes = [grads.shape for _, grads in pairs]
    return lambda: [
        np.stack(run()).reshape(shape) for run, shape in zip(layers, shapes, strict=True)
    ]


def numpy_maps(pairs: Pairs) -> list[np.ndarray]:
    return [grads.flatten(0, 1).numpy() for _, grads in pairs]


def on_numpy(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Pairs], Run]:
    """Return a build that hands over views; NumPy shares torch's memory."""

    def build(pairs: Pairs) -> Run:
        arrays = [grads.numpy() for _, grads in pairs]
        return lambda: [function(array) for array in arrays]

    return build


def copy_into(pairs: Pairs) -> Run:
    """Build copies into memory that is there already: each byte read and written once."""
    grads = [grad for _, grad in pairs]
    destinations = [torch.empty_like(grad) for grad in grads]
    return lambda: [to.copy_(grad) for to, grad in zip(destinations, grads, strict=True)]


# Oracle -----------------------------------------------------------------------------------------


def exact_percentiles(grads: Tensor) -> Tensor:
    """(N, C) percentiles in float64."""
    return torch.from_numpy(numpy_percentiles(grads.double().cpu().numpy()))


def exact_truncate(grads: Tensor) -> tuple[Tensor, Tensor]:
    """Truncated gradients in float64, and which of them lie within rounding of the percentile."""
    delta = exact_percentiles(grads)[:, :, None, None]
    wide = grads.double().cpu()
    undecided = (wide - delta).abs() <= 4 * torch.finfo(grads.dtype).eps * delta
    return torch.where(wide >= delta, wide, 0.0), undecided


def truncate_oracle(pairs: Pairs) -> list[Tensor]:
    results = []
    for _, grads in pairs:
        kept, undecided = exact_truncate(grads)
        results.append(kept.masked_fill_(undecided, torch.nan))
    return results


def gradcam_oracle(pairs: Pairs) -> list[Tensor]:
    results = []
    for activations, grads in pairs:
        weights = exact_truncate(grads)[0].mean(dim=(2, 3))
        wide = activations.double().cpu()
        results.append(torch.einsum("nc,nchw->nhw", weights, wide).relu())
    return results


def layercam_oracle(pairs: Pairs) -> list[Tensor]:
    results = []
    for activations, grads in pairs:
        kept, undecided = exact_truncate(grads)
        cams = torch.einsum("nchw,nchw->nhw", kept, activations.double().cpu()).relu()
        results.append(cams.masked_fill_(undecided.any(dim=1), torch.nan))
    return results


# Cases ------------------------------------------------------------------------------------------


def of_grads(function: Callable[..., Tensor]) -> Callable[[Pairs], list[Tensor]]:
    """Apply a function of gradients to every layer."""
    return lambda pairs: [function(grads) for _, grads in pairs]


def of_pairs(function: Callable[..., Tensor]) -> Callable[[Pairs], list[Tensor]]:
    """Apply a function of activations and gradients to every layer."""
    return lambda pairs: [function(activations, grads) for activations, grads in pairs]


def grads_bytes(pairs: Pairs) -> int:
    return sum(grads.nbytes for _, grads in pairs)


def pairs_bytes(pairs: Pairs) -> int:
    return sum(activations.nbytes + grads.nbytes for activations, grads in pairs)


def own_and_reference(name: str, over: Callable[..., Any]) -> tuple[Contender, ...]:
    """Return our op, its reference and the compiled reference."""
    fast = over(partial(getattr(wsfast, name), percentile=PERCENTILE))
    slow = over(partial(getattr(reference, name), percentile=PERCENTILE))
    return (
        Contender("wsfast", eager(fast)),
        Contender("reference", eager(slow)),
        Contender("compiled reference", compiled(slow), sweep=False, compiles=True),
    )


PARTITION = "NumPy partition over threads"
COPIES = (
    Contender("Tensor.copy_", copy_into, same_work=False, note="into memory that is there"),
    Contender(
        "Tensor.clone", eager(of_grads(Tensor.clone)), same_work=False, note="allocates its result"
    ),
)
TRUNCATE = (
    *own_and_reference("truncate_gradients", of_grads),
    Contender("torch nanquantile", eager(of_grads(nanquantile_truncate)), sweep=False),
    Contender("NumPy percentile loop", on_numpy(numpy_truncate), sweep=False, devices=("cpu",)),
    Contender(PARTITION, partition_truncate, sweep=False, devices=("cpu",)),
    *COPIES,
)
SLOW_PEERS = ("torch nanquantile", "NumPy percentile loop")
BANDWIDTH = Target(HEADLINE.label, 0.6, 0.6, measure="copy_bandwidth", device="cuda")
FEW_BYTES = MemoryLimit(HEADLINE, "the gradients' bytes", grads_bytes, 0.05)

CASES = [
    Case(
        room="truncation",
        operation="truncate_gradients, 64 channels",
        inputs=one_layer,
        sizes=SIZES,
        contenders=TRUNCATE,
        oracle=truncate_oracle,
        tolerance=1e-6,
        targets=(
            Target(HEADLINE.label, 2.0, 1.4, ("Tensor.copy_",), "slowdown"),
            Target(HEADLINE.label, 30, 60, SLOW_PEERS),
            BANDWIDTH,
        ),
        traffic=lambda pairs: 2 * grads_bytes(pairs),
        memory=FEW_BYTES,
    ),
    Case(
        room="truncation",
        operation="truncate_gradients, VGG16 stages",
        inputs=stages,
        sizes=SIZES,
        contenders=TRUNCATE,
        oracle=truncate_oracle,
        tolerance=1e-6,
        targets=(Target(HEADLINE.label, 25, 60, ("torch nanquantile",)), BANDWIDTH),
        traffic=lambda pairs: 2 * grads_bytes(pairs),
    ),
    Case(
        room="truncation",
        operation="truncated_gradcam, VGG16 stages",
        inputs=stages,
        sizes=SIZES,
        contenders=(
            *own_and_reference("truncated_gradcam", of_pairs),
            Contender("torch nanquantile", eager(of_pairs(nanquantile_gradcam)), sweep=False),
        ),
        oracle=gradcam_oracle,
        tolerance=1e-4,
        targets=(Target(HEADLINE.label, 20, 40, ("reference",)), BANDWIDTH),
        traffic=pairs_bytes,
        memory=FEW_BYTES,
    ),
    Case(
        room="truncation",
        operation="truncated_layercam, VGG16 stages",
        inputs=stages,
        sizes=SIZES,
        contenders=(
            *own_and_reference("truncated_layercam", of_pairs),
            Contender("torch nanquantile", eager(of_pairs(nanquantile_layercam)), sweep=False),
        ),
        oracle=layercam_oracle,
        tolerance=1e-5,
        targets=(BANDWIDTH,),
        traffic=pairs_bytes,
        memory=FEW_BYTES,
    ),
    Case(
        room="truncation",
        operation="positive_percentile, 64 channels",
        inputs=one_layer,
        sizes=SIZES,
        contenders=(
            *own_and_reference("positive_percentile", of_grads),
            Contender("torch nanquantile", eager(of_grads(nanquantile_percentile)), sweep=False),
            Contender(
                "NumPy percentile loop",
                on_numpy(numpy_percentiles),
                sweep=False,
                devices=("cpu",),
            ),
            Contender(PARTITION, partition_percentiles, sweep=False, devices=("cpu",)),
        ),
        oracle=lambda pairs: [exact_percentiles(grads) for _, grads in pairs],
        tolerance=1e-6,
        traffic=grads_bytes,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
