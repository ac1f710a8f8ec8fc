"""Boxes of label maps and non-maximum suppression, against torchvision and SciPy."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import wsfast
from tests.op_errors import check_error
from wsfast.ops.boxes import reference

torchvision_ops = pytest.importorskip("torchvision.ops")

UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, *UNSIGNED)


def label_maps(seed: int, *shape: int, most: int = 6) -> torch.Tensor:
    return torch.randint(-1, most + 1, shape, generator=torch.Generator().manual_seed(seed))


def torchvision_boxes(labels: torch.Tensor, most: int) -> torch.Tensor:
    """(K, 4) half-open boxes of one label map, -1 where a label is absent."""
    masks = labels == torch.arange(1, most + 1)[:, None, None]
    boxes = torchvision_ops.masks_to_boxes(masks).int() + torch.tensor([0, 0, 1, 1])
    return torch.where(masks.flatten(1).any(1)[:, None], boxes, -1).int()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 140), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_labels_equal_torchvision(height: int, width: int, most: int, seed: int) -> None:
    labels = label_maps(seed, 2, height, width)
    found = wsfast.label_boxes(labels, max_labels=most)
    for image, boxes, areas in zip(labels, found.boxes, found.areas, strict=True):
        assert torch.equal(boxes, torchvision_boxes(image, most))
        counted = torch.stack([(image == k).sum() for k in range(1, most + 1)])
        assert torch.equal(areas, torch.where(counted > 0, counted, -1).int())
    assert torch.equal(found.counts, labels.amax((1, 2)).clamp(min=0).int())


def test_labels_of_components() -> None:
    """Labels, then their boxes, are the components' boxes in raster order."""
    mask = torch.rand(3, 40, 70, generator=torch.Generator().manual_seed(0)) < 0.3
    labels, counts = wsfast.connected_components(mask)
    found = wsfast.label_boxes(labels, max_labels=int(counts.max()))
    sorted_boxes = wsfast.component_boxes(mask, max_boxes=int(counts.max()))
    assert torch.equal(found.counts, counts)
    order = found.areas.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(found.areas.gather(1, order), sorted_boxes.areas)
    assert torch.equal(
        found.boxes.gather(1, order[:, :, None].expand(-1, -1, 4)), sorted_boxes.boxes
    )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_forward_matches_reference(device: torch.device, dtype: torch.dtype) -> None:
    labels = label_maps(1, 3, 17, 23).clamp(min=0).to(device, dtype)
    found = wsfast.label_boxes(labels.transpose(1, 2), max_labels=5)
    for ours, theirs in zip(found, reference.label_boxes(labels.int().mT, 5), strict=True):
        assert torch.equal(ours, theirs)


def test_labels_outside_are_left_out() -> None:
    labels = torch.tensor([[[-255, 1, 2**40, 0]]])
    found = wsfast.label_boxes(labels, max_labels=3)
    assert found.boxes.tolist() == [[[1, 0, 2, 1], [-1] * 4, [-1] * 4]]
    assert found.counts.tolist() == [2**31 - 1]


@pytest.mark.parametrize(
    ("dtype", "label"),
    [(torch.uint32, 2**31 + 5), (torch.uint64, 2**32 + 1), (torch.uint64, 2**63 + 1)],
)
def test_unsigned_labels_do_not_wrap(device: torch.device, dtype: torch.dtype, label: int) -> None:
    labels = torch.tensor([[[0, 2, label]]], dtype=dtype, device=device)
    for op in (wsfast.label_boxes, torch.compile(wsfast.label_boxes, fullgraph=True)):
        found = op(labels, max_labels=2)
        assert found.boxes.tolist() == [[[-1] * 4, [1, 0, 2, 1]]]
        assert found.counts.tolist() == [2**31 - 1]


def test_any_strides_and_empty_batch() -> None:
    found = wsfast.label_boxes(torch.zeros(0, 4, 5, dtype=torch.int32), max_labels=3)
    assert [tuple(t.shape) for t in found] == [(0, 3, 4), (0, 3), (0,)]


def every_op(labels: torch.Tensor) -> list[torch.Tensor]:
    found = wsfast.label_boxes(labels, max_labels=4)
    return [found.boxes, found.areas, found.counts]


class EveryOp(torch.nn.Module):
    def forward(self, labels: torch.Tensor) -> list[torch.Tensor]:
        return every_op(labels)


def test_opcheck(device: torch.device) -> None:
    labels = label_maps(2, 2, 9, 8).int().to(device)
    opcheck(torch.ops.wsfast.label_boxes.default, (labels, 4))


def test_compile_fullgraph(device: torch.device) -> None:
    labels = label_maps(3, 2, 9, 8).to(device)
    compiled = torch.compile(every_op, fullgraph=True)
    torch.testing.assert_close(compiled(labels), every_op(labels))


def test_export(device: torch.device) -> None:
    labels = label_maps(4, 2, 9, 8).to(device)
    program = torch.export.export(EveryOp(), (labels,))
    torch.testing.assert_close(program.module()(labels), every_op(labels))


@pytest.mark.filterwarnings("ignore")
def test_script_and_trace(device: torch.device) -> None:
    labels = label_maps(5, 2, 9, 8).to(device)
    for made in (torch.jit.script(every_op), torch.jit.trace(every_op, (labels,))):
        torch.testing.assert_close(made(labels), every_op(labels))


