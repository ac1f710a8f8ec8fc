"""CAM methods end to end, against their peers and the passes they cannot do without.

Grad-CAM and LTGrad-CAM on VGG16's five stages, the others on ResNets. The floor is one forward pass
and one ``autograd.grad`` from the top scores to the five stages, with no graph below the first of
them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from wsfast.cam import METHODS, CAMMethod, FullGrad, GradCAM, LTGradCAM

from .cam_formulas import PERCENTILE, by_channels, by_formula, fullgrad
from .cam_models import FROZEN_GRAD_CAM, GRAD_CAM, OTHER_FUSION, frozen
from .harness import Budget, Case, Contender, Run, eager
from .records import Size, Target

HEADLINE = Size(8, 224, headline=True)
SIZES = (Size(2, 224), Size(4, 224), HEADLINE)
STAGES = (3, 8, 15, 22, 29)  # the last ReLU before each pooling
NAMES = [f"features.{stage}" for stage in STAGES]
Inputs = tuple[nn.Module, Tensor]


def model_and_images(size: Size, generator: torch.Generator) -> Inputs:
    """VGG16 with random weights and Gaussian images."""
    with torch.random.fork_rng([]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = timm.create_model("vgg16", pretrained=False).eval()
    return model, torch.randn(size.batch, 3, size.side, size.side, generator=generator)


def passes(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """Activations of the stages and the gradients of the top scores at them."""
    model, images = inputs
    with torch.no_grad():
        x = model.features[: STAGES[0] + 1](images)
    outputs = [x.requires_grad_()]
    for first, last in pairwise(STAGES):
        x = model.features[first + 1 : last + 1](x)
        outputs.append(x)
    x = model.features[STAGES[-1] + 1 :](x)
    scores = model.forward_head(x).amax(dim=1)
    grads = torch.autograd.grad(scores.sum(), outputs)
    return [output.detach() for output in outputs], list(grads)


def formula(name: str, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    """The formula in ``dtype``; the passes stay in float32, since their rounding is not ours."""
    return by_formula(name, passes(inputs), inputs[1].shape[2:], dtype)


def ours(method: type[GradCAM] | type[LTGradCAM], **options: Any) -> Callable[[Inputs], Run]:
    def build(inputs: Inputs) -> Run:
        model, images = inputs
        cam = method(model, NAMES, **options)
        return lambda: cam(images).cams

    return build


def pytorch_grad_cam(inputs: Inputs) -> Run:
    from pytorch_grad_cam import GradCAM as Peer

    model, images = inputs
    cam = Peer(model=model, target_layers=[model.get_submodule(name) for name in NAMES])
    return lambda: cam(images, targets=None)


def frozen_grad_cam(inputs: Inputs) -> Run:
    return pytorch_grad_cam((inputs[0], frozen(*inputs)))


def torchcam(inputs: Inputs) -> Run:
    from torchcam.methods import GradCAM as Peer

    model, images = inputs
    cam = Peer(model, target_layer=list(NAMES))

    def run() -> Tensor:
        scores = model(images)
        return cam.fuse_cams(cam(scores.argmax(dim=1).tolist(), scores))

    return run


def channels_last(inputs: Inputs) -> Run:
    """Build our GradCAM on images in the memory layout that convolutions on the CPU like best."""
    model, images = inputs
    return ours(GradCAM)((model, images.contiguous(memory_format=torch.channels_last)))


FLOOR = Contender("forward and autograd.grad", eager(passes), same_work=False, note="no maps")
MINUTES = Budget(seconds=10.0, one_round_above=30.0)

CASES: list[Case] = [
    Case(
        room="cam",
        operation="LTGradCAM, VGG16 stages",
        inputs=model_and_images,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", ours(LTGradCAM, percentile=PERCENTILE)),
            Contender("reference", eager(partial(formula, "LTGradCAM"))),
            FLOOR,
        ),
        oracle=partial(formula, "LTGradCAM", dtype=torch.float64),
        tolerance=1e-4,
        targets=(Target(HEADLINE.label, 1.05, 1.02, (FLOOR.name,), "slowdown"),),
        budget=MINUTES,
    ),
    Case(
        room="cam",
        operation="GradCAM, VGG16 stages",
        inputs=model_and_images,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", ours(GradCAM)),
            Contender(
                "wsfast, channels-last images",
                channels_last,
                sweep=False,
                note="another input layout: its convolutions round differently",
                tolerance=1e-2,
            ),
            Contender("reference", eager(partial(formula, "GradCAM"))),
            Contender(GRAD_CAM, pytorch_grad_cam, requires=("pytorch_grad_cam",)),
            Contender(FROZEN_GRAD_CAM, frozen_grad_cam, requires=("pytorch_grad_cam",)),
            Contender(
                "torchcam",
                torchcam,
                requires=("torchcam",),
                same_work=False,
                note=OTHER_FUSION,
            ),
            FLOOR,
        ),
        oracle=partial(formula, "GradCAM", dtype=torch.float64),
        tolerance=1e-4,
        targets=(Target(HEADLINE.label, 2.5, 3.5, (GRAD_CAM, FROZEN_GRAD_CAM)),),
        budget=MINUTES,
    ),
]


# The other methods, on a ResNet whose batch norms have biases (else FullGrad has none to show).
BLOCKS = ["layer1", "layer2", "layer3", "layer4"]
ONE = Size(1, 224)
FOUR = Size(4, 224, headline=True)
# A pass per channel: small images, one layer of 64 channels.
SMALL = (Size(1, 64), Size(1, 96), Size(1, 128, headline=True))
CHANNELS = "layer1"


def resnet_and_images(name: str, size: Size, generator: torch.Generator) -> Inputs:
    """A ResNet without in-place ReLUs, under which plain hooks would see something else."""
    with torch.random.fork_rng([]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = timm.create_model(name, pretrained=False).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.2)
            elif isinstance(module, nn.ReLU):
                module.inplace = False
    return model, torch.randn(size.batch, 3, size.side, size.side, generator=generator)


def resnet_passes(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """Activations of the blocks and the gradients of the top scores at them."""
    model, images = inputs
    x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
    outputs = []
    for name in BLOCKS:
        x = model.get_submodule(name)(x)
        outputs.append(x)
    grads = torch.autograd.grad(model.forward_head(x).amax(dim=1).sum(), outputs)
    return [output.detach() for output in outputs], list(grads)


def resnet_formula(name: str, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    return by_formula(name, resnet_passes(inputs), inputs[1].shape[2:], dtype)


def channels_formula(name: str, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    return by_channels(name, *inputs, CHANNELS, dtype)


def method(kind: type[CAMMethod], layers: Any, **options: Any) -> Callable[[Inputs], Run]:
    def build(inputs: Inputs) -> Run:
        cam = kind(inputs[0], layers, **options)
        return lambda: cam(inputs[1]).cams

    return build


def grad_cam_peer(name: str, layers: list[str]) -> Contender:
    def build(inputs: Inputs) -> Run:
        import pytorch_grad_cam

        modules = [inputs[0].get_submodule(layer) for layer in layers]
        cam = getattr(pytorch_grad_cam, name)(model=inputs[0], target_layers=modules)
        return lambda: cam(inputs[1].clone(), targets=None)

    return Contender(GRAD_CAM, build, requires=("pytorch_grad_cam",))


def frozen_grad_cam_peer(name: str, layers: list[str]) -> Contender:
    peer = grad_cam_peer(name, layers)
    return replace(
        peer,
        name=FROZEN_GRAD_CAM,
        build=lambda inputs: peer.build((inputs[0], frozen(*inputs))),
    )


def torchcam_peer(name: str, layers: list[str], note: str) -> Contender:
    def build(inputs: Inputs) -> Run:
        from torchcam import methods

        model, images = inputs
        cam = getattr(methods, name)(model, target_layer=layers)

        def run() -> Tensor:
            scores = model(images)
            return cam.fuse_cams(cam(scores.argmax(dim=1).tolist(), scores))

        return run

    return Contender("torchcam", build, requires=("torchcam",), same_work=False, note=note)


def gradient_case(name: str) -> Case:
    contenders = [
        Contender(
            "wsfast",
            method(
                METHODS[name.lower()],
                BLOCKS,
                **({"alpha_eps": 1e-6} if name == "GradCAMPlusPlus" else {}),
            ),
        ),
        Contender("reference", eager(partial(resnet_formula, name))),
        grad_cam_peer(name, BLOCKS),
        frozen_grad_cam_peer(name, BLOCKS),
    ]
    if name in ("XGradCAM", "LayerCAM"):
        contenders.append(torchcam_peer(name, BLOCKS, OTHER_FUSION))
    return Case(
        room="cam",
        operation=f"{name}, ResNet50 blocks",
        inputs=lambda size, generator: resnet_and_images("resnet50", size, generator),
        sizes=(ONE, Size(2, 224), FOUR),
        contenders=tuple(contenders),
        oracle=partial(resnet_formula, name, dtype=torch.float64),
        tolerance=1e-4,
        budget=MINUTES,
    )


def channel_case(name: str, **options: Any) -> Case:
    contenders = [
        Contender("wsfast", method(METHODS[name.lower()], CHANNELS, **options)),
        Contender(
            "reference",
            eager(partial(channels_formula, name)),
            note="the whole model for every channel",
        ),
        grad_cam_peer(name, [CHANNELS]),
    ]
    if name == "ScoreCAM":
        contenders.append(torchcam_peer(name, [CHANNELS], "resizes its masks in another way"))
    return Case(
        room="cam",
        operation=f"{name}, ResNet18 {CHANNELS}",
        inputs=lambda size, generator: resnet_and_images("resnet18", size, generator),
        sizes=SMALL,
        contenders=tuple(contenders),
        oracle=partial(channels_formula, name, dtype=torch.float64),
        tolerance=5e-3,
        budget=MINUTES,
    )


CASES += [
    *(gradient_case(name) for name in ("GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM")),
    Case(
        room="cam",
        operation="FullGrad, ResNet50",
        inputs=lambda size, generator: resnet_and_images("resnet50", size, generator),
        sizes=(ONE, Size(2, 224), FOUR),
        contenders=(
            Contender("wsfast", method(FullGrad, "biases")),
            Contender(
                "reference",
                eager(lambda inputs: fullgrad(*inputs, torch.float32)),
                note="resizes every channel",
            ),
            grad_cam_peer("FullGrad", []),
        ),
        oracle=lambda inputs: fullgrad(*inputs, torch.float64),
        tolerance=1e-4,
        budget=MINUTES,
    ),
    channel_case("ScoreCAM", align_corners=True),
    channel_case("AblationCAM", signed=True),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
