"""MS-CA: multi-scale CAM fused with the attention of a vision transformer."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from .. import ops
from .._check import check_choice, check_connectivity, check_count, check_range, value_error
from .attention import check_model, map_and_valid
from .base import CAMMethod, Norm, check_images, check_norm
from .multiscale import check_scales, multiscale, resized
from .result import CAMResult
from .targets import Target
from .wrappers import unwrap

_NOTHING = 2.0  # a threshold that no score reaches


class MSCAResult(NamedTuple):
    """What MS-CA finds in one batch.

    Attributes:
        scores: the fused map S, (N, H, W) float32 in 0-1 (eq. 6).
        masks: ``scores >= threshold``, (N, H, W) bool (eq. 7).
        boxes: one per connected area, best score first; the score is the mean of S inside.
        attention: the transformer's part, (N, H, W).
        cam: the multi-scale CAM's part, see :func:`multiscale`.
        valid: (N,) bool, False where the CAM's part is not valid or the attention not finite;
            scores are zero there.
    """

    scores: Tensor
    masks: Tensor
    boxes: ops.ScoredBoxes
    attention: Tensor
    cam: CAMResult
    valid: Tensor


class MSCA:
    r"""Multi-scale CAM and attention (MS-CA, eq. 4-7).

    .. math:: S = \tfrac12 \big(\mathrm{minmax}(\mathrm{up}(L_{Att}))
              + \mathrm{minmax}(\mathrm{mean}_s\, \mathrm{up}(L_s))\big), \qquad
              \mathrm{mask} = S \ge t

    Args:
        method: the CAM, such as ``GradCAM(resnet50, "last")``.
        vit: the transformer, such as :func:`load_attention_model` gives.
        scales: of the images for the CAM.
        scale_norm: see :func:`multiscale`.
        attention_scale: of the images for the transformer. The paper takes one of the CAM's.
        head_norm: see :func:`attention_map`.
        attention_mode: see :func:`attention_map`.
        threshold: t, a number of 0 to 1, ``"otsu"`` or ``"otsu2"``.
        relative: a number is a share of each map's maximum instead.
        nms: a box that overlaps a better-scored one by a larger IoU is dropped.
        max_boxes: boxes per image.
        connectivity: 4 or 8 neighbours.
        min_area: smaller areas are left out, in pixels.

    Raises:
        ValueError: another kind of transformer, values out of range.

    Note:
        The raw attention sums to 1 over all patches: it is scaled to 0-1 before the mean. S is not
        scaled again, so its maximum may be below 1. Of a classifier of good and defective parts,
        give the defective class as target: maps of the predicted class would show "good" in good
        images.
    """

    def __init__(
        self,
        method: CAMMethod,
        vit: nn.Module,
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0),
        scale_norm: Norm = "minmax",
        attention_scale: float = 0.5,
        head_norm: Norm = None,
        attention_mode: Literal["bilinear", "nearest"] = "bilinear",
        threshold: float | Literal["otsu", "otsu2"] = 0.5,
        relative: bool = False,
        nms: float = 0.5,
        max_boxes: int = 64,
        connectivity: int = 8,
        min_area: int = 1,
    ) -> None:
        where = "cam.MSCA"
        if isinstance(threshold, str):
            if threshold not in ("otsu", "otsu2"):
                value_error(where, "threshold", "otsu, otsu2 or a number of 0 to 1", threshold)
        else:
            check_range(where, "threshold", threshold, 0.0, 1.0)
        check_scales(where, scales)
        check_norm(where, "scale_norm", scale_norm)
        if not 0 < attention_scale < math.inf:
            value_error(where, "attention_scale", "positive", f"{attention_scale}")
        check_norm(where, "head_norm", head_norm)
        check_choice(where, "attention_mode", attention_mode, ["bilinear", "nearest"])
        check_range(where, "nms", nms, 0.0, 1.0)
        check_count(where, "max_boxes", max_boxes, 1)
        check_connectivity(where, connectivity)
        check_count(where, "min_area", min_area, 1)
        self.method = method
        self.vit = unwrap(where, vit)
        check_model(where, self.vit)
        self.scales = tuple(scales)
        self.scale_norm: Norm = scale_norm
        self.attention_scale = attention_scale
        self.head_norm: Norm = head_norm
        self.attention_mode = attention_mode
        self.threshold = threshold
        self.relative = relative
        self.nms = nms
        self.max_boxes = max_boxes
        self.connectivity = connectivity
        self.min_area = min_area

    def __call__(
        self, images: Tensor, target: Target = None, *, attention_images: Tensor | None = None
    ) -> MSCAResult:
        """Localise one class in one batch.

        Args:
            images: (N, 3, H, W), normalised for the CAM's model.
            target: see :func:`multiscale`; one class per image.
            attention_images: the same images normalised for the transformer, where that differs;
                any size.

        Returns:
            An :class:`MSCAResult`.

        Raises:
            ValueError: several classes per image; another number of ``attention_images`` than of
                images; see :func:`multiscale`.
            TypeError: see :meth:`CAMMethod.__call__`.
        """
        where = "cam.MSCA"
        seen = images if attention_images is None else attention_images
        check_images(where, images)
        check_images(where, seen, "attention_images")
        if len(seen) != len(images):
            expected = f"of {len(images)} images"
            value_error(where, "attention_images", expected, f"{len(seen)}")
        cam = multiscale(
            self.method, images, target, scales=self.scales, scale_norm=self.scale_norm
        )
        if cam.cams.dim() != 3:
            expected = f"of shape ({len(images)},)"
            value_error(where, "target", expected, f"shape {list(cam.cams.shape[:2])}")
        attention, finite = map_and_valid(
            self.vit,
            resized(seen, self.attention_scale),
            (images.shape[2], images.shape[3]),
            self.head_norm,
            "minmax",
            self.attention_mode,
        )
        valid = cam.valid & finite.to(cam.valid.device)
        scores = 0.5 * (attention.to(cam.cams.device) + cam.cams)
        scores = scores.masked_fill(~valid[:, None, None], 0.0)
        limits = self._limits(scores).masked_fill(~valid, _NOTHING)
        boxes = ops.cam_boxes(
            scores,
            limits,
            max_boxes=self.max_boxes,
            connectivity=self.connectivity,
            min_area=self.min_area,
        )
        masks = scores >= limits[:, None, None]
        boxes = ops.suppress_overlaps(boxes, self.nms)
        return MSCAResult(scores, masks, boxes, attention, cam, valid)

    def _limits(self, scores: Tensor) -> Tensor:
        """(N,) thresholds."""
        if self.relative and not isinstance(self.threshold, str):
            highest = scores.amax(dim=(1, 2))
            return (self.threshold * highest).where(highest > 0, _NOTHING)
        return ops.cam_thresholds(scores, self.threshold)
