import numpy as np
import pytest
import torch

from tests.data.pictures import mask, picture, with_orientation, write
from wsfast.data import ImageFolder, MetadataError, WSOLImages, inclusive_corners
from wsfast.data.wsol import read_grey, read_mask_paths, read_protocol_mask, read_wsol_metadata

SIZES = {"cat/1.jpg": (300, 200), "cat/2.jpg": (90, 131), "dog/3.jpg": (64, 64)}


def write_split(root, split, *, localization, labels=None, sizes=True):
    folder = root / "metadata" / split
    folder.mkdir(parents=True)
    labels = labels or {"cat/1.jpg": 0, "cat/2.jpg": 0, "dog/3.jpg": 1}
    files = {
        "image_ids": list(labels),
        "class_labels": [f"{name},{label}" for name, label in labels.items()],
        "image_sizes": [f"{name},{w},{h}" for name, (w, h) in SIZES.items()] if sizes else [],
        "localization": localization,
    }
    for name, lines in files.items():  # without a newline at the end, as the published files
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


BOXES = [
    "cat/1.jpg,10,20,299,199",
    "cat/2.jpg,0,0,5,5",
    "cat/2.jpg,7,8,80,90",
    "dog/3.jpg,1,1,9,64",
]


@pytest.fixture
def root(tmp_path):
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        picture(tmp_path / name, size=(height, width), value=50 * number)
    return tmp_path


def test_boxes_are_the_benchmarks_at_its_size(root):
    folder = write_split(root, "test", localization=BOXES)
    data = WSOLImages(root, "test", size=(224, 224))
    expected = read_wsol_metadata(folder).boxes
    assert data.names == list(expected)
    for sample in data:
        assert inclusive_corners(sample.boxes).tolist() == [list(b) for b in expected[sample.name]]
        assert sample.image.shape == (3, 224, 224)
        assert sample.mask is None
    assert data.labels.tolist() == [0, 0, 1]
    assert data.class_names == ("0", "1")
    assert data.normal_label is None


def test_boxes_of_images_in_their_own_size_are_half_open(root):
    write_split(root, "test", localization=BOXES)
    data = WSOLImages(root, "test")
    assert data[1].boxes.tolist() == [[0, 0, 6, 6], [7, 8, 81, 91]]
    assert data[1].boxes.dtype == torch.int32


@pytest.fixture
def sideways(tmp_path):
    """Files of 40 x 20 that are to be shown turned, with an object in their left half."""
    left = np.zeros((20, 40), np.uint8)
    left[:, :20] = 255
    for name in SIZES:
        path = write(tmp_path / name, left)
        path.write_bytes(with_orientation(path.read_bytes(), 6))
    return tmp_path


def test_images_lie_as_their_boxes_do_whatever_exif_says(sideways):
    folder = write_split(sideways, "test", localization=[f"{name},0,0,19,19" for name in SIZES])
    (folder / "image_sizes.txt").write_text("\n".join(f"{name},40,20" for name in SIZES))
    for sample in WSOLImages(sideways, "test"):
        assert sample.image.shape == (3, 20, 40)
        x0, y0, x1, y1 = sample.boxes[0].tolist()
        assert (x0, y0, x1, y1) == (0, 0, 20, 20)
        assert int(sample.image[:, y0:y1, x0 : x1 - 2].min()) > 200
        assert int(sample.image[:, :, x1 + 2 :].max()) < 50


def test_images_lie_as_their_masks_do_whatever_exif_says(sideways):
    for name in SIZES:
        mask(sideways / "masks" / f"{name}.png", (0, 0, 20, 20), size=(20, 40))
    lines = [f"{name},{name}.png," for name in SIZES]
    write_split(sideways, "val", localization=lines, sizes=False)
    for sample in WSOLImages(sideways, "val", masks=sideways / "masks"):
        assert sample.mask.shape == (20, 40)
        assert sample.image[0][sample.mask == 1].float().mean() > 230


def test_other_data_sets_are_turned_upright(sideways):
    data = ImageFolder(sideways, "train", holdout=0, test_share=0)
    assert data[0].image.shape == (3, 40, 20)
    assert int(data[0].image[:, :18].min()) > 200


