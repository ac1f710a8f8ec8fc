"""TS-CAM: a transformer classifier whose maps are token semantics times attention."""

from typing import Literal

import torch
from torch import Tensor, nn

from .. import ops
from .._check import check_choice, check_count, value_error
from .attention import (
    any_size,
    check_model,
    cls_rows,
    on_images,
    recorded_inputs,
    rollout,
    to_patches,
    whole_patches,
)
from .base import check_images, finite
from .capture import undisturbed, usable_images
from .result import CAMResult
from .targets import Target, in_range, resolve_target
from .wrappers import unwrap


class TSCAM(nn.Module):
    r"""Token semantic coupled attention maps (Gao 2021, eq. 5-8; DiPS A.6).

    .. math:: M_c = A^* \odot S_c, \qquad S = \mathrm{conv}_{3\times3}(\text{patch tokens})

    with :math:`A^*` the class token's attention to the patches, averaged over heads and blocks. A
    module to train like any classifier: logits are the means of the semantic maps S.

    Args:
        vit: a timm vision transformer with a class token, such as ``deit_small_patch16_224``; its
            own head is not used.
        num_classes: logits.

    Raises:
        ValueError: another kind of model, no class.

    Example:
        >>> import timm
        >>> vit = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=64)
        >>> model = TSCAM(vit, 5)
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 5])
        >>> model.explain(torch.rand(2, 3, 64, 96)).cams.shape
        torch.Size([2, 64, 96])
    """

    def __init__(self, vit: nn.Module, num_classes: int) -> None:
        super().__init__()
        vit = unwrap("cam.TSCAM", vit)
        check_model("cam.TSCAM", vit)
        check_count("cam.TSCAM", "num_classes", num_classes, 1)
        if not isinstance(getattr(vit, "patch_drop", nn.Identity()), nn.Identity):
            expected = "a transformer that drops no patches"
            value_error("cam.TSCAM", "vit", expected, "one with a patch_drop_rate")
        self.vit = vit
        self.head = nn.Conv2d(int(vit.embed_dim), num_classes, 3, padding=1)  # type: ignore[arg-type]

    def semantic_maps(self, images: Tensor) -> Tensor:
        """(N, classes, h, w) of images (N, 3, H, W), h and w in patches."""
        images = whole_patches("cam.TSCAM", self.vit, images)
        with any_size(self.vit):
            tokens = self.vit.forward_features(images)  # type: ignore[operator]
        maps: Tensor = self.head(to_patches(self.vit, tokens.transpose(1, 2), images))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.semantic_maps(images).mean(dim=(2, 3))

    def explain(
        self,
        images: Tensor,
        target: Target = None,
        *,
        attention: Literal["mean", "rollout"] = "mean",
    ) -> CAMResult:
        """Maps of one batch.

        Args:
            images: (N, 3, H, W) of any size, cut to whole patches. ``cams`` keeps each patch in
                its place; what was cut off takes the nearest values.
            target: see :meth:`CAMMethod.__call__`; class numbers.
            attention: ``"mean"`` over blocks (the paper's) or :func:`attention_rollout`.

        Returns:
            A :class:`CAMResult`; ``per_layer`` holds the one map in patches, not normalised.

        Raises:
            ValueError: a callable target, classes out of range, inference mode.
            TypeError: images that are not floating point, a target that is no class number.

        Note:
            One forward pass in evaluation mode, whatever the model's; not differentiable.
        """
        check_choice("cam.TSCAM", "attention", attention, ["mean", "rollout"])
        check_images("cam.TSCAM", images)
        images = usable_images("cam.TSCAM", images)
        blocks = range(len(self.vit.blocks))  # type: ignore[arg-type]
        with undisturbed(self, images.device), recorded_inputs(self.vit, blocks) as entered:
            semantics = self.semantic_maps(images)
        logits = semantics.mean(dim=(2, 3))
        classes = resolve_target("cam.TSCAM", target, logits)
        if classes is None:
            value_error("cam.TSCAM", "target", "class numbers for this method", "a callable")
        assert classes is not None
        columns = classes.reshape(len(images), -1).clamp(0, logits.shape[1] - 1)
        chosen = semantics.float().gather(
            1, columns[:, :, None, None].expand(-1, -1, *semantics.shape[2:])
        )
        maps = chosen * self._attention(images, entered, attention)[:, None]
        valid = finite(logits) & in_range(classes, logits) & finite(maps)
        maps = maps.masked_fill(~valid[:, None, None, None], 0.0)
        size = (images.shape[2], images.shape[3])
        placed = on_images(self.vit, maps.flatten(0, 1), images, size)
        cams = ops.fuse_cams([placed], size).unflatten(0, maps.shape[:2])
        if classes.dim() == 1:
            cams, maps = cams[:, 0], maps[:, 0]
        return CAMResult(cams, [maps], logits, classes, valid)

    @torch.no_grad()
    def _attention(self, images: Tensor, entered: list[Tensor], kind: str) -> Tensor:
        """(N, h, w) attention of the class token to the patches."""
        images = whole_patches("cam.TSCAM", self.vit, images)
        if kind == "rollout":
            return rollout(self.vit, images, entered)
        blocks = zip(self.vit.blocks, entered, strict=True)  # type: ignore[arg-type]
        rows = torch.stack([cls_rows(block.attn, x).mean(dim=1) for block, x in blocks])
        return to_patches(self.vit, rows.mean(dim=0)[:, None], images)[:, 0]
