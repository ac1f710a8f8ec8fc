"""Augmentation that treats an image and all that belongs to its pixels alike."""

from typing import NamedTuple

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from wsfast._check import check_choice, value_error
from wsfast.data.sample import check_size

_FLIPS = ["none", "horizontal", "both"]


class Augmented(NamedTuple):
    """An image and what belongs to it, transformed together.

    Attributes:
        image: (C, H, W), of the dtype given.
        map: (M, H, W), of the dtype given; None where none was given.
        mask: (H, W), of the dtype given; None where none was given.
        boxes: (G, 4), cut off at the border; of no area where the crop missed it. None where none
            were given.
    """

    image: Tensor
    map: Tensor | None
    mask: Tensor | None
    boxes: Tensor | None


class JointTransform:
    """Resize, random crop and random flips, with the same draw for image, map, mask and boxes.

    F-CAM's and DiPS' training images are ``JointTransform(size=(256, 256), crop=(224, 224))``:
    resized, cropped, mirrored with probability one half. Small defects are better off with flips
    alone (``JointTransform(flips="both")``), evaluation with ``JointTransform(size=(224, 224),
    flips="none")``. A map stands for the whole image at any resolution, such as a cached CAM: it is
    brought to the image's size before the crop, so that a CAM of the full image is cropped with it.

    Args:
        size: height and width to resize to first, or None to leave the image as it is.
        crop: height and width of the random crop, or None for none.
        flips: ``"none"``, ``"horizontal"`` or ``"both"`` (left-right and, independently, up-down).

    Raises:
        ValueError: sizes that are not positive, a crop larger than ``size``.

    Note:
        Draws from torch's global CPU generator, as torchvision's transforms do, in the same way
        whatever is passed along: seed it per image for augmentation that does not depend on batch,
        worker or process. Images and maps are interpolated bilinearly with antialiasing, masks by
        the nearest pixel.

    Example:
        >>> import torch
        >>> transform = JointTransform(size=(32, 32), crop=(28, 28))
        >>> image, map = torch.zeros(3, 50, 40, dtype=torch.uint8), torch.rand(1, 7, 7)
        >>> result = transform(image, map, boxes=torch.tensor([[0, 0, 40, 50]]))
        >>> result.image.shape, result.map.shape, result.boxes.tolist()
        (torch.Size([3, 28, 28]), torch.Size([1, 28, 28]), [[0, 0, 28, 28]])
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        flips: str = "horizontal",
    ) -> None:
        for argument, sides in (("size", size), ("crop", crop)):
            if sides is not None:
                check_size("JointTransform", sides, 1, argument)
        if size is not None and crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            value_error("JointTransform", "crop", f"within size {size}", f"{crop}")
        check_choice("JointTransform", "flips", flips, _FLIPS)
        self.size = size
        self.crop = crop
        self.flips = flips
        steps: list[v2.Transform] = []
        if crop is not None:
            steps.append(v2.RandomCrop(list(crop)))
        if flips != "none":
            steps.append(v2.RandomHorizontalFlip())
        if flips == "both":
            steps.append(v2.RandomVerticalFlip())
        self._steps = v2.Compose(steps) if steps else v2.Identity()

    def __repr__(self) -> str:
        return f"JointTransform(size={self.size}, crop={self.crop}, flips={self.flips!r})"

    def __call__(
        self,
        image: Tensor,
        map: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Augmented:
        """Transform an image and what belongs to it.

        Args:
            image: (C, H, W) uint8 or floating point.
            map: (M, h, w) uint8 or floating point, of the whole image.
            mask: (H, W), any dtype.
            boxes: (G, 4) half-open in pixels of the image.

        Raises:
            ValueError: a mask of another size than the image, an image smaller than the crop.
        """
        height, width = image.shape[-2:]
        if mask is not None and mask.shape != (height, width):
            value_error("JointTransform", "mask", f"({height}, {width})", f"{tuple(mask.shape)}")
        size = self.size or (height, width)
        if self.crop is not None and (size[0] < self.crop[0] or size[1] < self.crop[1]):
            value_error("JointTransform", "image", f"at least {self.crop}", f"{(height, width)}")
        parts = {
            "image": tv_tensors.Image(image),
            "map": None if map is None else tv_tensors.Image(map),
            "mask": None if mask is None else tv_tensors.Mask(mask[None]),
            "boxes": None if boxes is None else _as_boxes(boxes, (height, width)),
        }
        present = {name: part for name, part in parts.items() if part is not None}
        found = self._steps({name: resized(part, size) for name, part in present.items()})
        plain = {name: part.as_subclass(Tensor) for name, part in found.items()}
        if mask is not None:
            plain["mask"] = plain["mask"][0]
        return Augmented(plain["image"], plain.get("map"), plain.get("mask"), plain.get("boxes"))


def _as_boxes(boxes: Tensor, canvas: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    found: tv_tensors.BoundingBoxes = F.clamp_bounding_boxes(
        tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
    )
    return found


def resized(part: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (C, H, W), or torchvision's tensor of another kind, at another size."""
    current = F.get_size(part)
    return part if tuple(current) == size else F.resize(part, list(size), antialias=True)
