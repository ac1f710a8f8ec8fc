"""Proposals and blurred images of room `seeds`: against OpenCV and torchvision."""

import math
import warnings
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import gaussian_blur

import wsfast
from tests.op_errors import check_error
from wsfast.testing import FLOATING_DTYPES, tolerance


def attention(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """Smooth maps divided by their maxima, one of them constant."""
    noise = np.random.default_rng(seed).random((count, height, width), np.float32)
    maps = np.stack([cv2.GaussianBlur(image, (0, 0), 2) ** 4 for image in noise])
    maps[-1] = 1.0
    return maps / maps.max(axis=(1, 2), keepdims=True)


def exact_otsu(levels: np.ndarray) -> int:
    """The first level that maximises the variance between classes, in rational numbers."""
    counts = [int(n) for n in np.bincount(levels.ravel(), minlength=256)]
    total, mass = sum(counts), sum(level * n for level, n in enumerate(counts))
    below = below_mass = best = 0
    largest = Fraction(-1)
    for level, n in enumerate(counts[:-1]):
        below, below_mass = below + n, below_mass + level * n
        if 0 < below < total:
            excess = below_mass * total - mass * below
            variance = Fraction(excess * excess, below * (total - below))
            if variance > largest:
                largest, best = variance, level
    return best


def opencv_boxes(image: np.ndarray) -> list[list[int]]:
    """Boxes of external contours above Otsu's threshold on 8 bits."""
    levels = (image * np.float32(255)).astype(np.uint8)
    if levels.min() == levels.max():
        return []
    threshold = min(max(exact_otsu(levels), 1), 254)
    mask = (levels > threshold).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = [cv2.boundingRect(contour) for contour in contours]
    return [[x, y, x + w, y + h] for x, y, w, h in found]


def area(box: list[int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(8, 40), st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]))
def test_proposals_against_opencv(seed: int, side: int, min_area: float) -> None:
    maps = attention(seed, 3, side, side + 3)
    tensor = torch.from_numpy(maps)[None]
    found = wsfast.propose_boxes(tensor, min_area=min_area, max_boxes=400)
    rows = [(box, m) for m, image in enumerate(maps) for box in opencv_boxes(image)]
    # Components inside holes of others have boxes here and none among external contours.
    count = int(found.counts[0])
    ours = list(zip(found.boxes[0, :count].tolist(), found.maps[0, :count].tolist(), strict=True))
    limit = min_area * side * (side + 3)
    largest = max((area(box) for box, _ in rows), default=0)
    kept = [(box, m) for box, m in rows if area(box) > limit]
    for row in kept:
        assert row in ours
    assert [area(box) for box, _ in ours] == sorted((area(box) for box, _ in ours), reverse=True)
    if not kept:
        assert count == (1 if rows else 0)
        assert not rows or area(ours[0][0]) == largest
    assert all(area(box) > limit for box, _ in ours[1:])
    assert (found.boxes[0, count:] == -1).all()
    assert (found.maps[0, count:] == -1).all()


def test_known_proposals() -> None:
    maps = torch.zeros(2, 3, 10, 10)
    maps[0, 0, 1:4, 1:4] = 1.0
    maps[0, 1, :, :] = 0.25  # constant
    maps[0, 2, 0:8, 0:8] = 0.6
    maps[0, 2, 9, 9] = 0.9
    found = wsfast.propose_boxes(maps, min_area=0.05, max_boxes=3)
    assert found.boxes[0].tolist() == [[0, 0, 8, 8], [1, 1, 4, 4], [-1] * 4]
    assert found.maps[0].tolist() == [2, 0, -1]
    assert found.counts.tolist() == [2, 0]  # an image of constant maps has none
    assert (found.boxes[1] == -1).all()
    alone = wsfast.propose_boxes(maps, min_area=0.9)
    assert alone.counts.tolist() == [1, 0]  # the largest stays
    assert alone.boxes[0, 0].tolist() == [0, 0, 8, 8]
    assert wsfast.propose_boxes(maps[:0]).boxes.shape == (0, 16, 4)
    maps[1, :, 0, 0] = torch.inf
    maps[1, :, 1:] = maps[1, :, 0, 1:] = 2.0  # constant in 8 bits, where all are 255
    assert wsfast.propose_boxes(maps).counts.tolist() == [2, 0]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_proposals_of_every_dtype(device: torch.device, dtype: torch.dtype) -> None:
    maps = torch.from_numpy(attention(1, 4, 31, 37)).to(device=device, dtype=dtype)[None]
    wide = maps if dtype == torch.float64 else maps.float()
    expected = wsfast.propose_boxes(wide)
    turned = maps.transpose(2, 3).contiguous().transpose(2, 3)
    for found in (wsfast.propose_boxes(maps), wsfast.propose_boxes(turned)):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize(("kernel", "sigma"), [(31, 100.5), (5, 1.3), (1, 2.0)])
