import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsfast.metrics import DefectSegmentation


def scores(preds, target, **settings):
    metric = DefectSegmentation(**settings)
    metric.update(torch.as_tensor(preds), torch.as_tensor(target))
    return {name: value.item() for name, value in metric.compute().items()}


def test_numbers_worked_by_hand():
    """Two images of 4x5: TP 3, FP 2, FN 1, TN 34."""
    preds, target = np.zeros((2, 2, 4, 5), dtype=bool)
    target[0, 1, 1:4] = True
    preds[0, 1, 1:4] = True
    preds[0, 0, :2] = True
    target[1, 3, 4] = True
    assert scores(preds, target) == pytest.approx(
        {
            "iou": 3 / 6,
            "miou": (3 / 6 + 34 / 37) / 2,
            "precision": 3 / 5,
            "recall": 3 / 4,
            "f1": 2 * 3 / (2 * 3 + 2 + 1),
        }
    )


masks = hnp.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3).map(lambda shape: (2, *shape)))


@given(masks)
def test_scores_are_set_operations(pair):
    preds, target = pair
    both, either = (preds & target).sum(), (preds | target).sum()
    neither, not_both = (~preds & ~target).sum(), (~preds | ~target).sum()
    iou = both / either if either else 0
    ours = scores(preds, target)
    assert ours["iou"] == pytest.approx(iou)
    assert ours["miou"] == pytest.approx((iou + (neither / not_both if not_both else 0)) / 2)
    assert ours["precision"] == pytest.approx(both / max(preds.sum(), 1))
    assert ours["recall"] == pytest.approx(both / max(target.sum(), 1))
    assert ours["f1"] == pytest.approx(2 * iou / (1 + iou))


@given(masks, st.data())
def test_merged_parts_equal_one_pass(pair, data):
    preds, target = map(torch.from_numpy, pair)
    cut = data.draw(st.integers(0, len(preds)))
    whole, first, second = (DefectSegmentation() for _ in range(3))
    whole.update(preds, target)
    first.update(preds[:cut], target[:cut])
    second.update(preds[cut:], target[cut:])
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_pooling_is_over_pixels_not_images():
    """A large defect that is found outweighs a small one that is missed."""
    target = np.zeros((2, 10, 10), dtype=bool)
    target[0], target[1, 0, 0] = True, True
    preds = target.copy()
    preds[1] = False
    assert scores(preds, target)["iou"] == pytest.approx(100 / 101)


def test_zero_over_zero_is_the_callers_choice():
    empty = np.zeros((1, 2, 2), dtype=bool)
    assert scores(empty, empty) == {
        "iou": 0, "miou": 0.5, "precision": 0, "recall": 0, "f1": 0
    }  # fmt: skip
    assert set(scores(empty, empty, zero_division=1).values()) == {1}


def test_counts_are_exact_beyond_float32():
    metric = DefectSegmentation()
    ones = torch.ones(1, 1, 1, dtype=torch.bool)
    metric.update(ones, ones)
    metric.true_positives += 2**40
    metric.update(ones, ones)
    assert metric.true_positives.item() == 2**40 + 2
    assert metric.true_positives.dtype == torch.int64


def test_reset_starts_afresh():
    metric = DefectSegmentation()
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    metric.update(mask, ~mask)
    metric.reset()
    metric.update(mask, mask)
    assert metric.compute()["iou"] == 1


def test_empty_batches_count_nothing():
    metric = DefectSegmentation()
    nothing = torch.zeros(0, 4, 4, dtype=torch.bool)
    metric.update(nothing, nothing)
    assert metric.true_negatives == 0


MASK = torch.zeros(2, 3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("preds", "target", "error", "message"),
    [
        (MASK.float(), MASK, TypeError, "preds must be a bool tensor, got torch.float32"),
        (MASK, MASK.to(torch.uint8), TypeError, "target must be a bool tensor, got torch.uint8"),
        (MASK.numpy(), MASK, TypeError, "preds must be a torch.Tensor, got ndarray"),
        (MASK[0], MASK[0], ValueError, "preds must be a tensor of 3 dimensions"),
        (MASK[:1], MASK, ValueError, r"preds must be of shape \[2, 3, 4\], got \[1, 3, 4\]"),
        (MASK, MASK.to("meta"), ValueError, r"target must be on the device of preds \(cpu\)"),
    ],
)
def test_bad_masks_give_one_clear_line(preds, target, error, message):
    metric = DefectSegmentation()
    with pytest.raises(error, match=rf"^wsfast\.DefectSegmentation\.update: {message}"):
        metric.update(preds, target)


def test_zero_division_is_a_share():
    with pytest.raises(ValueError, match="zero_division must be between 0 and 1, got 2"):
        DefectSegmentation(zero_division=2)
