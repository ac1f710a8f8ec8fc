"""The CAM methods that are more than one formula per layer, on three architectures, end to end.

By default one 224² image runs for the methods of few passes. ``--grid axes`` adds eight images and
one of 512x1408, and Score-CAM and Ablation-CAM of one 224² image: they take a pass per channel of
the last layer (512, 2048 or 384), over an hour in all, much of it for the float64 oracle.
``--grid full`` adds 32 images, one of 224x640, and the larger sizes of those two.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsfast.cam import METHODS
from wsfast.ops.fusion import reference as fusion

from .bench_cam_grid import BUDGET
from .cam_formulas import BIASED, PERCENTILE, by_channels, by_formula, fullgrad, truncated
from .cam_models import (
    OTHER_FUSION,
    RESNET50,
    VGG16,
    VIT_S,
    Architecture,
    Inputs,
    as_maps,
    bytes_needed,
    grad_cam_whole,
    make_inputs,
    make_model,
    memory_limit,
    passes,
    torchcam_whole,
)
from .harness import Case, Contender, Run, eager
from .records import OURS, Size

SIZES = (Size(1, 224, axis=True), Size(8, 224), Size(1, 512, width=1408))
MORE_SIZES = (Size(32, 224), Size(1, 224, width=640))  # of ``--grid full``
ABLATION_VALUE = "sets a channel to -1e7, not 0, where activations may be negative"
SAMPLES, NOISE = 4, 0.15
Formula = Callable[[Inputs, torch.dtype], Tensor]


def cam(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """The head's weights on the last layer."""
    with torch.no_grad():
        features = inputs.model.forward_features(inputs.images)
        weights = inputs.model.fc.weight[inputs.model.forward_head(features).argmax(dim=1)]
    maps = torch.einsum("nc,nchw->nhw", weights.to(dtype), features.to(dtype)).relu()
    return fusion.fuse_cams([maps], inputs.images.shape[2:])


