"""Room `boxes`: bit for bit against OpenCV and the reference."""

import io
import math
import warnings
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import wsfast
from tests.masks import FAMILIES, checkerboard, make_mask, snake, spiral
from tests.op_errors import check_error
from tests.processes import python
from wsfast.ops.boxes import reference
from wsfast.testing import FLOATING_DTYPES


def opencv_components(mask: np.ndarray, connectivity: int):
    """Labels, and (area, x0, y0, x1, y1) per component in raster order of first pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    first = [int(np.flatnonzero(labels.ravel() == k)[0]) for k in range(1, count)]
    order = np.argsort(first)
    rows = []
    for k in order + 1:
        x, y, w, h, area = stats[k]
        rows.append((int(area), int(x), int(y), int(x + w), int(y + h)))
    renumber = np.zeros(count, np.int32)
    renumber[order + 1] = np.arange(1, count)
    return renumber[labels], rows


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([4, 8]),
    st.integers(0, 2**31 - 1),
)
def test_equals_opencv(family: str, height: int, width: int, connectivity: int, seed: int) -> None:
    mask = make_mask(family, height, width, seed)
    labels, rows = opencv_components(mask, connectivity)
    tensor = torch.from_numpy(mask)[None]
    found, counts = wsfast.connected_components(tensor, connectivity=connectivity)
    np.testing.assert_array_equal(found[0].numpy(), labels)
    assert counts.tolist() == [len(rows)]
    boxes = wsfast.component_boxes(tensor > 0, max_boxes=900, connectivity=connectivity)
    expected = sorted(rows, key=lambda row: -row[0])  # stable: equals stay in raster order
    k = len(rows)
    assert boxes.counts.tolist() == [k]
    assert boxes.areas[0, :k].tolist() == [row[0] for row in expected]
    assert boxes.boxes[0, :k].tolist() == [list(row[1:]) for row in expected]
    assert (boxes.boxes[0, k:] == -1).all()
    assert (boxes.areas[0, k:] == -1).all()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["noise", "smooth", "blobs", "two", "few", "flat"]),
    st.integers(1, 40),
    st.integers(2, 40),
    st.integers(0, 2**31 - 1),
)
def test_otsu_equals_opencv(family: str, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.random((height, width))
    image = {
        "noise": noise,
        "smooth": cv2.GaussianBlur(noise, (0, 0), 3),
        "blobs": np.clip(5 * cv2.GaussianBlur(noise, (0, 0), 3) - 2.5, 0, 1),
        "two": np.where(noise < 0.3, 0.2, 0.7),
        "few": np.round(noise * 4) / 4,
        "flat": np.full_like(noise, 0.4),
    }[family]
    levels = (image * 255).astype(np.uint8)
    expected, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    cams = torch.from_numpy(image)[None]
    threshold = wsfast.otsu_threshold(cams)
    found = int((threshold * 255).round()) - 1
    np.testing.assert_array_equal((cams[0] >= threshold).numpy(), levels > found)
    if found != expected:  # OpenCV compares rounded doubles, so equals may come out in any order
        assert found < expected
        assert class_variance(levels, found) == class_variance(levels, int(expected))


def class_variance(levels: np.ndarray, level: int) -> Fraction:
    """Otsu's objective for {<= level} against {> level}, exactly."""
    below = levels[levels <= level].astype(int).tolist()
    above = levels[levels > level].astype(int).tolist()
    if not below or not above:
        return Fraction(0)
    means = Fraction(sum(below), len(below)) - Fraction(sum(above), len(above))
    return len(below) * len(above) * means**2


def random_histogram(rng: np.random.Generator) -> np.ndarray:
    """Pixels per level: few or all levels, wide or narrow, many of them alike."""
    levels = np.arange(256)
    kind = rng.choice(["even", "two hills", "few", "edges", "narrow", "steep"])
    counts = {
        "even": rng.integers(0, 40, 256),
        "two hills": np.exp(-(((levels - rng.integers(256)) / 20) ** 2)) * 90
        + np.exp(-(((levels - rng.integers(256)) / rng.integers(3, 40)) ** 2)) * 60,
        "few": np.where(rng.random(256) < 0.02, rng.integers(1, 4) * 100, 0),
        "edges": np.where(np.isin(levels % 16, [0, 15]), rng.choice([1, 7, 7, 200], 256), 0),
        "narrow": np.where(abs(levels - rng.integers(256)) < rng.integers(1, 20), 30, 0),
        "steep": 3000 * 0.97**levels,
    }[kind]
    counts = counts.astype(np.int64) * rng.choice([1, 7])
    counts[rng.integers(256)] += rng.choice([0, 1, 2000])
    counts[rng.integers(256)] += 1
    return counts


