"""Box accuracies, PxAP and error kinds against the protocol in plain OpenCV and NumPy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import opencv_protocol as protocol
from tests import level_maps
from tests.metrics.batches import as_tensors, make_batch
from wsfast.metrics import (
    LocalizationErrors,
    MaxBoxAcc,
    MaxBoxAccV2,
    PxAP,
    TopKLocalization,
)

THRESHOLDS = np.arange(0, 1, 0.001)
BOX_METRICS = (MaxBoxAcc, MaxBoxAccV2)


@pytest.mark.parametrize("metric_type", BOX_METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_the_protocol(metric_type, seed: int, device: torch.device) -> None:
    maps, boxes = make_batch(14, seed)
    metric = metric_type().to(device)
    tensors, truth = as_tensors(maps, boxes)
    for part in (slice(0, 5), slice(5, 14)):
        metric.update(tensors[part].to(device), [b.to(device) for b in truth[part]])
    expected = protocol.num_correct(
        maps, boxes, THRESHOLDS, metric.iou_levels, every_contour=metric.every_contour,
        collapse=True,
    )  # fmt: skip
    np.testing.assert_array_equal(metric.num_correct.cpu().numpy(), expected)
    assert metric.compute().item() == (expected / 14).max(axis=1).mean()


@pytest.mark.parametrize("metric_type", BOX_METRICS)
def test_float32_maps_count_alike(metric_type, device: torch.device) -> None:
    maps, boxes = make_batch(14, 9)
    maps = [m.astype(np.float32).astype(np.float64) for m in maps]
    wide, narrow = metric_type(), metric_type().to(device)
    wide.update(*as_tensors(maps, boxes))
    tensors, truth = as_tensors(maps, boxes, torch.float32)
    narrow.update(tensors.to(device), [b.to(device) for b in truth])
    assert torch.equal(wide.num_correct, narrow.num_correct.cpu())


def test_curve_and_best_threshold() -> None:
    maps = torch.zeros(1, 10, 10)
    maps[0, :, :] = 0.2
    maps[0, 2:6, 3:8] = 1.0
    metric = MaxBoxAcc()
    metric.update(maps, [torch.tensor([[3, 2, 8, 6]])])
    thresholds, accuracies = metric.curve()
    assert accuracies.shape == (1, 1000)
    assert metric.best_thresholds().item() == thresholds[int(accuracies[0].argmax())].item()
    assert accuracies[0, thresholds < 0.19].sum() == 0
    assert accuracies[0, thresholds > 0.21].min() == 1
    assert metric.compute().item() == 1


def test_top_k_needs_the_class() -> None:
    maps = torch.ones(4, 6, 6)
    boxes = [torch.tensor([[0, 0, 5, 5]])] * 4
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 1]])
    target = torch.tensor([0, 1, 2, 0])
    for k, expected in ((1, 0.5), (2, 0.75), (3, 1.0)):
        metric = TopKLocalization(k=k)
        metric.update(maps, boxes, logits, target)
        assert metric.compute().item() == expected


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(level_maps.FAMILIES),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**31 - 1),
    st.sampled_from(BOX_METRICS),
)
def test_counts_of_any_map_equal_the_protocol(family, height, width, seed, metric_type) -> None:
    scores = level_maps.make_map(family, height, width, seed) / 255
    boxes = level_maps.make_truth(np.random.default_rng(seed), height, width)
    thresholds = np.arange(0, 1, 0.01)
    metric = metric_type(thresholds=thresholds)
    metric.update(*as_tensors([scores], [boxes]))
    expected = protocol.num_correct(
        [scores], [boxes], thresholds, metric.iou_levels, every_contour=metric.every_contour,
        collapse=True,
    )  # fmt: skip
    np.testing.assert_array_equal(metric.num_correct.numpy(), expected)


@pytest.mark.parametrize("highest", [1.0, 0.7])  # of 0.7 the highest bins are empty
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pxap_equals_the_protocol(dtype: torch.dtype, highest: float) -> None:
    maps = [m * highest for m in make_batch(14, 3)[0]]
    rng = np.random.default_rng(1)
    masks = [
        rng.choice([0, 1, 255], size=m.shape, p=[0.6, 0.3, 0.1]).astype(np.uint8) for m in maps
    ]
    tensor = torch.from_numpy(np.stack(maps)).to(dtype)
    metric = PxAP()
    metric.update(tensor, torch.from_numpy(np.stack(masks)))
    expected = protocol.pixel_average_precision(list(tensor.double().numpy()), masks, THRESHOLDS)
    assert metric.compute().item() == expected


def test_pxap_known_values() -> None:
    masks = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    perfect, constant = PxAP(), PxAP()
    perfect.update(masks.float(), masks)
    assert perfect.compute().item() == 1
    constant.update(torch.full((1, 1, 4), 0.5), masks)
    assert constant.compute().item() == 0.5
    assert PxAP().compute().isnan()
    with pytest.raises(RuntimeError, match="masks must hold a foreground pixel"):
        PxAP().curve()
    assert constant(masks.float(), torch.zeros_like(masks)).isnan()  # a batch without an object
    assert 0 < constant.compute() < 0.5  # counts with those before


def test_pxap_recall_is_of_all_foreground() -> None:
    """Also of what lies below the first threshold."""
    maps = torch.tensor([[[0.9, 0.1, 0.2, 0.6]]])
    masks = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    metric = PxAP(thresholds=[0.5, 0.8])
    metric.update(maps, masks)
    precision, recall = metric.curve()
    assert precision.tolist() == [0, 0, 1, 0.5, 0.5]  # at 2, 1, 0.8, 0.5 and 0
    assert recall.tolist() == [0, 0, 0.5, 0.5, 1]
    assert metric.compute().item() == 0.75
    with_zero = PxAP(thresholds=[0, 0.5, 0.8])
    with_zero.update(maps, masks)
    assert torch.equal(with_zero.histograms, metric.histograms)


def test_every_kind_of_error() -> None:
    truth = [torch.tensor([[0, 0, 9, 9]])] * 6
    truth[2] = torch.tensor([[0, 0, 9, 9], [20, 0, 29, 9]])
    preds = torch.tensor(
        [[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 29, 39], [0, 0, 4, 4], [0, 0, 19, 19], [8, 8, 30, 30]]
    )
    classes, target = torch.tensor([1, 0, 1, 1, 1, 1]), torch.ones(6, dtype=torch.int64)
    metric = LocalizationErrors()
    metric.update(preds, truth, classes, target)
    found = metric.compute()
    kinds = ("correct", "class", "multi_instance", "part", "more", "other")
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(kinds, 1 / 6)


def test_stacked_boxes_are_those_of_a_list() -> None:
    preds = torch.tensor([[0, 0, 9, 9], [5, 5, 9, 9]])
    truth = torch.tensor([[[0, 0, 9, 9], [20, 0, 29, 9]], [[1, 1, 3, 3], [4, 4, 9, 9]]])
    classes = torch.tensor([0, 1])
    stacked, listed = LocalizationErrors(), LocalizationErrors()
    stacked.update(preds, truth, classes, classes)
    listed.update(preds, list(truth), classes, classes)
    assert torch.equal(stacked.counts, listed.counts)
    assert stacked.compute()["correct"] == 1


def test_pxap_is_drawn_where_something_is_predicted() -> None:
    pytest.importorskip("matplotlib").use("agg")
    metric = PxAP(thresholds=[0, 0.3, 0.5, 0.7])
    maps, masks = torch.tensor([[[0.6, 0.6, 0.4, 0.1]]]), torch.tensor([[[1, 0, 1, 0]]])
    metric.update(maps, masks.byte())
    _, axes = metric.plot()
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0.5, 1, 1]
    assert line.get_ydata().tolist() == [0.5, 2 / 3, 0.5]


MAPS, BOX = torch.rand(2, 5, 5), torch.tensor([[0, 0, 2, 2]])
BAD_UPDATES = (
    (MaxBoxAcc, (MAPS * 2, [BOX, BOX]), ValueError, "MaxBoxAcc.update: maps must be free of NaN"),
    (MaxBoxAcc, (MAPS / 0 * 0, [BOX, BOX]), ValueError, "maps must be free of NaN and within 0-1"),
    (MaxBoxAcc, (MAPS, [BOX]), ValueError, "boxes must be one tensor per image (2), got 1"),
    (MaxBoxAcc, (MAPS, BOX[0]), ValueError, "boxes must be one tensor per image (2), got 1"),
    (MaxBoxAcc, (MAPS, [BOX, BOX[:0]]), ValueError, "boxes must be (G, 4) with G >= 1 each"),
    (MaxBoxAcc, (MAPS, [BOX, BOX.float()]), TypeError, "boxes must be integers, got torch.float32"),
    (MaxBoxAccV2, (MAPS, [BOX, -BOX]), ValueError, "boxes must be 0 <= x0 <= x1"),
    (MaxBoxAcc, (MAPS, [BOX, -BOX]), ValueError, "MaxBoxAcc.update: boxes must be 0 <= x0 <= x1"),
    (MaxBoxAcc, (MAPS[0], [BOX]), ValueError, "maps must be"),
    (MaxBoxAcc, (MAPS.byte(), [BOX, BOX]), TypeError, "maps must be"),
    (PxAP, (MAPS, MAPS), TypeError, "masks must be bool or uint8"),
    (PxAP, (MAPS, MAPS[:1].byte()), ValueError, "masks must be of the maps' shape"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(3, 4), torch.tensor([0, 1])), ValueError,
     "logits must be of shape (2, classes)"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), torch.tensor([0.0, 1])), TypeError,
     "target must be int64"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), torch.tensor([0, 4])), ValueError,
     "target must be class numbers from 0 to 3, got 4"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), torch.tensor([-1, 3])), ValueError,
     "target must be class numbers from 0 to 3, got -1"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), [0, 1]), TypeError,
     "target must be a torch.Tensor"),
    (LocalizationErrors, (BOX[0], [BOX], BOX[0], BOX[0]), ValueError, "preds must be of shape"),
    (LocalizationErrors, (BOX > 1, [BOX], BOX[:, 0], BOX[:, 0]), TypeError,
     "preds must be integers, got torch.bool"),
    (LocalizationErrors, (BOX.flip(1), [BOX], BOX[:, 0], BOX[:, 0]), ValueError,
     "preds must be 0 <= x0 <= x1 and 0 <= y0 <= y1, got [2, 2, 0, 0]"),
    (LocalizationErrors, (BOX, [BOX, BOX], BOX[:, 0], BOX[:, 0]), ValueError,
     "boxes must be one tensor per image (1), got 2"),
    (LocalizationErrors, (BOX, [BOX.to("meta")], BOX[:, 0], BOX[:, 0]), ValueError,
     "boxes must be on the device of preds (cpu)"),
    (LocalizationErrors, (BOX, [BOX], torch.tensor([-1]), torch.tensor([1])), ValueError,
     "classes must be class numbers of 0 or more, got -1"),
    (LocalizationErrors, (BOX, [BOX], torch.tensor([1]), torch.tensor([1.0])), TypeError,
     "target must be integer class numbers, got torch.float32"),
)  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD_UPDATES)))
def test_errors(case: int) -> None:
    metric_type, arguments, error, message = BAD_UPDATES[case]
    metric = metric_type()
    with pytest.raises(error) as caught:
        metric.update(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"thresholds must be between 0 and 1, got 1\.5$"):
        MaxBoxAcc(thresholds=[0.5, 1.5])
    with pytest.raises(ValueError, match=r"thresholds must be ascending, got 0\.2 after 0\.7$"):
        PxAP(thresholds=[0.5, 0.7, 0.2, 0.1])
    with pytest.raises(ValueError, match="k must be"):
        TopKLocalization(k=0)
    with pytest.raises(TypeError, match="k must be a whole number, got float"):
        TopKLocalization(k=1.5)


class Elsewhere(Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("value", [2.0, -1.0, float("nan")])
def test_box_metrics_check_maps_of_any_device(value: float) -> None:
    maps = MAPS.clone()
    maps[1, 2, 3] = value
    with pytest.raises(ValueError, match="maps must be free of NaN and within 0-1"):
        MaxBoxAcc().update(maps.as_subclass(Elsewhere), [BOX, BOX])


def test_maps_with_a_gradient_are_scored_in_silence():
    maps, boxes = as_tensors(*make_batch(2, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MaxBoxAcc()(maps.clone().requires_grad_(), boxes) == MaxBoxAcc()(maps, boxes)
