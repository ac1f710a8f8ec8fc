"""The networks that CAM methods are measured on, and the libraries that explain them too."""

from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from .cam_formulas import BIASED, Layers
from .harness import Contender, MemoryLimit, Run
from .records import Size

BATCHES = (1, 8, 32)
SHAPES = ((224, 224), (224, 640), (512, 1408))
PATCH = 16
WARM_UP = Size(1, 64)
GRAD_CAM, FROZEN_GRAD_CAM = "pytorch-grad-cam", "pytorch-grad-cam, frozen weights"
OTHER_FUSION = "fuses the layers in another way, at the size of the largest"


class Architecture(NamedTuple):
    """A model and the layers that are explained."""

    title: str
    name: str
    layers: tuple[str, ...]
    tokens: bool = False


VGG16 = Architecture("VGG16", "vgg16", tuple(f"features.{i}" for i in (3, 8, 15, 22, 29)))
RESNET50 = Architecture("ResNet50", "resnet50", ("layer1", "layer2", "layer3", "layer4"))
# Not the last block's output: the head reads its class token, no gradient reaches the patches.
VIT_LAYERS = ("blocks.5.norm1", "blocks.11.norm1")
VIT_S = Architecture("ViT-S", "vit_small_patch16_224", VIT_LAYERS, tokens=True)
ARCHITECTURES = (VGG16, RESNET50, VIT_S)


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
    """A model with random weights, Gaussian images, and the layers' tensors where asked for.

    Biases are random too: FullGrad has nothing to show without.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = make_model(architecture)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # under it, plain hooks would see something else
            elif isinstance(module, BIASED) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
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


def memory_limit(size: Size, contenders: list[Contender]) -> MemoryLimit:
    names = tuple(contender.name for contender in contenders)
    return MemoryLimit(
        size, "the images' bytes", lambda inputs: inputs[1].nbytes, None, names, WARM_UP
    )


def as_maps(architecture: Architecture, images: Tensor, values: Tensor) -> Tensor:
    """A layer's output as (N, C, h, w)."""
    if not architecture.tokens:
        return values
    grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
    return values[:, 1:].mT.unflatten(2, grid)


def passes(
    architecture: Architecture, model: nn.Module, images: Tensor, classes: Tensor | None = None
) -> Layers:
    """Maps of the layers and the gradients at them of the classes' scores, or of the top ones."""
    outputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output
        # Behind the hooks of others; what autograd.grad returns has not passed all of them.
        output.register_hook(partial(grads.__setitem__, name))

    handles = [
        model.get_submodule(name).register_forward_hook(partial(keep, name))
        for name in architecture.layers
    ]
    logits = model(images)
    for handle in handles:
        handle.remove()
    scores = logits.amax(dim=1) if classes is None else logits.gather(1, classes[:, None])
    torch.autograd.grad(scores.sum(), [*outputs.values()])
    reshape = partial(as_maps, architecture, images)
    layers = architecture.layers
    return [reshape(outputs[n].detach()) for n in layers], [reshape(grads[n]) for n in layers]


def grad_cam_of(name: str, inputs: Inputs, **options: Any) -> Any:
    import pytorch_grad_cam

    architecture = inputs.architecture
    modules = [inputs.model.get_submodule(layer) for layer in architecture.layers]
    reshape = partial(as_maps, architecture, inputs.images) if architecture.tokens else None
    kind = getattr(pytorch_grad_cam, name)
    return kind(model=inputs.model, target_layers=modules, reshape_transform=reshape, **options)


def frozen(model: nn.Module, images: Tensor) -> Tensor:
    """Freeze a peer's model and return images whose gradient keeps the graph.

    Its backward pass goes to every leaf; so it makes no gradients of the weights.
    """
    model.requires_grad_(False)
    return images.clone().requires_grad_()


def frozen_grad_cam_whole(name: str, inputs: Inputs) -> Run:
    return grad_cam_whole(name, inputs._replace(images=frozen(inputs.model, inputs.images)))


def grad_cam_whole(name: str, inputs: Inputs, **options: Any) -> Run:
    cam = grad_cam_of(name, inputs, **options)

    def run() -> Any:
        maps = cam(inputs.images.clone(), targets=None)
        cam.outputs = None  # else it keeps the graph, beside which others run
        cam.activations_and_grads.activations = cam.activations_and_grads.gradients = []
        return maps

    return run


def torchcam_of(name: str, inputs: Inputs, **options: Any) -> Any:
    from torchcam import methods

    architecture = inputs.architecture
    reshape = partial(as_maps, architecture, inputs.images) if architecture.tokens else None
    kind = getattr(methods, name)
    layers = list(architecture.layers)
    return kind(inputs.model, target_layer=layers, reshape_transform=reshape, **options)


def torchcam_whole(name: str, inputs: Inputs, **options: Any) -> Run:
    cam = torchcam_of(name, inputs, **options)

    def run() -> Tensor:
        scores = inputs.model(inputs.images)
        maps = cam.fuse_cams(cam(scores.argmax(dim=1).tolist(), scores))
        cam.reset_hooks()  # else it keeps the graph, beside which others run
        return maps

    return run