def test_blur_is_torchvisions(
    device: torch.device, dtype: torch.dtype, kernel: int, sigma: float
) -> None:
    images = torch.rand(2, 3, 24, 40, device=device).to(dtype)
    nothing = torch.zeros(2, 4, dtype=torch.int64, device=device)
    index = torch.tensor([1, 0], device=device)
    found = wsfast.blur_outside_boxes(images, nothing, index, kernel=kernel, sigma=sigma)
    assert found.dtype == dtype
    wide = images.flip(0).double()
    expected = gaussian_blur(wide, [kernel, kernel], [sigma, sigma]).to(dtype)
    torch.testing.assert_close(found, expected, **tolerance(dtype))


def test_inside_boxes_nothing_changes(device: torch.device) -> None:
    images = torch.rand(2, 3, 20, 30, device=device)
    boxes = torch.tensor([[3, 4, 9, 11], [0, 0, 30, 20], [-5, -5, 99, 3]], device=device)
    index = torch.tensor([0, 1, 0], device=device)
    found = wsfast.blur_outside_boxes(images, boxes, index, kernel=7, sigma=3.0)
    blurred = gaussian_blur(images, [7, 7], [3.0, 3.0])
    for k, (x0, y0, x1, y1) in enumerate(boxes.clamp(min=0).tolist()):
        expected = blurred[index[k]].clone()
        expected[:, y0:y1, x0:x1] = images[index[k], :, y0:y1, x0:x1]
        torch.testing.assert_close(found[k], expected)
        assert torch.equal(found[k, :, y0:y1, x0:x1], images[index[k], :, y0:y1, x0:x1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_boxes_and_indices(device: torch.device, dtype: torch.dtype) -> None:
    images = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(0)).to(device)
    boxes, index = torch.tensor([[1, 2, 7, 5]], device=device), torch.tensor([1], device=device)
    expected = wsfast.blur_outside_boxes(images, boxes, index, kernel=3)
    if dtype in (torch.uint32, torch.uint64):
        boxes[0, 2] = 2 ** (32 if dtype == torch.uint64 else 31) + 2
    found = wsfast.blur_outside_boxes(images, boxes.to(dtype), index.to(dtype), kernel=3)
    assert torch.equal(found, expected)


def test_blur_wider_than_the_image() -> None:
    """Mirrored as often as needed; one row and one pixel too. NumPy's reflect padding agrees."""
    for height, width in ((1, 1), (1, 9), (4, 6)):
        image = np.random.default_rng(0).random((height, width))
        weights = np.exp(-0.5 * (np.arange(-15, 16) / 9.0) ** 2)
        weights /= weights.sum()
        blurred = image
        for axis in (0, 1):
            padding = [(0, 0), (0, 0)]
            padding[axis] = (15, 15)
            mode = "edge" if image.shape[axis] == 1 else "reflect"
            blurred = np.apply_along_axis(
                np.convolve, axis, np.pad(blurred, padding, mode=mode), weights, "valid"
            )
        empty, first = torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        tensor = torch.from_numpy(image)[None, None]
        found = wsfast.blur_outside_boxes(tensor, empty, first, kernel=31, sigma=9.0)
        np.testing.assert_allclose(found[0, 0].numpy(), blurred, rtol=1e-12)


def test_blur_is_in_float32_under_autocast(device: torch.device) -> None:
    images = torch.rand(2, 3, 20, 30, device=device)
    boxes = torch.tensor([[2, 3, 9, 9], [5, 5, 20, 15]], device=device)
    index = torch.arange(2, device=device)
    expected = wsfast.blur_outside_boxes(images, boxes, index)
    with torch.autocast(device.type, torch.bfloat16):
        found = wsfast.blur_outside_boxes(images, boxes, index)
    torch.testing.assert_close(found, expected)


def test_blur_gradient() -> None:
    images = torch.rand(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    boxes, index = torch.tensor([[1, 1, 3, 3], [0, 2, 3, 3]]), torch.tensor([1, 1])
    assert torch.autograd.gradcheck(
        lambda x: wsfast.blur_outside_boxes(x, boxes, index, kernel=5, sigma=2.0), images
    )


def both(maps: torch.Tensor, images: torch.Tensor) -> list[torch.Tensor]:
    found = wsfast.propose_boxes(maps, max_boxes=2)
    index = torch.arange(maps.shape[0], device=maps.device).repeat_interleave(2)
    blurred = wsfast.blur_outside_boxes(images, found.boxes.flatten(0, 1), index, kernel=9)
    return [found.boxes, found.maps, found.counts, blurred]


def inputs(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.from_numpy(attention(n, 3, 12, 15)).to(device)
    return maps[None].expand(n, -1, -1, -1).contiguous(), torch.rand(n, 3, 12, 15, device=device)


class Both(torch.nn.Module):
    def forward(self, maps: torch.Tensor, images: torch.Tensor) -> list[torch.Tensor]:
        return both(maps, images)


def test_compile_export_and_script(device: torch.device) -> None:
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    shapes = {"maps": {0: torch.export.Dim("n", min=1, max=64)}}
    shapes["images"] = shapes["maps"]
    program = torch.export.export(Both().eval(), inputs(2, device), dynamic_shapes=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(both)
    for n in (2, 3):
        arguments = inputs(n, device)
        for call in (compiled, program.module(), scripted):
            for ours, theirs in zip(call(*arguments), both(*arguments), strict=True):
                torch.testing.assert_close(ours, theirs)


MAPS, IMAGES = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
BOXES, INDEX = torch.tensor([[0, 0, 3, 3]] * 4), torch.tensor([0, 0, 1, 1])
NAN = MAPS.clone()
NAN[1, 2, 3, 3] = math.nan
ERRORS = [
    (lambda: wsfast.propose_boxes(MAPS[0]), ValueError, "maps must be a tensor of 4"),
    (lambda: wsfast.propose_boxes(MAPS[:, :0]), ValueError, "maps must be maps with M, H, W"),
    (lambda: wsfast.propose_boxes(MAPS.int()), TypeError, "maps must be float32"),
    (lambda: wsfast.propose_boxes(NAN), ValueError, "must be free of NaN, got NaN in image 1"),
    (lambda: wsfast.propose_boxes(MAPS, min_area=2), ValueError, "min_area must be between"),
    (lambda: wsfast.propose_boxes(MAPS, max_boxes=0), ValueError, "max_boxes must be at least 1"),
    (lambda: wsfast.propose_boxes(MAPS, connectivity=5), ValueError, "connectivity must be 4 or 8"),
    (lambda: blur(images=IMAGES[0]), ValueError, "images must be a tensor of 4"),
    (lambda: blur(images=IMAGES.int()), TypeError, "images must be float32"),
    (lambda: blur(boxes=BOXES.float()), TypeError, "boxes must be integers"),
    (lambda: blur(boxes=BOXES[:, :3]), ValueError, "boxes must be of shape (K, 4)"),
    (lambda: blur(index=INDEX[:3]), ValueError, "image_index must be of shape (4,)"),
    (lambda: blur(index=INDEX > 0), TypeError, "image_index must be integers"),
    (lambda: blur(kernel=4), ValueError, "kernel must be odd, got 4"),
    (lambda: blur(sigma=0.0), ValueError, "sigma must be between"),
]


def blur(
    images: torch.Tensor = IMAGES,
    boxes: torch.Tensor = BOXES,
    index: torch.Tensor = INDEX,
    **options: float,
) -> torch.Tensor:
    return wsfast.blur_outside_boxes(images, boxes, index, **options)


def test_numbers_of_any_type() -> None:
    assert torch.equal(blur(sigma=Fraction(3, 2)), blur(sigma=1.5))
    given, plain = (wsfast.propose_boxes(MAPS, min_area=x) for x in (Fraction(1, 2), 0.5))
    assert torch.equal(given.boxes, plain.boxes)


@pytest.mark.parametrize("wrong", [-1, len(IMAGES)])
def test_there_is_no_image_of_another_number(wrong: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        blur(index=torch.full_like(INDEX, wrong))


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case], r"(propose|blur_outside)_boxes")
