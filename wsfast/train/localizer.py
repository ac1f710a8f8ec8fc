"""What recipes that learn a map share: its validation and what can go wrong with it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsfast.nn import MaskedClassifierLoss
from wsfast.train.config import TrainConfig
from wsfast.train.images import ImageData, ImageRecipe, TrainingSample
from wsfast.train.validation import ClassScores, MapScores, score_regions, with_regions

_NOTHING, _EVERYTHING = 0.0005, 0.9  # shares of pixels at which a map counts as collapsed


class ProposalPreview(NamedTuple):
    """The proposals of one whole training image, best first.

    Attributes:
        image: uint8 (C, H, W).
        boxes: int32 (P, 4), half-open.
        scores: (P,), the probability of the image's class when only the box is sharp.
        map: (H, W) of 0-1 that the best box comes from.
        seen: uint8 (C, H, W), the image as the classifier saw the best box.
    """

    image: Tensor
    boxes: Tensor
    scores: Tensor
    map: Tensor
    seen: Tensor


class Preview(NamedTuple):
    """What the images of a batch are learnt from.

    Attributes:
        maps: (N, H, W) of 0-1.
        seeds: (N, H, W) int64: 1 foreground, 0 background, -255 not learnt.
        proposals: one per image, of recipes that have them.
    """

    maps: Tensor
    seeds: Tensor
    proposals: Sequence[ProposalPreview] = ()


class LocalizerRecipe(ImageRecipe):
    """Base of the recipes whose model gives a foreground map.

    Args:
        config: settings.
        model: what is trained.
        device: where.
        data: images, labels, and masks or boxes of validation images.
        classifier: frozen; scores the images as seen through the maps, which needs labels only.

    Attributes:
        notes: what a user should know before anything is trained; told with the first epoch.

    Raises:
        ValueError: validation images cannot choose the best model by ``select_on``.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        device: torch.device,
        data: ImageData,
        classifier: nn.Module | None,
    ) -> None:
        super().__init__(config, model, device, data)
        self.notes: list[str] = []
        self.masked = None if classifier is None else MaskedClassifierLoss(classifier.to(device))
        if self.has_regions():
            self.selections = {"localization": "localization"}
        shown = [] if data.validation is None else data.validation.labels.tolist()
        if classifier is not None and any(label != data.clean_class for label in shown):
            self.selections = {**self.selections, "classification": "masked_accuracy"}
        self.check_selection()  # before maps are made, which may take hours

    @abstractmethod
    def foreground(self, images: Tensor) -> Tensor:
        """Foreground probability (N, H, W), float32, of normalised images."""

    @abstractmethod
    def preview(self, batch: TrainingSample, epoch: int) -> Preview:
        """What a batch is learnt from."""

    def validate(self) -> dict[str, float]:
        """How well the maps fit masks or boxes, and whether the classifier sees objects in them."""
        if self.data.validation is None:
            return {}
        masked = self.masked if "classification" in self.selections else None
        maps = MapScores(self.device, select_pxap=self.data.clean_class < 0)
        classes = ClassScores(max(int(self.labels.max()) + 1, len(self.data.class_names)))
        with torch.no_grad():
            for samples in self.validation_batches():
                images, labels = self.stack(samples)
                found = self.foreground(images)
                chosen = with_regions(samples)
                score_regions(maps, [samples[i] for i in chosen], found[chosen])
                objects = labels != self.data.clean_class  # the right map of others is empty
                if masked is not None and bool(objects.any()):
                    seen = masked.logits(images[objects], found[objects])
                    classes.update(seen, labels[objects])
        figures = maps.compute()
        if masked is not None:
            figures["masked_accuracy"] = classes.compute()["balanced_accuracy"]
        return figures

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Missing seeds and collapsed maps."""
        found = list(self.notes) if figures.get("epoch") == 1 else []
        if figures.get("foreground_seeds", 1.0) == 0:
            found.append(
                "no image had a foreground seed; look at the maps the seeds are drawn from"
            )
        covered = figures.get("covered", figures.get("foreground"))
        if covered is not None and covered < _NOTHING:
            found.append("the map has collapsed to nothing: hardly a pixel is above 0.5")
        if covered is not None and covered > _EVERYTHING:
            found.append(f"the map has collapsed to everything: {covered:.0%} is above 0.5")
        return found

    def extra(self) -> dict[str, Any]:
        """Which channel of the model's softmax is the map."""
        return {"foreground_channel": 1}
