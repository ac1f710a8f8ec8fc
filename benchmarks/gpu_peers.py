"""Connected components as other packages find them on a GPU, where those are installed."""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from .harness import Run

KORNIA_ITERATIONS = 448  # its labels spread by a pixel per iteration: twice a side of 224
Found = tuple[Tensor, Tensor]  # counts and largest areas


def counts_and_largest_of_labels(labels: Any) -> Found:
    """Counts and largest areas from label maps (N, H, W), 0 background."""
    counts, largest = [], []
    for image in np.asarray(labels):
        found, areas = np.unique(image[image != 0], return_counts=True)
        counts.append(len(found))
        largest.append(int(areas.max(initial=0)))
    return torch.tensor(counts), torch.tensor(largest)


def cupy_components(mask: Tensor) -> Run:
    """Labels of all images in one call, and the labels' areas."""
    import cupy
    from cupyx.scipy import ndimage

    images = cupy.from_dlpack(mask.to(torch.uint8))
    within_images = cupy.zeros((3, 3, 3), dtype=bool)
    within_images[1] = True

    def run() -> Any:
        labels, count = ndimage.label(images, within_images)
        return labels, cupy.bincount(labels.ravel(), minlength=count + 1)

    return run


def cupy_summary(found: Any) -> Found:
    return counts_and_largest_of_labels(found[0].get())


def kornia_components(mask: Tensor) -> Run:
    """Labels that spread by max-pooling."""
    from kornia.contrib import connected_components

    images = mask[:, None].float()
    return lambda: connected_components(images, num_iterations=KORNIA_ITERATIONS)


def kornia_summary(labels: Tensor) -> Found:
    return counts_and_largest_of_labels(labels[:, 0].cpu())


def opencv_over_the_host(mask: Tensor) -> Run:
    """What people do without a GPU op: copy the masks to the host, loop over them there."""
    return lambda: [
        cv2.connectedComponentsWithStats(image)[2] for image in mask.cpu().numpy().view(np.uint8)
    ]
