import pickle
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pictures import tiff, with_orientation
from wsfast.data import UnreadableImageError, read_image
from wsfast.data.images import is_cut_short

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(path, image):
    assert cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_colours_come_in_rgb_order(tmp_path, suffix):
    path = saved(tmp_path / f"x.{suffix}", NOISE)
    assert np.array_equal(read_image(path), NOISE[:, :, ::-1])


def test_grey_is_repeated(tmp_path):
    image = read_image(saved(tmp_path / "x.png", NOISE[:, :, 0]))
    assert np.array_equal(image, np.repeat(NOISE[:, :, :1], 3, axis=2))


def test_alpha_is_dropped(tmp_path):
    rgba = np.dstack([NOISE, RNG.integers(0, 256, NOISE.shape[:2], dtype=np.uint8)])
    assert np.array_equal(read_image(saved(tmp_path / "x.png", rgba)), NOISE[:, :, ::-1])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_is_scaled_from_its_full_range(tmp_path, channels):
    wide = RNG.integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    wide[0, 0], wide[0, 1] = 0, 65535
    image = read_image(saved(tmp_path / "x.png", wide))
    exact = np.repeat(wide, 3, axis=2) if channels == 1 else wide[:, :, 2::-1]
    assert np.abs(image - exact / 65535 * 255).max() <= 0.5
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("big", [False, True])
def test_tiffs_that_count_from_white(tmp_path, order, kind, big):
    samples = np.array([[0, 51, 255]], kind) * (np.iinfo(kind).max // 255)
    path = tmp_path / "x.tif"
    for white, number in ((True, 3), (False, 3), (False, 4)):  # a short, as it should be, or a long
        path.write_bytes(tiff(samples, order, big=big, white=white, kind=number))
        expected = [255, 204, 0] if white else [0, 51, 255]
        assert read_image(path)[0, :, 0].tolist() == expected


def test_12_bits_in_a_file_of_16_are_told_of(tmp_path):
    for most, told in ((4095, True), (4096, False), (0, False)):
        path = saved(tmp_path / "x.png", np.array([[0, most]], dtype=np.uint16))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read_image(path)
        assert any("samples stay below 4096" in str(w.message) for w in caught) == told


def test_float_samples_between_0_and_1(tmp_path):
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert read_image(saved(tmp_path / "x.tif", values))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(UnreadableImageError, match="float samples outside 0-1"):
        read_image(saved(tmp_path / "wide.tif", values * 300))


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    picture = cv2.resize(NOISE[:4, :6], (48, 32), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    upright, tagged = tmp_path / "upright.jpg", tmp_path / "tagged.jpg"
    upright.write_bytes(jpeg)
    tagged.write_bytes(with_orientation(jpeg, orientation))
    assert np.array_equal(read_image(tagged), np.rot90(read_image(upright), turn))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_a_cut_file_is_refused_with_its_name(tmp_path, suffix, kept):
    data = cv2.imencode(f".{suffix}", NOISE)[1].tobytes()
    path = tmp_path / f"torn.{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert str(caught.value).startswith("wsfast.read_image: path must be a readable image, got ")
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_is_seen_without_the_decoders_help(suffix):
    data = cv2.imencode(f".{suffix}", NOISE)[1].tobytes()
    assert not is_cut_short(data)
    assert not is_cut_short(data + b"camera maker's trailer")
    assert all(is_cut_short(data[:end]) for end in (300 * len(data) // 301, len(data) // 2, 20))


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture():
    data = cv2.imencode(".jpg", NOISE)[1].tobytes()
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    nested = data[:2] + thumbnail + data[2:]
    assert not is_cut_short(nested)
    assert is_cut_short(nested[:-2])
    assert not is_cut_short(data[:20] + b"stray" + data[20:])


def test_markers_behind_the_picture_are_not_its_own():
    """A phone's JPEG with its video behind, where each pair of bytes comes up by chance."""
    data = cv2.imencode(".jpg", NOISE)[1].tobytes()
    for video in (b"\xff\xda and more", b"\xff\xd9 and \xff\xda"):
        assert not is_cut_short(data + video)
        assert not is_cut_short(with_orientation(data, 1) + video)


def test_missing_files_and_folders_say_so(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(UnreadableImageError, match="Is a directory"):
        read_image(tmp_path)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_cleanly(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.png"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError):
        read_image(path)


def test_the_error_survives_the_way_from_another_process():
    error = UnreadableImageError(Path("a.png"), "empty file")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.reason) == (str(error), error.path, error.reason)
