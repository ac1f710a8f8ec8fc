"""F-CAM: a decoder learns a full-resolution map from a few pixels of a CAM (Belharbi 2022)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from wsfast import ops
from wsfast._check import check_choice, check_range, value_error
from wsfast.cam import METHODS
from wsfast.models import FCAMModel
from wsfast.models.localizers import foreground_maps
from wsfast.nn import SizeConstraintLoss
from wsfast.train.classifier import build_cam, idle_percentile
from wsfast.train.images import ImageData, TrainingSample, images_at_once
from wsfast.train.localizer import LocalizerRecipe, Preview
from wsfast.train.maps import cached_cams, dequantized
from wsfast.train.recipe import Step
from wsfast.train.seeds import (
    SeedConfig,
    check_odd,
    crf_loss,
    draw_seeds,
    seed_figures,
    seed_loss,
)

_LOOKED_AT = 200  # maps, to see whether they say anything
_SMALL_SIDE = 100  # below this the published erosion of 11 pixels would eat most regions


@dataclass(frozen=True, kw_only=True)
class FCAMConfig(SeedConfig):
    """Settings of the recipe ``fcam``; presets ``paper`` and ``small`` (small objects).

    Attributes:
        classifier: run folder or checkpoint of the trained classifier, which stays frozen.
        method: CAM that the seeds come from.
        layers: of that method, ``"stages"`` or ``"last"``; empty for the method's own.
        percentile: of LT methods and RA-CAM.
        maps: ``"cache"`` makes the CAMs of whole images once and crops them with the image;
            ``"recompute"`` takes the crop's CAM from the features the decoder needs anyway, for the
            method ``cam`` only.
        region: where foreground is drawn: ``"otsu"`` or the ``"top"`` share.
        erode: side of the square that shrinks that region, odd; -1 is the paper's 11, or none for
            images with a side under 100.
        size_weight: of the size constraint; 0 leaves it out.
        size_normalize: sizes in pixels of an image of 224 x 224 instead of one's own.
        input_skip: the decoder also uses features of the image's size, which the paper drops.
    """

    recipe: ClassVar[str] = "fcam"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"method": "cam", "region": "otsu", "foreground": 1, "background": 1},
        "small": {
            "method": "ltgradcam",
            "region": "top",
            "foreground": 10,
            "background": 60,
            "foreground_share": 0.01,
            "background_share": 0.95,
            "erode": 0,
        },
    }

    classifier: str = ""
    method: str = "cam"
    layers: str = ""
    percentile: float = 50.0
    maps: str = "cache"
    region: str = "otsu"
    erode: int = -1
    size_weight: float = 0.1
    size_normalize: bool = False
    input_skip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train", "method", self.method, list(METHODS))
        check_choice("train", "maps", self.maps, ["cache", "recompute"])
        check_choice("train", "region", self.region, ["otsu", "top"])
        check_range("train", "percentile", self.percentile, 0, 100)
        check_range("train", "size_weight", self.size_weight, 0, 1e30)
        if self.erode != -1:
            check_odd("erode", self.erode, zero=True)
        if self.maps == "recompute" and self.method != "cam":
            value_error("train", "method", "cam with maps: recompute", self.method)

    def idle(self) -> dict[str, str]:
        """Also of the CAM method, the region and the size constraint."""
        found = {**super().idle(), **idle_percentile(self.method)}
        if self.region == "otsu":
            found["foreground_share"] = "region otsu"
        if self.size_weight == 0:
            found["size_normalize"] = "size_weight 0"
        return found


class FCAMRecipe(LocalizerRecipe):
    """Partial cross-entropy on seeds of a CAM, CRF loss and size constraint (F-CAM eq. 3).

    Args:
        config: settings.
        model: the frozen classifier with its decoder.
        device: where to train.
        data: images and labels.
        folder: for the cache of maps.
        progress: show a bar while maps are made.
    """

    name = "fcam"
    config: FCAMConfig
    model: FCAMModel

    def __init__(
        self,
        config: FCAMConfig,
        model: FCAMModel,
        device: torch.device,
        data: ImageData,
        *,
        folder: Path,
        progress: bool = True,
    ) -> None:
        super().__init__(config, model.to(device), device, data, model.classifier)
        self.crf = crf_loss(config)
        self.size = SizeConstraintLoss(config.size_weight, normalize=config.size_normalize)
        erosion = 0 if min(data.input_size) < _SMALL_SIDE else 11
        self.erode = erosion if config.erode < 0 else config.erode
        self.maps: np.ndarray[Any, Any] | None = None
        if config.maps == "cache":
            self.maps = self._cache(folder, progress)
            self.notes += self._constant_maps()

    def _constant_maps(self) -> list[str]:
        """A warning where many maps say nothing, judged by some of them."""
        assert self.maps is not None
        objects = torch.nonzero(self.labels != self.data.clean_class)[:, 0].tolist()
        looked_at = objects[:: max(1, len(objects) // _LOOKED_AT)]
        constant = sum(bool((self.maps[i] == self.maps[i].flat[0]).all()) for i in looked_at)
        if constant <= 0.1 * len(looked_at):
            return []
        return [
            f"{constant} of {len(looked_at)} maps looked at are constant and give no seeds; "
            "classifier or CAM method do not suit these images"
        ]

    def _cache(self, folder: Path, progress: bool) -> "np.ndarray[Any, Any]":
        config = self.config
        settings = {"layers": config.layers, "percentile": config.percentile}
        self.model.eval()
        return cached_cams(
            folder,
            build_cam(self.model.classifier, config),
            lambda rows: self.normalize(self.read_whole(rows)),
            self.data.targets(),
            self.data.map_size,
            key={**self.image_key(), **settings},
            batch_size=images_at_once(config),
            progress=progress,
        )

    def guide(self, item: int) -> tuple[Tensor | None, Tensor]:
        """The cached CAM of a training image."""
        box = super().guide(item)[1]
        return None if self.maps is None else torch.from_numpy(self.maps[item].copy())[None], box

    def begin_epoch(self, epoch: int) -> None:
        """The barrier hardens."""
        self.size.set_epoch(epoch)

    def foreground(self, images: Tensor) -> Tensor:
        """The decoder's map."""
        return foreground_maps(self.model(images).map_logits)

    def step(self, batch: TrainingSample, epoch: int) -> Step:
        """The three terms on one batch."""
        images = self.normalize(batch.image)
        labels = torch.as_tensor(batch.label, device=self.device)
        clean = labels == self.data.clean_class
        with torch.no_grad():
            features = self.model.forward_features(images)
            cams = self._cams(features, batch.map, labels, images)
        logits = self.model.decoder(features, (images.shape[2], images.shape[3])).float()
        seeds = self._seeds(cams, batch, clean, epoch)
        prob = logits.softmax(1)
        losses = {"ce": self.config.ce_weight * seed_loss(logits, seeds)}
        if self.crf is not None:
            losses["crf"] = self.crf(batch.image.float(), prob)
        if self.config.size_weight:
            # Images without the object must not be made to have one.
            objects = (~clean)[:, None, None, None]
            present = torch.where(objects, prob, torch.ones_like(prob))
            losses["size"] = self.size(present)
        return Step(losses, seed_figures(seeds, prob, clean))

    def preview(self, batch: TrainingSample, epoch: int) -> Preview:
        """The CAMs and the seeds drawn from them."""
        images = self.normalize(batch.image)
        labels = torch.as_tensor(batch.label, device=self.device)
        cams = self._cams(self.model.forward_features(images), batch.map, labels, images)
        clean = labels == self.data.clean_class
        return Preview(cams, self._seeds(cams, batch, clean, epoch))

    def _seeds(self, cams: Tensor, batch: TrainingSample, clean: Tensor, epoch: int) -> Tensor:
        options = {"region": self.config.region, "erode": self.erode}
        return draw_seeds(self.config, cams, batch, clean, epoch, **options)

    def _cams(
        self, features: list[Tensor], cached: Tensor, labels: Tensor, images: Tensor
    ) -> Tensor:
        if self.config.maps == "cache":
            return dequantized(cached[:, 0])
        classifier = self.model.classifier
        weights = classifier.cam_weights[labels].to(features[-1].dtype)
        low = torch.einsum("nk,nkhw->nhw", weights, features[-1]).float()
        return ops.fuse_cams([low], (images.shape[2], images.shape[3]))

    def extra(self) -> dict[str, Any]:
        """Also where the seeds came from."""
        return {**super().extra(), "method": self.config.method}
