"""Components, boxes and Otsu's threshold: against the loops over OpenCV that people write.

Maps are like upsampled CAMs of 7 x 7 cells; the "mid" variant has 28 x 28 cells, the "noisy" one
14 x 14 and Gaussian noise. Masks are maps >= 0.5.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

import wsfast
from wsfast.ops.boxes import reference

from . import gpu_peers
from .harness import Case, Contender, MemoryLimit, Run, eager, over_threads
from .inputs import blobs
from .records import Size, Target

CELLS = {"": 7, "mid": 28, "noisy": 14}
NOISE = 0.15
SMOOTH = Size(64, 224, headline=True)
MID = Size(64, 224, "mid", headline=True)
NOISY = Size(64, 224, "noisy", headline=True)
SIZES = (
    Size(64, 56),
    Size(64, 112),
    SMOOTH,
    Size(16, 224),
    Size(32, 224),
    MID,
    NOISY,
)
THRESHOLD = 0.5
MAX_BOXES = 64
LEVELS = 255


def maps(size: Size, generator: torch.Generator) -> Tensor:
    """Maps (N, H, W) in 0-1."""
    smooth = blobs(size.batch, size.side, generator, CELLS[size.variant])
    if size.variant != "noisy":
        return smooth
    return (smooth + NOISE * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def masks(size: Size, generator: torch.Generator) -> Tensor:
    return maps(size, generator) >= THRESHOLD


def on_cpu(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda images: run(images.cpu())


# Components -------------------------------------------------------------------------------------
# Every contender gives the component count of each mask and its largest area (0 without any).


def counts_and_largest(found: wsfast.Boxes) -> tuple[Tensor, Tensor]:
    return found.counts, found.areas[:, 0].clamp(min=0)


def reference_boxes(mask: Tensor) -> wsfast.Boxes:
    boxes, _, areas, counts = reference.scored_boxes(mask, mask.float(), MAX_BOXES, 8, 1)
    return wsfast.Boxes(boxes, areas, counts)


def summary(areas: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Counts and largest areas from each mask's areas without the background."""
    counts = torch.tensor([len(image) for image in areas])
    return counts, torch.tensor([int(image.max(initial=0)) for image in areas])


def opencv_components(mask: Tensor) -> Run:
    """Boxes and areas alone, so that labels' memory serves the next image; threads within each."""
    images = mask.numpy().view(np.uint8)
    return lambda: [cv2.connectedComponentsWithStats(image)[2] for image in images]


def opencv_components_over_threads(mask: Tensor) -> Run:
    """An image per thread, for which labels of 16 bits have the faster algorithm."""
    return over_threads(
        lambda image: cv2.connectedComponentsWithStats(image, ltype=cv2.CV_16U)[2],
        mask.numpy().view(np.uint8),
    )