def arranged(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffled, smooth, or low ones beside high ones: neighbours are counted as pairs."""
    order = rng.choice(["shuffled", "smooth", "low beside high"])
    if order == "shuffled":
        return rng.permutation(levels)
    if order == "smooth":
        return levels
    half = len(levels) // 2
    beside = np.stack([levels[:half], levels[half : 2 * half]], 1).ravel()
    return np.concatenate([beside, levels[2 * half :]])


def otsu_on_histograms(count: int = 400) -> None:
    """The best of all splits is found, and again above it."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        histogram = random_histogram(rng)
        levels = torch.from_numpy(arranged(np.repeat(np.arange(256), histogram), rng))
        cams = ((levels + 0.5) / 255).view(1, 1, -1)
        for repeat in (1, 2, 3):
            found = int((wsfast.otsu_threshold(cams, repeat=repeat) * 255).round()) - 1
            assert found == int(reference.otsu_level(cams, repeat)), (histogram.tolist(), repeat)


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_otsu_of_any_histogram_is_exact(level: str) -> None:
    code = "from tests.ops.test_boxes import otsu_on_histograms; otsu_on_histograms()"
    done = python("-c", code, WSFAST_SIMD=level)
    assert done.returncode == 0, done.stderr


def test_known_values() -> None:
    mask = torch.tensor([[[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]], dtype=torch.uint8)
    eight, four = (wsfast.connected_components(mask, connectivity=c)[0] for c in (8, 4))
    assert eight.tolist() == [[[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 2]]]
    assert four.tolist() == [[[1, 0, 2, 2], [0, 3, 0, 0], [0, 0, 0, 4]]]
    boxes = wsfast.component_boxes(mask, max_boxes=1, connectivity=4)
    assert boxes.boxes.tolist() == [[[2, 0, 4, 1]]]
    assert boxes.areas.tolist() == [[2]]
    assert boxes.counts.tolist() == [4]  # true also beyond max_boxes
    assert wsfast.component_boxes(mask, connectivity=4, min_area=2).counts.tolist() == [1]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_every_level_survives_the_threshold(dtype: torch.dtype, device: torch.device) -> None:
    """Otsu's threshold parts the lowest value of every level from its predecessor."""
    wide = torch.promote_types(dtype, torch.float32)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    levels = torch.arange(1, 256, dtype=wide)
    lowest = (levels / 255).to(dtype)
    rounded_down = (lowest.to(wide) * 255 < levels).to(bits)
    lowest = (lowest.view(bits) + rounded_down).view(dtype)
    below = (lowest.view(bits) - 1).view(dtype)
    cams = torch.stack([below, lowest], dim=1)[:, None].to(device)
    threshold = wsfast.otsu_threshold(cams)
    assert (cams >= threshold[:, None, None]).tolist() == [[[False, True]]] * 255
    assert wsfast.cam_boxes(cams, "otsu", max_boxes=1).boxes.tolist() == [[[1, 0, 2, 1]]] * 255


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_forward_matches_reference(
    device: torch.device, connectivity: int, dtype: torch.dtype
) -> None:
    masks = torch.stack([torch.from_numpy(make_mask(family, 21, 34, 5)) for family in FAMILIES]).to(
        device
    )
    labels, counts = wsfast.connected_components(masks, connectivity=connectivity)
    expected = reference.connected_components(masks, connectivity=connectivity)
    assert torch.equal(labels, expected[0])
    assert torch.equal(counts, expected[1])
    cams = torch.rand(9, 21, 34, device=device).to(dtype) * masks
    for repeat in (1, 2, 3):
        threshold = wsfast.otsu_threshold(cams, repeat=repeat)
        level = reference.otsu_level(cams, repeat)
        assert torch.equal((threshold * 255).round().int(), level + 1)
    for threshold in (0.3, "otsu", "otsu2"):
        found = wsfast.cam_boxes(cams, threshold, max_boxes=7, connectivity=connectivity)
        limit = threshold
        if isinstance(limit, str):
            limit = wsfast.otsu_threshold(cams, repeat=2 if limit == "otsu2" else 1)[:, None, None]
        wide = cams.float() if dtype.itemsize == 2 else cams
        limit = torch.as_tensor(limit, dtype=wide.dtype)
        peer = reference.scored_boxes(wide >= limit, cams, 7, connectivity, 1)
        for ours, theirs in zip(found, peer, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2048, 2048)])
