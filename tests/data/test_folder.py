import warnings

import numpy as np
import pytest
import torch

from tests.data.pictures import mask, picture, torn, write
from wsfast.data import ImageFolder, JointTransform, UnreadableImageError

WHOLE = {"holdout": 0, "test_share": 0}


def masks_of(data):
    return {s.name: None if s.mask is None else int(s.mask.sum()) for s in data}


@pytest.fixture
def tiles(tmp_path):
    """Masks beside JPEGs, a level below the class, as in the magnetic tile data."""
    for number in range(6):
        picture(tmp_path / "MT_Free" / "Imgs" / f"free{number}.jpg")
        mask(tmp_path / "MT_Free" / "Imgs" / f"free{number}.png", None)
        picture(tmp_path / "MT_Crack" / "Imgs" / f"crack{number}.jpg")
        mask(tmp_path / "MT_Crack" / "Imgs" / f"crack{number}.png", (1, 1, 3, 4))
        picture(tmp_path / "MT_Break" / "Imgs" / f"break{number}.jpg")
        mask(tmp_path / "MT_Break" / "Imgs" / f"break{number}.png", (0, 0, 2, 2))
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_validation_images_are_resized_as_training_images_are(tmp_path, channels):
    rng = np.random.default_rng(0)
    for name in ("good", "crack"):
        write(tmp_path / name / "0.png", rng.integers(0, 256, (60, 48, 3)))
    options = {"channels": channels, **WHOLE}
    trained = JointTransform(size=(25, 19), flips="none")
    for plain, seen in zip(
        ImageFolder(tmp_path, "train", **options),
        ImageFolder(tmp_path, "train", size=(25, 19), **options),
        strict=True,
    ):
        assert torch.equal(seen.image, trained(plain.image).image)


def test_classes_are_folders_with_the_normal_one_first(tiles):
    data = ImageFolder(tiles, "train", **WHOLE)
    assert data.class_names == ("MT_Free", "MT_Break", "MT_Crack")
    assert data.normal_label == 0
    assert data.labels.bincount().tolist() == [6, 6, 6]
    assert masks_of(data) == {
        **{f"MT_Free/Imgs/free{i}": 0 for i in range(6)},
        **{f"MT_Crack/Imgs/crack{i}": 6 for i in range(6)},
        **{f"MT_Break/Imgs/break{i}": 4 for i in range(6)},
    }


def test_defects_can_be_one_class_and_are_still_spread_evenly(tiles):
    parts = [ImageFolder(tiles, split, merge=True) for split in ("train", "val", "test")]
    for data in parts:
        assert data.class_names == ("MT_Free", "defect")
        assert {name.split("/")[0] for name in data.names} == {"MT_Free", "MT_Break", "MT_Crack"}
        assert all(
            int(label) == (not name.startswith("MT_Free"))
            for name, label in zip(data.names, data.labels, strict=True)
        )
    names = [name for data in parts for name in data.names]
    assert len(names) == len(set(names)) == 18


def test_hidden_folders_hold_no_images(tmp_path):
    for folder in (".thumbs", "deep/.ipynb_checkpoints", "deep"):
        picture(tmp_path / "a" / folder / "1.png")
    picture(tmp_path / "b" / "_mask.png")
    data = ImageFolder(tmp_path, "train", **WHOLE)
    assert data.names == ["a/deep/1", "b/_mask"]


def test_names_can_end_in_what_a_mask_is_called(tmp_path):
    for ending in ("_mask", "_GT", "_label", "_seg"):
        picture(tmp_path / "a" / f"x{ending[1:]}.png")
        mask(tmp_path / "a" / f"x{ending[1:]}{ending}.png", (0, 0, 1, 1))
    picture(tmp_path / "a" / "lonely_mask.png")  # no image of that name: an image itself
    picture(tmp_path / "b" / "y.png")
    data = ImageFolder(tmp_path, "train", **WHOLE)
    found = masks_of(data)
    assert found.pop("a/lonely_mask") is None
    assert found.pop("b/y") is None
    assert found == {f"a/x{e}": 1 for e in ("mask", "GT", "label", "seg")}
    assert data.normal_label is None


