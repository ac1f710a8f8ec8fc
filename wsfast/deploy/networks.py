"""Networks that give class scores and heat maps in one forward pass, without gradients."""

import torch
from torch import Tensor, nn

from wsfast._check import check_count, value_error
from wsfast.cam.base import weighted_sum
from wsfast.models import FCAMModel, GAPClassifier
from wsfast.models.localizers import foreground_maps

_PROBED_ERROR = 1e-3  # relative; what float32 rounding of a deep network stays below


class CAMNetwork(nn.Module):
    """The closed form of CAM (Zhou 2016, eq. 2): the head's weights on the last feature map.

    Args:
        model: gives the feature map.
        head: the linear layer on its mean.
        target: class to explain; None takes the predicted one of each image.
        relu: drop the negative parts.
    """

    def __init__(
        self, model: nn.Module, head: nn.Linear, *, target: int | None = None, relu: bool = True
    ) -> None:
        super().__init__()
        if target is not None:
            check_count("deploy.Localizer", "target", target, 0)
            if target >= head.out_features:
                expected = f"below {head.out_features}, the number of classes"
                value_error("deploy.Localizer", "target", expected, f"{target}")
        self.model = model
        self.head = head
        self.target = -1 if target is None else target
        self.relu = relu

    def features(self, images: Tensor) -> Tensor:
        """The last feature map (N, C, h, w) of normalised images."""
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class scores and one map (N, h, w) per image, not normalised."""
        features = self.features(images)
        logits = self.head(features.mean(dim=(2, 3)))
        weight = self.head.weight.to(torch.float32)
        if self.target < 0:
            chosen = weight[logits.argmax(dim=1)]
        else:
            chosen = weight[self.target].expand(logits.shape[0], -1)
        maps = weighted_sum(chosen, features)
        return logits, [maps.relu() if self.relu else maps]


class StagesCAMNetwork(CAMNetwork):
    """The same of this package's classifiers, which give a feature map per stage."""

    def features(self, images: Tensor) -> Tensor:
        """The last feature map (N, C, h, w) of normalised images."""
        stages: list[Tensor] = self.model.forward_features(images)  # type: ignore[operator]
        return stages[-1]


class DecoderNetwork(nn.Module):
    """F-CAM: scores and foreground probability of one network."""

    def __init__(self, model: FCAMModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class scores and the foreground probability (N, H, W)."""
        logits, map_logits = self.model(images)
        return logits, [foreground_maps(map_logits)]


class PairNetwork(nn.Module):
    """DiPS and pseudo-labels: a localizer's probability, and the scores of its classifier.

    Args:
        localizer: from images to (N, 2, H, W) map logits.
        classifier: from images to (N, K) logits.
    """

    def __init__(self, localizer: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.localizer = localizer
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class scores and the foreground probability (N, H, W)."""
        return self.classifier(images), [foreground_maps(self.localizer(images))]


def cam_network(
    where: str,
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    target: int | None = None,
    relu: bool = True,
) -> CAMNetwork:
    """The closed form of CAM for a classifier that allows it.

    Args:
        where: name of the calling function, for messages.
        model: this package's or timm's.
        input_shape: channels, height and width of its input.
        target: see :class:`CAMNetwork`.
        relu: see :class:`CAMNetwork`.

    Raises:
        ValueError: logits that are not a linear layer on the mean of the last feature map, as one
            image shows; a class that the model has not.
    """
    if isinstance(model, GAPClassifier):
        return StagesCAMNetwork(model, model.fc, target=target, relu=relu)
    head = getattr(model, "get_classifier", lambda: None)()
    if hasattr(model, "forward_features") and isinstance(head, nn.Linear):
        network = CAMNetwork(model, head, target=target, relu=relu)
        if _is_closed_form(network, input_shape):
            return network
    value_error(
        where, "model",
        "a classifier of timm or wsfast.models that ends in global average pooling and one linear "
        "layer (else: WSOLClassifier('timm/NAME'), GradientLocalizer, or Localizer with a network "
        "of your own)",
        type(model).__name__,
    )  # fmt: skip
    raise AssertionError  # value_error always raises


def _is_closed_form(network: CAMNetwork, input_shape: tuple[int, int, int]) -> bool:
    """Whether the head on the mean of the feature map gives the model's own logits."""
    weight = network.head.weight
    image = torch.rand((1, *input_shape), generator=torch.Generator().manual_seed(0))
    image = image.to(device=weight.device, dtype=weight.dtype)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            features = network.features(image)
            if features.dim() != 4 or features.shape[1] != network.head.in_features:
                return False
            ours, theirs = network(image)[0], network.model(image)
    finally:
        network.train(was_training)
    error = (ours - theirs).abs().amax()
    return bool(error <= _PROBED_ERROR * theirs.abs().amax())
