"""Recipes without their networks: F-CAM's and DiPS' own code on answers that are known already."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast.train import DiPSConfig, DiPSRecipe, FCAMConfig, FCAMRecipe
from wsfast.train.images import TrainingSample

from . import bench_seeds
from .training import CLASS_WEIGHT, CLASSES, Iteration, Terms, image_data, normalized

# What the authors recommend beside their ILSVRC settings, which draw 30 times as many.
DIPS = {"foreground": 200, "background": 200, "foreground_share": 0.2, "background_share": 0.2}


class FCAMStandIn(nn.Module):
    """Answers what F-CAM's network would have computed."""

    def __init__(self, inputs: Iteration) -> None:
        super().__init__()
        self.inputs = inputs
        self.classifier: Any = nn.Module()
        self.classifier.cam_weights = inputs.cam_weights

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """The given features."""
        return [self.inputs.features]

    def decoder(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The given logits."""
        return self.inputs.logits


def fcam_recipe(inputs: Iteration) -> FCAMRecipe:
    config = FCAMConfig(select_on="last", maps="recompute", **bench_seeds.FCAM)
    model: Any = FCAMStandIn(inputs)
    data = image_data(inputs.batch)
    return FCAMRecipe(config, model, inputs.logits.device, data, folder=Path())


class Pooled(nn.Module):
    """Takes the classifier's place: a linear layer on 4x4 means."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("weight", torch.randn(CLASSES, 48, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        pooled = F.adaptive_avg_pool2d(images, 4).flatten(1)
        return pooled @ self.weight.to(pooled).T


class Answer(nn.Module):
    """Answers what DiPS' localizer would have computed."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        """The given logits."""
        return self.logits


class WithMaps(DiPSRecipe):
    """The recipe with maps that are there already."""

    def __init__(
        self, config: DiPSConfig, model: nn.Module, batch: TrainingSample, maps: Tensor
    ) -> None:
        self._given = maps.cpu().numpy()
        super().__init__(
            config, model, batch.image.device, image_data(batch), classifier=Pooled(), folder=Path()
        )

    def _make_maps(self, *arguments: Any) -> Any:
        return self._given

    def _make_proposals(self, *arguments: Any) -> Any:
        return np.full((len(self._given), 1, 6), -1, np.float32)  # none: batches have their boxes


def dips_recipe(inputs: Iteration) -> WithMaps:
    config = DiPSConfig(
        select_on="last", maps="cam", class_weight=CLASS_WEIGHT, detach=True, **DIPS
    )
    return WithMaps(config, Answer(inputs.logits), inputs.batch, inputs.batch.map)


def class_loss(inputs: Iteration, prob: Tensor) -> Terms:
    """As published: the map is a constant here, so nothing learns from it."""
    images = normalized(inputs.batch.image)
    seen = images * prob[:, 1:].detach()
    logits = Pooled().to(images.device)(seen)
    return {"class": CLASS_WEIGHT * F.cross_entropy(logits, inputs.labels())}
