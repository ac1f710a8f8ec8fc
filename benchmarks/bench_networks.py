"""The networks of an iteration of F-CAM and of DiPS, the part that is torch's.

Ours are the same networks as the published ones; what differs is how often they run: F-CAM's
classifier once instead of once more for the CAMs, image by image.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsfast.models import FCAMModel, UNetDecoder, UNetLocalizer, WSOLClassifier

from .harness import Case, Contender, eager
from .records import Size
from .training import CLASSES


class Networks(NamedTuple):
    """ResNet50s: what is trained, and a frozen classifier beside it."""

    images: Tensor
    model: Any
    classifier: nn.Module


def fcam_networks(size: Size, generator: torch.Generator) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = WSOLClassifier("resnet50", CLASSES)
        model = FCAMModel(classifier, UNetDecoder.of(classifier)).train()
    images = torch.randn(size.batch, 3, size.side, size.side, generator=generator)
    return Networks(images, model, copy.deepcopy(classifier).eval())


def dips_networks(size: Size, generator: torch.Generator) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNetLocalizer("resnet50").train()
        classifier = WSOLClassifier("resnet50", CLASSES).requires_grad_(False).eval()
    images = torch.randn(size.batch, 3, size.side, size.side, generator=generator)
    return Networks(images, model, classifier)


def with_all_gradients(loss: Tensor, model: nn.Module, shown: Tensor) -> list[Tensor]:
    """The loss and one gradient; all others are computed too, as an optimizer wants them."""
    trained = [p for p in model.parameters() if p.requires_grad and p is not shown]
    gradients = torch.autograd.grad(loss, [shown, *trained], allow_unused=True)
    return [loss.detach(), gradients[0]]


def train_fcam(inputs: Networks) -> list[Tensor]:
    """Encoder without and decoder with gradients; CAMs come from the same features."""
    with torch.no_grad():
        features = inputs.model.forward_features(inputs.images)
    decoder = inputs.model.decoder
    prob = decoder(features, tuple(inputs.images.shape[2:])).softmax(1)
    return with_all_gradients(prob[:, 1].square().mean(), decoder, decoder.head.bias)


def train_fcam_as_published(inputs: Networks) -> list[Tensor]:
    """CAMs cost a second forward pass, image by image."""
    with torch.no_grad():
        for image in inputs.images:
            inputs.classifier(image[None])
    return train_fcam(inputs)


def train_dips(inputs: Networks) -> list[Tensor]:
    """Localizer, and the classifier on image x map, whose gradient reaches the localizer."""
    prob = inputs.model(inputs.images).softmax(1)[:, 1:]
    told = inputs.classifier(inputs.images * prob).square().mean()
    return with_all_gradients(
        prob.square().mean() + told, inputs.model, inputs.model.decoder.head.bias
    )


def in_float64(train: Callable[[Networks], list[Tensor]]) -> Callable[[Networks], list[Tensor]]:
    def oracle(inputs: Networks) -> list[Tensor]:
        networks = [copy.deepcopy(network).cpu().double() for network in inputs[1:]]
        return train(Networks(inputs.images.cpu().double(), *networks))

    return oracle


CASES = [
    Case(
        room="train",
        operation="F-CAM's ResNet50 and decoder, forward and backward",
        inputs=fcam_networks,
        sizes=(Size(1, 224), Size(4, 224, headline=True), Size(8, 224)),
        contenders=(
            Contender("wsfast", eager(train_fcam)),
            Contender(
                "published order",
                eager(train_fcam_as_published),
                note="a second classifier makes the CAMs, image by image",
            ),
        ),
        oracle=in_float64(train_fcam),
        tolerance=1e-3,
    ),
    Case(
        room="train",
        operation="DiPS' localizer and classifier (ResNet50), forward and backward",
        inputs=dips_networks,
        sizes=(Size(1, 224, headline=True), Size(2, 224), Size(4, 224)),
        contenders=(Contender("wsfast", eager(train_dips)),),
        oracle=in_float64(train_dips),
        tolerance=1e-3,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
