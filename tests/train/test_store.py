"""One array for a data set: whole or not there, restartable, no row made twice or left out."""

import errno
import os
from collections import Counter

import numpy as np
import pytest
import torch

from wsfast.train.maps import dequantized, quantized
from wsfast.train.store import ArrayStore, weights_digest


def rows_of(numbers):
    return np.stack([np.full((2, 3), number, np.uint8) for number in numbers])


def test_it_is_filled_once_and_found_again(tmp_path):
    store = ArrayStore(tmp_path, "maps", {"weights": "a"}, (7, 2, 3))
    filled = store.fill(rows_of, batch_size=3, progress=False)
    assert filled[:, 0, 0].tolist() == list(range(7))
    assert isinstance(filled, np.memmap)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"]
    again = ArrayStore(tmp_path, "maps", {"weights": "a"}, (7, 2, 3))
    assert np.array_equal(again.fill(lambda rows: 1 / 0, progress=False), filled)


@pytest.mark.parametrize(
    "other",
    [({"weights": "b"}, (7, 2, 3), np.uint8), ({"weights": "a"}, (8, 2, 3), np.uint8),
     ({"weights": "a"}, (7, 2, 3), np.float16)],
)  # fmt: skip
def test_what_it_depends_on_names_it(tmp_path, other):
    first = ArrayStore(tmp_path, "maps", {"weights": "a"}, (7, 2, 3))
    assert ArrayStore(tmp_path, "maps", *other).path != first.path


def test_broken_off_it_goes_on_without_making_a_row_twice(tmp_path):
    made = Counter()

    def breaking(rows):
        if len(made) >= 4:
            raise KeyboardInterrupt
        made.update(rows)
        return rows_of(rows)

    def counting(rows):
        made.update(rows)
        return rows_of(rows)

    store = ArrayStore(tmp_path, "maps", {}, (9, 2, 3))
    with pytest.raises(KeyboardInterrupt):
        store.fill(breaking, batch_size=2, progress=False)
    with pytest.raises(FileNotFoundError):
        store.open()  # a half-filled array is not there
    filled = store.fill(counting, batch_size=2, progress=False)
    assert filled[:, 1, 2].tolist() == list(range(9))
    assert made == Counter(range(9))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot allocate")
def test_its_place_on_the_disk_is_taken_before_anything_is_computed(tmp_path, monkeypatch):
    allocated = []
    plain = os.posix_fallocate

    def noting(descriptor, offset, length):
        allocated.append((offset, length, os.fstat(descriptor).st_size))
        plain(descriptor, offset, length)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = ArrayStore(tmp_path, "maps", {}, (9, 2, 3))
    with pytest.raises(OSError, match=r"No space left on device: .*maps-"):
        store.fill(lambda rows: 1 / 0, progress=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "posix_fallocate", noting)
    assert store.fill(rows_of, progress=False)[8, 1, 2] == 8
    assert len(allocated) == 2
    assert all(offset == 0 and length == size > 0 for offset, length, size in allocated)


def test_levels_survive_the_way_to_a_map_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantized(dequantized(levels)), levels)
    assert dequantized(levels).max() <= 1


def test_weights_are_told_apart():
    model = torch.nn.Linear(3, 2)
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert weights_digest(model) != before
