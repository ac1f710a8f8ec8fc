"""Fusion of CAMs over layers: against the torch and OpenCV loops that people write.

The layers are smooth maps of VGG16's five stage sizes, fused at the size of the first.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import wsfast
from wsfast.ops.fusion import reference

from .harness import Case, Contender, MemoryLimit, Run, compiled, eager
from .inputs import blobs, stage_sides
from .records import Size, Target

HEADLINE = Size(8, 224, headline=True)
SIZES = (Size(8, 56), Size(8, 112), HEADLINE, Size(2, 224), Size(4, 224))
EPS = 1e-7
Layers = list[Tensor]


def layers(size: Size, generator: torch.Generator) -> Layers:
    """One map per stage, (N, h, w) each."""
    return [blobs(size.batch, side, generator) for side in stage_sides(size.side)]


def leaves(size: Size, generator: torch.Generator) -> Layers:
    """The same as leaves of a graph."""
    return [layer.requires_grad_() for layer in layers(size, generator)]


def output_size(cams: Layers) -> tuple[int, int]:
    return cams[0].shape[1], cams[0].shape[2]


def ours(cams: Layers) -> Tensor:
    return wsfast.fuse_cams(cams, output_size(cams))


def readable(cams: Layers) -> Tensor:
    return reference.fuse_cams(cams, output_size(cams))


# Peers ------------------------------------------------------------------------------------------


def torch_minmax(cams: Tensor) -> Tensor:
    shifted = cams - cams.amin(dim=(1, 2), keepdim=True)
    return shifted / (shifted.amax(dim=(1, 2), keepdim=True) + EPS)


def torch_loop(cams: Layers) -> Tensor:
    """F.interpolate of every normalised layer that needs it, added up: no checks at all."""
    size = output_size(cams)
    total = torch.zeros_like(cams[0])
    for layer in cams:
        scaled = torch_minmax(layer)
        if layer.shape[1:] != size:
            scaled = F.interpolate(scaled[None], size, mode="bilinear")[0]
        total += scaled
    return torch_minmax(total / len(cams))


def opencv_minmax(cam: np.ndarray) -> np.ndarray:
    shifted = cam - cam.min()
    return shifted / (shifted.max() + EPS)


def opencv_loop(cams: Layers) -> Run:
    """Build pytorch-grad-cam's aggregation: one cv2.resize per image and layer."""
    height, width = output_size(cams)
    arrays = [layer.numpy() for layer in cams]

    def image(n: int) -> np.ndarray:
        scaled = [cv2.resize(opencv_minmax(layer[n]), (width, height)) for layer in arrays]
        return opencv_minmax(np.mean(scaled, axis=0))

    return lambda: np.stack([image(n) for n in range(len(arrays[0]))])


# Gradients --------------------------------------------------------------------------------------


def output_grad(cams: Layers) -> Tensor:
    """A fixed gradient of the output: a ramp over its pixels."""
    height, width = output_size(cams)
    ramp = torch.linspace(-1, 1, height * width, dtype=cams[0].dtype, device=cams[0].device)
    return ramp.view(1, height, width).expand(len(cams[0]), -1, -1)


def with_gradients(fuse: Callable[[Layers], Tensor]) -> Callable[[Layers], list[Tensor]]:
    """Apply ``fuse`` and differentiate: the gradient at every layer."""

    def run(cams: Layers) -> list[Tensor]:
        return list(torch.autograd.grad(fuse(cams), cams, output_grad(cams)))

    return run


def in_float64(run: Callable[[Layers], Any]) -> Callable[[Layers], Any]:
    """Apply ``run`` to float64 copies of the layers on the CPU."""
    return lambda cams: run([layer.detach().cpu().double().requires_grad_() for layer in cams])


CASES = [
    Case(
        room="fusion",
        operation="fuse_cams, VGG16 stages",
        inputs=layers,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", eager(ours)),
            Contender("reference", eager(readable)),
            Contender("compiled reference", compiled(readable), sweep=False, compiles=True),
            Contender("torch F.interpolate loop", eager(torch_loop)),
            Contender("OpenCV resize loop", opencv_loop, sweep=False, devices=("cpu",)),
        ),
        oracle=in_float64(readable),
        tolerance=1e-5,
        targets=(Target(HEADLINE.label, 6, 14, ("torch F.interpolate loop",)),),
        memory=MemoryLimit(HEADLINE, "one layer at full size", lambda cams: cams[0].nbytes, 1.0),
    ),
    Case(
        room="fusion",
        operation="fuse_cams forward and backward, VGG16 stages",
        inputs=leaves,
        sizes=(Size(8, 56), Size(8, 112), HEADLINE),
        contenders=(
            Contender("wsfast", eager(with_gradients(ours))),
            Contender("reference", eager(with_gradients(readable))),
            Contender("torch F.interpolate loop", eager(with_gradients(torch_loop))),
        ),
        oracle=in_float64(with_gradients(readable)),
        tolerance=1e-3,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
