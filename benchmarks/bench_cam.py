"""CAM methods end to end on VGG16's five stages, against the passes they cannot do without.

The floor is one forward pass and one ``autograd.grad`` from the top scores to the five stages,
with no graph below the first of them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.harness import Budget, Case, Contender, Run, eager
from benchmarks.records import Size, Target
from wsfast.cam import GradCAM, LTGradCAM
from wsfast.ops.fusion import reference as fusion
from wsfast.ops.truncation import reference as truncation

HEADLINE = Size(8, 224, headline=True)
SIZES = (Size(2, 224), Size(4, 224), HEADLINE)
STAGES = (3, 8, 15, 22, 29)  # the last ReLU before each pooling
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

CASES = [
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
                note="fuses the layers in another way",
            ),
            FLOOR,
        ),
        oracle=oracle,
        tolerance=1e-4,
        targets=(Target(HEADLINE.label, 2.5, 3.5, ("pytorch-grad-cam",)),),
        budget=MINUTES,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
