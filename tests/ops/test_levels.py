"""Room `levels`: bit for bit against NumPy and the reference, at every level."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import wsfast
from tests.level_maps import FAMILIES, make_map, make_truth
from tests.op_errors import check_error
from wsfast.ops.levels import reference, registration
from wsfast.testing import FLOATING_DTYPES


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.001, 0.004, 0.01, 0.3]),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 2**31 - 1),
)
def test_histograms_equal_numpy(interval: float, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = np.append(np.arange(0, 1, interval), [1.0, 2.0, 3.0])
    scores = rng.random((2, 13, 17)).astype(dtype)
    scores[0, :4] = rng.choice(edges, (4, 17))  # at the edges, and beside them
    scores[0, 4:8] = np.nextafter(scores[0, :4], scores.dtype.type(rng.integers(0, 2)))
    scores[1, :2] = rng.uniform(-1, 4, (2, 17))
    masks = rng.choice(np.array([0, 1, 255], np.uint8), scores.shape)
    found = wsfast.score_histograms(*map(torch.from_numpy, (scores, masks, edges)))
    for row in (0, 1):
        expected, _ = np.histogram(scores[masks == row], bins=edges)
        np.testing.assert_array_equal(found[row].numpy(), expected)


@pytest.mark.parametrize(
    "edges",
    [[0.5, 0.5], [0, 0.2, 0.2, 0.2, 1, 1], [0, 1e-300, 2e-300, 1], [-1e308, 0, 0.1, 1e308]],
)
def test_odd_edges_equal_numpy(edges: list[float]) -> None:
    scores = np.concatenate([np.repeat(edges, 2), np.linspace(0, 1, 21)])[None, None]
    found = wsfast.score_histograms(
        torch.from_numpy(scores),
        torch.ones(scores.shape, dtype=torch.bool),
        torch.tensor(edges, dtype=torch.float64),
    )
    np.testing.assert_array_equal(found[1].numpy(), np.histogram(scores, bins=np.array(edges))[0])
    assert not found[0].any()


@pytest.mark.parametrize("interval", [0.001, 0.004, 0.01])
def test_threshold_levels_are_the_protocols(interval: float) -> None:
    """For every highest level a map can have: int(t * max) in double, as NumPy computes it."""
    thresholds = np.arange(0, 1, interval)
    maps = np.zeros((256, 1, 2), np.uint8)
    maps[:, 0, 1] = np.arange(256)
    expected = [[int(t * top) for t in thresholds] for top in np.arange(256, dtype=np.uint8)]
    levels = wsfast.threshold_levels(torch.from_numpy(maps), torch.from_numpy(thresholds))
    assert levels.tolist() == expected
    for dtype in (torch.float32, torch.float64):
        floats = torch.from_numpy(maps).to(dtype) / 255
        assert wsfast.threshold_levels(floats, torch.from_numpy(thresholds)).tolist() == expected


def test_known_values() -> None:
    """A ring with a dot inside: its hole counts as filled, and has a contour of its own."""
    image = np.zeros((8, 9), np.uint8)
    image[1:7, 1:7] = 100
    image[2:6, 2:6] = 0
    image[4, 4] = 200
    maps = torch.from_numpy(image)[None]
    boxes, area2 = wsfast.level_boxes(maps)
    assert boxes[0, [0, 99, 100, 199, 200]].tolist() == [
        [1, 1, 7, 7], [1, 1, 7, 7], [4, 4, 5, 5], [4, 4, 5, 5], [-1, -1, -1, -1],
    ]  # fmt: skip
    assert area2[0, [0, 99, 100, 199, 200]].tolist() == [50, 50, 0, 0, -1]
    truth, offsets = torch.tensor([[1, 1, 7, 7]]), torch.tensor([0, 1])
    best = wsfast.level_best_iou(maps, truth, offsets)
    assert best[0, 0].item() == 1.0
    assert best[0, 150].item() == 4 / 49  # the dot, one pixel too large
    assert best[0, 255].item() == 0.0
    inner = torch.tensor([[2, 2, 4, 4]])
    outer_only = wsfast.level_best_iou(maps, inner, offsets, holes=False)
    assert outer_only[0, 0].item() == 9 / 49
    ring_of_hole = wsfast.level_best_iou(maps, torch.tensor([[1, 1, 8, 8]]), offsets)
    assert ring_of_hole[0, 0].item() == 49 / 64


def test_equal_areas_go_to_the_last() -> None:
    image = torch.zeros(1, 5, 9, dtype=torch.uint8)
    image[0, 1, 1] = image[0, 1, 3] = image[0, 3, 2] = 9
    assert wsfast.level_boxes(image)[0][0, 0].tolist() == [2, 3, 3, 4]
    image[0, 3, 2] = 0
    assert wsfast.level_boxes(image)[0][0, 0].tolist() == [3, 1, 4, 2]


def test_quantisation() -> None:
    """trunc(255 x) at k / 255 and beside it, in each map's own precision."""
    for dtype in (torch.float32, torch.float64):
        k = torch.arange(1, 256, dtype=dtype)
        at = k / 255
        below = torch.nextafter(at, torch.zeros_like(at))
        maps = torch.stack([at, below])[:, None]
        area = (wsfast.level_boxes(maps)[0][:, :, 0] >= 0).sum(dim=1)
        assert area.tolist() == [255, 254]
        for row, image in enumerate(maps):
            levels = (image * 255).to(torch.uint8)
            for ours, theirs in zip(
                wsfast.level_boxes(image[None]), wsfast.level_boxes(levels[None]), strict=True
            ):
                assert torch.equal(ours, theirs), row


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_count_in_float32(dtype: torch.dtype) -> None:
    maps = torch.rand(3, 20, 30).to(dtype)
    masks = torch.randint(0, 2, maps.shape, dtype=torch.uint8)
    edges = torch.linspace(0, 1, 11)
    truth, offsets = torch.tensor([[2, 3, 20, 15]] * 3), torch.arange(4)
    for ours, theirs in (
        (wsfast.level_boxes(maps)[0], wsfast.level_boxes(maps.float())[0]),
        (
            wsfast.level_best_iou(maps, truth, offsets),
            wsfast.level_best_iou(maps.float(), truth, offsets),
        ),
        (
            wsfast.score_histograms(maps, masks, edges),
            wsfast.score_histograms(maps.float(), masks, edges),
        ),
        (wsfast.threshold_levels(maps, edges), wsfast.threshold_levels(maps.float(), edges)),
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [*FLOATING_DTYPES, torch.uint8])
def test_forward_matches_reference(device: torch.device, dtype: torch.dtype) -> None:
    images = torch.stack([torch.from_numpy(make_map(f, 7, 9, 5)) for f in FAMILIES])
    maps = (images if dtype == torch.uint8 else (images / 255).to(dtype)).to(device)
    expected = reference.level_boxes(maps.cpu())  # which would wait for the device at every level
    for ours, theirs in zip(wsfast.level_boxes(maps), expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)
    rng = np.random.default_rng(0)
    truths = [torch.from_numpy(make_truth(rng, 7, 9)) for _ in FAMILIES[1:]]
    counts = torch.tensor([0, 0, *(len(truth) for truth in truths)])  # the first image has none
    truth, offsets = torch.cat(truths).to(device), counts.cumsum(0).to(device)
    for holes in (True, False):
        best = wsfast.level_best_iou(maps, truth.int(), offsets.int(), holes=holes)
        wanted = reference.level_best_iou(maps.cpu(), truth.cpu(), offsets.cpu(), holes=holes)
        assert torch.equal(best.cpu(), wanted)
        assert not best[0].any()
    if dtype == torch.uint8:
        return
    masks = torch.randint(0, 3, maps.shape, device=device)
    masks = torch.tensor([0, 1, 255], dtype=torch.uint8, device=device)[masks]
    edges = torch.linspace(0.1, 0.9, 23, dtype=torch.float64, device=device)
    found = wsfast.score_histograms(maps, masks, edges)
    assert torch.equal(found, reference.score_histograms(maps, masks, edges))


