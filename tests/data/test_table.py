from pathlib import Path

import pytest

from tests.data.pictures import mask, picture
from wsfast.data import ImageTable, MetadataError

WHOLE = {"holdout": 0, "test_share": 0}


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate("abcd"):
        picture(tmp_path / "images" / f"{name}.png", value=10 * number)
    mask(tmp_path / "m1.png", (0, 0, 2, 3))
    mask(tmp_path / "m2.png", (4, 4, 6, 6))
    return tmp_path


def table(root, *lines):
    (root / "data.csv").write_text("\n".join(lines))
    return root / "data.csv"


def test_masks_boxes_and_neither(root):
    file = table(
        root,
        "path,label,mask,x0,y0,x1,y1",
        "images/a.png,crack,m1.png,,,,",
        "images/a.png,crack,m2.png,,,,",
        "images/b.png, crack ,,1,2,3,4",
        "images/b.png,crack,,0,0,8,12",
        "images/c.png,good,,,,,",
        "images/d.png,crack,,,,,",
    )
    data = ImageTable(file, "train", **WHOLE)
    assert data.class_names == ("good", "crack")
    assert data.names == [f"images/{name}.png" for name in "abcd"]
    assert data.labels.tolist() == [1, 1, 0, 1]
    first, second, third, fourth = data
    assert int(first.mask.sum()) == 6 + 4
    assert second.mask is None
    assert second.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 8, 12]]
    assert third.mask is not None
    assert not third.mask.any()
    assert fourth.mask is None
    assert fourth.boxes.shape == (0, 4)
    assert [int(s.image[0, 0, 0]) for s in data] == [0, 10, 20, 30]


def test_boxes_follow_the_image(root):
    file = table(root, "path,label,x0,y0,x1,y1", "images/a.png,x,1,2,3,5")
    grown = ImageTable(file, "train", size=(24, 16), **WHOLE)[0]
    assert grown.boxes.tolist() == [[2, 4, 6, 10]]
    shrunk = ImageTable(file, "train", size=(6, 4), **WHOLE)[0]
    assert shrunk.boxes.tolist() == [[0, 1, 2, 3]]  # every pixel that the box touches


def test_numbers_are_labels_as_they_are(root):
    file = table(root, "path,label", *(f"images/{n},{i}" for n, i in (("a.png", 2), ("b.png", 0),
                                                                      ("c.png", 1))))  # fmt: skip
    data = ImageTable(file, "train", **WHOLE)
    assert data.labels.tolist() == [2, 0, 1]
    assert data.class_names == ("0", "1", "2")
    assert data.normal_label is None
    merged = ImageTable(file, "train", normal="0", merge=True, **WHOLE)
    assert merged.labels.tolist() == [1, 0, 1]
    assert merged.normal_label == 0


def test_a_number_without_images_is_a_class_without_images(root):
    file = table(root, "path,label", "images/a.png,0", "images/b.png,2")
    with pytest.raises(ValueError, match=r"images of every class, got none of 1 in"):
        ImageTable(file, "train", **WHOLE)


def test_two_spellings_of_a_path_are_one_image(root):
    lines = ("images/a.png,x,0,0,2,2,train", "./images//a.png,x,1,1,3,3,train")
    data = ImageTable(table(root, "path,label,x0,y0,x1,y1,split", *lines), "train", holdout=0)
    assert (data.names, len(data[0].boxes)) == (["images/a.png"], 2)
    file = table(root, "path,label,split", "images/a.png,x,train", "./images/a.png,x,test")
    with pytest.raises(ValueError, match="line 3: must be of the label, split and group"):
        ImageTable(file, "train")


def test_the_split_column_decides(root):
    file = table(
        root, "path,label,split", "images/a.png,x,train", "images/b.png,y,",
        "images/c.png,y,val", "images/d.png,x,test",
    )  # fmt: skip
    names = [ImageTable(file, split).names for split in ("train", "val", "test")]
    assert names == [["images/a.png", "images/b.png"], ["images/c.png"], ["images/d.png"]]


