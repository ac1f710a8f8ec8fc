import cv2
import numpy as np
import pytest
import torch

from wsfast.data import KSDD2, UnreadableImageError


def write_pair(folder, name, *, size=(20, 10), truth=None, suffix=""):
    folder.mkdir(exist_ok=True)
    image = np.full((*size, 3), (10, 20, 30), dtype=np.uint8)  # BGR
    mask = np.zeros(size, dtype=np.uint8) if truth is None else truth
    assert cv2.imwrite(str(folder / f"{name}{suffix}.png"), image)
    assert cv2.imwrite(str(folder / f"{name}_GT{suffix}.png"), mask)


@pytest.fixture
def root(tmp_path):
    one_pixel = np.zeros((20, 10), dtype=np.uint8)
    one_pixel[7, 3] = 1
    write_pair(tmp_path / "train", "10000")
    write_pair(tmp_path / "train", "10002", truth=one_pixel)
    return tmp_path


def test_images_are_rgb_and_one_mask_pixel_makes_the_label(root):
    data = KSDD2(root, "train")
    assert data.names == ["10000", "10002"]
    assert data.labels.tolist() == [0, 1]
    assert data[0].image[:, 0, 0].tolist() == [30, 20, 10]
    assert torch.nonzero(data[1].mask).tolist() == [[7, 3]]
    assert data[1].label == 1


def test_grey_is_the_luma_of_the_colours(root):
    image = KSDD2(root, "train", channels=1)[0].image
    assert image.shape == (1, 20, 10)
    assert image.unique().tolist() == [round(0.299 * 30 + 0.587 * 20 + 0.114 * 10)]


def test_copies_in_the_published_archive_are_ignored(root):
    write_pair(root / "train", "10301", suffix=" (copy)")
    (root / "train" / "notes.txt").touch()
    data = KSDD2(root, "train")
    assert data.names == ["10000", "10002"]
    assert data.skipped == []


def test_resizing_makes_uneven_images_batchable(root):
    square = np.zeros((22, 12), dtype=np.uint8)
    square[:11] = 255
    write_pair(root / "train", "10003", size=(22, 12), truth=square)
    samples = list(KSDD2(root, "train", size=(40, 20)))
    assert {tuple(sample.image.shape) for sample in samples} == {(3, 40, 20)}
    assert samples[2].mask[:20].all()
    assert not samples[2].mask[20:].any()


def test_unreadable_files_are_named_counted_and_skipped(root):
    folder = root / "train"
    write_pair(folder, "10004")
    (folder / "10004.png").write_bytes((folder / "10004.png").read_bytes()[:40])
    write_pair(folder, "10005")
    (folder / "10005_GT.png").unlink()
    write_pair(folder, "10006", truth=np.zeros((5, 5), dtype=np.uint8))
    with pytest.warns(UserWarning, match=r"skipped 3 of 5 images") as caught:
        data = KSDD2(root, "train")
    assert data.names == ["10000", "10002"]
    assert len(data) == len(data.labels) == 2
    names = [file.path.name for file in data.skipped]
    assert names == ["10004.png", "10005_GT.png", "10006.png"]
    (told,) = [text for w in caught if "skipped" in (text := str(w.message))]
    assert all(name in told for name in names)
    assert data.skipped[2].reason == "its mask has another size"


def test_strict_raises_for_the_first_unreadable_file(root):
    (root / "train" / "10001.png").write_bytes(b"not a picture")
    with pytest.raises(UnreadableImageError, match=r"10001\.png \(not an image or damaged\)"):
        KSDD2(root, "train", strict=True)


def test_validation_is_a_part_of_the_training_images_unless_it_has_a_folder(tmp_path):
    defect = np.full((20, 10), 255, dtype=np.uint8)
    for number in range(10000, 10020):
        write_pair(tmp_path / "train", str(number), truth=defect if number % 4 == 0 else None)
    whole = KSDD2(tmp_path, "train")
    train, val = (KSDD2(tmp_path, split, holdout=0.2, seed=1) for split in ("train", "val"))
    assert sorted(train.names + val.names) == whole.names
    assert (len(val), int(val.labels.sum())) == (4, 1)
    assert all(int(data.labels[i]) == data[i].label for data in (train, val) for i in (0, -1))
    write_pair(tmp_path / "val", "30000")
    assert KSDD2(tmp_path, "val", holdout=0.2).names == ["30000"]
    assert KSDD2(tmp_path, "train", holdout=0.2).names == whole.names


def test_a_folder_without_the_split_is_named(root):
    with pytest.raises(ValueError, match=r"^wsfast\.KSDD2: root must be a folder with images in t"):
        KSDD2(root, "test")
    with pytest.raises(ValueError, match=r"split must be one of train, val, test, got valid"):
        KSDD2(root, "valid")
    with pytest.raises(ValueError, match=r"holdout must be between 0 and 1 for split val, got 0"):
        KSDD2(root, "val")
