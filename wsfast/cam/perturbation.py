"""Methods without gradients: a channel weighs what the score does with it, or without it."""

from collections.abc import Callable
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from .._check import check_count
from .base import CAMMethod, Explained, Options, weighted_sum
from .capture import Captured, LayerCapture, logits_of, undisturbed
from .layers import Layers
from .rerun import Rerun, bytes_per_image
from .targets import Target, resolve_target, target_scores

_MEMORY = 512 * 2**20


class PerturbationCAM(CAMMethod):
    """Base of the methods without gradients; a method defines :meth:`channel_weights`.

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`CAMMethod`; the last one by default, as every channel costs a pass.
        memory: bytes that one pass may take, roughly; channels are taken in groups that fit, at
            least one.
        fusion: see :class:`CAMMethod`.
    """

    differentiable = False

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "last",
        *,
        memory: int = _MEMORY,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, **fusion)
        check_count(self._where, "memory", memory, 1)
        self.memory = memory

    def channel_weights(
        self, captured: Captured, name: str, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        """(N, K, C) float32 weights of a layer's channels."""
        raise NotImplementedError

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One pass for activations and classes, then many without any capture."""
        captured = capture.run(images, graph="none")
        classes = resolve_target(self._where, target, captured.logits)
        maps = []
        with torch.no_grad():
            for name, activations in zip(captured.names, captured.activations(), strict=True):
                weights = self.channel_weights(captured, name, images, target, classes)
                with torch.autocast(images.device.type, enabled=False):
                    maps.append(self.layer_maps(weights, activations))
        return Explained(maps, captured.logits, classes)

    def layer_maps(self, weights: Tensor, activations: Tensor) -> Tensor:
        """(N, K, h, w) float32 from (N, K, C) weights: ``relu(sum_k w_k A_k)``."""
        return weighted_sum(weights, activations).relu_()

    def _groups(self, channels: int, per_image: int, batch: int) -> list[range]:
        """Channels by groups whose passes fit into the memory."""
        size = max(1, self.memory // (per_image * batch))
        return [range(i, min(i + size, channels)) for i in range(0, channels, size)]


class ScoreCAM(PerturbationCAM):
    r"""Score-CAM: channels weigh the score of the image seen through them (Wang 2020, eq. 3-5).

    .. math:: w = \mathrm{softmax}_k\, y^c(x \odot H_k), \qquad
              H_k = \mathrm{minmax}(\mathrm{up}(A^k))

    The paper's baseline score is the same for all channels and cancels in the softmax.

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`PerturbationCAM`.
        memory: see :class:`PerturbationCAM`.
        align_corners: of the masks' bilinear resizing; True is pytorch-grad-cam's.
        fusion: see :class:`CAMMethod`.

    Note:
        One forward pass per channel and image, in groups. Masks change the image, so the whole
        model has to run.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "last",
        *,
        memory: int = _MEMORY,
        align_corners: bool = False,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, memory=memory, **fusion)
        self.align_corners = align_corners

    def channel_weights(
        self, captured: Captured, name: str, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        """Softmax over channels of the masked images' scores."""
        activations = captured.activations()[captured.names.index(name)]
        return self.mask_weights(activations, images, target, classes)

    def mask_weights(
        self, activations: Tensor, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        """:meth:`channel_weights` from a layer's (N, C, h, w) maps."""
        # Not finite ones: those images have no map anyway, and must not stop the others.
        activations = activations.float().nan_to_num(0.0, 0.0, 0.0)
        scores = self.channel_scores(activations, images, target, classes)
        return scores.softmax(dim=0).permute(1, 2, 0)

    def channel_scores(
        self, activations: Tensor, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        """Scores (C, N, K), float32, of the images seen through each channel of (N, C, h, w)."""
        masks = partial(self.group_masks, activations, images)
        return self.masked_scores(masks, activations.shape[1], images, target, classes)

    def group_masks(self, activations: Tensor, images: Tensor, group: range) -> Tensor:
        """Masks (channels, N, H, W), in 0-1, of a group of channels."""
        part = activations[:, group.start : group.stop].transpose(0, 1)
        return self._masks(part.flatten(0, 1), images).unflatten(0, part.shape[:2])

    def masked_scores(
        self,
        masks: Callable[[range], Tensor],
        channels: int,
        images: Tensor,
        target: Target,
        classes: Tensor | None,
    ) -> Tensor:
        """Scores (C, N, K), float32, of the images times each channel's masks.

        Args:
            masks: from a group of channels to its (channels, N, H, W) masks.
            channels: C.
            images: see :meth:`__call__`.
            target: see :meth:`__call__`.
            classes: class numbers of the target, None for a callable.
        """
        scores = []
        for group in self._groups(channels, bytes_per_image(self.model, images), len(images)):
            masked = (images * masks(group)[:, :, None].to(images)).flatten(0, 1)
            with undisturbed(self.model, images.device):
                logits = logits_of(self._where, self.model(masked), masked)
            scores.append(target_scores(self._where, target, classes, logits, len(group)))
        return torch.cat(scores)

    def _masks(self, activations: Tensor, images: Tensor) -> Tensor:
        """(M, h, w) activations at image size, in 0-1."""
        size = (images.shape[2], images.shape[3])
        activations = activations.to(images.device)
        if not self.align_corners:
            return ops.fuse_cams([activations], size, layer_norm=None, reduce="sum", eps=1e-8)
        large = F.interpolate(activations[:, None], size, mode="bilinear", align_corners=True)
        return ops.normalize_cams(large[:, 0], eps=1e-8)


class AblationCAM(PerturbationCAM):
    r"""Ablation-CAM: channels weigh what the score loses without them (Desai 2020, eq. 3).

    .. math:: w_k = \frac{y^c - y^c_k}{|y^c|}

    with :math:`y^c_k` the score where channel k is zero everywhere. The paper divides by
    :math:`y^c`, which for a negative score would turn the map around.

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`PerturbationCAM`.
        memory: see :class:`PerturbationCAM`.
        signed: divide by the score itself, as the paper's eq. 3 does.
        fusion: see :class:`CAMMethod`.

    Raises:
        ValueError: also, when called, a ``reshape=`` whose channels are not one of the dimensions
            of the layer's output: what is zeroed is that output's channel, in all of its tokens.

    Note:
        Per channel and image, the part of the model behind the layer runs once, in groups: what
        comes before the layer is not run again. Where a model cannot be cut there, it runs whole.

        Scores are float32 under autocast too: what one channel does is less than a bfloat16 step of
        a logit. In a model whose own parameters are bfloat16 or float16 such steps remain, and the
        weights of most channels are noise: give it as ``copy.deepcopy(model).float()``.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "last",
        *,
        memory: int = _MEMORY,
        signed: bool = False,
        **fusion: Unpack[Options],
    ) -> None:
        super().__init__(model, layers, memory=memory, **fusion)
        self.signed = signed

    def channel_weights(
        self, captured: Captured, name: str, images: Tensor, target: Target, classes: Tensor | None
    ) -> Tensor:
        """Share of the score lost with each channel."""
        rerun = Rerun(self._where, self.model, self.model.get_submodule(name), images)
        features, along = rerun.features, captured.channel_dimension(name)
        scores = []
        for group in self._groups(features.shape[along], rerun.bytes_per_image, len(images)):
            without = features.repeat(len(group), 1, *(1,) * (features.dim() - 2))
            versions = without.unflatten(0, (len(group), -1)).movedim(along + 1, 1)
            versions[range(len(group)), list(group)] = 0
            logits = rerun.logits(without, len(group))
            scores.append(target_scores(self._where, target, classes, logits, len(group)))
        logits = rerun.logits(features.clone(), 1)  # so that both sides round alike
        full = target_scores(self._where, target, classes, logits, 1)
        lost = (full - torch.cat(scores)).permute(1, 2, 0)
        divisor = full[0].unsqueeze(2)
        divisor = divisor if self.signed else divisor.abs()
        return lost / divisor.where(divisor != 0, torch.ones_like(divisor))
