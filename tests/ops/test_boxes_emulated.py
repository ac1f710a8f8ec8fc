"""The CUDA kernels of room `boxes` on the CPU, under the emulator."""

import math

import numpy as np
import pytest
import torch

import wsfast
from tests.masks import make_mask, snake, spiral
from tests.native.emulator import to_bits
from tests.ops.test_boxes import random_histogram
from wsfast.ops.boxes import reference
from wsfast.testing import FLOATING_DTYPES

EMULATED_SHAPES = ((1, 1), (1, 70), (45, 1), (21, 34), (9, 130))


def emulated_masks(height: int, width: int) -> torch.Tensor:
    families = ("noise", "sparse", "rings", "checker", "empty", "full")
    masks = [torch.from_numpy(make_mask(family, height, width, 3)) for family in families]
    return torch.stack(masks)


def threshold_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_same(found: tuple[np.ndarray, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(ours), theirs, rtol=1e-6, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", EMULATED_SHAPES)
def test_emulated_kernel_of_components(emulator, shape: tuple[int, int], connectivity: int) -> None:
    masks = emulated_masks(*shape)
    found = emulator.call("connected_components", masks.numpy(), connectivity)
    assert_same(found, reference.connected_components(masks, connectivity=connectivity))
    for max_boxes, min_area in ((1, 1), (5, 2), (700, 1)):
        arguments = (max_boxes, connectivity, min_area)
        boxes, areas, counts = emulator.call("component_boxes", masks.numpy(), *arguments)
        expected = reference.scored_boxes(masks, masks.float(), *arguments)
        assert_same((boxes, areas, counts), (expected[0], *expected[2:]))


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_emulated_kernel_of_maps(emulator, dtype: torch.dtype) -> None:
    cams = (torch.rand(5, 23, 41) * torch.tensor([1, 1e-3, 50, 1, 1])[:, None, None]).to(dtype)
    cams[3] = 0.25
    limits = torch.tensor([0.5, 4e-4, -1.0, 0.25, 2.0], dtype=threshold_dtype(dtype))
    wide = cams.to(limits.dtype)
    for connectivity in (4, 8):
        found = emulator.call(
            "cam_boxes", to_bits(cams), limits.numpy(), 6, connectivity, 2, dtype=dtype
        )
        mask = wide >= limits[:, None, None]
        expected = reference.scored_boxes(mask, cams, 6, connectivity, 2)
        assert_same(found, (*expected, torch.ones(5, dtype=torch.bool)))
    for repeat in (1, 2, 3):
        levels, valid, _ = emulator.call("otsu_level", to_bits(cams), repeat, dtype=dtype)
        assert_same((levels,), (reference.otsu_level(cams, repeat),))
        assert valid.all()


def test_emulated_kernel_of_strange_maps(emulator) -> None:
    """NaN is background and reported; infinities reach the score; tiny and huge values keep it."""
    cams = torch.zeros(5, 6, 40)
    cams[0, 2, 3:5] = torch.tensor([math.nan, 1.0])
    cams[1, 2, 3:5] = torch.tensor([math.inf, 1.0])
    cams[2, 2, 3:6] = torch.tensor([math.inf, 1.0, -math.inf])
    cams[3, 2, 3:5] = torch.tensor([1e-42, 3e-42])
    cams[4, 2, 3:5] = torch.tensor([3e38, 1e38])
    limits = torch.tensor([0.5, 0.5, -math.inf, 1e-43, 0.5])
    found = emulator.call("cam_boxes", cams.numpy(), limits.numpy(), 2, 8, 1)
    mask = cams >= limits[:, None, None]
    expected = reference.scored_boxes(mask, cams, 2, 8, 1)
    assert_same(found, (*expected, torch.tensor([False, True, True, True, True])))
    assert emulator.call("otsu_level", cams.numpy(), 1)[1].tolist() == [False] + [True] * 4


def test_emulated_kernel_in_every_order(emulator) -> None:
    masks = torch.cat(
        [torch.rand(1, 40, 70) < 0.55, snake(40, 70), spiral(41)[:, :40].repeat(1, 1, 2)[..., :70]]
    )
    masks = masks.to(torch.uint8)
    for connectivity in (4, 8):
        found = emulator.call_in_every_order("connected_components", masks.numpy(), connectivity)
        assert_same(found, reference.connected_components(masks, connectivity=connectivity))
    cams = torch.rand(2, 40, 70)
    limits = torch.tensor([0.5, 0.7])
    found = emulator.call_in_every_order("cam_boxes", cams.numpy(), limits.numpy(), 20, 4, 1)
    expected = reference.scored_boxes(cams >= limits[:, None, None], cams, 20, 4, 1)
    assert_same(found, (*expected, torch.ones(2, dtype=torch.bool)))


def test_emulated_kernel_of_long_chains_at_random(emulator) -> None:
    """Threads that shorten each other's paths to the root leave every run at the root."""
    staircase = torch.zeros(60, 96, dtype=torch.bool)
    for y in range(60):
        staircase[y, y : y + 3] = True  # runs of 60 rows, each below and beside the last
    masks = torch.stack([staircase, staircase.flip(1), snake(60, 96).view(60, 96).bool()])
    bytes_ = masks.to(torch.uint8)
    for connectivity in (4, 8):
        expected = reference.connected_components(bytes_, connectivity=connectivity)
        for seed in range(4):
            with emulator.order("random", seed):
                found = emulator.call("connected_components", bytes_.numpy(), connectivity)
            assert_same(found, expected)


HUGE_SIDE = 2**31 - 1024


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 33), (3, 64), (2, 224), (1, HUGE_SIDE), (HUGE_SIDE, 1), (46340, 46341)],
)
def test_words_of_a_warp(emulator, height: int, width: int) -> None:
    """Words follow each other over rows and images, and nothing overflows behind the last one."""
    row_words = -(-width // 32)
    words = 3 * height * row_words
    for first in {0, words // 3 - 1, words // 2, words - 9, words - 8, words - 1}:
        expected = []
        for index in range(max(0, first), min(max(0, first) + 8, words)):
            row, word = divmod(index, row_words)
            image, y = divmod(row, height)
            pixel = y * width + word * 32
            expected.append((image, y, word, pixel, image * height * width + pixel))
        assert emulator.call("word_places", 3, height, width, max(0, first)) == expected


@pytest.mark.parametrize(
    ("images", "height", "width"),
    [(19, 1, 1), (2, 1, 256), (3, 1, 257), (7, 3, 33), (3, 5, 32), (4, 2, 224), (2, 9, 300)],
)
def test_emulated_kernel_where_words_change_row_and_image(
    emulator, images: int, height: int, width: int
) -> None:
    """Maps of one warp neither share their largest value nor their NaN."""
    scale = torch.tensor([1e30, 1e-30, 1.0]).repeat(images)[:images, None, None]
    cams = torch.rand(images, height, width) * scale
    cams[images // 2, -1, -1] = math.nan
    limits = 0.4 * scale.flatten()
    mask = cams >= limits[:, None, None]
    expected = reference.scored_boxes(mask, cams, 9, 8, 1)
    valid = torch.arange(images) != images // 2
    found = emulator.call_in_every_order("cam_boxes", cams.numpy(), limits.numpy(), 9, 8, 1)
    assert_same(found, (*expected, valid))
    bytes_ = mask.to(torch.uint8)
    found = emulator.call("connected_components", bytes_.numpy(), 8)
    assert_same(found, reference.connected_components(bytes_, connectivity=8))
    boxes = emulator.call("component_boxes", bytes_.numpy(), 9, 8, 1)
    assert_same(boxes, (expected[0], *expected[2:]))


def bars(lengths: list[int], width: int) -> torch.Tensor:
    """A component of each length, in every other row."""
    mask = torch.zeros(1, 2 * len(lengths), width, dtype=torch.uint8)
    for row, length in enumerate(lengths):
        mask[0, 2 * row, :length] = 1
    return mask


def large_and_small() -> torch.Tensor:
    """Areas of three bytes, two bytes and one."""
    mask = torch.zeros(1, 270, 261, dtype=torch.uint8)
    mask[0, :256, :257] = 1
    for row, length in zip((258, 260, 262, 264), (257, 256, 3, 256), strict=True):
        mask[0, row, :length] = 1
    return mask


SELECTIONS = {
    "one digit": (bars([3, 8, 8, 7, 16, 1, 8, 9, 15, 3], 12), (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    "one digit, all of them": (bars([*range(1, 16)], 15), range(1, 15)),
    "two digits": (bars([250, 255, 256, 257, 511, 512, 513, 256, 300, 255], 520), range(1, 10)),
    "two digits, small areas": (bars([3, 8, 8, 7, 16, 1, 8, 200, 15, 3], 230), (1, 2, 4, 5, 9)),
    "three digits": (large_and_small(), (1, 3)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_emulated_kernel_keeps_the_largest(emulator, name: str) -> None:
    """Whatever the digit in which the last slot falls, equals in raster order."""
    mask, slots = SELECTIONS[name]
    for max_boxes in slots:
        for min_area in (1, 8):
            found = emulator.call("component_boxes", mask.numpy(), max_boxes, 4, min_area)
            expected = reference.scored_boxes(mask, mask.float(), max_boxes, 4, min_area)
            assert_same(found, (expected[0], *expected[2:]))


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_emulated_kernel_counts_every_pixel(emulator, dtype: torch.dtype) -> None:
    for pixels in (1, 511, 513, 1536, 1537, 2048, 2049, 5000, 2 * 8192, 2 * 8192 + 3073):
        cams = (torch.rand(2, 1, pixels) * 1.2 - 0.1).to(dtype)
        _, valid, histograms = emulator.call("otsu_level", to_bits(cams), 1, dtype=dtype)
        levels = reference.levels(cams).view(2, -1).numpy()
        expected = np.stack([np.bincount(row, minlength=256) for row in levels])
        np.testing.assert_array_equal(histograms, expected)
        assert valid.all()
        for place in (0, pixels // 2, pixels - 1):
            strange = cams.clone()
            strange[1, 0, place] = math.nan
            valid = emulator.call("otsu_level", to_bits(strange), 1, dtype=dtype)[1]
            assert valid.tolist() == [True, False]


def spikes(counts: dict[int, int]) -> np.ndarray:
    histogram = np.zeros(256, np.int64)
    histogram[list(counts)] = list(counts.values())
    return histogram


def mirrored(rng: np.random.Generator) -> np.ndarray:
    """A symmetric histogram: its splits come in pairs of equals."""
    size = int(rng.integers(1, 128))
    half = rng.integers(0, 30, size) * (rng.random(size) < rng.choice([0.05, 0.3, 1.0]))
    middle = rng.integers(0, 30, rng.integers(2))
    whole = np.concatenate([half, middle, half[::-1]])
    histogram = np.zeros(256, np.int64)
    first = int(rng.integers(256 - len(whole) + 1))
    histogram[first : first + len(whole)] = whole
    return histogram


def hard_histograms() -> np.ndarray:
    rng = np.random.default_rng(0)
    found = [
        *(spikes({level: 7}) for level in (0, 1, 7, 8, 128, 247, 248, 255)),
        *(spikes({level: 7, level + 1: 7}) for level in (0, 7, 100, 254)),
        spikes({0: 5, 127: 5, 254: 5}),  # equal splits in two lanes,
        spikes({1: 5, 128: 5, 255: 5}),
        spikes({64: 5, 72: 5, 80: 5}),  # in neighbours,
        spikes({64: 5, 66: 5, 68: 5}),  # in one
        spikes({0: 9, 3: 1, 5: 4}),  # nothing behind the first lane
        spikes({250: 9, 252: 1, 255: 4}),
        np.zeros(256, np.int64),
        np.ones(256, np.int64),
        *(mirrored(rng) for _ in range(60)),
        *(random_histogram(rng) for _ in range(60)),
    ]
    wide = [2**31 // histogram.sum() * histogram for histogram in found if histogram.sum() > 0]
    return np.stack([*found, *wide])


def exact_level(histogram: list[int], repeat: int) -> int:
    level = reference._exact_otsu_level(histogram, 0)
    for _ in range(1, repeat):
        above = reference._exact_otsu_level(histogram, level + 1)
        if above <= level:
            break
        level = above
    return level


@pytest.mark.parametrize("repeat", [1, 2, 400])
def test_emulated_kernel_of_otsu_is_exact(emulator, repeat: int) -> None:
    """A warp finds the split that a loop over all levels finds: of equals, the first."""
    histograms = hard_histograms()
    expected = [exact_level(histogram.tolist(), repeat) for histogram in histograms]
    counts = histograms.astype(np.uint32)
    assert (counts == histograms).all()
    assert emulator.call("otsu_of_histograms", counts, repeat).tolist() == expected


@pytest.mark.parametrize("repeat", [1, 2])
def test_emulated_kernel_of_otsu_equals_the_cpu(emulator, repeat: int) -> None:
    rng = np.random.default_rng(1)
    ties = [mirrored(rng) for _ in range(4)]
    for histogram in (spikes({40: 6}), spikes({0: 5, 127: 5, 254: 5}), *ties):
        levels = torch.from_numpy(rng.permutation(np.repeat(np.arange(256), histogram)))
        cams = ((levels + 0.5) / 255).view(1, 1, -1)
        found = emulator.call("otsu_level", cams.numpy(), repeat)[0]
        threshold = wsfast.otsu_threshold(cams, repeat=repeat)
        assert found.tolist() == ((threshold * 255).round().int() - 1).tolist()


def test_emulated_kernel_on_an_empty_batch(emulator) -> None:
    masks = np.zeros((0, 4, 5), np.uint8)
    assert emulator.call("connected_components", masks, 8)[0].shape == (0, 4, 5)
    assert emulator.call("component_boxes", masks, 3, 8, 1)[0].shape == (0, 3, 4)
    cams = np.zeros((0, 4, 5), np.float32)
    assert emulator.call("cam_boxes", cams, np.zeros(0, np.float32), 3, 8, 1)[1].shape == (0, 3)
    assert emulator.call("otsu_level", cams, 1)[0].shape == (0,)
