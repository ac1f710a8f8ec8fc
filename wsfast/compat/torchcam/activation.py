"""Extractors without gradients: the classifier's own weights, or scores of masked images."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import cam as methods
from ... import ops
from ..._check import value_error
from ...cam.base import weighted_sum
from ...cam.targets import Target
from .._shared import OutputTarget
from .extractor import Extractor, InputExtractor, Layer, check_classes, image_scores


class CAM(Extractor):
    """The classifier's own weights, negative parts kept.

    Args:
        model: see :class:`Extractor`.
        target_layer: one layer.
        fc_layer: the linear layer (or 1 x 1 convolution); None takes the only one there is.
        input_shape: see :class:`Extractor`.
        kwargs: see :class:`Extractor`.
    """

    uses_scores = False

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        fc_layer: Layer | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        if len(self.target_names) > 1:
            value_error(self._where, "target_layer", "one layer", f"{self.target_names}")
        self._head = self.submodule_dict[self._head_name(fc_layer)]

    def _head_name(self, fc_layer: Layer | None) -> str:
        if fc_layer is not None:
            return self._name(fc_layer)
        linear = [n for n, module in self.submodule_dict.items() if isinstance(module, nn.Linear)]
        if len(linear) != 1:
            expected = "given for a model without exactly one linear layer"
            value_error(self._where, "fc_layer", expected, f"None ({len(linear)} layers)")
        return linear[0]

    @torch.no_grad()
    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        if targets is not None:
            value_error(self._where, "targets", "None for this method", "callables")
        (activations,) = self._activations()
        weight: Tensor = self._head.weight
        check_classes(self._where, class_idx, len(weight))
        rows = [class_idx] * len(activations) if isinstance(class_idx, int) else class_idx
        return [weighted_sum(weight.flatten(1)[rows].float(), activations).to(activations.dtype)]


class _NormalizedFirst(methods.ScoreCAM):
    """Score-CAM whose masks are normalised before they are resized."""

    def _masks(self, activations: Tensor, images: Tensor) -> Tensor:
        size = (images.shape[2], images.shape[3])
        return ops.fuse_cams(
            [activations.to(images.device)], size, reduce="sum", norm=None, eps=1e-8
        )


class _Noisy(_NormalizedFirst):
    """Scores averaged over masks with Gaussian noise."""

    def __init__(self, *args: Any, samples: int, std: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.samples = samples
        self.std = std

    def channel_scores(
        self, activations: Tensor, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        channels = activations.shape[1]
        distribution = torch.distributions.Normal(0.0, self.std)
        sums: Tensor | float = 0.0
        for _ in range(self.samples):
            # All of it at once, to take torchcam's numbers from the generator.
            noise = distribution.sample(torch.Size((len(images), channels, *images.shape[2:])))

            def masks(group: range, noise: Tensor = noise) -> Tensor:
                part = noise[:, group.start : group.stop].transpose(0, 1)
                return self.group_masks(activations, images, group) + part.to(images.device)

            sums = sums + self.masked_scores(masks, channels, images, target, classes)
        return torch.as_tensor(sums / self.samples)


class _Integrated(_NormalizedFirst):
    """Scores averaged along a path of growing masks."""

    def __init__(self, *args: Any, samples: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.samples = samples

    def channel_scores(
        self, activations: Tensor, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        sums: Tensor | float = 0.0
        factor = 0.0
        for step in range(1, self.samples + 1):
            factor += step / self.samples

            def masks(group: range, factor: float = factor) -> Tensor:
                return factor * self.group_masks(activations, images, group)

            sums = sums + self.masked_scores(masks, activations.shape[1], images, target, classes)
        return torch.as_tensor(sums / self.samples)


class ScoreCAM(InputExtractor):
    """:class:`wsfast.cam.ScoreCAM` on masks that are normalised before they are resized.

    Args:
        model: see :class:`Extractor`.
        target_layer: see :class:`Extractor`.
        batch_size: taken and ignored: groups of channels follow the memory.
        input_shape: see :class:`Extractor`.
        kwargs: see :class:`Extractor`.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        batch_size: int = 32,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        super().__init__(model, target_layer, input_shape, **kwargs)
        self.bs = batch_size
        self._method = self._build()

    def _build(self) -> methods.ScoreCAM:
        return _NormalizedFirst(self.model, self._layers)

    @torch.no_grad()
    def _maps(self, class_idx: Any, scores: Any, targets: Any, retain_graph: bool) -> list[Tensor]:
        target = partial(image_scores, self._where, class_idx=class_idx, targets=targets)
        with self.watching_nothing() as images:
            return [self._layer_map(a, images, target) for a in self._activations()]

    def _layer_map(self, activations: Tensor, images: Tensor, target: OutputTarget) -> Tensor:
        weights = self._method.mask_weights(activations, images, target, None)
        with torch.autocast(images.device.type, enabled=False):
            return self._method.layer_maps(weights, activations)[:, 0].nan_to_num()


class SSCAM(ScoreCAM):
    r"""Score-CAM with scores averaged over noisy masks (SS-CAM, Wang 2020).

    .. math:: w = \mathrm{softmax}_k\, \frac1n \sum_i y^c((H_k + \delta_i) \odot x),
              \qquad \delta_i \sim \mathcal{N}(0, \sigma^2)

    Args:
        model: see :class:`Extractor`.
        target_layer: see :class:`Extractor`.
        batch_size: see :class:`ScoreCAM`.
        num_samples: n.
        std: standard deviation of the noise.
        input_shape: see :class:`Extractor`.
        kwargs: see :class:`Extractor`.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        batch_size: int = 32,
        num_samples: int = 35,
        std: float = 2.0,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        self.num_samples = num_samples
        self.std = std
        super().__init__(model, target_layer, batch_size, input_shape, **kwargs)

    def _build(self) -> methods.ScoreCAM:
        return _Noisy(self.model, self._layers, samples=self.num_samples, std=self.std)


class ISCAM(ScoreCAM):
    r"""Score-CAM with scores averaged along a path of masks (IS-CAM, Naidu 2020), as torchcam.

    .. math:: w = \mathrm{softmax}_k\, \frac1n \sum_{i=1}^n
              y^c\Big(\sum_{j=1}^{i} \frac{j}{n}\, H_k \odot x\Big)

    Args:
        model: see :class:`Extractor`.
        target_layer: see :class:`Extractor`.
        batch_size: see :class:`ScoreCAM`.
        num_samples: n.
        input_shape: see :class:`Extractor`.
        kwargs: see :class:`Extractor`.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        batch_size: int = 32,
        num_samples: int = 10,
        input_shape: tuple[int, ...] = (3, 224, 224),
        **kwargs: Any,
    ) -> None:
        self.num_samples = num_samples
        super().__init__(model, target_layer, batch_size, input_shape, **kwargs)

    def _build(self) -> methods.ScoreCAM:
        return _Integrated(self.model, self._layers, samples=self.num_samples)
