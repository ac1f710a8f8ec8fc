"""DiPS: a localizer learns from region proposals that a classifier recognises (Murtaza 2023)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast import ops
from wsfast._check import check_choice, check_range
from wsfast.cam import METHODS
from wsfast.models.localizers import foreground_maps
from wsfast.train import distributed
from wsfast.train.images import ImageData, TrainingSample, images_at_once
from wsfast.train.localizer import LocalizerRecipe, Preview, ProposalPreview
from wsfast.train.map_sources import MapSources
from wsfast.train.maps import dequantized, quantized
from wsfast.train.recipe import Step
from wsfast.train.seeds import (
    SeedConfig,
    check_odd,
    crf_loss,
    draw_seeds,
    seed_figures,
    seed_loss,
)
from wsfast.train.store import Array, ArrayStore, weights_digest

_FIELDS = 6  # of a proposal: box, map, score
_CANDIDATES = 256  # boxes scored per image, and looked at per map; each costs a classifier's pass


@dataclass(frozen=True, kw_only=True)
class DiPSConfig(SeedConfig):
    """Settings of the recipe ``dips``; presets ``paper`` and ``small`` (small objects).

    Attributes:
        classifier: run folder or checkpoint of the trained classifier, which scores proposals and
            what is seen through the map.
        maps: where proposals come from: ``"attention"`` of a vision transformer, or CAM methods of
            the classifier, with commas.
        transformer: timm's name of it.
        transformer_checkpoint: file of its weights; empty downloads timm's.
        encoder: of the localizer: ``"classifier"`` for a copy of the classifier's, or a name as for
            the recipe ``classifier``.
        pretrained: start such a named encoder from ImageNet weights; not ``"classifier"``.
        min_area: share of the image that a proposal's box must exceed; where none does, the largest
            is taken.
        proposals: best ones kept per image (P), of which each draw takes one. All boxes above
            ``min_area`` are scored, of more than 256 the largest.
        min_score: probability of the class below which a proposal is left out, unless it is the
            best.
        blur_kernel: taps of the blur that hides the rest of the image.
        blur_sigma: of that blur.
        foreground_weights: draw foreground by ``"activation"`` or ``"uniform"``.
        background_outside: draw background outside the proposal's box only.
        class_weight: of the classifier's loss on image times map.
        detach: that loss without gradient, as the published code has it.
    """

    recipe: ClassVar[str] = "dips"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"schedule": "step", "decay_every": 15, "epochs": 50, "weight_decay": 0.0},
        "small": {
            "foreground": 10,
            "background": 60,
            "foreground_share": 0.1,
            "background_share": 0.95,
            "min_area": 0.0005,
            "maps": "ltgradcam,layercam",
        },
    }

    classifier: str = ""
    maps: str = "attention"
    transformer: str = "vit_small_patch16_224.dino"
    transformer_checkpoint: str = ""
    encoder: str = "classifier"
    pretrained: bool = False
    min_area: float = 0.04
    proposals: int = 2
    min_score: float = 0.0
    blur_kernel: int = 115
    blur_sigma: float = 100.5
    foreground: int = 200
    background: int = 200
    foreground_share: float = 0.2
    background_share: float = 0.2
    foreground_weights: str = "activation"
    background_outside: bool = False
    class_weight: float = 0.3
    detach: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.map_sources:
            check_choice("train", "maps", name, ["attention", *METHODS])
        check_choice("train", "foreground_weights", self.foreground_weights,
                     ["activation", "uniform"])  # fmt: skip
        check_range("train", "proposals", self.proposals, 1, 64)
        check_range("train", "min_area", self.min_area, 0, 1)
        check_range("train", "min_score", self.min_score, 0, 1)
        check_range("train", "blur_sigma", self.blur_sigma, 1e-6, 1e30)
        check_odd("blur_kernel", self.blur_kernel, zero=False)
        check_range("train", "class_weight", self.class_weight, 0, 1e30)

    def idle(self) -> dict[str, str]:
        """Also of the encoder and the maps."""
        found = super().idle()
        if self.encoder == "classifier":
            found["pretrained"] = "encoder classifier"
        if "attention" not in self.map_sources:
            found |= dict.fromkeys(("transformer", "transformer_checkpoint"), f"maps {self.maps}")
        return found

    @property
    def map_sources(self) -> list[str]:
        """What :attr:`maps` lists."""
        return [name.strip() for name in self.maps.split(",")]


class DiPSRecipe(LocalizerRecipe):
    """Seeds inside a proposal, CRF loss, and the classifier on image times map (DiPS eq. 5).

    Maps and proposals are made once, of whole images; a draw takes one of an image's best proposals
    with its map, both cropped and flipped as the image.

    Args:
        config: settings.
        model: the localizer, from images to (N, 2, H, W) logits.
        device: where to train.
        data: images and labels.
        classifier: frozen.
        folder: for maps and proposals.
        progress: show bars while these are made.
    """

    name = "dips"
    config: DiPSConfig

    def __init__(
        self,
        config: DiPSConfig,
        model: nn.Module,
        device: torch.device,
        data: ImageData,
        *,
        classifier: nn.Module,
        folder: Path,
        progress: bool = True,
    ) -> None:
        super().__init__(config, model, device, data, classifier)
        assert self.masked is not None
        self.masked.detach = config.detach
        self.crf = crf_loss(config)
        self.sources = MapSources(
            config.map_sources,
            classifier,
            device,
            data,
            transformer=config.transformer,
            checkpoint=config.transformer_checkpoint,
        )
        key = {**self.sources.key(), **self.image_key()}
        self.maps = self._make_maps(folder, key, progress)
        self.proposals = self._make_proposals(folder, key, classifier, progress)

    def _make_maps(self, folder: Path, key: dict[str, Any], progress: bool) -> Array:
        targets = self.data.targets()
        size = self.sources.map_size(self.data.map_size)
        shape = (len(self.labels), self.sources.count, *size)

        def compute(rows: list[int]) -> Array:
            images = self.normalize(self.read_whole(rows))
            maps = self.sources(images, targets[rows].to(self.device), size)
            return quantized(maps).cpu().numpy()

        return ArrayStore(folder, "maps", key, shape).fill(
            compute, batch_size=images_at_once(self.config), progress=progress
        )

    def _make_proposals(
        self, folder: Path, key: dict[str, Any], classifier: nn.Module, progress: bool
    ) -> Array:
        config = self.config
        names = ("min_area", "proposals", "min_score", "blur_kernel", "blur_sigma")
        settings = {name: getattr(config, name) for name in names}
        full_key = {**key, **settings, "classifier": weights_digest(classifier)}
        full_key["candidates"] = _CANDIDATES
        shape = (len(self.labels), config.proposals, _FIELDS)

        def compute(rows: list[int]) -> Array:
            found = np.full((len(rows), *shape[1:]), -1, np.float32)
            objects = [i for i, r in enumerate(rows) if self.labels[r] != self.data.clean_class]
            if objects:
                chosen = [rows[i] for i in objects]
                found[objects] = self._propose(classifier, chosen).cpu().numpy()
            return found

        store = ArrayStore(folder, "proposals", full_key, shape, np.float32)
        return store.fill(
            compute,
            batch_size=images_at_once(config),
            description="proposals",
            progress=progress,
        )

    def _propose(self, classifier: nn.Module, rows: list[int]) -> Tensor:
        """The best boxes of images, (n, P, 6): box, map and score; -1 where there are fewer."""
        config, images = self.config, self.normalize(self.read_whole(rows))
        maps = dequantized(torch.from_numpy(self.maps[rows]).to(self.device))
        maps = F.interpolate(maps, self.data.map_size, mode="bilinear", align_corners=False)
        boxes, sources, _ = ops.propose_boxes(maps, min_area=config.min_area, max_boxes=_CANDIDATES)
        image, place = (sources >= 0).nonzero(as_tuple=True)
        labels = self.labels[rows].to(self.device)
        scores = torch.full(sources.shape, -1.0, device=self.device)
        with torch.inference_mode():
            for start in range(0, len(image), 64):  # split would give a part of nothing
                some = slice(start, start + 64)
                at, slot = image[some], place[some]
                first, last = int(at[0]), int(at[-1])  # the boxes are in the order of images
                seen = ops.blur_outside_boxes(
                    images[first : last + 1],
                    boxes[at, slot],
                    at - first,
                    kernel=config.blur_kernel,
                    sigma=config.blur_sigma,
                )
                probability = classifier(seen).float().softmax(1)
                scores[at, slot] = probability.gather(1, labels[at, None])[:, 0].clone()
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : config.proposals]
        ranked = torch.cat([boxes.float(), sources[:, :, None].float(), scores[:, :, None]], 2)
        best = ranked.gather(1, order[:, :, None].expand(-1, -1, _FIELDS))
        weak = best[:, :, 5] < config.min_score
        weak[:, 0] = False
        return best.masked_fill(weak[:, :, None], -1.0)

    def guide(self, item: int) -> tuple[Tensor | None, Tensor]:
        """One of an image's proposals with its map; of images without any, the first map."""
        known = self._known(item)
        if not len(known):
            return torch.from_numpy(self.maps[item, :1].copy()), super().guide(item)[1]
        chosen = known[int(torch.randint(len(known), ()))]
        source = int(chosen[4])
        box = torch.from_numpy(chosen[:4].astype(np.int32))
        return torch.from_numpy(self.maps[item, source : source + 1].copy()), box

    def foreground(self, images: Tensor) -> Tensor:
        """The localizer's map."""
        return foreground_maps(self.model(images))

    def step(self, batch: TrainingSample, epoch: int) -> Step:
        """The three terms on one batch."""
        images = self.normalize(batch.image)
        labels = torch.as_tensor(batch.label, device=self.device)
        logits = self.model(images).float()
        prob = logits.softmax(1)
        clean = labels == self.data.clean_class
        seeds = self._seeds(batch, clean, epoch)
        losses = {"ce": self.config.ce_weight * seed_loss(logits, seeds)}
        if self.config.class_weight:
            losses["class"] = self._class_loss(images, prob[:, 1], labels, clean)
        if self.crf is not None:
            losses["crf"] = self.crf(batch.image.float(), prob)
        return Step(losses, seed_figures(seeds, prob, clean))

    def preview(self, batch: TrainingSample, epoch: int) -> Preview:
        """The proposals' maps and the seeds drawn inside their boxes."""
        labels = torch.as_tensor(batch.label, device=self.device)
        seeds = self._seeds(batch, labels == self.data.clean_class, epoch)
        proposals = [self._proposals_of(item) for item in torch.as_tensor(batch.draw.item).tolist()]
        return Preview(dequantized(batch.map[:, 0]), seeds, proposals)

    def _proposals_of(self, item: int) -> ProposalPreview:
        image = self.data.whole(item)
        known = torch.from_numpy(self._known(item))
        boxes = known[:, :4].to(torch.int32)
        levels = self.maps[item, int(known[0, 4]) if len(known) else 0]
        maps = dequantized(torch.from_numpy(levels.copy()))[None, None]
        seen = ops.blur_outside_boxes(
            image[None].float(),
            boxes[:1],
            torch.zeros(len(boxes[:1]), dtype=torch.int64),
            kernel=self.config.blur_kernel,
            sigma=self.config.blur_sigma,
        )
        return ProposalPreview(
            image,
            boxes,
            known[:, 5],
            F.interpolate(maps, self.data.map_size, mode="bilinear", align_corners=False)[0, 0],
            seen[0].round().to(torch.uint8) if len(seen) else image,
        )

    def _known(self, item: int) -> Array:
        """The proposals that an image has, (at most P, 6)."""
        found = np.array(self.proposals[item])
        kept: Array = found[found[:, 4] >= 0]
        return kept

    def _seeds(self, batch: TrainingSample, clean: Tensor, epoch: int) -> Tensor:
        maps = dequantized(batch.map[:, 0])
        return draw_seeds(
            self.config,
            maps / maps.amax(dim=(1, 2), keepdim=True),
            batch,
            clean,
            epoch,
            region="top",
            foreground_weights=self.config.foreground_weights,
            roi=batch.box,
            background_outside_roi=self.config.background_outside,
        )

    def _class_loss(self, images: Tensor, prob: Tensor, labels: Tensor, clean: Tensor) -> Tensor:
        """Of images with the object: an empty map of a clean image shows the classifier nothing."""
        assert self.masked is not None
        logits = self.masked.logits(images, prob).float()
        each = F.cross_entropy(logits, labels, reduction="none").masked_fill(clean, 0.0)
        return self.config.class_weight * distributed.global_mean(each.sum(), (~clean).sum())