def scored(images: int, slots: int, seed: int = 0) -> wsfast.ScoredBoxes:
    """Random boxes with distinct scores, some slots empty."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 30, (images, slots, 2), generator=random)
    size = torch.randint(1, 25, (images, slots, 2), generator=random)
    scores = (torch.randperm(images * slots, generator=random) / (images * slots)).view(images, -1)
    empty = torch.rand(images, slots, generator=random) < 0.2
    boxes = torch.where(empty[:, :, None], -1, torch.cat([corner, corner + size], 2)).int()
    areas = torch.where(empty, -1, size.prod(2)).int()
    return wsfast.ScoredBoxes(
        boxes, torch.where(empty, -1.0, scores), areas, (~empty).sum(1, dtype=torch.int32)
    )


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 1.0])
def test_suppression_is_greedy(iou_threshold: float) -> None:
    """The definition, box by box, on every image alone."""
    found = scored(4, 30)
    left = wsfast.suppress_overlaps(found, iou_threshold)
    for n in range(4):
        slots = [k for k in range(30) if found.areas[n, k] > 0]
        kept: list[int] = []
        for k in sorted(slots, key=lambda k: -float(found.scores[n, k])):
            others = found.boxes[n, kept].double()
            overlap = torchvision_ops.box_iou(found.boxes[n, k][None].double(), others)
            if (overlap <= iou_threshold).all():
                kept.append(k)
        assert left.counts[n] == len(kept)
        assert torch.equal(left.boxes[n, : len(kept)], found.boxes[n, kept])
        assert torch.equal(left.scores[n, : len(kept)], found.scores[n, kept])
        assert torch.equal(left.areas[n, : len(kept)], found.areas[n, kept])
        assert all((part[n, len(kept) :] == -1).all() for part in left[:3])
    assert [part.dtype for part in left] == [part.dtype for part in found]


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_overlap_of_the_threshold_stays_with_scores_of_any_dtype(
    dtype: torch.dtype, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torchvision_ops.batched_nms

    def rounding(*given: Any) -> torch.Tensor:
        """As torchvision's kernel for CUDA takes the threshold."""
        return plain(*given[:3], torch.tensor(given[3]).item())

    if rounded:
        monkeypatch.setattr(torchvision_ops, "batched_nms", rounding)
    scores = torch.tensor([[0.75, 0.5, 0.25]], dtype=dtype)
    for tenths in range(1, 10):
        widths = [10, tenths, tenths + 1]
        boxes = torch.tensor([[[0, 0, width, 1] for width in widths]], dtype=torch.int32)
        areas = torch.tensor([widths], dtype=torch.int32)
        found = wsfast.ScoredBoxes(boxes, scores, areas, torch.tensor([3], dtype=torch.int32))
        left = wsfast.suppress_overlaps(found, tenths / 10)
        assert left.areas.tolist() == [[10, tenths, -1]]
        assert left.scores.dtype == dtype


def test_padding_comes_behind_boxes_of_any_score() -> None:
    boxes = torch.tensor([[[0, 0, 4, 4], [0, 0, 4, 4], [5, 5, 9, 9]]], dtype=torch.int32)
    scores, areas = torch.full((1, 3), -torch.inf), torch.full((1, 3), 16, dtype=torch.int32)
    found = wsfast.ScoredBoxes(boxes, scores, areas, torch.tensor([3], dtype=torch.int32))
    assert wsfast.suppress_overlaps(found).areas.tolist() == [[16, 16, -1]]


def test_suppression_of_nothing() -> None:
    for images, slots in ((0, 5), (2, 5)):
        none = wsfast.cam_boxes(torch.zeros(images, 6, 6), 0.5, max_boxes=slots)
        for ours, theirs in zip(wsfast.suppress_overlaps(none), none, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_suppression_as_an_op_and_in_scripts() -> None:
    found = scored(3, 8)
    arguments = (found.boxes, found.scores, found.areas > 0, 0.3)
    opcheck(torch.ops.wsfast.non_maximum_suppression.default, arguments)
    left = wsfast.suppress_overlaps(found, 0.3)
    scripted = torch.jit.script(wsfast.suppress_overlaps)(found, 0.3)
    assert not isinstance(scripted, wsfast.ScoredBoxes)  # but a like tuple, which is taken, too
    for again in (scripted, wsfast.suppress_overlaps(scripted, 0.3)):
        torch.testing.assert_close(tuple(again), tuple(left), rtol=0, atol=0)


LABELS = torch.ones(2, 5, 6, dtype=torch.int32)
ERRORS = [
    (lambda: wsfast.label_boxes(LABELS[0]), ValueError, "labels must be a tensor of 3"),
    (lambda: wsfast.label_boxes(LABELS[:, :0]), ValueError, "labels must be images with H, W"),
    (lambda: wsfast.label_boxes(LABELS > 0), TypeError, "labels must be integers, got torch.bool"),
    (lambda: wsfast.label_boxes(LABELS.float()), TypeError, "labels must be integers"),
    (lambda: wsfast.label_boxes(LABELS, max_labels=0), ValueError, "max_labels must be at least 1"),
    (lambda: wsfast.suppress_overlaps(scored(1, 2), 1.5), ValueError, "iou_threshold must be"),
    (
        lambda: wsfast.suppress_overlaps(wsfast.label_boxes(LABELS)),
        TypeError,
        "found must be wsfast.S",
    ),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])
