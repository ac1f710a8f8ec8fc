"""CAM methods end to end, against their peers and the passes they cannot do without.

Grad-CAM and LTGrad-CAM on VGG16's five stages, the others on ResNets. The floor is one forward pass
and one ``autograd.grad`` from the top scores to the five stages, with no graph below the first of
them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from wsfast.cam import METHODS, CAMMethod, FullGrad, GradCAM, LTGradCAM
from wsfast.ops.fusion import reference as fusion
from wsfast.ops.truncation import reference as truncation

from .harness import Budget, Case, Contender, Run, eager
from .records import Size, Target

HEADLINE = Size(8, 224, headline=True)
SIZES = (Size(2, 224), Size(4, 224), HEADLINE)
STAGES = (3, 8, 15, 22, 29)  # the last ReLU before each pooling
OTHER_FUSION = "fuses the layers in another way, at the size of the largest"
NAMES = [f"features.{stage}" for stage in STAGES]
PERCENTILE = 50.0
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


def maps_of(
    activations: list[Tensor], grads: list[Tensor], percentile: float | None, size: torch.Size
) -> Tensor:
    """Grad-CAM of the five stages in plain PyTorch, of truncated gradients where asked for."""
    maps = []
    for a, g in zip(activations, grads, strict=True):
        kept = g if percentile is None else truncation.truncate_gradients(g, percentile)
        maps.append(torch.einsum("nc,nchw->nhw", kept.mean(dim=(2, 3)), a).relu())
    return fusion.fuse_cams(maps, size)


def readable_gradcam(inputs: Inputs, percentile: float | None = None) -> Tensor:
    return maps_of(*passes(inputs), percentile, inputs[1].shape[2:])


def oracle(inputs: Inputs, percentile: float | None = None) -> Tensor:
    """The formula in float64; the passes stay in float32, since their rounding is not ours."""
    wide = ([tensor.cpu().double() for tensor in tensors] for tensors in passes(inputs))
    return maps_of(*wide, percentile, inputs[1].shape[2:])


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
            Contender("reference", eager(lambda inputs: readable_gradcam(inputs, PERCENTILE))),
            FLOOR,
        ),
        oracle=lambda inputs: oracle(inputs, PERCENTILE),
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
            Contender("reference", eager(readable_gradcam)),
            Contender("pytorch-grad-cam", pytorch_grad_cam, requires=("pytorch_grad_cam",)),
            Contender(
                "torchcam",
                torchcam,
                requires=("torchcam",),
                same_work=False,
                note=OTHER_FUSION,
            ),
            FLOOR,
        ),
        oracle=oracle,
        tolerance=1e-4,
        targets=(Target(HEADLINE.label, 2.5, 3.5, ("pytorch-grad-cam",)),),
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


def plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM++ weights with pytorch-grad-cam's epsilon."""
    alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    return (alpha * g.relu()).sum((2, 3), keepdim=True) * a


def axiomatic(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-7) * a


# Weighted activations of a layer, before the sum over channels.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "GradCAMPlusPlus": plus_plus,
    "XGradCAM": axiomatic,
    "LayerCAM": lambda a, g: g.relu() * a,
    "HiResCAM": lambda a, g: g * a,
}


