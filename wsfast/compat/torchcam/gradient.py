"""Extractors whose maps are formulas on activations and gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from ... import cam as methods
from ...cam import ChannelCAM, GradientCAM
from ...cam.base import weighted_sum
from ...cam.capture import logits_of, start_graph, undisturbed, usable_images
from .extractor import Extractor, InputExtractor, Layer, image_scores


class GradientExtractor(Extractor):
    """An extractor with a formula of :mod:`wsfast.cam`, see :class:`Extractor`."""

    formula: type[GradientCAM]

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        self._formula = self.formula(model, self._layers)

    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        outputs = [output for output in self._outputs if output is not None]
        score = image_scores(self._where, scores, class_idx, targets).sum()
        grads = _gradients(self._where, score, outputs, retain_graph=retain_graph)
        with torch.no_grad():
            return [
                self._formula.layer_map(a, self._as_maps(g)).to(a.dtype)
                for a, g in zip(self._activations(), grads, strict=True)
            ]


def _gradients(
    where: str, score: Tensor, outputs: list[Tensor], *, retain_graph: bool
) -> tuple[Tensor, ...]:
    """Gradients of a score at the layers' outputs."""
    try:
        return torch.autograd.grad(score, outputs, retain_graph=retain_graph)
    except RuntimeError as error:
        message = f"wsfast.{where}: the scores have no graph to every target layer"
        raise RuntimeError(message) from error


class GradCAM(GradientExtractor):
    """:class:`wsfast.cam.GradCAM`."""

    formula = methods.GradCAM


class _Cubed(ChannelCAM):
    """``w_k = sum(relu(g_k)^3)``."""

    def channel_weights(self, activations: Tensor, grads: Tensor) -> Tensor:
        return grads.float().relu().pow_(3).sum(dim=(2, 3))


class GradCAMpp(GradientExtractor):
    """Weights ``sum(relu(g)^3)``, see the top of this package."""

    formula = _Cubed


class XGradCAM(GradientExtractor):
    """:class:`wsfast.cam.XGradCAM`."""

    formula = methods.XGradCAM


class LayerCAM(GradientExtractor):
    """:class:`wsfast.cam.LayerCAM`; layers are fused after ``tanh(2 x)``."""

    formula = methods.LayerCAM

    @staticmethod
    def _scale(cam: Tensor) -> Tensor:
        return torch.tanh(2 * cam)


class SmoothGradCAMpp(InputExtractor):
    r"""Grad-CAM++ weights from noisy copies of the images, as torchcam has them.

    .. math:: w_k = \sum_{ij} \frac{D_2}{2 D_2 + \sum_{ab} D_3 A^k_{ab} + 10^{-8}}
              \mathrm{relu}(g^k_{ij})

    with :math:`D_p` the mean of the gradient's p-th power over the copies, A of the clean image,
    and g of the last copy, whose activations are weighted too.

    Args:
        model: see :class:`Extractor`.
        target_layer: see :class:`Extractor`.
        num_samples: noisy copies per image.
        std: of the noise, in units of the images.
        input_shape: see :class:`Extractor`.
        kwargs: see :class:`Extractor`.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        num_samples: int = 4,
        std: float = 0.3,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        self.num_samples = num_samples
        self.std = std

    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        clean = [a.float() for a in self._activations()]
        squares, cubes = ([torch.zeros_like(a) for a in clean] for _ in range(2))
        last: list[tuple[Tensor, Tensor]] = []
        images, outputs = self._input, self._outputs
        assert images is not None
        usable = usable_images(self._where, images)
        try:
            for _ in range(self.num_samples):
                last = self._noisy_pass(usable, class_idx, targets)
                for square, cube, (_, grads) in zip(squares, cubes, last, strict=True):
                    square += grads**2
                    cube += grads**3
        finally:
            self._input, self._outputs = images, outputs
        return [
            self._layer_map(square / self.num_samples, cube / self.num_samples, a, *final)
            for square, cube, a, final in zip(squares, cubes, clean, last, strict=True)
        ]

    def _noisy_pass(
        self, images: Tensor, class_idx: Any, targets: Any
    ) -> list[tuple[Tensor, Tensor]]:
        """Activations and gradients of every layer for one noisy copy, float32.

        One at a time, as torchcam: another batch size rounds convolutions differently, which
        alpha's denominator can amplify where its terms cancel.
        """
        noise = torch.distributions.Normal(0.0, self.std).sample(images.shape).to(images.device)
        if images.is_floating_point():  # whole numbers become float32, as torchcam's do
            noise = noise.to(images.dtype)
        self.reset_hooks()
        with (
            self._hooks(enabled=True),
            undisturbed(self.model, images.device),
            torch.enable_grad(),
        ):
            output = self.model(start_graph(images + noise))
            logits = logits_of(self._where, output, images)
            score = image_scores(self._where, logits, class_idx, targets).sum()
            outputs = [output for output in self._outputs if output is not None]
            grads = _gradients(self._where, score, outputs, retain_graph=False)
        return [
            (a.float(), self._as_maps(g).float())
            for a, g in zip(self._activations(), grads, strict=True)
        ]

    def _layer_map(
        self, square: Tensor, cube: Tensor, clean: Tensor, activations: Tensor, grads: Tensor
    ) -> Tensor:
        alpha = square / (2 * square + (cube * clean).sum(dim=(2, 3), keepdim=True) + 1e-8)
        weights = (alpha * grads.relu()).sum(dim=(2, 3))
        return weighted_sum(weights, activations).relu_()

    def __repr__(self) -> str:
        name = f"{type(self).__name__}(target_layer={self.target_names}, "
        return f"{name}num_samples={self.num_samples}, std={self.std})"
