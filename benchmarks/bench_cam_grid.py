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

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from wsfast import ops
from wsfast.cam import METHODS
from wsfast.ops.fusion import reference as fusion
from wsfast.ops.truncation import reference as truncation

from .bench_cam import FORMULAS, OTHER_FUSION
from .harness import Budget, Case, Contender, MemoryLimit, Run, eager
from .records import OURS, Size

BATCHES = (1, 8, 32)
SHAPES = ((224, 224), (224, 640), (512, 1408))
HEADLINES = ("GradCAM", "LTGradCAM")
PERCENTILE = 50.0
PATCH = 16
Layers = tuple[list[Tensor], list[Tensor]]
WARM_UP = Size(1, 64)
BUDGET = Budget(seconds=3.0, min_rounds=3)


class Architecture(NamedTuple):
    """A model and the layers that are explained."""

    title: str
    name: str
    layers: tuple[str, ...]
    tokens: bool = False


ARCHITECTURES = (
    Architecture("VGG16", "vgg16", tuple(f"features.{i}" for i in (3, 8, 15, 22, 29))),
    Architecture("ResNet50", "resnet50", ("layer1", "layer2", "layer3", "layer4")),
    Architecture("ViT-S", "vit_small_patch16_224", ("blocks.5", "blocks.11"), tokens=True),
)


class Inputs(NamedTuple):
    """What a contender works on; the layers only where the passes are not timed."""

    architecture: Architecture
    model: nn.Module
    images: Tensor
    activations: list[Tensor]
    grads: list[Tensor]


def make_inputs(
    architecture: Architecture, with_passes: bool, size: Size, generator: torch.Generator
) -> Any:
    """A model with random weights, Gaussian images, and the layers' tensors where asked for."""
    with torch.random.fork_rng([]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = make_model(architecture)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # under it, plain hooks would see something else
    images = torch.randn(size.batch, 3, *size.shape, generator=generator)
    layers = passes(architecture, model, images) if with_passes else ([], [])
    return model, images, *layers


def make_model(architecture: Architecture) -> nn.Module:
    """The model with random weights, for images of any size."""
    options = {"dynamic_img_size": True} if architecture.tokens else {}
    return timm.create_model(architecture.name, pretrained=False, **options).eval()


def bytes_needed(architecture: Architecture, size: Size) -> int:
    """About what the peers' passes take: every module's output, gradients and scratch."""
    outputs = []
    with torch.device("meta"):
        model = make_model(architecture)
        images = torch.empty(size.batch, 3, *size.shape)
    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda _m, _i, output: outputs.append(output.nbytes))
    model(images)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return 3 * sum(outputs) + 2 * weights


def as_maps(architecture: Architecture, images: Tensor, values: Tensor) -> Tensor:
    """A layer's output as (N, C, h, w)."""
    if not architecture.tokens:
        return values
    grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
    return values[:, 1:].mT.unflatten(2, grid)


def passes(architecture: Architecture, model: nn.Module, images: Tensor) -> Layers:
    """Maps of the layers and the gradients of the top scores at them."""
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: kept.__setitem__(name, output)
        )
        for name in architecture.layers
    ]
    scores = model(images).amax(dim=1).sum()
    for handle in handles:
        handle.remove()
    outputs = [kept[name] for name in architecture.layers]
    grads = torch.autograd.grad(scores, outputs)
    reshape = partial(as_maps, architecture, images)
    return [reshape(output.detach()) for output in outputs], [reshape(grad) for grad in grads]


# Weighted activations of a layer, before the sum over channels.
FORMULAS_HERE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "GradCAM": lambda a, g: g.mean((2, 3), keepdim=True) * a,
    **FORMULAS,
    "LTGradCAM": lambda a, g: truncated(g).mean((2, 3), keepdim=True) * a,
    "LTLayerCAM": lambda a, g: truncated(g) * a,
}
IN_TORCHCAM = ("GradCAM", "XGradCAM", "LayerCAM")
IN_GRAD_CAM = ("GradCAM", *FORMULAS)


def truncated(grads: Tensor) -> Tensor:
    return truncation.truncate_gradients(grads, PERCENTILE)


def by_formula(name: str, layers: Layers, size: Any, dtype: torch.dtype) -> Tensor:
    pairs = zip(*layers, strict=True)
    maps = [FORMULAS_HERE[name](a.to(dtype), g.to(dtype)).sum(1).relu() for a, g in pairs]
    return fusion.fuse_cams(maps, size)


def options_of(name: str) -> dict[str, Any]:
    if name == "GradCAMPlusPlus":
        return {"alpha_eps": 1e-6}
    return {"percentile": PERCENTILE} if name.startswith("LT") else {}


def on_axis(batch: int, shape: tuple[int, int], name: str, alone: bool) -> bool:
    """Whether ``--grid axes`` runs it: see above."""
    grown = (batch > BATCHES[0]) + (shape != SHAPES[0])
    return grown == 0 or (grown == 1 and (alone or name == HEADLINES[0]))


def memory_limit(size: Size, contenders: list[Contender]) -> MemoryLimit:
    names = tuple(contender.name for contender in contenders)
    return MemoryLimit(
        size, "the images' bytes", lambda inputs: inputs[1].nbytes, None, names, WARM_UP
    )


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
        contenders.append(Contender("pytorch-grad-cam", build, requires=("pytorch_grad_cam",)))
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


def grad_cam_of(name: str, inputs: Inputs) -> Any:
    import pytorch_grad_cam

    architecture = inputs.architecture
    modules = [inputs.model.get_submodule(layer) for layer in architecture.layers]
    reshape = partial(as_maps, architecture, inputs.images) if architecture.tokens else None
    kind = getattr(pytorch_grad_cam, name)
    return kind(model=inputs.model, target_layers=modules, reshape_transform=reshape)


def grad_cam_whole(name: str, inputs: Inputs) -> Run:
    cam = grad_cam_of(name, inputs)

    def run() -> Any:
        maps = cam(inputs.images.clone(), targets=None)
        cam.outputs = None  # else it keeps the graph, beside which others run
        cam.activations_and_grads.activations = cam.activations_and_grads.gradients = []
        return maps

    return run


def grad_cam_alone(name: str, inputs: Inputs) -> Run:
    """From what its hooks have brought to the CPU."""
    cam = grad_cam_of(name, inputs)
    store = cam.activations_and_grads
    store.activations = [layer.cpu() for layer in inputs.activations]
    store.gradients = [layer.cpu() for layer in inputs.grads]
    return lambda: cam.aggregate_multi_layers(cam.compute_cam_per_layer(inputs.images, None, False))


def torchcam_of(name: str, inputs: Inputs) -> Any:
    from torchcam import methods

    architecture = inputs.architecture
    reshape = partial(as_maps, architecture, inputs.images) if architecture.tokens else None
    layers = list(architecture.layers)
    return getattr(methods, name)(inputs.model, target_layer=layers, reshape_transform=reshape)


def torchcam_whole(name: str, inputs: Inputs) -> Run:
    cam = torchcam_of(name, inputs)

    def run() -> Tensor:
        scores = inputs.model(inputs.images)
        maps = cam.fuse_cams(cam(scores.argmax(dim=1).tolist(), scores))
        cam.reset_hooks()  # else it keeps the graph, beside which others run
        return maps

    return run


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
    for name in FORMULAS_HERE
    for alone in (False, True)
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