def by_formula(name: str, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    layers = zip(*resnet_passes(inputs), strict=True)
    maps = [FORMULAS[name](a.to(dtype), g.to(dtype)).sum(1).relu() for a, g in layers]
    return fusion.fuse_cams(maps, inputs[1].shape[2:])


def fullgrad(inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every channel's share normalised and resized on its own."""
    model, images = inputs
    kept: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, out: kept.append((m, out)))
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    x = images.clone().requires_grad_()
    score = model(x).amax(dim=1).sum()
    for handle in handles:
        handle.remove()
    first, *grads = torch.autograd.grad(score, [x, *(out for _, out in kept)])
    shares = [first.to(dtype) * images.to(dtype)]
    for (norm, _), grad in zip(kept, grads, strict=True):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = (norm.bias - scale * norm.running_mean).detach().to(dtype)
        shares.append(grad.to(dtype) * bias.view(-1, 1, 1))
    total = torch.zeros(len(images), *images.shape[2:], dtype=dtype, device=images.device)
    for share in shares:
        maps = fusion.normalize_cams(share.abs().flatten(0, 1)).view_as(share)
        total += nn.functional.interpolate(maps, images.shape[2:], mode="bilinear").sum(1)
    return fusion.normalize_cams(total)


@torch.no_grad()
def by_channels(name: str, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    """Score-CAM or Ablation-CAM, the whole model for every channel, 16 of them at a time."""
    model, images = inputs[0].to(dtype), inputs[1].to(dtype)
    kept: list[Tensor] = []
    layer = model.get_submodule(CHANNELS)
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = model(images)
    handle.remove()
    best, (activations,) = logits.argmax(dim=1), kept
    scores = []
    for part in torch.arange(activations.shape[1]).split(16):
        versions = images.repeat_interleave(len(part), 0)
        if name == "ScoreCAM":
            masks = nn.functional.interpolate(
                activations[:, part], images.shape[2:], mode="bilinear", align_corners=True
            )
            found = model(versions * fusion.normalize_cams(masks.flatten(0, 1), eps=1e-8)[:, None])
        else:
            without = activations.repeat_interleave(len(part), 0)
            without[range(len(without)), part.repeat(len(images))] = 0.0
            handle = layer.register_forward_hook(lambda *_, w=without: w)
            found = model(versions)
            handle.remove()
        scores.append(found[:, best].unflatten(0, (len(images), -1)).diagonal(dim1=0, dim2=2).T)
    model.float()
    weights = torch.cat(scores, dim=1)
    if name == "ScoreCAM":
        weights = weights.softmax(dim=1)
    else:
        full = logits.gather(1, best[:, None])
        weights = (full - weights) / full
    raw = torch.einsum("nc,nchw->nhw", weights, activations).relu()
    return fusion.fuse_cams([raw], images.shape[2:])


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

    return Contender("pytorch-grad-cam", build, requires=("pytorch_grad_cam",))


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
        Contender("reference", eager(lambda inputs: by_formula(name, inputs))),
        grad_cam_peer(name, BLOCKS),
    ]
    if name in ("XGradCAM", "LayerCAM"):
        contenders.append(torchcam_peer(name, BLOCKS, OTHER_FUSION))
    return Case(
        room="cam",
        operation=f"{name}, ResNet50 blocks",
        inputs=lambda size, generator: resnet_and_images("resnet50", size, generator),
        sizes=(ONE, Size(2, 224), FOUR),
        contenders=tuple(contenders),
        oracle=lambda inputs: by_formula(name, inputs, torch.float64),
        tolerance=1e-4,
        budget=MINUTES,
    )


def channel_case(name: str, **options: Any) -> Case:
    contenders = [
        Contender("wsfast", method(METHODS[name.lower()], CHANNELS, **options)),
        Contender(
            "reference",
            eager(lambda inputs: by_channels(name, inputs)),
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
        oracle=lambda inputs: by_channels(name, inputs, torch.float64),
        tolerance=5e-3,
        budget=MINUTES,
    )


CASES += [
    *(gradient_case(name) for name in FORMULAS),
    Case(
        room="cam",
        operation="FullGrad, ResNet50",
        inputs=lambda size, generator: resnet_and_images("resnet50", size, generator),
        sizes=(ONE, Size(2, 224), FOUR),
        contenders=(
            Contender("wsfast", method(FullGrad, "biases")),
            Contender("reference", eager(fullgrad), note="resizes every channel"),
            grad_cam_peer("FullGrad", []),
        ),
        oracle=lambda inputs: fullgrad(inputs, torch.float64),
        tolerance=1e-4,
        budget=MINUTES,
    ),
    channel_case("ScoreCAM", align_corners=True),
    channel_case("AblationCAM", signed=True),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