def test_large_shapes(shape: tuple[int, int], device: torch.device) -> None:
    """A snake, a spiral and a checkerboard end at once and are counted right."""
    one = min(shape) > 1  # a checkerboard on a line has no diagonal neighbours
    board = checkerboard(*shape)
    cases = [
        (snake(*shape), 4, 1),
        (snake(*shape), 8, 1),
        (spiral(max(shape) - 1 + max(shape) % 2), 4, 1),
        (board, 8, 1 if one or shape == (1, 1) else int(board.sum())),
        (board, 4, int(board.sum())),
        (torch.ones(1, *shape, dtype=torch.bool), 4, 1),
    ]
    for case, connectivity, count in cases:
        mask = case.to(device)
        labels, counts = wsfast.connected_components(mask, connectivity=connectivity)
        found = wsfast.component_boxes(mask, max_boxes=2, connectivity=connectivity)
        assert counts.tolist() == found.counts.tolist() == [count]  # true beyond max_boxes too
        assert torch.equal(labels > 0, mask)
        assert int(labels.max()) == count
        if count == 1:
            y, x = mask[0].nonzero().T
            assert found.areas.tolist() == [[int(mask.sum()), -1]]
            box = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
            assert found.boxes[0].tolist() == [box, [-1] * 4]
        else:
            assert found.areas.tolist() == [[1, 1]]
            assert found.boxes[0].tolist() == [[*p, p[0] + 1, p[1] + 1] for p in first_two(mask)]


def first_two(mask: torch.Tensor) -> list[list[int]]:
    """(x, y) of the first two pixels in raster order."""
    return mask[0].nonzero()[:2].flip(1).tolist()


def opencv_rows_match(mask: torch.Tensor, connectivity: int) -> None:
    labels, rows = opencv_components(mask[0].numpy().astype(np.uint8), connectivity)
    found, counts = wsfast.connected_components(mask, connectivity=connectivity)
    np.testing.assert_array_equal(found[0].numpy(), labels)
    boxes = wsfast.component_boxes(mask, max_boxes=8, connectivity=connectivity)
    assert counts.tolist() == boxes.counts.tolist() == [len(rows)]
    expected = sorted(rows, key=lambda row: -row[0])[:8]
    assert boxes.areas[0, : len(expected)].tolist() == [row[0] for row in expected]
    assert boxes.boxes[0, : len(expected)].tolist() == [list(row[1:]) for row in expected]


@pytest.mark.parametrize("connectivity", [4, 8])
def test_runs_across_words(connectivity: int) -> None:
    """Widths around multiples of 64, where runs and contacts pass from word to word."""
    for width in (63, 64, 65, 127, 128, 129, 192, 200):
        for density in (0.08, 0.5, 0.85):
            noise = torch.rand(1, 12, width)
            opencv_rows_match(noise < density, connectivity)
        opencv_rows_match(noise.cumsum(2) % 40 < 30, connectivity)  # long runs


def test_otsu_on_a_large_map_needs_wide_integers() -> None:
    """Four million pixels, and splits that are exactly equal: the first one wins."""
    levels = torch.zeros(2048 * 2048, dtype=torch.float64)
    levels[1:-1] = 127.5 / 255
    levels[-1] = 254.5 / 255
    assert wsfast.otsu_threshold(levels.view(1, 2048, 2048)).item() == 1 / 255
    levels[: 2048 * 1024] = 0.0
    tilted = levels.view(1, 2048, 2048)
    assert wsfast.otsu_threshold(tilted).item() == 1 / 255


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_nan_is_found_anywhere(dtype: torch.dtype) -> None:
    for place in (0, 63, 64, 129, 130, 70 * 130 - 1):  # in vectors, in tails
        cams = torch.rand(3, 70, 130).to(dtype)
        cams[1].view(-1)[place] = math.nan
        for call in (wsfast.otsu_threshold, wsfast.cam_boxes):
            with pytest.raises(ValueError, match="free of NaN, got NaN in image 1"):
                call(cams)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_otsu_counts_every_pixel(dtype: torch.dtype) -> None:
    """One pixel stands out of each map, at every place of it."""
    for pixels in (2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 200):
        cams = (0.25 + 0.5 * torch.eye(pixels)).to(dtype)[:, None]
        assert (wsfast.otsu_threshold(cams) * 255).round().unique().tolist() == [int(255 / 4) + 1]
    for pixels in (8191, 8192, 8193, 9215):
        cams = torch.full((8, 1, pixels), 0.25, dtype=dtype)
        for map_, place in zip(
            cams, (0, 1, 511, 512, 513, 8190, pixels - 2, pixels - 1), strict=True
        ):
            map_[:, place] = 0.75
        assert (wsfast.otsu_threshold(cams) * 255).round().unique().tolist() == [int(255 / 4) + 1]


