"""The maps that DiPS' proposals come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from wsfast._check import value_error
from wsfast.cam.attention import cls_attention, load_attention_model, on_images
from wsfast.models import load_weights
from wsfast.train.classifier import build_cam
from wsfast.train.images import ImageData, pretrained_normalization
from wsfast.train.store import weights_digest

_HEADS = 4  # single heads beside the mean of all, as published


class MapSources:
    """The maps that proposals come from: attention heads, or CAMs of the classifier.

    Args:
        names: ``"attention"`` or CAM methods of the classifier.
        classifier: for CAMs.
        device: where the transformer is.
        data: what the images are normalised with.
        transformer: timm's name of the one whose attention is taken.
        checkpoint: file of its weights; empty downloads timm's.

    Attributes:
        count: maps per image.
    """

    def __init__(
        self,
        names: Sequence[str],
        classifier: nn.Module,
        device: torch.device,
        data: ImageData,
        *,
        transformer: str,
        checkpoint: str,
    ) -> None:
        self.names = list(names)
        self._seen = pretrained_normalization(transformer, checkpoint, 3)
        mean, std, ours_mean, ours_std = (
            torch.tensor(values, device=device).reshape(1, -1, 1, 1)
            for values in (*self._seen, data.mean, data.std)
        )
        # From images normalised for the classifier to images normalised for the transformer.
        self._scale, self._shift = ours_std / std, (ours_mean - mean) / std
        self.classifier = classifier.eval()
        self.cams = [name for name in names if name != "attention"]
        self.transformer: Any = None
        self.count = len(self.cams)
        if "attention" in names:
            self.transformer = _transformer(transformer, checkpoint).to(device)
            heads = int(self.transformer.blocks[-1].attn.num_heads)
            self.count += 1 + min(_HEADS, heads)

    def key(self) -> dict[str, Any]:
        """What the maps depend on."""
        found: dict[str, Any] = {"maps": ",".join(self.names)}
        if self.cams:
            found["classifier"] = weights_digest(self.classifier)
        if self.transformer is not None:
            found["transformer"] = weights_digest(self.transformer)
            found["seen"] = self._seen
            found["placed"] = True  # maps were once stretched over what is no whole patch
        return found

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that is kept: that of the images, of attention to whole patches alone theirs."""
        if self.transformer is None or self.cams:
            return size
        height, width = self.transformer.patch_embed.patch_size
        if size[0] % height or size[1] % width:
            return size  # the last patches end before the image does
        return size[0] // height, size[1] // width

    def __call__(self, images: Tensor, targets: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (N, M, h, w) of 0-1 of normalised images, each divided by its maximum."""
        found = []
        if self.transformer is not None:
            with torch.no_grad():
                seen = images * self._scale + self._shift  # three channels, of grey images too
                heads = cls_attention(self.transformer, seen).float()
            maps = torch.cat([heads.mean(1, keepdim=True), heads[:, :_HEADS]], dim=1)
            placed = on_images(self.transformer, maps.flatten(0, 1), images, size)
            maps = placed.unflatten(0, maps.shape[:2])
            found.append(maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12))
        for name in self.cams:
            explain = build_cam(self.classifier, _CAM(name))
            found.append(explain(images, targets).cams[:, None])
        return torch.cat(found, dim=1)


@dataclass(frozen=True)
class _CAM:
    """What :func:`build_cam` needs to know."""

    method: str
    layers: str = ""
    percentile: float = 50.0


def _transformer(name: str, checkpoint: str) -> nn.Module:
    if not timm.is_model(name):
        value_error("train", "transformer", "a timm model", f"'{name}'")
    if not checkpoint:
        try:
            return load_attention_model(name)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            value_error(
                "train", "transformer", "downloadable, or transformer_checkpoint given", reason
            )
    model = load_attention_model(name, pretrained=False)
    load_weights(model, checkpoint)
    return model
