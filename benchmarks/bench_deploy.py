"""A localizer from picture to boxes, eager and exported, beside the model alone.

Classifiers with global average pooling and one linear layer on the networks' last feature map, one
picture of the network's size at a time, random weights. The second operation of each network is
what comes after it, from its map to masks and boxes.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wsfast.deploy import Localizer, LocalizerOutput, capture, export_pt2, export_torchscript
from wsfast.models import WSOLClassifier
from wsfast.ops.fusion import reference

from .cam_models import FROZEN_GRAD_CAM, GRAD_CAM
from .harness import Budget, Case, Contender, Run, eager
from .inputs import scenes
from .records import Size, Target

NETWORKS = {
    "ResNet18": "timm/resnet18",
    "MobileNetV3": "timm/mobilenetv3_large_100",
    "VGG16": "timm/vgg16",
}
CLASSES = 1000
HEADLINE = Size(1, 224, headline=True)
SIZES = (Size(1, 128), Size(1, 160), HEADLINE)
SHARE = 0.05  # of the model's time, for what comes after it
TOLERANCE = 1e-3  # of maps that are stretched to 0-1
SECONDS = Budget(seconds=4.0)
HEAT_MAP = "the heat map of a ready input, no boxes"


class Inputs(NamedTuple):
    """A localizer, its pictures, and what its network says of them."""

    localizer: Localizer
    images: Tensor
    prepared: Tensor
    logits: Tensor
    maps: Tensor


def localizer_and_images(name: str, size: Size, generator: torch.Generator) -> Inputs:
    """A classifier with random weights, and coloured regions as pictures."""
    with torch.random.fork_rng([]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = WSOLClassifier(name, CLASSES).eval()
    feed: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    localizer = Localizer.from_model(model, input_size=size.shape, **feed)
    images = scenes(size.batch, size.side, generator).to(torch.uint8)
    with torch.no_grad():
        prepared = localizer.prepare(images)
        logits, maps = localizer.network(prepared)
    return Inputs(localizer, images, prepared, logits, maps[0])


def in_float64(inputs: Inputs) -> Tensor:
    """The formula of CAM in plain PyTorch and float64."""
    localizer = copy.deepcopy(inputs.localizer).cpu().double()
    head = localizer.network.head
    with torch.no_grad():
        features = localizer.network.features(inputs.prepared.cpu().double())
        weights = head.weight[head(features.mean(dim=(2, 3))).argmax(1)]
        maps = torch.einsum("nc,nchw->nhw", weights, features).relu()
    return reference.fuse_cams([maps], localizer.input_size)


def cams_of(found: LocalizerOutput | tuple[Tensor, ...]) -> Tensor:
    return found[1]


def localize(inputs: Inputs) -> LocalizerOutput:
    return inputs.localizer(inputs.images)


def compiled(inputs: Inputs) -> Run:
    torch.compiler.reset()
    fast = torch.compile(inputs.localizer, fullgraph=True, dynamic=False)
    fast(inputs.images)  # in the grad mode that it is timed in: for another one it compiles again
    return lambda: fast(inputs.images)


def captured(inputs: Inputs) -> Run:
    replayed = capture(inputs.localizer, inputs.images)
    return lambda: replayed(inputs.images)


def exported(export: Callable[..., Any], suffix: str) -> Callable[[Inputs], Run]:
    """Build an export in a folder that is gone when its program is open."""

    def build(inputs: Inputs) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            program = export(inputs.localizer, Path(folder) / f"it{suffix}")
        return lambda: program(inputs.images)

    return build


def model_alone(inputs: Inputs) -> Run:
    model = inputs.localizer.network.model

    def run() -> Tensor:
        with torch.no_grad():
            return model(inputs.prepared)

    return run


def pytorch_grad_cam(inputs: Inputs) -> Run:
    """Grad-CAM of the layer that is pooled: for these classifiers the closed form of CAM."""
    from pytorch_grad_cam import GradCAM as Peer

    model = inputs.localizer.network.model
    cam = Peer(model=model, target_layers=[model.get_submodule(last_layer(model))])
    return lambda: cam(inputs.prepared, targets=None)


def frozen_grad_cam(inputs: Inputs) -> Run:
    """The same where the backward pass has little to do: one parameter before the layer learns."""
    model = inputs.localizer.network.model
    model.requires_grad_(False)
    [*model.encoder.parameters()][-1].requires_grad_()
    return pytorch_grad_cam(inputs)


def torchcam(inputs: Inputs) -> Run:
    """The closed form of CAM."""
    from torchcam.methods import CAM as Peer

    model = inputs.localizer.network.model
    cam = Peer(model, target_layer=last_layer(model), fc_layer="fc")
    size = inputs.localizer.input_size

    def run() -> Tensor:
        with torch.no_grad():
            logits = model(inputs.prepared)
            (maps,) = cam(logits.argmax(dim=1).tolist(), logits, normalized=False)
            maps = F.interpolate(maps[:, None].relu(), size, mode="bilinear")[:, 0]
            low, high = maps.aminmax()
            return (maps - low) / (high - low)

    return run


def last_layer(model: Any) -> str:
    """Name of the layer that is pooled."""
    return str(model.feature_info[-1]["module"])


def post_processing(inputs: Inputs) -> Run:
    """Fusion, threshold, masks and boxes of the map that the network has given."""
    localizer = inputs.localizer

    def run() -> LocalizerOutput:
        with torch.no_grad():
            cams = localizer.fuse(inputs.logits, [inputs.maps])
            return localizer.finish(inputs.images, inputs.logits, cams)

    return run


ALONE = Contender("model alone", model_alone, same_work=False, note="scores of a ready input")


def whole(name: str, network: str) -> Case:
    """From picture to boxes."""
    return Case(
        room="deploy",
        operation=f"{name}, picture to boxes",
        inputs=lambda size, generator: localizer_and_images(network, size, generator),
        sizes=SIZES,
        contenders=(
            Contender("wsfast", eager(localize), collect=cams_of),
            Contender("wsfast, torch.compile", compiled, collect=cams_of, compiles=True),
            Contender("wsfast, CUDA graph", captured, collect=cams_of, devices=("cuda",)),
            Contender("wsfast, TorchScript", exported(export_torchscript, ".ts"), collect=cams_of),
            Contender("wsfast, .pt2", exported(export_pt2, ".pt2"), collect=cams_of, compiles=True),
            ALONE,
            Contender(
                GRAD_CAM,
                pytorch_grad_cam,
                requires=("pytorch_grad_cam",),
                note=f"GradCAM of the same layer: {HEAT_MAP}",
            ),
            Contender(
                FROZEN_GRAD_CAM,
                frozen_grad_cam,
                requires=("pytorch_grad_cam",),
                note=f"all but the parameter before that layer: {HEAT_MAP}",
            ),
            Contender(
                "torchcam",
                torchcam,
                requires=("torchcam",),
                note=f"CAM: {HEAT_MAP}",
            ),
        ),
        oracle=in_float64,
        tolerance=TOLERANCE,
        budget=SECONDS,
    )


def after(name: str, network: str) -> Case:
    """From the network's map to boxes."""
    return Case(
        room="deploy",
        operation=f"{name}, its map to boxes",
        inputs=lambda size, generator: localizer_and_images(network, size, generator),
        sizes=SIZES,
        contenders=(Contender("wsfast", post_processing, collect=cams_of), ALONE),
        oracle=in_float64,
        tolerance=TOLERANCE,
        targets=(Target(HEADLINE.label, SHARE, SHARE, (ALONE.name,), "slowdown"),),
        budget=SECONDS,
    )


CASES = [case(*network) for network in NETWORKS.items() for case in (whole, after)]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