@pytest.mark.parametrize("named", [None, "elsewhere"])
def test_masks_in_a_parallel_tree(tmp_path, named):
    root = tmp_path / "data"
    masks = tmp_path / named if named else root / "ground_truth"
    picture(root / "train" / "good" / "1.png")
    picture(root / "train" / "cut" / "2.png")
    picture(root / "test" / "good" / "1.png")
    picture(root / "test" / "cut" / "3.png")
    mask(masks / "train" / "cut" / "2.png", (0, 0, 3, 1))
    mask(masks / "cut" / "3_mask.png", (0, 0, 5, 1))
    options = {} if named is None else {"masks": masks}
    assert masks_of(ImageFolder(root, "train", **WHOLE, **options)) == {"good/1": 0, "cut/2": 3}
    assert masks_of(ImageFolder(root, "test", **options)) == {"good/1": 0, "cut/3": 5}


@pytest.mark.parametrize("place", ["masks/a/1.PNG", "Ground_Truth/a/1_GT.jpg", "GT/a/1.Bmp"])
def test_masks_and_splits_of_any_spelling(tmp_path, place):
    for split, number in (("Train", 1), ("TEST", 2)):
        for name in ("a", "good"):
            picture(tmp_path / split / name / f"{number}.jpg")
    suffix = place.rpartition(".")[2]
    mask(tmp_path / "m" / f"1.{suffix.lower()}", (0, 0, 3, 1)).rename(tmp_path / f"m.{suffix}")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / f"m.{suffix}").rename(tmp_path / place)
    data = ImageFolder(tmp_path, "train", **WHOLE)
    assert data.class_names == ("good", "a")
    assert masks_of(data) == {"a/1": 3, "good/1": 0}
    assert len(ImageFolder(tmp_path, "test")) == 2


def test_a_mask_for_images_of_two_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        for name in ("good", "cut"):
            picture(tmp_path / split / name / "1.png")
    mask(tmp_path / "ground_truth" / "cut" / "1_mask.png", (0, 0, 3, 1))
    with pytest.raises(
        ValueError, match=r"masks must be of one image each .* got .*1_mask.png for"
    ):
        ImageFolder(tmp_path, "train", **WHOLE)
    (tmp_path / "ground_truth" / "test").mkdir()
    (tmp_path / "ground_truth" / "cut").rename(tmp_path / "ground_truth" / "test" / "cut")
    assert masks_of(ImageFolder(tmp_path, "train", **WHOLE)) == {"good/1": 0, "cut/1": None}
    assert masks_of(ImageFolder(tmp_path, "test")) == {"good/1": 0, "cut/1": 3}


def test_a_split_that_is_a_link_to_another_shares_its_masks(tmp_path):
    for split, name in (("train", "a"), ("test", "b")):
        for place in ("good", "cut"):
            picture(tmp_path / split / place / f"{name}.png")
    mask(tmp_path / "ground_truth" / "cut" / "b.png", (0, 0, 3, 1))
    (tmp_path / "val").symlink_to("test")
    for split in ("val", "test"):
        assert masks_of(ImageFolder(tmp_path, split)) == {"good/b": 0, "cut/b": 3}


@pytest.mark.parametrize("below", ["annot", "labels/fine"])
def test_masks_among_the_classes_are_no_class(tmp_path, below, monkeypatch):
    root = tmp_path / "data"
    for name in ("good", "cut"):
        picture(root / name / "1.png")
    mask(root / below / "cut" / "1.png", (0, 0, 3, 1))
    monkeypatch.chdir(tmp_path)
    for masks in (f"data/{below}", root / below):
        data = ImageFolder("data", "train", masks=masks, **WHOLE)
        assert data.class_names == ("good", "cut")
        assert masks_of(data) == {"cut/1": 3, "good/1": 0}
    (root / below / "cut" / "1.png").rename(root / below / "cut" / "2.png")
    with pytest.raises(ValueError, match="masks must be a folder with masks of the images, by th"):
        ImageFolder("data", "train", masks=root / below, **WHOLE)


