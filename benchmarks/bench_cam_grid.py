"""CAM methods on three architectures, three image sizes and three batch sizes, beside their peers.

Each case is one method on one architecture at one image size, twice: end to end, and the extractor
alone, from the layers' activations and gradients to the fused maps. Batches are 1, 8 and 32; peak
memory is measured at the first, of extractors alone at the first image size only.

By default the batch of one 224² image runs for the methods in ``HEADLINES``. ``--grid axes`` adds
the larger batches of 224² images and one image of the larger sizes, for every extractor and, end to
end, for the first method: the passes through a network cost nearly all of that and are the same for
every method, so the others run end to end on one 224² image alone. ``--grid full`` runs everything
that fits in memory: many hours on a few CPU cores.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wsfast import ops
from wsfast.cam import METHODS

from .cam_formulas import FORMULAS, PERCENTILE, by_formula
from .cam_models import (
    ARCHITECTURES,
    BATCHES,
    FROZEN_GRAD_CAM,
    GRAD_CAM,
    OTHER_FUSION,
    SHAPES,
    Architecture,
    Inputs,
    bytes_needed,
    frozen_grad_cam_whole,
    grad_cam_of,
    grad_cam_whole,
    make_inputs,
    memory_limit,
    passes,
    torchcam_of,
    torchcam_whole,
)
from .harness import Budget, Case, Contender, Run, eager
from .records import OURS, Size

HEADLINES = ("GradCAM", "LTGradCAM")
BUDGET = Budget(seconds=3.0, min_rounds=4)
IN_TORCHCAM = ("GradCAM", "XGradCAM", "LayerCAM")
IN_GRAD_CAM = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM")


def options_of(name: str) -> dict[str, Any]:
    if name == "GradCAMPlusPlus":
        return {"alpha_eps": 1e-6}
    return {"percentile": PERCENTILE} if name.startswith("LT") else {}


def on_axis(batch: int, shape: tuple[int, int], name: str, alone: bool) -> bool:
    """Whether ``--grid axes`` runs it: see above."""
    grown = (batch > BATCHES[0]) + (shape != SHAPES[0])
    return grown == 0 or (grown == 1 and (alone or name == HEADLINES[0]))


def bench_case(architecture: Architecture, shape: tuple[int, int], name: str, alone: bool) -> Case:
    """One method on one architecture at one image size."""

    def whole(inputs: tuple[Any, ...]) -> Inputs:
        return Inputs(architecture, *inputs)

    def by_reference(dtype: torch.dtype, inputs: tuple[Any, ...]) -> Tensor:
        found = whole(inputs)
        layers = found[3:] if alone else passes(architecture, found.model, found.images)
        return by_formula(name, layers, found.images.shape[2:], dtype)

    builders = (wsfast_alone, grad_cam_alone, torchcam_alone) if alone else (
        wsfast_whole, grad_cam_whole, torchcam_whole,
    )  # fmt: skip
    contenders = [
        Contender(OURS, lambda inputs: builders[0](name, whole(inputs))),
        Contender("reference", eager(partial(by_reference, torch.float32))),
    ]
    if name in IN_GRAD_CAM:
        build: Any = lambda inputs: builders[1](name, whole(inputs))  # noqa: E731
        contenders.append(Contender(GRAD_CAM, build, requires=("pytorch_grad_cam",)))
        if not alone:
            build = lambda inputs: frozen_grad_cam_whole(name, whole(inputs))  # noqa: E731
            contenders.append(Contender(FROZEN_GRAD_CAM, build, requires=("pytorch_grad_cam",)))
    if name in IN_TORCHCAM:
        build = lambda inputs: builders[2](name, whole(inputs))  # noqa: E731
        peer = Contender(
            "torchcam", build, requires=("torchcam",), same_work=False, note=OTHER_FUSION
        )
        contenders.append(peer)
    height, width = shape
    headline = shape == SHAPES[0] and name in HEADLINES
    sizes = tuple(
        Size(batch, height, width=width, axis=on_axis(batch, shape, name, alone))
        for batch in BATCHES
    )
    sizes = (replace(sizes[0], headline=headline), *sizes[1:])
    scope = "extractor alone" if alone else "end to end"
    return Case(
        room="cam_grid",
        operation=f"{name}, {architecture.title}, {height}x{width}, {scope}",
        inputs=partial(make_inputs, architecture, alone),
        sizes=sizes,
        contenders=tuple(contenders),
        oracle=partial(by_reference, torch.float64),
        tolerance=1e-4,
        memory=None if alone and shape != SHAPES[0] else memory_limit(sizes[0], contenders),
        budget=BUDGET,
        needs=partial(bytes_needed, architecture),
        grid=True,
    )


def wsfast_whole(name: str, inputs: Inputs) -> Run:
    cam = METHODS[name.lower()](inputs.model, list(inputs.architecture.layers), **options_of(name))
    return lambda: cam(inputs.images).cams


def wsfast_alone(name: str, inputs: Inputs) -> Run:
    kind: Any = METHODS[name.lower()]
    cam = kind(inputs.model, list(inputs.architecture.layers), **options_of(name))
    size = (inputs.images.shape[2], inputs.images.shape[3])

    def run() -> Tensor:
        pairs = zip(inputs.activations, inputs.grads, strict=True)
        return ops.fuse_cams([cam.layer_map(a, g) for a, g in pairs], size)

    return run


def grad_cam_alone(name: str, inputs: Inputs) -> Run:
    """From what its hooks have brought to the CPU."""
    cam = grad_cam_of(name, inputs)
    store = cam.activations_and_grads
    store.activations = [layer.cpu() for layer in inputs.activations]
    store.gradients = [layer.cpu() for layer in inputs.grads]
    return lambda: cam.aggregate_multi_layers(cam.compute_cam_per_layer(inputs.images, None, False))


def torchcam_alone(name: str, inputs: Inputs) -> Run:
    """From what its hooks keep; its backward pass is left out."""
    cam = torchcam_of(name, inputs)
    cam._backprop = lambda *args, **options: None
    cam.hook_a, cam.hook_g = list(inputs.activations), list(inputs.grads)
    return lambda: cam.fuse_cams(cam.compute_cams(0, inputs.images))


CASES: list[Case] = [
    bench_case(architecture, shape, name, alone)
    for architecture in ARCHITECTURES
    for shape in SHAPES
    for name in FORMULAS
    for alone in (False, True)
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