def test_masks_are_the_benchmarks_at_its_size(root):
    lines = []
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        size = (height, width)
        stem = name.removesuffix(".jpg")
        for k in range(1 + number):
            box = (3 + 9 * k, 5 + 10 * k, 20 + 11 * k, 31 + 10 * k)
            mask(root / "masks" / f"{stem}_{k}.png", box, size=size)
            lines.append(f"{name},{stem}_{k}.png," + ("" if k else f"{stem}_ignore.png"))
        mask(root / "masks" / f"{stem}_ignore.png", (10, 0, 33, 64), size=size)
    folder = write_split(root, "val", localization=lines, sizes=False)
    data = WSOLImages(root, "val", masks=root / "masks", size=(224, 224))
    metadata = read_wsol_metadata(folder)
    for sample in data:
        files, ignore = metadata.masks[sample.name], metadata.ignore[sample.name]
        expected = read_protocol_mask(root / "masks", files, ignore)
        assert set(np.unique(expected)) == {0, 1, 255}
        assert np.array_equal(sample.mask.numpy(), expected)
        assert sample.mask.dtype == torch.uint8


def test_an_image_may_have_nothing_ignored(root):
    mask(root / "masks" / "a.png", (3, 5, 20, 31), size=(64, 64))
    found = read_protocol_mask(root / "masks", ["a.png"], "")
    assert set(np.unique(found)) == {0, 1}
    assert found.dtype == np.uint8


@pytest.mark.parametrize("first", ["", "one.png"])
def test_another_ignore_file_of_the_same_image_is_named(root, first):
    lines = [f"cat/1.jpg,a.png,{first}", f"cat/1.jpg,b.png,{first}", "cat/1.jpg,c.png,two.png"]
    folder = write_split(root, "val", localization=lines, sizes=False)
    expected = r"localization\.txt, line 3: must be without an ignore file or with that of the"
    with pytest.raises(MetadataError, match=expected):
        read_wsol_metadata(folder)


def test_a_mask_with_more_pixels_than_opencv_takes_is_named(root):
    (root / "huge.pgm").write_bytes(b"P5 40000 40000 255\n" + bytes(50))
    with pytest.raises(MetadataError, match=r"huge\.pgm: not an image or damaged"):
        read_protocol_mask(root, ["huge.pgm"], "")


def test_training_images_need_no_localization(root):
    write_split(root, "train", localization=[], sizes=False)
    data = WSOLImages(root, "train")
    assert len(data) == 3
    assert all(s.mask is None and len(s.boxes) == 0 for s in data)
    (root / "metadata" / "train" / "localization.txt").unlink()
    (root / "metadata" / "train" / "image_sizes.txt").unlink()
    assert len(WSOLImages(root, "train")) == 3


