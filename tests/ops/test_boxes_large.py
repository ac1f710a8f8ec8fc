"""Room `boxes`: images cut into bands of rows, against OpenCV, for any number of threads."""

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

import wsfast
from tests.masks import checkerboard, snake, spiral

HEIGHT, WIDTH = 1025, 1027  # several bands, the last one shorter and of odd height
THREADS = (1, 2, 3, 5)
MOST, MIN_AREA = 40, 3

Mask = Callable[[int, int], torch.Tensor]


def random_mask(density: float) -> Mask:
    return lambda height, width: torch.rand(1, height, width) < density


def vertical_snake(height: int, width: int) -> torch.Tensor:
    return snake(width, height).mT


def comb(height: int, width: int) -> torch.Tensor:
    """Teeth through every seam, joined in the last row alone."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, :, ::2] = True
    mask[:, -1] = True
    return mask


MASKS: dict[str, Mask] = {
    "noise": random_mask(0.45),
    "sparse": random_mask(0.03),
    "snake": snake,
    "vertical snake": vertical_snake,
    "spiral": lambda height, width: spiral(height),
    "checkerboard": checkerboard,
    "comb": comb,
    "empty": random_mask(0.0),
    "full": random_mask(1.0),
}


def two_images(make: Mask, height: int, width: int) -> torch.Tensor:
    """As many as some numbers of threads and fewer than others."""
    mask = make(height, width)
    return torch.cat([mask, mask.flip(1)]).contiguous()


def with_threads(call: Callable[[], tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """The results with one thread, which those with more must equal bit for bit."""
    torch.set_num_threads(THREADS[0])
    expected = call()
    for threads in THREADS[1:]:
        torch.set_num_threads(threads)
        for ours, theirs in zip(call(), expected, strict=True):
            assert torch.equal(ours, theirs), threads
    return list(expected)


def opencv_components(mask: torch.Tensor, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels in raster order of first pixels; rows of area, x0, y0, x1, y1 in that order."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.numpy().astype(np.uint8), connectivity=connectivity
    )
    first = np.empty(count, np.int64)
    first[labels.ravel()[::-1]] = np.arange(labels.size)[::-1]
    order = 1 + np.argsort(first[1:])
    number = np.zeros(count, np.int32)
    number[order] = np.arange(1, count)
    x, y, w, h, area = stats[order].T
    return number[labels], np.stack([area, x, y, x + w, y + h], axis=1)


def check(mask: torch.Tensor, connectivity: int) -> None:
    labels, counts = with_threads(
        lambda: wsfast.connected_components(mask, connectivity=connectivity)
    )
    boxes, areas, found = with_threads(
        lambda: wsfast.component_boxes(
            mask, max_boxes=MOST, connectivity=connectivity, min_area=MIN_AREA
        )
    )
    steps = torch.randint(0, 128, mask.shape) / 256  # whose sums are exact
    cams = torch.where(mask, 0.5 + steps, steps)
    scored = with_threads(lambda: wsfast.cam_boxes(cams, max_boxes=MOST, connectivity=connectivity))
    for few in (5, max(1, int(counts.max()))):
        with_threads(lambda most=few: wsfast.label_boxes(labels, max_labels=most))
    label_boxes = wsfast.label_boxes(labels, max_labels=max(1, int(counts.max())))
    for n, image in enumerate(mask):
        expected, rows = opencv_components(image, connectivity)
        np.testing.assert_array_equal(labels[n].numpy(), expected)
        assert counts[n] == len(rows)
        np.testing.assert_array_equal(label_boxes.areas[n, : len(rows)], rows[:, 0])
        np.testing.assert_array_equal(label_boxes.boxes[n, : len(rows)], rows[:, 1:])
        order = np.argsort(-rows[:, 0], kind="stable")
        assert found[n] == (rows[:, 0] >= MIN_AREA).sum()
        large = order[rows[order, 0] >= MIN_AREA][:MOST]
        np.testing.assert_array_equal(areas[n, : len(large)], rows[large, 0])
        np.testing.assert_array_equal(boxes[n, : len(large)], rows[large, 1:])
        assert (areas[n, len(large) :] == -1).all()
        total = np.bincount(expected.ravel(), cams[n].double().numpy().ravel())[1:]
        largest = order[:MOST]
        scores = (total[largest] / rows[largest, 0]).astype(np.float32)
        np.testing.assert_array_equal(scored[1][n, : len(largest)], scores)
        np.testing.assert_array_equal(scored[0][n, : len(largest)], rows[largest, 1:])


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", MASKS)
def test_equals_opencv(name: str, connectivity: int) -> None:
    check(two_images(MASKS[name], HEIGHT, WIDTH), connectivity)


@pytest.mark.parametrize("shape", [(1, 300_001), (300_001, 1), (3, 100_001), (9001, 37)])
def test_thin_images(shape: tuple[int, int]) -> None:
    for connectivity in (4, 8):
        check(two_images(random_mask(0.6), *shape), connectivity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_round_alike(dtype: torch.dtype) -> None:
    """Sums of any values in any dtype, in an order that threads have no part in."""
    cams = torch.rand(1, 700, 701, dtype=torch.float64).to(dtype)
    with_threads(lambda: wsfast.cam_boxes(cams, 0.4))


@pytest.mark.parametrize("images", [1, 4])
def test_otsu_equals_opencv(images: int) -> None:
    cams = torch.rand(images, HEIGHT, WIDTH) ** 3
    (thresholds,) = with_threads(lambda: (wsfast.otsu_threshold(cams),))
    for cam, threshold in zip((cams.numpy() * 255).astype(np.uint8), thresholds, strict=True):
        level, _ = cv2.threshold(cam, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        assert (threshold * 255).round() == level + 1


def test_nan_is_found_in_any_band() -> None:
    for row in (0, HEIGHT // 2, HEIGHT - 1):
        cams = torch.rand(1, HEIGHT, WIDTH)
        cams[0, row, 7] = math.nan
        torch.set_num_threads(3)
        for call in (wsfast.cam_boxes, wsfast.otsu_threshold):
            with pytest.raises(ValueError, match="NaN"):
                call(cams)
