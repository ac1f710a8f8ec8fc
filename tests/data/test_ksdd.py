import pytest

from tests.data.pictures import mask, picture
from wsfast.data import KSDD


@pytest.fixture
def root(tmp_path):
    """Fifty items of two parts, of which the first has a defect."""
    for item in range(1, 51):
        folder = tmp_path / f"kos{item:02d}"
        for part in range(2):
            picture(folder / f"Part{part}.jpg")
            mask(folder / f"Part{part}_label.bmp", (0, 0, 2, 1) if part == 0 else None, value=1)
    picture(tmp_path / "kos21" / "Part7.jpg")  # the file too many
    mask(tmp_path / "kos21" / "Part7_label.bmp", None)
    return tmp_path


def items(data):
    return {int(name[3:5]) for name in data.names}


def test_items_1_to_40_train_and_41_to_50_test(root):
    train, test = KSDD(root, "train"), KSDD(root, "test")
    assert (items(train), items(test)) == (set(range(1, 41)), set(range(41, 51)))
    assert (len(train), len(test)) == (80, 20)
    assert "kos21/Part7" not in train.names
    assert train.labels.tolist() == [1, 0] * 40
    assert train[0].name == "kos01/Part0"
    assert train[0].mask.sum() == 2  # any pixel that is not 0
    assert not train[1].mask.any()


def test_validation_takes_whole_items_of_the_training_ones(root):
    train, val = (KSDD(root, split, holdout=0.2, seed=3) for split in ("train", "val"))
    assert items(train) | items(val) == set(range(1, 41))
    assert not items(train) & items(val)
    assert len(items(val)) == 8
    assert set(KSDD(root, "test", holdout=0.2).names) == set(KSDD(root, "test").names)


def test_a_folder_without_items_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^wsfast\.KSDD: root must be a folder with items kosNN"):
        KSDD(tmp_path, "train")
    with pytest.raises(ValueError, match=r"^wsfast\.KSDD: holdout must be between 0 and 1 for"):
        KSDD(tmp_path, "val")
