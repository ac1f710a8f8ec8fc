"""What a CAM call returns."""

from typing import NamedTuple

from torch import Tensor


class CAMResult(NamedTuple):
    """Maps of one call; N images, L layers, K classes per image where several were asked for.

    Attributes:
        cams: fused maps, (N, H, W) float32 at input size, or (N, K, H, W) for an (N, K) target.
        per_layer: the unfused map of each layer, (N, h, w) or (N, K, h, w) float32, in the order
            in which the layers were asked for; not normalised.
        logits: the model's output, (N, classes), detached unless ``create_graph``.
        target: the explained class of each image, (N,) or (N, K) int64; None for a callable.
        valid: (N,) bool, False where logits or maps are not finite, or where a class number on an
            accelerator does not exist. Such an image has zero maps, never NaN. A flat map, too, is
            zero after min-max, but valid.
    """

    cams: Tensor
    per_layer: list[Tensor]
    logits: Tensor
    target: Tensor | None
    valid: Tensor