def test_other_pictures_beside_the_masks_may_be_a_class_or_not(tmp_path):
    for name in ("good", "cut"):
        picture(tmp_path / name / "1.png")
    for kind in ("fine", "coarse"):
        mask(tmp_path / "labels" / kind / "cut" / "1.png", (0, 0, 3, 1))
    with pytest.raises(ValueError, match=r"masks must be a folder outside of .*coarse.cut.1\.png"):
        ImageFolder(tmp_path, "train", masks=tmp_path / "labels" / "fine", **WHOLE)
    (tmp_path / "labels" / "coarse" / "cut" / "1.png").rename(tmp_path / "labels" / "._1.png")
    data = ImageFolder(tmp_path, "train", masks=tmp_path / "labels" / "fine", **WHOLE)
    assert data.class_names == ("good", "cut")


def test_classes_may_share_a_folder_of_masks(tmp_path):
    for name in ("good", "cut", "hole"):
        picture(tmp_path / "data" / name / "1.png")
    mask(tmp_path / "masks" / "cut" / "1.png", (0, 0, 3, 1))
    (tmp_path / "masks" / "hole").symlink_to(tmp_path / "masks" / "cut")
    (tmp_path / "masks" / "cut" / "loop").symlink_to(tmp_path / "masks")
    data = ImageFolder(tmp_path / "data", "train", masks=tmp_path / "masks", **WHOLE)
    assert masks_of(data) == {"cut/1": 3, "good/1": 0, "hole/1": 3}