@pytest.mark.parametrize(("beside", "more", "level"), [(0.0, 0, 0), (0.8, 0, 0), (0.8, 1, 102)])
def test_otsu_counts_equal_pairs_exactly(beside: float, more: int, level: int) -> None:
    """Levels 0, 102 and 204 tie between two splits; a pixel more of the highest decides."""
    pairs = torch.tensor([beside, 0.4]).repeat(5000)
    cams = torch.cat([pairs, torch.full((5000,), 0.8 - beside), torch.full((more,), beside)])
    assert int((wsfast.otsu_threshold(cams.view(1, 1, -1)) * 255).round()) - 1 == level


def test_any_strides_and_empty_batch() -> None:
    mask = torch.from_numpy(make_mask("noise", 20, 30, 0))[None].expand(3, -1, -1)
    flipped = mask.transpose(1, 2)
    assert torch.equal(
        wsfast.connected_components(flipped)[0],
        wsfast.connected_components(flipped.contiguous())[0],
    )
    found = wsfast.component_boxes(torch.zeros(0, 4, 5, dtype=torch.bool))
    assert [tuple(t.shape) for t in found] == [(0, 64, 4), (0, 64), (0,)]
    assert wsfast.otsu_threshold(torch.rand(0, 4, 5)).shape == (0,)


@pytest.mark.parametrize("threshold", [0.3, "otsu", "otsu2", torch.tensor([0.2, 0.7])])
def test_cam_thresholds_are_those_of_cam_boxes(threshold: float | str | torch.Tensor) -> None:
    cams = torch.rand(2, 12, 15, dtype=torch.float64)
    limits = wsfast.cam_thresholds(cams, threshold)
    assert limits.shape == (2,)
    assert limits.dtype == torch.float64
    expected = wsfast.component_boxes(cams >= limits[:, None, None])
    assert torch.equal(wsfast.cam_boxes(cams, threshold).boxes, expected.boxes)
    assert wsfast.cam_thresholds(cams.half(), 0.5).tolist() == [0.5, 0.5]


def every_op(cams: torch.Tensor) -> list[torch.Tensor]:
    labels, counts = wsfast.connected_components(cams > 0.5, connectivity=4)
    boxes = wsfast.component_boxes(cams > 0.5, max_boxes=5)
    fixed = wsfast.cam_boxes(cams, 0.25, max_boxes=3)
    otsu = wsfast.cam_boxes(cams, "otsu2", min_area=2)
    each = wsfast.cam_boxes(cams, wsfast.otsu_threshold(cams))
    return [labels, counts, boxes.boxes, fixed.scores, otsu.boxes, each.areas]


def test_opcheck(device: torch.device) -> None:
    ops = torch.ops.wsfast
    cams = torch.rand(2, 9, 8, device=device)
    opcheck(ops.connected_components.default, (cams > 0.5, 8))
    opcheck(ops.component_boxes.default, (cams > 0.5, 6, 8, 1))
    opcheck(ops.cam_boxes.default, (cams, torch.full((2,), 0.5, device=device), 6, 8, 1))
    opcheck(ops.otsu_level.default, (cams, 2))


def test_compile_fullgraph(device: torch.device) -> None:
    compiled = torch.compile(every_op, fullgraph=True, dynamic=True)
    for n in (2, 3):
        cams = torch.rand(n, 9, 8, device=device)
        torch.testing.assert_close(compiled(cams), every_op(cams))


class EveryOp(torch.nn.Module):
    def forward(self, cams: torch.Tensor) -> list[torch.Tensor]:
        return every_op(cams)


def test_export(device: torch.device) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        EveryOp().eval(), (torch.rand(2, 9, 8, device=device),), dynamic_shapes={"cams": {0: batch}}
    )
    cams = torch.rand(5, 9, 8, device=device)
    torch.testing.assert_close(program.module()(cams), every_op(cams))


def test_exported_results_are_saved() -> None:
    class Boxing(torch.nn.Module):
        def forward(self, cams: torch.Tensor) -> tuple[wsfast.ScoredBoxes, wsfast.Boxes]:
            return wsfast.cam_boxes(cams), wsfast.component_boxes(cams > 0.5)

    cams = torch.rand(2, 9, 8)
    file = io.BytesIO()
    torch.export.save(torch.export.export(Boxing(), (cams,)), file)
    file.seek(0)
    found, expected = torch.export.load(file).module()(cams), Boxing()(cams)
    assert [type(result) for result in found] == [wsfast.ScoredBoxes, wsfast.Boxes]
    torch.testing.assert_close(found, expected)