def racam(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Grad-CAM with the gradients truncated behind every ReLU on their way."""

    def filter_gradients(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        output.register_hook(truncated)

    relus = [module for module in inputs.model.modules() if isinstance(module, nn.ReLU)]
    handles = [relu.register_forward_hook(filter_gradients) for relu in relus]
    layers = passes(*inputs[:3])
    for handle in handles:
        handle.remove()
    return by_formula("GradCAM", layers, inputs.images.shape[2:], dtype)


def smooth(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Grad-CAM++ with powers of the gradients averaged over noisy copies of the image."""
    architecture, model, images = inputs[:3]
    activations, _ = passes(architecture, model, images)
    with torch.no_grad():
        classes = model(images).argmax(dim=1)
    generator = torch.Generator(images.device).manual_seed(0)
    spread = NOISE * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    copies = []
    for _ in range(SAMPLES):
        noise = torch.randn(images.shape[1:], generator=generator, device=images.device)
        copies.append(passes(architecture, model, images + noise * spread, classes)[1])
    maps = []
    for a, *grads in zip(activations, *copies, strict=True):
        one, two, three = (
            sum(g.to(dtype) ** power for g in grads) / SAMPLES for power in (1, 2, 3)
        )
        total = a.to(dtype).sum((2, 3), keepdim=True).relu()
        alpha = (two / torch.maximum(2 * two + total * three, two)).nan_to_num(0.0)
        maps.append(((alpha * one.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu())
    return fusion.fuse_cams(maps, images.shape[2:])


def of_channels(name: str, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    architecture, model, images = inputs[:3]
    maps = partial(as_maps, architecture, images)
    return by_channels(name, model, images, architecture.layers[-1], dtype, maps)


def of_biases(kept: Callable[[Tensor], Tensor], inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return fullgrad(inputs.model, inputs.images, dtype, kept)


class Method(NamedTuple):
    """A method, how to check it and who has it too.

    ``layers`` of an architecture's that it explains: all, the last one, or none (all biases).
    """

    name: str
    formula: Formula
    architectures: tuple[Architecture, ...]
    layers: slice = slice(None)
    options: Mapping[str, Any] = {}
    grad_cam: str = ""
    torchcam: str = ""
    torchcam_options: Mapping[str, Any] = {}
    torchcam_note: str = OTHER_FUSION
    a_pass_per_channel: bool = False
    tolerance: float = 1e-4


RELU_NETWORKS = (VGG16, RESNET50)  # whose biases are those of convolutions and batch norms, too
EVERYWHERE = (VGG16, RESNET50, VIT_S)
LAST, BIASES = slice(-1, None), slice(0)
TRUNCATED = {"percentile": PERCENTILE}
METHODS_HERE = (
    Method("CAM", cam, (RESNET50,), LAST, torchcam="CAM", torchcam_options={"fc_layer": "fc"}),
    Method("FullGrad", partial(of_biases, lambda g: g), RELU_NETWORKS, BIASES, grad_cam="FullGrad"),
    Method("LTFullGrad", partial(of_biases, truncated), RELU_NETWORKS, BIASES, TRUNCATED),
    Method("RACAM", racam, RELU_NETWORKS, options=TRUNCATED),
    Method(
        "SmoothGradCAMPlusPlus",
        smooth,
        EVERYWHERE,
        options={"samples": SAMPLES, "noise": NOISE},
        torchcam="SmoothGradCAMpp",
        torchcam_options={"num_samples": SAMPLES},
        torchcam_note="draws other noise; " + OTHER_FUSION,
    ),
    Method(
        "ScoreCAM",
        partial(of_channels, "ScoreCAM"),
        EVERYWHERE,
        LAST,
        options={"align_corners": True},
        grad_cam="ScoreCAM",
        torchcam="ScoreCAM",
        torchcam_note="resizes its masks in another way",
        a_pass_per_channel=True,
        tolerance=5e-3,
    ),
    Method(
        "AblationCAM",
        partial(of_channels, "AblationCAM"),
        EVERYWHERE,
        LAST,
        options={"signed": True},
        grad_cam="AblationCAM",
        a_pass_per_channel=True,
        tolerance=5e-3,
    ),
)


def grad_cam(method: Method, inputs: Inputs) -> Run:
    options = {}
    if method.name == "AblationCAM" and inputs.architecture.tokens:
        from pytorch_grad_cam.ablation_layer import AblationLayerVit

        options["ablation_layer"] = AblationLayerVit()
    return grad_cam_whole(method.grad_cam, inputs, **options)


def resized_channels(architecture: Architecture, size: Size) -> int:
    """Bytes that pytorch-grad-cam's FullGrad takes: one layer at the images' size, twice."""
    with torch.device("meta"):
        modules = make_model(architecture).modules()
    channels = [m.bias.numel() for m in modules if isinstance(m, BIASED) and m.bias is not None]
    return bytes_needed(architecture, size) + 2 * 4 * size.batch * max(channels) * size.pixels


def wsfast(method: Method, inputs: Inputs) -> Run:
    layers: Any = list(inputs.architecture.layers) or "biases"
    method_of_ours = METHODS[method.name.lower()](inputs.model, layers, **method.options)
    return lambda: method_of_ours(inputs.images).cams


def contenders_of(
    method: Method, architecture: Architecture, whole: Callable[[Any], Inputs]
) -> list[Contender]:
    found = [Contender(OURS, lambda inputs: wsfast(method, whole(inputs)))]
    if not method.a_pass_per_channel:  # else the oracle alone takes minutes
        reference = eager(lambda inputs: method.formula(whole(inputs), torch.float32))
        found.append(Contender("reference", reference))
    if method.grad_cam:
        build: Any = lambda inputs: grad_cam(method, whole(inputs))  # noqa: E731
        needs = partial(resized_channels, architecture) if method.name == "FullGrad" else None
        peer = Contender("pytorch-grad-cam", build, requires=("pytorch_grad_cam",), needs=needs)
        found.append(peer)
    if method.torchcam:
        options = method.torchcam_options
        build = lambda inputs: torchcam_whole(method.torchcam, whole(inputs), **options)  # noqa: E731
        note = method.torchcam_note
        peer = Contender("torchcam", build, requires=("torchcam",), same_work=False, note=note)
        found.append(peer)
    return found


def bench_case(method: Method, architecture: Architecture) -> Case:
    """One method on one architecture."""
    shown = architecture._replace(layers=architecture.layers[method.layers])

    def whole(inputs: tuple[Any, ...]) -> Inputs:
        return Inputs(shown, *inputs)

    contenders = contenders_of(method, architecture, whole)
    if method.name == "AblationCAM" and architecture.tokens:
        contenders[1] = replace(contenders[1], same_work=False, note=ABLATION_VALUE)
    few = not method.a_pass_per_channel
    along = (replace(size, axis=few) for size in SIZES[1:])
    sizes = (replace(SIZES[0], headline=few), *along, *MORE_SIZES)
    return Case(
        room="cam_others",
        operation=f"{method.name}, {architecture.title}",
        inputs=partial(make_inputs, shown, False),
        sizes=sizes,
        contenders=tuple(contenders),
        oracle=lambda inputs: method.formula(whole(inputs), torch.float64),
        tolerance=method.tolerance,
        memory=memory_limit(SIZES[0] if few else Size(1, 112), contenders),
        budget=BUDGET,
        needs=partial(bytes_needed, architecture),
        grid=True,
    )


CASES: list[Case] = [
    bench_case(method, architecture)
    for method in METHODS_HERE
    for architecture in method.architectures
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
