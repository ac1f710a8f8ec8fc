"""Refinements of maps by a CRF, superpixels, watershed and selective search."""

import sys
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from wsfast.cam import crf_cams, selective_search_boxes, slic_cams, watershed_masks


def squares() -> tuple[Tensor, Tensor, Tensor]:
    """A bright square in noise, its mask, and a blurred map that leans to one side."""
    mask = torch.zeros(1, 48, 64, dtype=torch.bool)
    mask[:, 10:30, 20:44] = True
    images = 0.2 + 0.6 * mask[:, None].float() + 0.02 * torch.rand(1, 1, 48, 64)
    blurred = F.avg_pool2d(mask[:, None].float(), 15, 1, 7)[:, 0]
    return images.expand(-1, 3, -1, -1), mask, blurred.roll(3, 2)


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def best_iou(cams: Tensor, mask: Tensor) -> float:
    return max(iou(cams >= t, mask) for t in np.linspace(0.05, 0.95, 19))


def test_refining_moves_edges_to_the_image() -> None:
    """A blurred, shifted map of a disc takes the disc's outline."""
    y, x = np.mgrid[:80, :90]
    disc = (y - 40) ** 2 + (x - 45) ** 2 < 20**2
    image = np.where(disc[..., None], np.uint8([200, 90, 40]), np.uint8([60, 110, 160]))
    distance = np.hypot(y - 43, x - 49) / 26
    cam = torch.from_numpy(1 / (1 + np.exp(4 * (distance - 1)))).float()[None]
    refined = crf_cams(torch.from_numpy(image).permute(2, 0, 1)[None], cam)[0]

    truth = torch.from_numpy(disc)
    assert iou(cam[0] >= 0.5, truth) < 0.7
    assert iou(refined >= 0.5, truth) > 0.95


def test_refinements_follow_the_images_edges() -> None:
    pytest.importorskip("skimage")
    images, mask, cams = squares()
    plain = best_iou(cams, mask)
    assert best_iou(slic_cams(images, cams, segments=200), mask) > plain
    watershed = watershed_masks(images, cams, foreground=0.8, background=0.2)
    assert iou(watershed, mask) > 0.97 > plain
    assert not watershed_masks(images, cams * 0.5, foreground=0.8).any()


@pytest.mark.parametrize("refine", [slic_cams, watershed_masks])
def test_a_missing_extra_is_named(refine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    images, _, cams = squares()
    with pytest.raises(ImportError, match=rf'{refine.__name__}: .*pip install "wsfast\[refine\]"'):
        refine(images, cams)


def test_superpixels_hold_the_mean_of_the_map() -> None:
    pytest.importorskip("skimage")
    images, _, _ = squares()
    cams = torch.rand(1, 48, 64)
    averaged = slic_cams(images[:, :1], cams, segments=30)
    assert averaged.mean() == pytest.approx(float(cams.mean()), abs=1e-5)
    values = np.unique(averaged.numpy())
    assert 5 < len(values) <= 60
    for value in values[:5]:
        inside = averaged == float(value)
        assert float(cams[inside].mean()) == pytest.approx(float(value), abs=1e-5)


def test_refinement_errors() -> None:
    images, _, cams = squares()
    with pytest.raises(ValueError, match="cams must be of shape"):
        slic_cams(images, cams[:, 1:])
    with pytest.raises(ValueError, match="images must be of 1 or 3 channels"):
        slic_cams(images[:, :2], cams)
    with pytest.raises(ValueError, match="images must be a batch of at least one image"):
        slic_cams(images[:0], cams[:0])
    with pytest.raises(ValueError, match=r"background must be between 0\.0 and 0\.3"):
        watershed_masks(images, cams, foreground=0.3)
    with pytest.raises(ValueError, match="mode must be one of fast, quality"):
        selective_search_boxes(images, cams, mode="slow")


@pytest.mark.skipif(not hasattr(cv2, "ximgproc"), reason="OpenCV without contrib modules")
def test_selective_search_finds_the_square() -> None:
    images, _, cams = squares()
    images = torch.cat([images, torch.full_like(images, 0.5)])
    found = selective_search_boxes(images, torch.cat([cams, cams]), threshold=0.6)
    square = torch.tensor([[20.0, 10.0, 44.0, 30.0]])
    kept = found.boxes[0, : found.counts[0]].float()
    assert box_iou(kept, square).amax() > 0.8
    for box, score in zip(found.boxes[0], found.scores[0], strict=True):
        x0, y0, x1, y1 = box.tolist()
        if x0 >= 0:
            assert float(cams[0, y0:y1, x0:x1].mean()) == pytest.approx(float(score), abs=1e-5)
            assert score >= 0.6
    again = selective_search_boxes(images, torch.cat([cams, cams]), threshold=0.6)
    assert torch.equal(again.boxes, found.boxes)
    empty = selective_search_boxes(images, torch.cat([cams, cams]), threshold=1.0)
    assert empty.counts.tolist() == [0, 0]


@pytest.mark.skipif(hasattr(cv2, "ximgproc"), reason="OpenCV with contrib modules")
def test_selective_search_says_what_it_needs() -> None:
    images, _, cams = squares()
    with pytest.raises(ImportError, match="install opencv-contrib-python-headless"):
        selective_search_boxes(images, cams)
