import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import mask, picture, write
from wsfast.data import UnreadableImageError
from wsfast.data.masks import object_pixels, read_mask, resized_mask


def test_binary_masks_are_cut_at_half_and_zero_one_files_at_one(tmp_path):
    noisy = write(tmp_path / "noisy.png", [[0, 1, 2, 120, 130, 254, 255]])
    assert read_mask([noisy], "binary").tolist() == [[False] * 4 + [True] * 3]
    assert read_mask([noisy], "nonzero").tolist() == [[False] + [True] * 6]
    small = write(tmp_path / "small.png", [[0, 1, 1]])
    assert read_mask([small], "binary").tolist() == [[False, True, True]]
    empty = write(tmp_path / "empty.png", [[0, 0]])
    assert not read_mask([empty], "binary").any()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_may_hold_small_numbers(tmp_path, suffix):
    def saved(values):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.{suffix}"
        assert cv2.imwrite(str(path), np.array([values], np.uint16))
        return path

    ones, instances, bytes_, wide = map(
        saved, ([0, 1, 1], [0, 1, 90], [0, 100, 255], [0, 100, 300, 32767, 32768, 65535])
    )
    for path in (ones, instances, bytes_):
        assert read_mask([path], "nonzero").tolist() == [[False, True, True]]
    assert read_mask([wide], "nonzero").tolist() == [[False] + 5 * [True]]
    assert read_mask([ones], "binary").tolist() == [[False, True, True]]
    assert read_mask([bytes_], "binary").tolist() == [[False, False, True]]
    assert read_mask([wide], "binary").tolist() == [4 * [False] + [True, True]]


def test_an_image_with_several_masks_has_their_union(tmp_path):
    files = [mask(tmp_path / "a.png", (0, 0, 2, 3)), mask(tmp_path / "b.png", (1, 2, 5, 6))]
    expected = np.zeros((12, 8), bool)
    expected[0:3, 0:2] = expected[2:6, 1:5] = True
    found = read_mask(files, "binary")
    assert found.dtype == np.bool_
    assert np.array_equal(found, expected)


def test_ignored_pixels_do_not_cover_the_object(tmp_path):
    files = [mask(tmp_path / "a.png", (0, 0, 2, 2))]
    ignore = mask(tmp_path / "ignore.png", (1, 1, 4, 4))
    found = read_mask(files, "nonzero", ignore)
    assert found.dtype == np.uint8
    assert found[:5, :5].tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 255, 255, 0],
        [0, 255, 255, 255, 0],
        [0, 255, 255, 255, 0],
        [0, 0, 0, 0, 0],
    ]
    assert object_pixels(found).sum() == 4


@pytest.mark.parametrize("mode", ["L", "P"])
def test_index_masks_take_every_class_and_ignore_255(tmp_path, mode):
    numbers = np.array([[0, 1, 7], [255, 0, 21]], np.uint8)
    image = Image.fromarray(numbers, "L")
    if mode == "P":  # colours that say nothing, as of Pascal VOC's files
        image = Image.fromarray(numbers, "L").convert("P")
        image.putdata(numbers.ravel().tolist())
        image.putpalette([value for i in range(256) for value in (255 - i, 0, i)])
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    found = read_mask([tmp_path / "m.png"], "index")
    assert found.tolist() == [[0, 1, 1], [255, 0, 1]]


def test_an_object_wins_over_what_another_index_mask_ignores(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, numbers in zip(files, ([[1, 0, 0]], [[255, 255, 3]]), strict=True):
        Image.fromarray(np.array(numbers, np.uint8), "L").save(file)
    assert read_mask(files, "index").tolist() == [[1, 255, 1]]


def test_an_index_mask_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    file = picture(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImageError, match=r"large\.png \(more pixels than Pillow takes"):
        read_mask([file], "index")


def test_what_is_no_mask_is_named(tmp_path):
    colours = write(tmp_path / "rgb.png", np.zeros((4, 4, 3)))
    with pytest.raises(UnreadableImageError, match=r"rgb\.png \(no index mask: its mode is RGB"):
        read_mask([colours], "index")
    (tmp_path / "x.png").write_bytes(b"nothing")
    for kind in ("index", "binary"):
        with pytest.raises(UnreadableImageError, match=r"x\.png \(not an image or damaged\)"):
            read_mask([tmp_path / "x.png"], kind)
        with pytest.raises(UnreadableImageError, match=r"none\.png \(No such file"):
            read_mask([tmp_path / "none.png"], kind)


@pytest.mark.parametrize("kind", ["binary", "index"])
def test_masks_of_one_image_must_agree_in_size(tmp_path, kind):
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", size=(3, 3))]
    with pytest.raises(UnreadableImageError, match=r"b\.png \(the masks of one image differ"):
        read_mask(files, kind)
    with pytest.raises(UnreadableImageError, match=r"b\.png \(the masks of one image differ"):
        read_mask(files[:1], "binary", files[1])


@pytest.mark.parametrize("side", [64, 100, 96])
def test_no_object_is_lost_in_a_smaller_mask(side):
    drawn = np.zeros((512, 512), bool)
    for number in range(10):  # scratches of two pixels
        drawn[51 * number + 3 : 51 * number + 5, 50 * number + 7 : 50 * number + 40] = True
    small = resized_mask(drawn, (side, side))
    assert small.dtype == bool
    ends = np.ceil(np.arange(1, side + 1) * 512 / side).astype(int)
    starts = np.arange(side) * 512 // side
    expected = [[drawn[y0:y1, x0:x1].any() for x0, x1 in zip(starts, ends, strict=True)]
                for y0, y1 in zip(starts, ends, strict=True)]  # fmt: skip
    assert np.array_equal(small, expected)
    nothing = resized_mask(np.zeros((512, 512), bool), (side, side))
    assert not nothing.any()


def test_of_a_resized_mask_only_the_object_grows():
    drawn = np.full((8, 8), 255, np.uint8)
    drawn[:, 4:] = 0
    drawn[3, 0] = drawn[6, 7] = 1
    assert resized_mask(drawn, (2, 2)).tolist() == [[1, 0], [255, 1]]
    larger = resized_mask(drawn, (16, 4))  # finer and coarser
    assert larger.tolist() == [
        [1 if (y // 2, x) in ((3, 0), (6, 3)) else 255 if x < 2 else 0 for x in range(4)]
        for y in range(16)
    ]
