"""Schemas, fallbacks and fake kernels of the seeds room. Nothing here is differentiable."""

import torch
from torch import Tensor

from ... import native
from . import reference
from .keys import image_keys


def _sample_seeds(cams: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    seeds = reference.sample_seeds(cams, *arguments)  # type: ignore[arg-type]
    return seeds, ~cams.isnan().any(dim=2).any(dim=1)


native.register_op(
    "sample_seeds(Tensor cams, Tensor keys, Tensor? roi, Tensor? background_only, int foreground,"
    " int background, bool top, float foreground_share, float background_share, bool weighted,"
    " bool background_outside_roi, int erode, int dilate) -> (Tensor, Tensor)",
    _sample_seeds,
)
native.register_op("seed_keys(Tensor seed, Tensor image_ids, SymInt epoch) -> Tensor", image_keys)


@torch.library.register_fake("wsfast::sample_seeds")
def _(cams: Tensor, *_arguments: object) -> tuple[Tensor, Tensor]:
    seeds = cams.new_empty(cams.shape, dtype=torch.int64)
    return seeds, cams.new_empty(cams.shape[:1], dtype=torch.bool)


@torch.library.register_fake("wsfast::seed_keys")
def _(_seed: Tensor, image_ids: Tensor, _epoch: int) -> Tensor:
    return image_ids.new_empty(image_ids.shape)
