"""What the recipes that learn from seeds share: settings, the draw, losses and figures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsfast import ops
from wsfast._check import check_choice, check_range, value_error
from wsfast.nn import DenseCRFLoss, partial_cross_entropy
from wsfast.nn.partial import IGNORE
from wsfast.train import distributed
from wsfast.train.config import TrainConfig
from wsfast.train.images import TrainingSample


@dataclass(frozen=True, kw_only=True)
class SeedConfig(TrainConfig):
    """Settings of recipes that learn from seeds.

    Attributes:
        foreground: pixels drawn per image.
        background: pixels drawn per image.
        foreground_share: share of highest pixels they are drawn from, where it is not Otsu's.
        background_share: share of lowest pixels (n⁻).
        dilate: side of the square that grows seeds.
        clean_images: images without the object are ``"background"`` or ``"ignore"``.
        ce_weight: of the partial cross-entropy.
        crf_weight: of the dense-CRF loss; 0 leaves it out.
        sigma_rgb: of the CRF, in grey levels of 0-255.
        sigma_xy: of the CRF, in pixels.
        crf_scale: resolution at which the CRF loss is computed.
    """

    foreground: int = 1
    background: int = 1
    foreground_share: float = 0.1
    background_share: float = 0.3
    dilate: int = 3
    clean_images: str = "background"
    ce_weight: float = 1.0
    crf_weight: float = 2e-9
    sigma_rgb: float = 15.0
    sigma_xy: float = 100.0
    crf_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("train", "clean_images", self.clean_images, ["background", "ignore"])
        for name in ("foreground_share", "background_share"):
            check_range("train", name, getattr(self, name), 0, 1)
        for name in ("ce_weight", "crf_weight", "foreground", "background"):
            check_range("train", name, getattr(self, name), 0, 1e30)
        for name in ("sigma_rgb", "sigma_xy", "crf_scale"):
            check_range("train", name, getattr(self, name), 1e-6, 1e30)
        check_odd("dilate", self.dilate, zero=True)


def check_odd(name: str, side: int, *, zero: bool) -> None:
    """Raise ValueError where a setting is not the side of a square around a pixel."""
    if side < 0 or (side % 2 == 0 and not (zero and side == 0)):
        value_error("train", name, "0 or odd" if zero else "odd", f"{side}")


def draw_seeds(
    config: SeedConfig,
    cams: Tensor,
    batch: TrainingSample,
    clean: Tensor,
    epoch: int,
    **options: Any,
) -> Tensor:
    """Seeds (N, H, W) of a batch's maps, a function of the run's seed and the place in the epoch.

    Args:
        config: how many, from where, and what becomes of images without the object.
        cams: (N, H, W) in 0-1.
        batch: the images.
        clean: (N,) bool, images without the object.
        epoch: counted from 0.
        options: more of :func:`wsfast.sample_seeds`.
    """
    seeds = ops.sample_seeds(
        cams,
        foreground=config.foreground,
        background=config.background,
        foreground_share=config.foreground_share,
        background_share=config.background_share,
        dilate=config.dilate,
        background_only=clean,
        seed=config.seed,
        image_ids=torch.as_tensor(batch.draw.position),
        epoch=epoch,
        **options,
    )
    if config.clean_images == "ignore":
        return seeds.masked_fill(clean[:, None, None], IGNORE)
    return seeds


def crf_loss(config: SeedConfig) -> DenseCRFLoss | None:
    """The CRF loss of a configuration; None where it has no weight."""
    if not config.crf_weight:
        return None
    return DenseCRFLoss(
        config.crf_weight,
        sigma_rgb=config.sigma_rgb,
        sigma_xy=config.sigma_xy,
        scale_factor=config.crf_scale,
    )


def seed_loss(logits: Tensor, seeds: Tensor) -> Tensor:
    """Partial cross-entropy averaged over the labelled pixels of all processes."""
    total = partial_cross_entropy(logits, seeds, reduction="sum")
    return distributed.global_mean(total, (seeds != IGNORE).sum())


def seed_figures(seeds: Tensor, prob: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Seeds per image with the object, and the share of pixels that are foreground in them."""
    objects = (~clean).sum()
    with torch.no_grad():
        covered = (prob[:, 1] > 0.5).float().mean(dim=(1, 2))
        return {
            "foreground_seeds": distributed.global_mean((seeds == 1).sum(), objects),
            "background_seeds": (seeds == 0).flatten(1).sum(1).float().mean(),
            "foreground": distributed.global_mean((covered * ~clean).sum(), objects),
        }