def opencv_summary(found: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    return summary([stats[1:, cv2.CC_STAT_AREA] for stats in found])


def opencv_contours(mask: Tensor) -> Run:
    images = mask.numpy().view(np.uint8)

    def boxes(image: np.ndarray) -> list[Any]:
        contours, _ = cv2.findContours(image, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return [cv2.boundingRect(contour) for contour in contours]

    return lambda: [boxes(image) for image in images]


def cc3d_components(mask: Tensor) -> Run:
    import cc3d

    def components(image: np.ndarray) -> dict[str, Any]:
        labels = cc3d.connected_components(image, connectivity=8, binary_image=True)
        return cc3d.statistics(labels, no_slice_conversion=True)  # slices take ten times as long

    images = mask.numpy()
    return lambda: [components(image) for image in images]


def cc3d_summary(found: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    return summary([image["voxel_counts"][1:].astype(np.int64) for image in found])


def scikit_components(mask: Tensor) -> Run:
    from scipy.ndimage import find_objects
    from skimage.measure import label

    def components(image: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        labels = label(image, connectivity=2)
        return np.bincount(labels.ravel()), find_objects(labels)

    images = mask.numpy()
    return lambda: [components(image) for image in images]


def scikit_summary(found: list[tuple[np.ndarray, list[Any]]]) -> tuple[Tensor, Tensor]:
    return summary([areas[1:] for areas, _ in found])


# Boxes of maps ----------------------------------------------------------------------------------


def reference_cam_boxes(cams: Tensor) -> wsfast.ScoredBoxes:
    found = reference.scored_boxes(cams >= THRESHOLD, cams, MAX_BOXES, 8, 1)
    return wsfast.ScoredBoxes(*found)


def opencv_image_boxes(cam: np.ndarray, labels_type: int) -> tuple[np.ndarray, np.ndarray]:
    """Threshold, label, and average the map over each label; boxes and scores by area."""
    mask = (cam >= THRESHOLD).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, ltype=labels_type)
    total = np.bincount(labels.ravel(), weights=cam.ravel(), minlength=count)
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:MAX_BOXES]
    return stats[order], total[order] / stats[order, cv2.CC_STAT_AREA]


def opencv_cam_boxes(cams: Tensor) -> Run:
    images = cams.numpy()
    return lambda: [opencv_image_boxes(cam, cv2.CV_32S) for cam in images]


def opencv_cam_boxes_over_threads(cams: Tensor) -> Run:
    return over_threads(lambda cam: opencv_image_boxes(cam, cv2.CV_16U), cams.numpy())


def best_scores(found: wsfast.ScoredBoxes) -> tuple[Tensor, Tensor]:
    """Area and score of the largest component of each map."""
    return found.areas[:, 0], found.scores[:, 0]


def opencv_best_scores(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    areas = [int(stats[0, cv2.CC_STAT_AREA]) for stats, _ in found]
    return torch.tensor(areas), torch.tensor([float(scores[0]) for _, scores in found])


# Boxes of labels --------------------------------------------------------------------------------
# Components of the smooth masks, numbered; every contender gives the boxes of labels 1 to 8.

MAX_LABELS = 8


def label_maps(size: Size, generator: torch.Generator) -> Tensor:
    return wsfast.connected_components(masks(size, generator).cpu())[0]


def label_boxes(labels: Tensor) -> wsfast.Boxes:
    return wsfast.label_boxes(labels, max_labels=MAX_LABELS)


def torchvision_label_boxes(labels: Tensor) -> Tensor:
    from torchvision.ops import masks_to_boxes

    numbers = torch.arange(1, MAX_LABELS + 1, device=labels.device)[:, None, None]
    return masks_to_boxes((labels[:, None] == numbers).flatten(0, 1))


def torchvision_box_rows(found: Tensor) -> Tensor:
    """Half-open; an absent label's box is all zeros there."""
    boxes = found.unflatten(0, (-1, MAX_LABELS))
    absent = (boxes == 0).all(dim=2, keepdim=True)
    return torch.where(absent, -1, boxes + torch.tensor([0, 0, 1, 1], device=boxes.device))


def scipy_label_boxes(labels: Tensor) -> Run:
    from scipy.ndimage import find_objects

    images = labels.numpy()
    return lambda: [find_objects(image, MAX_LABELS) for image in images]


def scipy_box_rows(found: list[list[Any]]) -> Tensor:
    def row(place: Any) -> list[int]:
        if place is None:
            return [-1] * 4
        rows, columns = place
        return [columns.start, rows.start, columns.stop, rows.stop]

    return torch.tensor([[row(place) for place in image] for image in found])


# Otsu -------------------------------------------------------------------------------------------
# Every contender gives the levels T; what lies above T is foreground.


def opencv_otsu(image: np.ndarray) -> float:
    return cv2.threshold(image, 0, LEVELS, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]


def opencv_otsu_loop(cams: Tensor) -> Run:
    images = cams.numpy()
    return lambda: [opencv_otsu((image * LEVELS).astype(np.uint8)) for image in images]


def opencv_otsu_on_bytes(cams: Tensor) -> Run:
    images = (cams * LEVELS).byte().numpy()
    return lambda: [opencv_otsu(image) for image in images]


def scikit_otsu(cams: Tensor) -> Run:
    from skimage.filters import threshold_otsu

    images = cams.numpy()
    return lambda: [threshold_otsu((image * LEVELS).astype(np.uint8)) for image in images]


def otsu_levels(thresholds: Tensor) -> Tensor:
    return (thresholds * LEVELS).round() - 1


OPENCV_LOOP = "OpenCV connectedComponentsWithStats loop"
OPENCV_OVER_THREADS = "OpenCV connectedComponentsWithStats, an image per thread"
COMPONENTS_TARGETS = tuple(
    Target(size.label, 6, 12, (OPENCV_LOOP, OPENCV_OVER_THREADS)) for size in (SMOOTH, MID, NOISY)
)

CASES = [
    Case(
        room="boxes",
        operation="component_boxes",
        inputs=masks,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", eager(wsfast.component_boxes), collect=counts_and_largest),
            Contender(OPENCV_LOOP, opencv_components, devices=("cpu",), collect=opencv_summary),
            Contender(
                OPENCV_OVER_THREADS,
                opencv_components_over_threads,
                sweep=False,
                devices=("cpu",),
                collect=opencv_summary,
            ),
            Contender(
                "OpenCV findContours + boundingRect loop",
                opencv_contours,
                same_work=False,
                sweep=False,
                devices=("cpu",),
                note="no areas, no components inside holes",
            ),
            Contender(
                "cc3d loop",
                cc3d_components,
                requires=("cc3d",),
                sweep=False,
                devices=("cpu",),
                collect=cc3d_summary,
            ),
            Contender(
                "scikit-image label + find_objects loop",
                scikit_components,
                requires=("skimage",),
                sweep=False,
                devices=("cpu",),
                collect=scikit_summary,
            ),
            Contender(
                "OpenCV loop over a host copy",
                gpu_peers.opencv_over_the_host,
                sweep=False,
                devices=("cuda",),
                collect=opencv_summary,
            ),
            Contender(
                "CuPy label + bincount",
                gpu_peers.cupy_components,
                requires=("cupy",),
                sweep=False,
                devices=("cuda",),
                collect=gpu_peers.cupy_summary,
                note="areas, no boxes",
            ),
            Contender(
                "kornia connected_components",
                gpu_peers.kornia_components,
                requires=("kornia",),
                sweep=False,
                devices=("cuda",),
                collect=gpu_peers.kornia_summary,
                note="labels only",
            ),
            Contender("reference", eager(reference_boxes), sweep=False, collect=counts_and_largest),
        ),
        oracle=on_cpu(lambda mask: counts_and_largest(reference_boxes(mask))),
        tolerance=0.0,
        targets=(
            *COMPONENTS_TARGETS,
            Target(SMOOTH.label, 0.2, 0.2, measure="milliseconds", device="cuda"),
        ),
        memory=MemoryLimit(SMOOTH, "the masks' bytes", lambda mask: mask.nbytes, 10.0, ("wsfast",)),
    ),
    Case(
        room="boxes",
        operation="cam_boxes",
        inputs=maps,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", eager(wsfast.cam_boxes), collect=best_scores),
            Contender(
                "OpenCV and NumPy loop",
                opencv_cam_boxes,
                devices=("cpu",),
                collect=opencv_best_scores,
            ),
            Contender(
                "OpenCV and NumPy, an image per thread",
                opencv_cam_boxes_over_threads,
                sweep=False,
                devices=("cpu",),
                collect=opencv_best_scores,
            ),
            Contender("reference", eager(reference_cam_boxes), sweep=False, collect=best_scores),
        ),
        oracle=on_cpu(lambda cams: best_scores(reference_cam_boxes(cams))),
        tolerance=1e-6,
    ),
    Case(
        room="boxes",
        operation="label_boxes",
        inputs=label_maps,
        sizes=(Size(64, 56), Size(64, 112), SMOOTH),
        contenders=(
            Contender("wsfast", eager(label_boxes), collect=lambda found: found.boxes),
            Contender(
                "torchvision masks_to_boxes",
                eager(torchvision_label_boxes),
                requires=("torchvision",),
                collect=torchvision_box_rows,
            ),
            Contender(
                "SciPy find_objects loop",
                scipy_label_boxes,
                devices=("cpu",),
                requires=("scipy",),
                collect=scipy_box_rows,
            ),
            Contender(
                "reference",
                eager(lambda labels: reference.label_boxes(labels, MAX_LABELS)),
                sweep=False,
                collect=lambda found: found[0],
            ),
        ),
        oracle=on_cpu(lambda labels: reference.label_boxes(labels, MAX_LABELS)[0]),
        tolerance=0.0,
    ),
    Case(
        room="boxes",
        operation="otsu_threshold",
        inputs=maps,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", eager(wsfast.otsu_threshold), collect=otsu_levels),
            Contender("OpenCV Otsu loop", opencv_otsu_loop, devices=("cpu",), collect=torch.tensor),
            Contender(
                "OpenCV Otsu loop on ready bytes",
                opencv_otsu_on_bytes,
                same_work=False,
                sweep=False,
                devices=("cpu",),
                note="the conversion to 8 bits is not timed",
            ),
            Contender(
                "scikit-image Otsu loop",
                scikit_otsu,
                collect=torch.tensor,
                requires=("skimage",),
                sweep=False,
                devices=("cpu",),
            ),
            Contender(
                "reference",
                eager(lambda cams: reference.otsu_level(cams, 1)),
                sweep=False,
                devices=("cpu",),
            ),
        ),
        oracle=on_cpu(lambda cams: reference.otsu_level(cams, 1)),
        tolerance=0.0,
        targets=tuple(
            Target(size.label, 3, 6, ("OpenCV Otsu loop",)) for size in (SMOOTH, MID, NOISY)
        ),
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
