import cv2
import numpy as np
import pytest

from tests.data.pictures import mask, picture
from wsfast.data import (
    KSDD,
    KSDD2,
    ImageFolder,
    ImageTable,
    SyntheticDefects,
    WSOLImages,
    detect_format,
    open_dataset,
)


def wsol(root):
    folder = root / "metadata" / "train"
    folder.mkdir(parents=True)
    for name, line in (("image_ids", "a.png"), ("class_labels", "a.png,0")):
        (folder / f"{name}.txt").write_text(line)
    picture(root / "a.png")


def ksdd(root):
    for item in (1, 2, 41):
        picture(root / f"kos{item:02d}" / "Part0.jpg")
        mask(root / f"kos{item:02d}" / "Part0_label.bmp", None)


def ksdd2(root):
    for split in ("train", "test"):
        SyntheticDefects(8, split=split, size=(16, 16)).write_ksdd2(root)


def folder(root):
    for number in range(8):
        picture(root / "good" / f"{number}.png")
        picture(root / "bad" / f"{number}.png")


def table(root):
    folder(root)
    rows = [f"good/{n}.png,good\nbad/{n}.png,bad" for n in range(8)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]))


KINDS = {
    "wsol": (wsol, WSOLImages),
    "ksdd": (ksdd, KSDD),
    "ksdd2": (ksdd2, KSDD2),
    "folder": (folder, ImageFolder),
    "csv": (table, ImageTable),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("told", [True, False])
def test_a_format_is_told_or_seen_and_takes_what_all_take(tmp_path, name, told):
    write, kind = KINDS[name]
    write(tmp_path)
    assert detect_format(tmp_path) == name
    data = open_dataset(
        tmp_path, format=name if told else "auto", split="train", size=(20, 10), channels=1,
        strict=True, holdout=0.25, seed=2,
    )  # fmt: skip
    assert type(data) is kind
    sample = data[0]
    assert sample.image.shape == (1, 20, 10)
    assert len(data) == len(data.labels) == len(data.names)
    assert data.class_names[int(data.labels.max())]


@pytest.mark.parametrize("name", ["ksdd", "ksdd2", "folder", "csv"])
def test_validation_never_shares_an_image_with_training(tmp_path, name):
    KINDS[name][0](tmp_path)
    parts = {split: set(open_dataset(tmp_path, split=split).names)
             for split in ("train", "val", "test")}  # fmt: skip
    assert all(parts.values())
    if name != "ksdd2":
        assert not parts["test"] & (parts["train"] | parts["val"])
    assert not parts["train"] & parts["val"]
    other = set(open_dataset(tmp_path, split="val", seed=1).names)
    again = set(open_dataset(tmp_path, split="val").names)
    assert again == parts["val"]
    assert name == "ksdd" or other != parts["val"]


def test_a_table_can_be_named_itself(tmp_path):
    table(tmp_path)
    assert isinstance(open_dataset(tmp_path / "list.csv"), ImageTable)
    (tmp_path / "other.csv").write_text("path,label")  # two tables: not to be told
    assert isinstance(open_dataset(tmp_path), ImageFolder)
    with pytest.raises(ValueError, match="source must be a CSV file or a folder with one"):
        open_dataset(tmp_path, format="csv")


def test_synthetic_data_come_without_files():
    data = open_dataset("synthetic", split="test", length=3, size=(32, 16), seed=5, strict=True)
    reference = SyntheticDefects(3, split="test", size=(32, 16), seed=5)
    assert data.names == reference.names
    assert np.array_equal(data[1].image, reference[1].image)
    assert len(open_dataset("synthetic", length=None)) == 600


def test_small_size_options_pass_through(tmp_path):
    folder(tmp_path)
    data = open_dataset(tmp_path, normal="good", merge=True, test_share=0, holdout=0)
    assert data.class_names == ("good", "defect")
    assert len(data) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, r"an option must be known to ImageFolder \(channels, .*\), got colour"),
        ({"format": "coco"}, "format must be one of auto, synthetic, wsol, .*, got coco"),
        ({"split": "dev"}, "split must be one of train, val, test, got dev"),
        ({"source": "nowhere"}, 'source must be "synthetic", a folder or a CSV file, got nowhere'),
        ({"source": "synthetic", "metadata": "x"}, "an option must be known to SyntheticDefects"),
    ],
)
def test_bad_settings_give_one_clear_line(tmp_path, options, message):
    folder(tmp_path)
    with pytest.raises(ValueError, match=rf"^wsfast\.open_dataset: {message}"):
        open_dataset(**{"source": tmp_path, **options})


def test_a_file_that_is_no_table_is_refused(tmp_path):
    assert cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"^wsfast\.data: .*x\.png: not UTF-8 text"):
        open_dataset(tmp_path / "x.png")