def test_script_and_trace(device: torch.device) -> None:
    cams = torch.rand(2, 9, 8, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted, traced = torch.jit.script(every_op), torch.jit.trace(every_op, (cams,))
    for found in (scripted(cams), traced(cams)):
        torch.testing.assert_close(found, every_op(cams))


def test_not_differentiable() -> None:
    cams = torch.rand(2, 9, 8, requires_grad=True)
    assert not wsfast.otsu_threshold(cams).requires_grad
    assert not wsfast.cam_boxes(cams, "otsu").scores.requires_grad


def test_deterministic() -> None:
    cams = torch.rand(7, 160, 150)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([*every_op(cams), wsfast.otsu_threshold(cams, repeat=2)])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.equal(ours, theirs)
    single = [every_op(cam[None]) for cam in cams]  # an image's result does not depend on others
    for place, whole in enumerate(every_op(cams)):
        assert torch.equal(whole, torch.cat([parts[place] for parts in single]))


CAMS, MASK = torch.rand(2, 5, 6), torch.rand(2, 5, 6) > 0.5
NAN = CAMS.clone().index_put_(
    (torch.tensor(1), torch.tensor(2), torch.tensor(3)), torch.tensor(math.nan)
)
ERRORS = [
    (lambda: wsfast.connected_components(MASK[0]), ValueError, "mask must be a tensor of 3"),
    (lambda: wsfast.connected_components(CAMS), TypeError, "mask must be bool or uint8"),
    (lambda: wsfast.connected_components(MASK, connectivity=6), ValueError, "connectivity must be"),
    (lambda: wsfast.component_boxes(MASK[:, :0]), ValueError, "mask must be images with H, W"),
    (lambda: wsfast.component_boxes(MASK, max_boxes=0), ValueError, "max_boxes must be at least 1"),
    (lambda: wsfast.component_boxes(MASK, min_area=0), ValueError, "min_area must be at least 1"),
    (lambda: wsfast.cam_boxes(MASK), TypeError, "cams must be float32"),
    (lambda: wsfast.cam_boxes(CAMS, "mean"), ValueError, "threshold must be one of otsu, otsu2"),
    (lambda: wsfast.cam_boxes(CAMS, math.nan), ValueError, "threshold must be between"),
    (lambda: wsfast.cam_boxes(CAMS, torch.ones(3)), ValueError, "threshold must be of shape (2,)"),
    (lambda: wsfast.cam_boxes(CAMS, None), TypeError, "threshold must be a number"),
    (lambda: wsfast.cam_thresholds(MASK, 0.5), TypeError, "cams must be float32"),
    (lambda: wsfast.cam_thresholds(CAMS, "mean"), ValueError, "one of otsu, otsu2"),
    (lambda: wsfast.cam_boxes(NAN), ValueError, "cams must be free of NaN, got NaN in image 1"),
    (lambda: wsfast.otsu_threshold(NAN), ValueError, "cams must be free of NaN"),
    (lambda: wsfast.otsu_threshold(CAMS, repeat=0), ValueError, "repeat must be at least 1"),
    (lambda: wsfast.otsu_threshold(CAMS.int()), TypeError, "cams must be float32"),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])


EXTREME_SHAPES = {  # front doors refuse empty images; the kernels' columns and rows are int32
    "must not be empty images": [(1, 0, 5), (1, 5, 0)],
    "sides of at most 2\\^31 - 1024": [
        (1, 1, (1 << 31) - 1),
        (1, (1 << 31) - 63, 1),
        (1, 1 << 16, 1 << 15),
    ],
}
DIRECT_CALLS = {
    "connected_components": (torch.uint8, (8,)),
    "component_boxes": (torch.uint8, (4, 8, 1)),
    "cam_boxes": (torch.float32, (torch.zeros(1), 4, 8, 1)),
    "label_boxes": (torch.int32, (4,)),
    "otsu_level": (torch.float32, (1,)),
}


@pytest.mark.parametrize("name", DIRECT_CALLS)
def test_ops_refuse_extreme_shapes(name: str) -> None:
    """Without an allocation: one pixel, expanded."""
    dtype, rest = DIRECT_CALLS[name]
    call = getattr(torch.ops.wsfast, name)
    for message, shapes in EXTREME_SHAPES.items():
        for shape in shapes:
            with pytest.raises(RuntimeError, match=message):
                call(torch.zeros(1, 1, 1, dtype=dtype).expand(shape), *rest)
