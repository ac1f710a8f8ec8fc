"""Targets as class indices and as seeds of the backward pass."""

import numpy as np
import pytest
import torch
from torch import Tensor

from wsfast.cam.targets import in_range, resolve_target, score_seeds

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [5.0, 2.0, 4.0]])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [1, 0]),
        (2, [2, 2]),
        (np.int64(2), [2, 2]),
        ([2, 0], [2, 0]),
        ((2, 0), [2, 0]),
        ([[0, 1], [1, 2]], [[0, 1], [1, 2]]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([1, 2], dtype=torch.int8), [1, 2]),
        (torch.tensor([[1], [2]], dtype=torch.uint8), [[1], [2]]),
        ([[0, 1, 1], [0, 1, 0]], [[0, 1, 1], [0, 1, 0]]),
        ([[0, 1], [1, 0]], [[0, 1], [1, 0]]),
    ],
)
def test_class_indices(target: object, expected: list) -> None:
    resolved = resolve_target("f", target, LOGITS)
    assert resolved.dtype == torch.int64
    assert resolved.tolist() == expected
    assert in_range(resolved, LOGITS).tolist() == [True, True]


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        (3, ValueError, "between 0 and 2, got 3"),
        (-1, ValueError, "between 0 and 2, got -1"),
        ([0, 3], ValueError, "between 0 and 2, got 3"),
        (torch.tensor([[0, 1], [-2, 1]]), ValueError, "between 0 and 2, got -2"),
        ([[0, 1, 0], [1, 0, 0]], ValueError, r"class numbers \(argmax.*, got one-hot rows"),
        ([0], ValueError, r"of shape \(2,\) or \(2, K\), got shape \[1\]"),
        (torch.tensor(1), ValueError, r"of shape \(2,\) or \(2, K\), got shape \[\]"),
        (torch.zeros(2, 1, 1).long(), ValueError, r"of .*got shape \[2, 1, 1\]"),
        (torch.zeros(2, 0).long(), ValueError, r"of .*got shape \[2, 0\]"),
        ([[0, 1], [2]], TypeError, "class numbers or a callable, got list"),
        (True, TypeError, "class numbers or a callable, got bool"),
        ("cat", TypeError, "class numbers or a callable, got str"),
        ({"a": 1}, TypeError, "class numbers or a callable, got dict"),
        (1.5, TypeError, "integer class numbers, got torch.float32"),
        ([0.0, 1.0], TypeError, "integer class numbers, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "integer class numbers, got torch.bool"),
    ],
)
def test_errors(target: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"wsfast.f: target must be {message}"):
        resolve_target("f", target, LOGITS)


def test_unseen_classes_out_of_range_are_marked_and_harmless() -> None:
    # What a GPU target looks like: nobody has checked its values.
    unseen = torch.tensor([[1, 3], [0, 2]])
    assert in_range(unseen, LOGITS).tolist() == [False, True]
    seeds = score_seeds("f", unseen, unseen, LOGITS)
    assert [seed.weights.argmax(1).tolist() for seed in seeds] == [[1, 0], [2, 2]]
    assert in_range(None, LOGITS).tolist() == [True, True]


def test_seeds_weigh_the_asked_class() -> None:
    logits = LOGITS.bfloat16()
    (seed,) = score_seeds("f", 2, resolve_target("f", 2, logits), logits)
    assert seed.scores is logits
    assert torch.equal(seed.weights, torch.tensor([[0.0, 0, 1], [0, 0, 1]]).bfloat16())


def test_callables_see_gradients_even_under_no_grad() -> None:
    logits = LOGITS.clone().requires_grad_()

    def margin(scores: Tensor) -> Tensor:
        return scores[:, 1] - scores[:, 0]

    assert resolve_target("f", margin, logits) is None
    with torch.no_grad():
        (seed,) = score_seeds("f", margin, None, logits)
    (grad,) = torch.autograd.grad(seed.scores, logits, seed.weights)
    assert torch.equal(grad, torch.tensor([[-1.0, 1, 0], [-1, 1, 0]]))


@pytest.mark.parametrize(
    ("give", "got"),
    [
        (lambda logits: logits, r"\[2, 3\]"),
        (lambda logits: logits.sum(), r"\[\]"),
        (lambda logits: 1.0, "float"),
    ],
)
def test_callables_must_give_one_score_per_image(give: object, got: str) -> None:
    with pytest.raises(ValueError, match=rf"target must be a callable giving \(2,\), got {got}"):
        score_seeds("f", give, None, LOGITS)