def test_masks_without_an_object_are_told_of(tmp_path):
    for name in ("good", "cut"):
        picture(tmp_path / name / "1.jpg")
        mask(tmp_path / name / "1.png", (0, 0, 3, 1) if name == "cut" else None, value=3)
    with pytest.warns(UserWarning, match=r"1 images of classes with an .*\(cut/1\): see mask"):
        ImageFolder(tmp_path, "train", **WHOLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert masks_of(ImageFolder(tmp_path, "train", mask_kind="nonzero", **WHOLE))["cut/1"] == 3


def test_a_class_may_be_called_mask(tmp_path):
    for name in ("mask", "no_mask"):
        picture(tmp_path / name / "2020" / "1.png")
    data = ImageFolder(tmp_path, "train", **WHOLE)
    assert data.class_names == ("mask", "no_mask")
    assert all(sample.mask is None for sample in data)


def test_splits_by_folder_are_not_divided_further(tmp_path):
    for split, names in (("train", "abcdefgh"), ("valid", "ij"), ("test", "k")):
        for name in names:
            for cls in ("cat", "dog"):
                picture(tmp_path / split / cls / f"{name}.jpg")
    assert [len(ImageFolder(tmp_path, s)) for s in ("train", "val", "test")] == [16, 4, 2]


def test_all_splits_know_all_classes(tmp_path):
    for name in ("train/cat/1", "train/dog/2", "test/dog/3"):
        picture(tmp_path / f"{name}.png")
    data = ImageFolder(tmp_path, "test")
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [1]


def test_a_class_without_images_is_named(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match=r"without empty classes, got no image in .*dog"):
        ImageFolder(tmp_path, "train", **WHOLE)


def test_a_class_that_only_the_test_split_has_is_named(tmp_path):
    picture(tmp_path / "train" / "cat" / "1.png")
    picture(tmp_path / "test" / "dog" / "1.png")
    with pytest.raises(ValueError, match=r"images of every class, got none of dog in"):
        ImageFolder(tmp_path, "train", **WHOLE)


def test_masks_of_another_size_and_torn_files_are_named_and_skipped(tiles):
    mask(tiles / "MT_Crack" / "Imgs" / "crack2.png", (0, 0, 1, 1), size=(5, 5))
    torn(tiles / "MT_Free" / "Imgs" / "free3.jpg")
    torn(tiles / "MT_Break" / "Imgs" / "break1.png")
    with pytest.warns(UserWarning, match=r"ImageFolder: skipped 3 of 18 images") as caught:
        data = ImageFolder(tiles, "train", **WHOLE)
    assert len(data) == 15
    reasons = {file.path.name: file.reason for file in data.skipped}
    assert reasons["crack2.jpg"] == "its mask has another size"
    assert set(reasons) == {"crack2.jpg", "free3.jpg", "break1.png"}
    assert all(name in str(caught[0].message) for name in reasons)
    with pytest.raises(UnreadableImageError, match=r"break1\.png"):
        ImageFolder(tiles, "train", strict=True, **WHOLE)


def test_a_file_that_goes_bad_later_is_replaced_by_one_of_its_class(tiles):
    data = ImageFolder(tiles, "train", **WHOLE)
    position = data.names.index("MT_Crack/Imgs/crack2")
    torn(tiles / "MT_Crack" / "Imgs" / "crack2.jpg")
    with pytest.warns(UserWarning, match=r"crack2\.jpg \(.*\) is replaced by MT_Crack/Imgs/crack3"):
        sample = data[position]
    assert sample.name == "MT_Crack/Imgs/crack3"
    assert sample.label == int(data.labels[position])
    strict = ImageFolder(tiles, "train", strict=True, verify=False, **WHOLE)
    with pytest.raises(UnreadableImageError, match=r"crack2\.jpg"):
        strict[strict.names.index("MT_Crack/Imgs/crack2")]


def test_where_no_image_of_a_class_can_be_read_the_first_error_stands(tmp_path):
    torn(tmp_path / "a" / "1.png")
    torn(tmp_path / "a" / "2.png")
    data = ImageFolder(tmp_path, "train", verify=False, **WHOLE)
    with pytest.raises(UnreadableImageError, match=r"2\.png"):
        data[1]


@pytest.mark.parametrize(
    ("classes", "options", "expected"),
    [
        (["bad", "good"], {}, ("good", "bad")),
        (["a", "no_defect"], {}, ("no_defect", "a")),
        (["a", "ok"], {"normal": ""}, ("a", "ok")),
        (["a", "b"], {"normal": "b"}, ("b", "a")),
        (["goodness", "okra"], {}, ("goodness", "okra")),
    ],
)
def test_the_normal_class_is_told_by_its_name_or_by_the_user(tmp_path, classes, options, expected):
    for name in classes:
        picture(tmp_path / name / "1.png")
    data = ImageFolder(tmp_path, "train", **WHOLE, **options)
    assert data.class_names == expected
    told = set(expected) & {"good", "no_defect", "b"} and options != {"normal": ""}
    assert data.normal_label == (0 if told else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normal": "fine"}, "normal must be one of bad, good, ok, got fine"),
        ({}, "normal must be given where several fit, got good, ok"),
        ({"normal": "", "merge": True}, "normal must be given for merge"),
        ({"normal": "ok", "masks": "nowhere"}, "masks must be a folder, got nowhere"),
        ({"normal": "ok", "split": "all"}, "split must be one of train, val, test, got all"),
        ({"normal": "ok", "mask_kind": "grey"}, "mask_kind must be one of binary, nonzero, index"),
    ],
)
def test_bad_settings_give_one_clear_line(tmp_path, options, message):
    for name in ("bad", "good", "ok"):
        picture(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=rf"^wsfast\.ImageFolder: {message}"):
        ImageFolder(tmp_path, **{"split": "train", **WHOLE, **options})


def test_images_of_one_name_are_refused(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "a" / "1.bmp")
    with pytest.raises(ValueError, match=r"different names, got 1\.bmp and 1\.png in"):
        ImageFolder(tmp_path, "train", **WHOLE)


def test_a_folder_without_classes_is_refused(tmp_path):
    picture(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"one subfolder per class, got "):
        ImageFolder(tmp_path, "train")
    with pytest.raises(ValueError, match=r"one subfolder per class, got "):
        ImageFolder(tmp_path / "nowhere", "train")


def test_a_picture_beside_the_mask_is_no_mask(tmp_path):
    picture(tmp_path / "data" / "cut" / "1.jpg", value=200)
    picture(tmp_path / "elsewhere" / "cut" / "1.jpg", value=200)  # an overlay
    mask(tmp_path / "elsewhere" / "cut" / "1_mask.png", (0, 0, 3, 1))
    (tmp_path / "data" / "masks").mkdir()
    (tmp_path / "data" / "masks" / "cut").symlink_to(tmp_path / "elsewhere" / "cut")
    assert masks_of(ImageFolder(tmp_path / "data", "train", **WHOLE)) == {"cut/1": 3}
