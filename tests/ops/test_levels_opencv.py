"""Room `levels`: bit for bit against OpenCV's contours, at every level and in large maps."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wsfast
from benchmarks import opencv_protocol as protocol
from tests.level_maps import FAMILIES, large_maps, make_map, make_truth

PAIRS = 100_000  # (map, level) pairs compared in the default suite
SLOW_PAIRS = 1_000_000


def opencv_contours(image: np.ndarray, level: int, mode: int = cv2.RETR_TREE) -> list[np.ndarray]:
    mask = (image > level).astype(np.uint8)
    return list(cv2.findContours(mask, mode, cv2.CHAIN_APPROX_SIMPLE)[0])


def opencv_box(contour: np.ndarray) -> list[int]:
    x, y, width, height = cv2.boundingRect(contour)
    return [x, y, x + width, y + height]


def opencv_largest(contours: list[np.ndarray]) -> tuple[list[int], float]:
    if not contours:
        return [-1, -1, -1, -1], -0.5
    largest = max(contours, key=cv2.contourArea)
    return opencv_box(largest), cv2.contourArea(largest)


def assert_equals_opencv(image: np.ndarray, truth: np.ndarray) -> None:
    maps = torch.from_numpy(image)[None]
    boxes, area2 = (found[0].numpy() for found in wsfast.level_boxes(maps))
    offsets = torch.tensor([0, len(truth)])
    best = wsfast.level_best_iou(maps, torch.from_numpy(truth), offsets)[0].numpy()
    for level, following in pairwise(sorted({0, 256, *image.ravel().tolist()})):
        contours = opencv_contours(image, level)
        box, area = opencv_largest(contours)
        same = slice(level, following)
        np.testing.assert_array_equal(boxes[same], np.tile(box, (following - level, 1)))
        np.testing.assert_array_equal(area2[same], round(2 * area))
        iou = protocol.inclusive_iou(protocol.boxes_of(contours, image.shape), truth)
        np.testing.assert_array_equal(best[same], iou.max())


def assert_many_equal_opencv(pairs: int, seed: int, largest_side: int) -> None:
    rng = np.random.default_rng(seed)
    for case in range(math.ceil(pairs / 256)):
        height, width = rng.integers(1, largest_side + 1, 2)
        family = FAMILIES[case % len(FAMILIES)]
        image = make_map(family, height, width, int(rng.integers(2**31)))
        assert_equals_opencv(image, make_truth(rng, height, width))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_equals_opencv(family: str, height: int, width: int, seed: int) -> None:
    truth = make_truth(np.random.default_rng(seed), height, width)
    assert_equals_opencv(make_map(family, height, width, seed), truth)


def test_many_levels_equal_opencv() -> None:
    assert_many_equal_opencv(PAIRS, seed=0, largest_side=36)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_levels_equal_opencv() -> None:
    assert_many_equal_opencv(SLOW_PAIRS, seed=1, largest_side=90)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (2, 2), (37, 53), (224, 224)])
@pytest.mark.parametrize("family", ["coarse", "few"])
def test_shapes_equal_opencv(family: str, shape: tuple[int, int]) -> None:
    truth = make_truth(np.random.default_rng(3), *shape)
    assert_equals_opencv(make_map(family, *shape, seed=3), truth)


@pytest.mark.parametrize("name", list(large_maps(8)))
def test_large_shapes(name: str) -> None:
    for tensor in (large_maps(2048)[name], 255 - large_maps(2048)[name]):
        image = tensor[0].numpy()
        boxes, area2 = wsfast.level_boxes(tensor)
        for level in (0, 100, 254):
            outer = opencv_contours(image, level, cv2.RETR_EXTERNAL)  # quadratic with RETR_TREE
            box, area = opencv_largest(outer)
            assert boxes[0, level].tolist() == box
            assert area2[0, level].item() == round(2 * area)
        best = wsfast.level_best_iou(tensor, torch.tensor([[0, 0, 2047, 2047]]), torch.arange(2))
        assert best.shape == (1, 256)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(701, 803), (3, 200_001), (200_001, 3)])
def test_large_maps_on_any_number_of_threads(shape: tuple[int, int], threads: int) -> None:
    """Maps whose rows several threads share."""
    torch.set_num_threads(threads)
    image = make_map("coarse", *shape, seed=4)
    levels = torch.from_numpy(image)[None]
    boxes, area2 = wsfast.level_boxes(levels)
    for level in (0, 60, 127, 200, 254):
        box, area = opencv_largest(opencv_contours(image, level, cv2.RETR_EXTERNAL))
        assert boxes[0, level].tolist() == box
        assert area2[0, level].item() == round(2 * area)
    maps, edges = levels.double() / 255, torch.linspace(0.05, 1, 20, dtype=torch.float64)
    masks = torch.tensor([0, 1, 255], dtype=torch.uint8)[torch.randint(0, 3, maps.shape)]
    for row, found in enumerate(wsfast.score_histograms(maps, masks, edges)):
        expected, _ = np.histogram(maps[masks == row].numpy(), bins=edges.numpy())
        np.testing.assert_array_equal(found.numpy(), expected)
    maps[0, -1, -1], masks[0, -1, -1] = math.nan, 7
    _, valid, known = torch.ops.wsfast.score_histograms(maps, masks, edges)
    assert not valid.item()
    assert not known.item()
    assert not torch.ops.wsfast.level_boxes(maps)[2].item()
