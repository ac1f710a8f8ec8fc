import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfast.data.splits import choose_split, held_out

labels_of = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(labels_of, st.floats(0, 1), st.integers(0, 5))
def test_each_class_gives_its_share_and_keeps_some(labels, share, seed):
    labels = np.array(labels)
    out = held_out(labels.tolist(), share, seed=seed)
    for label in set(labels.tolist()):
        count, taken = (labels == label).sum(), out[labels == label].sum()
        if 0 < share < 1 and count > 1:
            assert 1 <= taken < count
        assert abs(taken - share * count) <= 1


def test_the_choice_follows_the_seed_alone():
    labels = [0, 1] * 50
    assert np.array_equal(held_out(labels, 0.3, seed=4), held_out(labels, 0.3, seed=4))
    assert not np.array_equal(held_out(labels, 0.3, seed=4), held_out(labels, 0.3, seed=5))


def test_groups_stay_together_and_count_for_their_highest_label():
    groups = np.repeat(np.arange(20), 5)
    labels = np.zeros(100, int)
    labels[::10] = 1  # every other group has one defect
    out = held_out(labels.tolist(), 0.2, groups=groups.tolist())
    per_group = out.reshape(20, 5)
    assert np.array_equal(per_group.any(axis=1), per_group.all(axis=1))
    assert per_group[::2, 0].sum() == 2
    assert per_group[1::2, 0].sum() == 2


def chosen(parts, **settings):
    defaults = {"holdout": 0.25, "test_share": 0.2, "seed": 0}
    return {
        split: choose_split(parts, split, lambda item: item % 2, **{**defaults, **settings})
        for split in ("train", "val", "test")
    }


def test_data_without_splits_are_divided_once_and_for_all():
    parts = chosen({"all": list(range(40))})
    assert sorted(item for items in parts.values() for item in items) == list(range(40))
    assert {split: len(items) for split, items in parts.items()} == {
        "train": 24, "val": 8, "test": 8,
    }  # fmt: skip
    assert all(sum(item % 2 for item in items) * 2 == len(items) for items in parts.values())


def test_a_split_that_exists_is_taken_as_it_is():
    everything = {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6]}
    assert chosen(everything) == everything


def test_a_training_split_gives_validation_images_but_never_test_images():
    parts = chosen({"train": list(range(8))})
    assert parts["test"] == []
    assert len(parts["val"]) == 2
    assert sorted(parts["train"] + parts["val"]) == list(range(8))


def test_shares_of_zero_take_nothing():
    parts = chosen({"all": list(range(8))}, holdout=0, test_share=0)
    assert parts == {"train": list(range(8)), "val": [], "test": []}


def test_a_share_must_be_a_share():
    with pytest.raises(ValueError, match=r"^wsfast\.held_out: share must be between 0 and 1"):
        held_out([0], 1.5)