@pytest.mark.parametrize("dtype", [*FLOATING_DTYPES, torch.uint8])
def test_way_over_the_host_equals_the_kernel(dtype: torch.dtype) -> None:
    """What CUDA tensors run, on tensors that are on the host already."""
    images = torch.stack([torch.from_numpy(make_map(f, 15, 18, 5)) for f in FAMILIES])
    maps = images if dtype == torch.uint8 else (images / 255).to(dtype)
    if dtype != torch.uint8:
        maps[0, 3, 4], maps[1, 0, 0], maps[1, 0, 1] = math.nan, math.inf, -math.inf
    truth, offsets = torch.tensor([[2, 3, 9, 12]] * len(maps)), torch.arange(len(maps) + 1)
    ops = torch.ops.wsfast
    pairs = [
        (registration._level_boxes_over_host, ops.level_boxes, (maps,)),
        (
            registration._level_best_iou_over_host,
            ops.level_best_iou,
            (maps, truth, offsets, True),
        ),
    ]
    if dtype != torch.uint8:
        masks = torch.randint(0, 4, maps.shape, dtype=torch.uint8) * 85  # 85 and 170 are unknown
        edges = torch.linspace(0.1, 0.9, 23, dtype=torch.float64)
        pairs.append((registration._score_histograms, ops.score_histograms, (maps, masks, edges)))
    for over_host, op, arguments in pairs:
        for ours, theirs in zip(over_host(*arguments), op(*arguments), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_a_nan_leaves_the_levels_of_thresholds(dtype: torch.dtype) -> None:
    """As it leaves the boxes of a map on CUDA: it counts as 0."""
    maps = torch.tensor([[[math.nan, 0.5, 0.8]], [[math.nan, math.nan, math.nan]]], dtype=dtype)
    thresholds = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    levels = wsfast.threshold_levels(maps, thresholds)
    assert torch.equal(levels, wsfast.threshold_levels(maps.nan_to_num(0.0), thresholds))
    assert levels[0, 2] > 200
    boxes, _, _ = registration._level_boxes_over_host(maps)
    assert boxes[0, levels[0, 1]].tolist() == [1, 0, 3, 1]


def test_cuda_tensors_have_a_way() -> None:
    kinds = wsfast.info()["ops"]
    assert kinds["level_boxes"] == {"cpu": "native", "cuda": "host"}
    assert kinds["level_best_iou"] == {"cpu": "native", "cuda": "host"}
    assert kinds["score_histograms"] == {"cpu": "native", "cuda": "torch"}


def test_any_strides_and_empty_batch() -> None:
    one = torch.from_numpy(make_map("coarse", 20, 30, 0))[None]
    expanded = one.expand(3, -1, -1)
    for ours, theirs in zip(
        wsfast.level_boxes(expanded.transpose(1, 2)),
        wsfast.level_boxes(expanded.transpose(1, 2).contiguous()),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    every_other = (one.double() / 255)[:, ::2, 1::3]
    truth = torch.tensor([[9, 1, 1, 2, 8, 3, 7]])[:, 1:5]
    offsets = torch.tensor([0, 7, 1])[::2]
    assert torch.equal(
        wsfast.level_best_iou(every_other, truth, offsets),
        wsfast.level_best_iou(every_other.contiguous(), truth.clone(), offsets.clone()),
    )
    masks = (torch.rand(30, 20) > 0.5).t()[None]
    edges = torch.linspace(0, 1, 21)[::2]
    assert torch.equal(
        wsfast.score_histograms(one / 255, masks, edges),
        wsfast.score_histograms(one / 255, masks.contiguous(), edges.contiguous()),
    )
    none = torch.rand(0, 4, 5)
    assert [tuple(t.shape) for t in wsfast.level_boxes(none)] == [(0, 256, 4), (0, 256)]
    no_boxes = torch.zeros(0, 4, dtype=torch.int64)
    assert wsfast.level_best_iou(none, no_boxes, torch.zeros(1).long()).shape == (0, 256)
    assert not wsfast.score_histograms(none, none > 0, edges).any()
    assert wsfast.threshold_levels(none, edges).shape == (0, 11)


def test_infinite_values_are_clamped() -> None:
    maps = torch.tensor([[[-math.inf, 0.5, math.inf, 7.0, -3.0]]])
    clamped = torch.tensor([[[0.0, 0.5, 1.0, 1.0, 0.0]]])
    assert torch.equal(wsfast.level_boxes(maps)[0], wsfast.level_boxes(clamped)[0])
    edges = torch.tensor([0.0, 0.5, 1.0])
    assert wsfast.score_histograms(maps, maps > -4, edges).tolist() == [[0, 0], [0, 1]]


def every_op(
    maps: torch.Tensor, truth: torch.Tensor, offsets: torch.Tensor, edges: torch.Tensor
) -> list[torch.Tensor]:
    boxes, area2 = wsfast.level_boxes(maps)
    best = wsfast.level_best_iou(maps, truth, offsets)
    outer = wsfast.level_best_iou(maps, truth, offsets, holes=False)
    counts = wsfast.score_histograms(maps, maps > 0.5, edges)
    levels = wsfast.threshold_levels(maps, edges)
    return [boxes, area2, best, outer, counts, levels]


def every_input(batch: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    truth = torch.tensor([[1, 1, 5, 6]], device=device).repeat(batch, 1)
    offsets = torch.arange(batch + 1, device=device)
    edges = torch.linspace(0, 1, 12, device=device)
    return torch.rand(batch, 9, 8, device=device), truth, offsets, edges


def test_opcheck(device: torch.device) -> None:
    ops = torch.ops.wsfast
    maps, truth, offsets, edges = every_input(2, device)
    opcheck(ops.level_boxes.default, (maps,))
    opcheck(ops.level_best_iou.default, (maps, truth, offsets, True))
    opcheck(ops.score_histograms.default, (maps, (maps > 0.5).to(torch.uint8), edges.double()))


def test_compile_fullgraph(device: torch.device) -> None:
    compiled = torch.compile(every_op, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        inputs = every_input(batch, device)
        torch.testing.assert_close(compiled(*inputs), every_op(*inputs))


class EveryOp(torch.nn.Module):
    def forward(
        self, maps: torch.Tensor, truth: torch.Tensor, offsets: torch.Tensor, edges: torch.Tensor
    ) -> list[torch.Tensor]:
        return every_op(maps, truth, offsets, edges)


def test_export(device: torch.device) -> None:
    batch, boxes = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("boxes", max=999)
    dynamic = {"maps": {0: batch}, "truth": {0: boxes}, "offsets": {0: batch + 1}, "edges": None}
    program = torch.export.export(EveryOp().eval(), every_input(2, device), dynamic_shapes=dynamic)
    inputs = every_input(5, device)
    torch.testing.assert_close(program.module()(*inputs), every_op(*inputs))


def test_script_and_trace(device: torch.device) -> None:
    inputs = every_input(2, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted, traced = torch.jit.script(every_op), torch.jit.trace(every_op, inputs)
    for found in (scripted(*inputs), traced(*inputs)):
        torch.testing.assert_close(found, every_op(*inputs))


def test_not_differentiable(device: torch.device) -> None:
    maps, truth, offsets, edges = every_input(2, device)
    for found in every_op(maps.requires_grad_(), truth, offsets, edges):
        assert not found.requires_grad


def test_deterministic(device: torch.device) -> None:
    inputs = every_input(7, device)
    inputs = (torch.rand(7, 150, 120, device=device), *inputs[1:])  # small maps share a thread
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(every_op(*inputs))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.equal(ours, theirs)


MAPS, TRUTH, OFFSETS, EDGES = every_input(2, torch.device("cpu"))
MASKS = MAPS > 0.5
NAN = MAPS.clone()
NAN[1, 2, 3] = math.nan
ERRORS = [
    (lambda: wsfast.level_boxes(MAPS[0]), ValueError, "maps must be a tensor of 3"),
    (lambda: wsfast.level_boxes(MAPS.int()), TypeError, "maps must be float32"),
    (lambda: wsfast.level_boxes(MAPS[:, :0]), ValueError, "maps must be images with 1 <= H * W"),
    (lambda: wsfast.level_boxes(NAN), ValueError, "maps must be free of NaN, got NaN in image 1"),
    (
        lambda: wsfast.level_boxes(MAPS[:1, :1, :1].expand(1, 1 << 15, 1 << 15)),
        ValueError,
        "maps must be images with 1 <= H * W < 2^30",
    ),
    (
        lambda: wsfast.level_boxes(torch.empty(1, 1, (1 << 30) - 1, device="meta")),
        ValueError,
        "maps must be images with 1 <= H * W < 2^30 and (H + 2) * (W + 2) < 2^31",
    ),
    (lambda: wsfast.level_best_iou(NAN, TRUTH, OFFSETS), ValueError, "maps must be free of NaN"),
    (
        lambda: wsfast.level_best_iou(MAPS, TRUTH[:, :3], OFFSETS),
        ValueError,
        "gt_boxes must be of shape (G, 4)",
    ),
    (
        lambda: wsfast.level_best_iou(MAPS, TRUTH.float(), OFFSETS),
        TypeError,
        "gt_boxes must be int32 or int64",
    ),
    (
        lambda: wsfast.level_best_iou(MAPS, TRUTH.flip(1), OFFSETS),
        ValueError,
        "gt_boxes must be boxes with 0 <= x0 <= x1 < 2^31",
    ),
    (
        lambda: wsfast.level_best_iou(MAPS, TRUTH, OFFSETS[:2]),
        ValueError,
        "gt_offsets must be of shape (3,)",
    ),
    (
        lambda: wsfast.level_best_iou(MAPS, TRUTH, OFFSETS.float()),
        TypeError,
        "gt_offsets must be int32 or int64",
    ),
    (
        lambda: wsfast.level_best_iou(MAPS, TRUTH, torch.tensor([0, 3, 2])),
        ValueError,
        "gt_offsets must be non-decreasing from 0 to the number of gt_boxes (2)",
    ),
    (
        lambda: wsfast.score_histograms(MAPS.byte(), MASKS, EDGES),
        TypeError,
        "maps must be float32",
    ),
    (lambda: wsfast.score_histograms(NAN, MASKS, EDGES), ValueError, "maps must be free of NaN"),
    (
        lambda: wsfast.score_histograms(MAPS, MASKS.int(), EDGES),
        TypeError,
        "masks must be bool or uint8",
    ),
    (
        lambda: wsfast.score_histograms(MAPS, MASKS[:1], EDGES),
        ValueError,
        "masks must be of the maps' shape",
    ),
    (
        lambda: wsfast.score_histograms(MAPS, MASKS.byte() * 7, EDGES),
        ValueError,
        "masks must be 0, 1 or 255 everywhere",
    ),
    (
        lambda: wsfast.score_histograms(MAPS, MASKS, EDGES[:1]),
        ValueError,
        "edges must be of shape (E,), E >= 2",
    ),
    (
        lambda: wsfast.score_histograms(MAPS, MASKS, EDGES.flip(0)),
        ValueError,
        "edges must be finite and non-decreasing",
    ),
    (
        lambda: wsfast.score_histograms(MAPS, MASKS, EDGES.long()),
        TypeError,
        "edges must be float32",
    ),
    (
        lambda: wsfast.threshold_levels(MAPS, EDGES + 0.5),
        ValueError,
        "thresholds must be between 0 and 1",
    ),
    (
        lambda: wsfast.threshold_levels(MAPS, EDGES[None]),
        ValueError,
        "thresholds must be a tensor of 1",
    ),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])


@pytest.mark.parametrize("shape", [(1, 1, (1 << 30) - 1), (1, (1 << 29) - 1, 2)])
def test_op_refuses_maps_whose_frame_is_too_large(shape: tuple[int, int, int]) -> None:
    """Places in the framed map are int32; the check comes before any copy of the map."""
    byte = torch.zeros(1, 1, 1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="inside a frame of one pixel must have less than 2"):
        torch.ops.wsfast.level_boxes(byte.expand(shape))