def test_a_group_is_in_one_split(tmp_path):
    lines = [f"{n}.png,{'xy'[n % 8 < 3]},{n // 4 if n < 32 else ''}" for n in range(40)]
    for line in lines:
        picture(tmp_path / line.split(",")[0])
    file = table(tmp_path, "path,label,group", *lines)
    for seed in range(5):
        numbers = [
            [int(Path(name).stem) for name in ImageTable(file, split, seed=seed).names]
            for split in ("train", "val", "test")
        ]
        assert sorted(number for part in numbers for number in part) == list(range(40))
        groups = [{number // 4 for number in part if number < 32} for part in numbers]
        assert sum(map(len, groups)) == 8  # each in one only


def test_without_a_split_for_testing_there_is_none(root):
    file = table(root, "path,label,split", "images/a.png,x,train")
    with pytest.raises(ValueError, match="path must be a table with images for test"):
        ImageTable(file, "test")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,class", "a,b"], r"line 1: must be a header of path,label .*, got 'path,class'"),
        (["path,label,x0", "a,b,1"], "line 1: must be a header"),
        (["path,label,colour", "a,b,c"], "line 1: must be a header"),
        (["path,label", "a,b", "c"], r"line 3: must be of as many cells as the header"),
        (["path,label", "a,b,c"], r"line 2: must be of as many cells as the header"),
        (["path,label", "a,"], "line 2: must be of a path and a label, got 'a,'"),
        (["path,label", "a,b", "a,c"], "line 3: must be of the label, split and group that"),
        (
            ["path,label,split,group", "a,b,train,1", "b,b,,1", "c,b,val,1"],
            "line 4: must be of the split that line 2 gives the group '1', got 'val'",
        ),
        (["path,label", "a,0", "b,-1"], "line 3: must be of a label from 0, got -1"),
        (["path,label", "a,0", "b,4006381333931"], "line 3: must be of a label below 1000000 wh"),
        (["path,label,split", "a,b,dev"], "line 2: must be of a split in train, val, test"),
        (["path,label,x0,y0,x1,y1", "a,b,1,2,x,4"], "line 2: must be of whole numbers"),
        (["path,label,x0,y0,x1,y1", "a,b,1,2,,"], "line 2: must be of whole numbers"),
        (["path,label,x0,y0,x1,y1", "a,b,5,2,5,4"], "line 2: must be of a box with 0 <= x0 < x1"),
        (["path,label,x0,y0,x1,y1", "a,b,-1,2,5,4"], "line 2: must be of a box with 0 <= x0"),
        (["path,label"], "must list at least one image, got none"),
        (["path,label", 'a,"b'], "line 2: "),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path, lines, message):
    with pytest.raises(MetadataError, match=rf"^wsfast\.data: .*data\.csv.*{message}") as caught:
        ImageTable(table(tmp_path, *lines), "train")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MetadataError, match=r"no\.csv: No such file"):
        ImageTable(tmp_path / "no.csv", "train")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(MetadataError, match=r"x\.csv: not UTF-8 text"):
        ImageTable(tmp_path / "x.csv", "train")


def test_an_image_that_does_not_exist_is_named(root):
    file = table(root, "path,label", "images/a.png,x", "images/zz.png,x")
    with pytest.warns(UserWarning, match=r"skipped 1 of 2 images .*zz\.png \(No such file"):
        assert ImageTable(file, "train", **WHOLE).names == ["images/a.png"]


def test_a_box_beyond_its_image_is_told_of(root):
    file = table(
        root,
        "path,label,x0,y0,x1,y1",
        "images/a.png,crack,0,0,8,12",
        "images/b.png,crack,0,0,12,8",  # of the picture before it was turned upright
    )
    with pytest.warns(UserWarning, match=r"skipped 1 of 2 .*b\.png \(a box reaches beyond it\)"):
        data = ImageTable(file, "train", **WHOLE)
    assert data.names == ["images/a.png"]


def test_a_box_one_pixel_beyond_its_image_is_cut_off(root):
    file = table(root, "path,label,x0,y0,x1,y1", "images/a.png,crack,0,0,9,13")
    assert ImageTable(file, "train", **WHOLE)[0].boxes.tolist() == [[0, 0, 8, 12]]
