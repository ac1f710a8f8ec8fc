import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wsfast.data import KSDD2, SyntheticDefects

SMALL = (48, 24)


def drawn(index, **settings):
    sample = SyntheticDefects(12, size=SMALL, seed=3, **settings)[index]
    return sample.image.numpy().tobytes(), sample.mask.numpy().tobytes(), sample.label


def test_an_item_does_not_depend_on_order_or_process():
    data = SyntheticDefects(12, size=SMALL, seed=3)
    backwards = [data[index] for index in reversed(range(12))][::-1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(drawn, [5, 2])
    for index, other in zip([5, 2], elsewhere, strict=True):
        assert drawn(index) == other
        sample = backwards[index]
        assert (sample.image.numpy().tobytes(), sample.mask.numpy().tobytes()) == other[:2]


def test_length_does_not_change_the_items():
    assert torch.equal(SyntheticDefects(3, seed=1)[2].image, SyntheticDefects(99, seed=1)[2].image)


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}, {"split": "val"}])
def test_seed_and_split_change_every_image(change):
    first, second = SyntheticDefects(6), SyntheticDefects(6, **change)
    assert not any(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [(160, 64), (40, 32), (200, 230)])
def test_a_defect_changes_its_mask_and_nothing_else(size):
    clean = SyntheticDefects(20, size=size, defect_rate=0)
    defective = SyntheticDefects(20, size=size, defect_rate=1)
    for before, after in zip(clean, defective, strict=True):
        assert (before.label, after.label) == (0, 1)
        assert not before.mask.any()
        assert after.mask.any()
        difference = (after.image[0].float() - before.image[0].float()).abs()
        assert difference[~after.mask].max() == 0
        # The faintest contrast is 0.12 of the range, softened at the edge to about a half.
        assert difference[after.mask].mean() > 0.06 * 255


def test_defects_are_small_but_not_vanishing():
    masks = torch.stack([sample.mask for sample in SyntheticDefects(200, defect_rate=1)])
    areas = masks.flatten(1).sum(1)
    assert areas.min() >= 12
    assert 0.01 < masks.float().mean() < 0.04


def test_benign_structure_is_as_strong_in_both_classes():
    """Outside the masks, no statistic of the background gives the label away."""
    spread = {0: [], 1: []}
    for sample in SyntheticDefects(200):
        spread[sample.label].append(sample.image[0][~sample.mask].float().std().item())
    assert np.mean(spread[1]) == pytest.approx(np.mean(spread[0]), rel=0.05)


@pytest.mark.parametrize(("rate", "count"), [(0, 0), (0.1, 10), (0.29, 29), (0.5, 50), (1, 100)])
def test_defect_rate_is_met_and_labels_agree_with_masks(rate, count):
    data = SyntheticDefects(100, size=(16, 16), defect_rate=rate)
    assert data.labels.sum() == count
    assert data.labels.tolist() == [int(sample.mask.any()) for sample in data]


def test_batches_keep_the_fields():
    data = SyntheticDefects(5, size=SMALL, channels=3)
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch.image.shape == (4, 3, *SMALL)
    assert batch.image.dtype == torch.uint8
    assert batch.mask.shape == (4, *SMALL)
    assert batch.mask.dtype == torch.bool
    assert batch.label.tolist() == [0, 1, 0, 1]
    assert list(batch.name) == ["10000", "10001", "10002", "10003"]
    assert torch.equal(batch.image[:, 0], batch.image[:, 2])


def test_indexing_is_that_of_a_sequence():
    data = SyntheticDefects(3, size=SMALL)
    assert torch.equal(data[-1].image, data[2].image)
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"length": -1}, ValueError, "length must be between 0"),
        ({"length": 2.5}, TypeError, "length must be an integer, got float"),
        ({"split": "all"}, ValueError, "split must be one of train, val, test, got all"),
        ({"size": (8, 64)}, ValueError, r"size must be \(height, width\) of at least 16 each"),
        ({"size": 64}, TypeError, r"size must be a \(height, width\) of two integers, got 64"),
        ({"defect_rate": 1.5}, ValueError, "defect_rate must be between 0 and 1, got 1.5"),
        ({"channels": 2}, ValueError, "channels must be 1 or 3, got 2"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
    ],
)
def test_bad_settings_give_one_clear_line(settings, error, message):
    with pytest.raises(error, match=rf"^wsfast\.SyntheticDefects: {message}"):
        SyntheticDefects(**settings)


def test_written_files_are_kolektorsdd2s(tmp_path):
    data = SyntheticDefects(2, size=SMALL)
    assert data.write_ksdd2(tmp_path / "new") == tmp_path / "new" / "train"
    SyntheticDefects(1, split="test", size=SMALL).write_ksdd2(tmp_path / "new")
    files = sorted(str(f.relative_to(tmp_path / "new")) for f in tmp_path.rglob("*.png"))
    assert files == [
        "test/20000.png",
        "test/20000_GT.png",
        "train/10000.png",
        "train/10000_GT.png",
        "train/10001.png",
        "train/10001_GT.png",
    ]
    image = cv2.imread(str(tmp_path / "new/train/10001.png"), cv2.IMREAD_UNCHANGED)
    truth = cv2.imread(str(tmp_path / "new/train/10001_GT.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (*SMALL, 3)
    assert np.unique(truth).tolist() == [0, 255]
    assert not cv2.imread(str(tmp_path / "new/train/10000_GT.png"), cv2.IMREAD_UNCHANGED).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back_exactly(tmp_path, channels):
    data = SyntheticDefects(6, split="test", size=SMALL, channels=channels)
    data.write_ksdd2(tmp_path)
    for ours, read in zip(data, KSDD2(tmp_path, "test", channels=channels), strict=True):
        assert torch.equal(ours.image, read.image)
        assert torch.equal(ours.mask, read.mask)
        assert (ours.label, ours.name) == (read.label, read.name)


def test_an_existing_split_is_replaced_only_on_request(tmp_path):
    SyntheticDefects(3, size=SMALL).write_ksdd2(tmp_path)
    with pytest.raises(ValueError, match=r"write_ksdd2: root must be without this split"):
        SyntheticDefects(1, size=SMALL).write_ksdd2(tmp_path)
    assert len(list((tmp_path / "train").iterdir())) == 6
    SyntheticDefects(1, size=SMALL).write_ksdd2(tmp_path, overwrite=True)
    assert len(list((tmp_path / "train").iterdir())) == 2


def test_foreign_files_are_never_deleted(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.docx").touch()
    with pytest.raises(ValueError, match=r"without other files, got .*thesis\.docx"):
        SyntheticDefects(1, size=SMALL).write_ksdd2(tmp_path, overwrite=True)
    assert (tmp_path / "train" / "thesis.docx").exists()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def disk_full(file, picture):
        written.append(file)
        return len(written) < 4

    monkeypatch.setattr(cv2, "imwrite", disk_full)
    with pytest.raises(OSError, match="cannot write"):
        SyntheticDefects(3, size=SMALL).write_ksdd2(tmp_path)
    assert list(tmp_path.iterdir()) == []
