from collections import Counter

import pytest
import torch

from wsfast.train import BalancedSampler


def test_classes_come_equally_often_and_no_image_twice_before_all_came_once():
    labels = torch.tensor([0] * 9 + [1] * 2 + [2])
    drawn = list(BalancedSampler(labels))
    assert len(drawn) == len(BalancedSampler(labels)) == 12
    assert Counter(labels[drawn].tolist()) == {0: 4, 1: 4, 2: 4}
    counts = Counter(drawn)
    assert all(counts[index] <= 1 for index in range(9))
    assert [counts[index] for index in (9, 10, 11)] == [2, 2, 4]


def test_balanced_data_are_shuffled_whole():
    labels = torch.arange(40) % 2
    sampler = BalancedSampler(labels)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_over_epochs_every_image_of_the_larger_class_comes():
    sampler = BalancedSampler(torch.tensor([0] * 20 + [1]))
    seen = {index for _ in range(30) for index in sampler}
    assert seen == set(range(21))


def test_labels_are_needed():
    with pytest.raises(ValueError, match="labels must be a non-empty vector"):
        BalancedSampler(torch.zeros(0))
