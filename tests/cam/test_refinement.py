"""The CRF as a refinement of maps; superpixels and watershed are in test_msca."""

import numpy as np
import torch

from wsfast.cam import crf_cams


def test_refining_moves_edges_to_the_image() -> None:
    """A blurred, shifted map of a disc takes the disc's outline."""
    y, x = np.mgrid[:80, :90]
    disc = (y - 40) ** 2 + (x - 45) ** 2 < 20**2
    image = np.where(disc[..., None], np.uint8([200, 90, 40]), np.uint8([60, 110, 160]))
    distance = np.hypot(y - 43, x - 49) / 26
    cam = torch.from_numpy(1 / (1 + np.exp(4 * (distance - 1)))).float()[None]
    refined = crf_cams(torch.from_numpy(image).permute(2, 0, 1)[None], cam)[0].numpy()

    def iou(mask: np.ndarray) -> float:
        return (mask & disc).sum() / (mask | disc).sum()

    assert iou(cam[0].numpy() >= 0.5) < 0.7
    assert iou(refined >= 0.5) > 0.95
