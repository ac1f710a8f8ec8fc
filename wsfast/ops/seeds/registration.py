"""Schema, fallback and fake kernel of the seeds room. Nothing here is differentiable."""

import torch
from torch import Tensor

from ... import native
from . import reference


def _sample_seeds(cams: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    seeds = reference.sample_seeds(cams, *arguments)  # type: ignore[arg-type]
    return seeds, ~cams.isnan().any(dim=2).any(dim=1)


native.register_op(
    "sample_seeds(Tensor cams, Tensor keys, Tensor? roi, Tensor? background_only, int foreground,"
    " int background, bool top, float foreground_share, float background_share, bool weighted,"
    " bool background_outside_roi, int erode, int dilate) -> (Tensor, Tensor)",
    _sample_seeds,
)


@torch.library.register_fake("wsfast::sample_seeds")
def _(cams: Tensor, *_arguments: object) -> tuple[Tensor, Tensor]:
    seeds = cams.new_empty(cams.shape, dtype=torch.int64)
    return seeds, cams.new_empty(cams.shape[:1], dtype=torch.bool)
