"""Pseudo-label training: a segmenter learns from masks made of heat maps (RA-CAM section III-C)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsfast import ops
from wsfast._check import check_choice, check_range, value_error
from wsfast.cam import METHODS, crf_cams
from wsfast.models.localizers import foreground_maps
from wsfast.nn.partial import log_probabilities
from wsfast.train import distributed
from wsfast.train.classifier import build_cam, idle_percentile
from wsfast.train.config import FREE_ON_RESUME, TrainConfig
from wsfast.train.images import ImageData, TrainingSample, images_at_once
from wsfast.train.localizer import LocalizerRecipe, Preview
from wsfast.train.recipe import Step
from wsfast.train.store import Array, ArrayStore, weights_digest


@dataclass(frozen=True, kw_only=True)
class PseudoConfig(TrainConfig):
    """Settings of the recipe ``pseudo``; preset ``paper``.

    Attributes:
        classifier: run folder or checkpoint of the trained classifier.
        method: CAM whose maps become the first masks.
        layers: of that method, ``"stages"`` or ``"last"``; empty for the method's own.
        percentile: of LT methods and RA-CAM.
        threshold: ``"otsu"``, ``"otsu2"`` (Otsu again above Otsu's threshold) or a number of 0-1,
            of the first round's maps; the segmenter's, of later rounds, are cut at 0.5.
        refine: ``"none"`` or ``"crf"``, of the first round's maps.
        min_area: smallest component of a mask, as a share of the image.
        rounds: how often masks are made: first from the CAM, then from the segmenter itself. The
            epochs are divided among the rounds.
        segmenter: ``"unet"`` (small), ``"classifier"`` (a copy of the classifier's encoder with a
            decoder) or ``"deeplabv3"``.
        pretrained: start DeepLabV3 from ImageNet weights; not the other segmenters.
        foreground_weight: factor of the loss on foreground pixels.
    """

    recipe: ClassVar[str] = "pseudo"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "method": "racam",
            "segmenter": "deeplabv3",
            "pretrained": True,
            "batch_size": 4,
            "learning_rate": 0.0005,
            "flips": "both",
        }
    }

    classifier: str = ""
    method: str = "racam"
    layers: str = ""
    percentile: float = 50.0
    threshold: str = "otsu"
    refine: str = "none"
    min_area: float = 0.0005
    rounds: int = 1
    segmenter: str = "unet"
    pretrained: bool = False
    foreground_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train", "method", self.method, list(METHODS))
        check_choice("train", "refine", self.refine, ["none", "crf"])
        check_choice("train", "segmenter", self.segmenter, ["unet", "classifier", "deeplabv3"])
        check_range("train", "percentile", self.percentile, 0, 100)
        check_range("train", "rounds", self.rounds, 1, self.epochs)
        check_range("train", "min_area", self.min_area, 0, 1)
        check_range("train", "foreground_weight", self.foreground_weight, 0, 1e6)
        if self.segmenter == "deeplabv3" and self.batch_size // self.accumulate < 2:
            expected = "at least 2 x accumulate with segmenter deeplabv3"
            value_error("train", "batch_size", expected, f"{self.batch_size}")
        if self.threshold not in ("otsu", "otsu2"):
            try:
                check_range("train", "threshold", float(self.threshold), 0, 1)
            except ValueError:
                value_error("train", "threshold", "otsu, otsu2 or a number of 0-1", self.threshold)

    def idle(self) -> dict[str, str]:
        """Also of the CAM method and the segmenter."""
        found = {**super().idle(), **idle_percentile(self.method)}
        if self.segmenter != "deeplabv3" and self.pretrained:
            found["pretrained"] = f"segmenter {self.segmenter}"
        return found

    @property
    def length_matters(self) -> bool:
        """The epochs are divided among the rounds."""
        return super().length_matters or self.rounds > 1

    def round_of(self, epoch: int) -> int:
        """The round an epoch belongs to, both counted from 0."""
        return epoch * self.rounds // self.epochs


_NOT_IN_MASKS = FREE_ON_RESUME | {"epochs", "split_seed"}  # the latter is in the images' key


class PseudoRecipe(LocalizerRecipe):
    """Cross-entropy on pseudo-masks; images without the object have empty ones.

    Masks of the first round are made of the classifier's CAMs, those of later ones of the
    segmenter's own map; where that is empty on an image with the object, the former mask stays.

    Args:
        config: settings.
        model: the segmenter, from images to (N, 2, H, W) logits.
        device: where to train.
        data: images and labels.
        classifier: for the CAMs, frozen.
        folder: for the masks.
        progress: show bars while these are made.
    """

    name = "pseudo"
    config: PseudoConfig

    def __init__(
        self,
        config: PseudoConfig,
        model: nn.Module,
        device: torch.device,
        data: ImageData,
        *,
        classifier: nn.Module,
        folder: Path,
        progress: bool = True,
    ) -> None:
        super().__init__(config, model.to(device), device, data, None)
        self.classifier = classifier.to(device)
        self.folder = folder
        self.progress = progress
        self.weights = torch.tensor([1.0, config.foreground_weight], device=device)
        self.key = {
            **{k: v for k, v in config.as_dict().items() if k not in _NOT_IN_MASKS},
            "weights": weights_digest(classifier),
            **self.image_key(),
        }
        self.round = -1
        self.masks: Array | None = None
        self.empty = 0.0

    def changes_data(self, epoch: int) -> bool:
        """Masks are made anew when a round begins."""
        return self.config.round_of(epoch) != self.config.round_of(epoch - 1)

    def begin_epoch(self, epoch: int) -> None:
        """Have the masks of the epoch's round.

        Raises:
            ValueError: a resumed run's masks of a round are gone, and so is the segmenter that made
                them.
        """
        if self.config.round_of(epoch) == self.round:
            return
        self.round = self.config.round_of(epoch)
        was_training = self.model.training
        self.model.eval()
        begins = self.changes_data(epoch) and not self.resumed_inside
        self.masks = self._masks_of(self.round, begins=begins)
        self.model.train(was_training)
        objects = [i for i in range(len(self.labels)) if self.has_object(i)]
        sampled = objects[:: max(1, len(objects) // 200)]
        hollow = [not self.masks[i].any() for i in sampled]
        self.empty = sum(hollow) / len(hollow) if hollow else 0.0

    def _store(self, number: int) -> ArrayStore:
        """Where the masks of a round are kept."""
        key = {**self.key, "round": number}
        if number:
            key["epochs"] = self.config.epochs  # in which its segmenter has learnt
            del key["files"]  # unlike the first, they cannot be made anew of copied images
        shape = (len(self.labels), *self.data.map_size)
        return ArrayStore(self.folder, f"masks-round{number + 1}", key, shape)

    def _masks_of(self, number: int, *, begins: bool) -> Array:
        """The masks of a round, made where they are missing; a collective call.

        But for the first round's, only the weights at the round's beginning can make them.
        """
        store = self._store(number)
        former = None
        if number and not all(distributed.gather_objects(store.path.is_file())):
            if not begins:
                expected = f"given with the masks of round {number + 1}, which cannot be made again"
                value_error("train", "--resume", expected, f"no {store.path}")
            former = self._masks_of(number - 1, begins=False)
        return store.fill(
            lambda rows: self._make_masks(rows, former),
            batch_size=images_at_once(self.config),
            description="masks",
            progress=self.progress,
        )

    def _make_masks(self, rows: list[int], former: Array | None) -> Array:
        raw = self.read_whole(rows)
        images = self.normalize(raw)
        if former is None:
            explain = build_cam(self.classifier, self.config)
            maps = explain(images, self.data.targets()[rows].to(self.device)).cams
            masks = self.binarized(maps, raw)
        else:
            with torch.no_grad():
                masks = self.foreground(images) >= 0.5
            masks = without_small(masks, self._min_pixels())
            earlier = torch.from_numpy(former[rows]).to(self.device).bool()
            nothing = ~masks.flatten(1).any(1)
            masks = torch.where(nothing[:, None, None], earlier, masks)
        objects = torch.tensor([self.has_object(row) for row in rows], device=self.device)
        found: Array = (masks & objects[:, None, None]).to(torch.uint8).cpu().numpy()
        return found

    def _min_pixels(self) -> int:
        height, width = self.data.map_size
        return max(1, round(self.config.min_area * height * width))

    def binarized(self, maps: Tensor, raw: Tensor) -> Tensor:
        """Masks of maps (N, H, W): refined, cut at the threshold, without specks."""
        if self.config.refine == "crf":
            maps = crf_cams(raw, maps)
        named = self.config.threshold in ("otsu", "otsu2")
        threshold = self.config.threshold if named else float(self.config.threshold)
        limits = ops.cam_thresholds(maps, threshold)
        masks = (maps >= limits[:, None, None]) & (maps > 0)
        return without_small(masks, self._min_pixels())

    def guide(self, item: int) -> tuple[Tensor | None, Tensor]:
        """The mask of a training image, as 0 and 1."""
        assert self.masks is not None
        return torch.from_numpy(self.masks[item].copy())[None], super().guide(item)[1]

    def foreground(self, images: Tensor) -> Tensor:
        """The segmenter's map."""
        return foreground_maps(self.model(images))

    def step(self, batch: TrainingSample, epoch: int) -> Step:
        """Pixel-wise cross-entropy."""
        logits = self.model(self.normalize(batch.image)).float()
        target = batch.map[:, 0].long()
        picked = log_probabilities(logits, target)
        weights = self.weights[target]
        loss = distributed.global_mean(-(weights * picked).sum(), weights.sum())
        with torch.no_grad():
            share = (logits[:, 1] > logits[:, 0]).float().mean()
        return Step({"pixels": loss}, {"predicted": share, "labelled": target.float().mean()})

    def preview(self, batch: TrainingSample, epoch: int) -> Preview:
        """The masks, which are the labels of all pixels."""
        masks = batch.map[:, 0]
        return Preview(masks.float(), masks.long())

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Also of images with the object whose mask is empty."""
        found = super().warnings(figures)
        if self.empty > 0.1:
            found.append(f"{self.empty:.0%} of the images with the object have an empty mask")
        return found


def without_small(masks: Tensor, pixels: int) -> Tensor:
    """Masks (N, H, W) without connected regions of fewer pixels."""
    labels, _ = ops.connected_components(masks)
    most = int(labels.max()) + 1 if labels.numel() else 1
    offset = torch.arange(len(labels), device=labels.device)[:, None, None] * most
    numbers = labels.long() + offset
    areas = torch.bincount(numbers.flatten(), minlength=most * len(labels))
    return masks & (areas[numbers] >= pixels)