def test_metadata_can_lie_elsewhere_and_classes_are_those_of_all_splits(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_split(other, "train", localization=[], labels={"cat/1.jpg": 0, "dog/3.jpg": 1})
    write_split(other, "val", localization=[], labels={"cat/1.jpg": 0})
    data = WSOLImages(root, "val", metadata=other / "metadata")
    assert data.class_names == ("0", "1")
    assert (
        WSOLImages(root, "val", metadata=other / "metadata", num_classes=7).class_names[-1] == "6"
    )


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("class_labels", ["cat/1.jpg,0", "cat/2.jpg,x"], "line 2: must be an image id and whole"),
        ("class_labels", ["cat/1.jpg,-1"], "line 1: must be an image id and a class from 0 to"),
        ("class_labels", ["cat/1.jpg,20261122"], "line 1: must be .* class from 0 to 999999, got"),
        ("class_labels", ["cat/1.jpg,0", "cat/2.jpg,0"], "every image id, got none for dog/3.jpg"),
        ("localization", ["cat/1.jpg,0,0,5,5"], "every image id, got none for cat/2.jpg"),
        ("localization", ["cat/1.jpg,9,0,5,5"], "line 1: must be a box with"),
        ("localization", ["cat/1.jpg,9"], "line 1: must be 3 or 5 comma-separated fields"),
        ("image_sizes", ["cat/1.jpg,0,5"], "line 1: must be a width and height of at least 1"),
        ("image_ids", ["a,b"], "line 1: must be 1 comma-separated fields"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(root, file, lines, message):
    folder = write_split(root, "train", localization=BOXES)
    (folder / f"{file}.txt").write_text("\n".join(lines))
    with pytest.raises(MetadataError, match=rf"^wsfast\.data: .*{file}\.txt.*{message}"):
        WSOLImages(root, "train")


def test_labels_out_of_range_and_classes_without_images_are_named(root):
    write_split(root, "train", localization=[], labels={"cat/1.jpg": 0, "dog/3.jpg": 3})
    with pytest.raises(
        MetadataError, match=r"class_labels\.txt, line 2: must be .* from 0 to 1, g"
    ):
        WSOLImages(root, "train", num_classes=2)
    with pytest.raises(ValueError, match=r"images of every class, got none of 1, 2 in"):
        WSOLImages(root, "train")


def test_missing_images_are_named_and_skipped(root):
    write_split(root, "test", localization=BOXES)
    (root / "cat" / "2.jpg").unlink()
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 images in .*2\.jpg \(No such file"):
        assert WSOLImages(root, "test").names == ["cat/1.jpg", "dog/3.jpg"]


def test_a_split_without_metadata_is_named(root):
    with pytest.raises(MetadataError, match=r"metadata.train.class_labels\.txt: No such file"):
        WSOLImages(root, "train")


def test_masks_of_other_sizes_than_the_images_are_resized_each(root):
    """As those of OpenImages are; of one image too."""
    mask(root / "a.png", (0, 0, 200, 400), size=(400, 600))
    mask(root / "b.png", (40, 0, 60, 40), size=(40, 60))
    mask(root / "ignore.png", (0, 10, 3, 20), size=(20, 30))
    lines = ["cat/1.jpg,a.png,ignore.png", "cat/1.jpg,b.png,"]
    lines += ["cat/2.jpg,b.png,", "dog/3.jpg,a.png,"]
    folder = write_split(root, "test", localization=lines)
    data = WSOLImages(root, "test", size=(20, 30))
    assert len(data) == 3
    first, second, third = (sample.mask for sample in data)
    expected = torch.zeros(20, 30, dtype=torch.uint8)
    expected[:, :10] = expected[:, 20:] = 1
    assert torch.equal(first, expected)
    assert first.dtype == second.dtype == third.dtype == torch.uint8
    assert second.unique().tolist() == [0, 1]
    whole = WSOLImages(root, "test")
    assert [tuple(sample.mask.shape) for sample in whole] == [(200, 300), (131, 90), (64, 64)]
    protocol = WSOLImages(root, "test", size=(224, 224))[0].mask.numpy()
    files, ignore = read_mask_paths(folder / "localization.txt")
    wanted = read_protocol_mask(root, files["cat/1.jpg"], ignore["cat/1.jpg"])
    assert np.array_equal(protocol, wanted)


def test_a_mark_of_byte_order_is_no_part_of_the_first_id(root):
    folder = write_split(root, "test", localization=BOXES)
    for file in folder.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert WSOLImages(root, "test").names == list(SIZES)


def test_boxes_of_larger_images_than_the_files_are_left_out(root):
    folder = write_split(root, "test", localization=["cat/1.jpg,0,0,5000,5000", *BOXES[1:]])
    (folder / "image_sizes.txt").unlink()
    with pytest.warns(UserWarning, match=r"1\.jpg \(a box reaches beyond it\)"):
        data = WSOLImages(root, "test", verify=True)
    assert data.names == ["cat/2.jpg", "dog/3.jpg"]


def test_a_mask_that_is_cut_short_is_not_scored(tmp_path):
    file = picture(tmp_path / "m.png", size=(60, 60))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(MetadataError, match=r"m\.png: file is cut short"):
        read_grey(file, (224, 224))
