"""Smooth Grad-CAM++: derivatives averaged over noisy copies of the images."""

from typing import Unpack

import torch
from torch import Tensor, nn

from .._check import check_count, check_range
from .base import CAMMethod, Explained, Options, weighted_sum
from .capture import Captured, LayerCapture
from .layers import Layers
from .targets import Target, resolve_target, score_seeds


class SmoothGradCAMPlusPlus(CAMMethod):
    r"""Smooth Grad-CAM++: Grad-CAM++ weights from n noisy copies (Omeiza 2019, eq. 5-7).

    .. math:: w_k = \sum_{ij} \alpha^k_{ij}\, \mathrm{relu}(D_1^k), \qquad
              \alpha^k = \frac{D_2^k}
              {\max(2 D_2^k + D_3^k\, \mathrm{relu}(\sum_{ab} A^k_{ab}),\; D_2^k)}

    with :math:`D_p` the mean over the copies of the gradient's p-th power, and A the activations of
    the clean image. The paper's denominator is the maximum's first part without the ReLU. It passes
    through 0 where the sum is negative (layers without ReLU) and, behind any layer, where the
    copies' gradients disagree: :math:`D_3 < 0 < D_1`. So a negative sum counts as 0, as in
    :class:`GradCAMPlusPlus`, and :math:`\alpha` is 1 at most; elsewhere it is the paper's.

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`CAMMethod`.
        samples: noisy copies per image.
        noise: standard deviation of the Gaussian noise in shares of each image's range.
        seed: of the noise, which has a generator of its own.
        max_batch: images per forward pass at most, noisy copies counted.
        fusion: see :class:`CAMMethod`.

    Note:
        The images of a batch share their noise, each scaled to its range, so that a map depends
        neither on batch mates nor on ``max_batch``. It is the same for the same seed, device, dtype
        and shape of an image; torch's generators are left alone. Costs about ``samples`` Grad-CAMs.
    """

    differentiable = False

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        samples: int = 8,
        noise: float = 0.15,
        seed: int = 0,
        max_batch: int = 32,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, **fusion)
        check_count(self._where, "samples", samples, 1)
        check_range(self._where, "noise", noise, 0.0, float("inf"))
        check_count(self._where, "seed", seed, 0)
        check_count(self._where, "max_batch", max_batch, 1)
        self.samples = samples
        self.noise = noise
        self.seed = seed
        self.max_batch = max_batch

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One clean pass for activations and classes, then the noisy copies by batches."""
        clean = capture.run(images, graph="none")
        classes = resolve_target(self._where, target, clean.logits)
        moments: list[list[Moments]] = []
        generator = torch.Generator(images.device).manual_seed(self.seed)
        group = max(1, self.max_batch // len(images))
        for first in range(0, self.samples, group):
            copies = min(group, self.samples - first)
            noisy = capture.run(self._noisy(images, copies, generator))
            grads = self._gradients(noisy, target, classes, copies)
            if not moments:
                moments = [[Moments(a) for a in clean.activations()] for _ in grads]
            for sums, layers in zip(moments, grads, strict=True):
                for moment, grad in zip(sums, layers, strict=True):
                    moment.add(grad, copies)
        with torch.autocast(images.device.type, enabled=False):
            by_class = [[moment.layer_map() for moment in sums] for sums in moments]
        maps = [torch.stack(layer, dim=1) for layer in zip(*by_class, strict=True)]
        return Explained(maps, clean.logits, classes)

    def _noisy(self, images: Tensor, copies: int, generator: torch.Generator) -> Tensor:
        """``copies`` noisy versions of the batch, one after the other."""
        images = images.detach()
        flat = images.flatten(1)
        spread = self.noise * (flat.amax(dim=1) - flat.amin(dim=1))
        # Copy by copy: of all at once the numbers would depend on how many they are.
        draws = [
            torch.randn(images.shape[1:], generator=generator, device=flat.device, dtype=flat.dtype)
            for _ in range(copies)
        ]
        noise = torch.stack(draws)[:, None] * spread.view(-1, 1, 1, 1)
        return (images + noise).flatten(0, 1)

    def _gradients(
        self, noisy: Captured, target: Target, classes: Tensor | None, copies: int
    ) -> list[list[Tensor]]:
        """Gradients by class and layer; a callable sees one copy of the batch at a time."""

        def by_copy(logits: Tensor) -> Tensor:
            parts = [score_seeds(self._where, target, None, part) for part in logits.chunk(copies)]
            return torch.cat([seed.scores for (seed,) in parts])

        repeated = None if classes is None else classes.repeat(copies, *(1,) * (classes.dim() - 1))
        seeds = score_seeds(
            self._where, by_copy if repeated is None else repeated, repeated, noisy.logits
        )
        return [
            noisy.gradients(seed.scores, seed.weights, keep_graph=seed is not seeds[-1])
            for seed in seeds
        ]


class Moments:
    """Sums over noisy copies of a layer's gradients to the powers 1, 2 and 3, in float32.

    Args:
        activations: (N, C, h, w) of the clean images.
    """

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations
        self.copies = 0
        self.sums = [torch.zeros_like(activations, dtype=torch.float32) for _ in range(3)]

    @torch.no_grad()
    def add(self, grads: Tensor, copies: int) -> None:
        """Add (copies * N, C, h, w) gradients."""
        g = grads.float().unflatten(0, (copies, -1))
        self.copies += copies
        for power, total in enumerate(self.sums, start=1):
            total += (g**power).sum(dim=0)

    @torch.no_grad()
    def layer_map(self) -> Tensor:
        """(N, h, w): Grad-CAM++ with the mean powers."""
        first, second, third = (total / self.copies for total in self.sums)
        total = self.activations.sum(dim=(2, 3), keepdim=True, dtype=torch.float32).relu()
        denominator = torch.maximum(2 * second + total * third, second)
        nothing = denominator == 0
        alpha = (second / denominator.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)
        return weighted_sum((alpha * first.relu()).sum(dim=(2, 3)), self.activations).relu_()
