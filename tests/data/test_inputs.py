import errno
import operator
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from wsfast.data import ImageFiles, expand_inputs


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((6, 8, 3), value, dtype=np.uint8))
    return path


def clip(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for value in frames:
        writer.write(np.full((24, 32, 3), (value, 0, 0), dtype=np.uint8))  # blue
    writer.release()
    return path


def names(paths, root):
    return [str(path.relative_to(root)) for path in paths]


def test_a_folder_that_cannot_be_read_is_warned_of(tmp_path, monkeypatch):
    for folder in ("open", "locked", ".trash"):
        picture(tmp_path / folder / "1.png")
    scan = os.scandir

    def refuse(folder):
        if Path(folder).name not in ("locked", ".trash"):
            return scan(folder)
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="is left out") as told:
        assert names(expand_inputs([tmp_path]), tmp_path) == ["open/1.png"]
    locked = tmp_path / "locked"
    assert [str(w.message) for w in told] == [f"{locked} is left out (Permission denied)"]


def test_folders_are_searched_recursively_sorted_and_without_hidden_files(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/c.tiff", ".hidden.png", ".thumbs/t.png", "a/._c.tiff"):
        picture(tmp_path / name) if not name.endswith("JPG") else picture(
            tmp_path / "a/z.jpg"
        ).rename(tmp_path / name)
    (tmp_path / "readme.md").touch()
    (tmp_path / "folder.png").mkdir()
    assert names(expand_inputs([tmp_path]), tmp_path) == ["a/c.tiff", "a/z.JPG", "b.png"]


def test_a_gif_is_an_image_in_a_folder_as_by_its_name(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.gif")
    assert expand_inputs([tmp_path]) == expand_inputs([tmp_path / "a.gif"]) == [tmp_path / "a.gif"]
    if not cv2.haveImageWriter(".gif"):
        pytest.skip("this OpenCV reads no GIF")
    ((name, image),) = ImageFiles([tmp_path])
    assert (name, image.shape, image[0, 0].tolist()) == ("a", (6, 8, 3), [255, 0, 0])


def test_a_folder_inside_a_hidden_place_is_searched(tmp_path):
    picture(tmp_path / ".cache" / "a.png")
    assert len(expand_inputs([tmp_path / ".cache"])) == 1


def test_patterns_keep_only_images_and_go_through_folders(tmp_path):
    for name in ("x/1.png", "x/deep/2.bmp", "3.webp"):
        picture(tmp_path / name)
    (tmp_path / "x" / "table.csv").touch()
    assert names(expand_inputs([f"{tmp_path}/x/*"]), tmp_path) == ["x/1.png", "x/deep/2.bmp"]
    assert names(expand_inputs([f"{tmp_path}/**/*.png"]), tmp_path) == ["x/1.png"]


def test_order_is_the_callers_and_nothing_comes_twice(tmp_path):
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    assert expand_inputs([second, tmp_path, str(first)]) == [second, first]


def test_a_named_file_is_taken_whatever_its_name(tmp_path):
    odd = picture(tmp_path / "x[1].png")
    assert expand_inputs([odd]) == [odd]
    strange = odd.rename(tmp_path / "picture.dat")
    assert [name for name, _ in ImageFiles([strange])] == ["picture"]


@pytest.mark.parametrize("missing", ["absent.png", "*.png", "empty"])
def test_an_input_without_images_is_named_in_one_line(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    good = picture(tmp_path / "good.jpg")
    with pytest.raises(ValueError, match=r"^wsfast\.expand_inputs: inputs must be ") as caught:
        ImageFiles([good, tmp_path / missing])
    assert str(tmp_path / missing) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_inputs_at_all():
    with pytest.raises(ValueError, match="at least one file, folder or pattern, got none"):
        expand_inputs([])


def test_images_come_as_rgb_arrays_with_unique_names(tmp_path):
    for name, value in (("a/part.png", 1), ("b/part.png", 2), ("b/part_2.png", 3)):
        picture(tmp_path / name, value)
    images = ImageFiles([tmp_path])
    seen = dict(images)
    assert {name: int(image[0, 0, 0]) for name, image in seen.items()} == {
        "part": 1,
        "part_2": 2,
        "part_2_2": 3,
    }
    assert all(image.shape == (6, 8, 3) and image.dtype == np.uint8 for image in seen.values())
    assert images.sources["part_2"] == tmp_path / "b" / "part.png"
    assert images.skipped == []


def test_unreadable_files_are_noted_and_the_rest_goes_on(tmp_path):
    for name in ("1.png", "3.png"):
        picture(tmp_path / name)
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "4.avi").write_bytes(b"no video" * 100)
    images = ImageFiles([tmp_path])
    for _ in range(2):  # a second run starts afresh
        assert [name for name, _ in images] == ["1", "3"]
        assert [(file.path.name, file.reason) for file in images.skipped] == [
            ("2.png", "empty file"),
            ("4.avi", "no video frame could be decoded"),
        ]


def test_a_file_that_vanishes_meanwhile_is_skipped(tmp_path):
    images = ImageFiles([picture(tmp_path / "a.png"), picture(tmp_path / "b.png")])
    (tmp_path / "a.png").unlink()
    assert [name for name, _ in images] == ["b"]
    assert images.skipped[0].path == tmp_path / "a.png"


def test_reading_is_lazy(tmp_path, monkeypatch):
    read: list[Path] = []

    def spy(path):
        read.append(path)
        return np.zeros((1, 1, 3), dtype=np.uint8)

    monkeypatch.setattr("wsfast.data.inputs.read_image", spy)
    stream = iter(ImageFiles([picture(tmp_path / "a.png"), picture(tmp_path / "b.png")]))
    assert read == []
    next(stream)
    assert len(read) == 1


def test_video_frames_are_numbered_and_in_order(tmp_path):
    picture(tmp_path / "zz.png")
    clip(tmp_path / "clip.avi", [20, 120, 220])
    images = ImageFiles([tmp_path])
    assert operator.length_hint(images) == 4
    frames = list(images)
    assert [name for name, _ in frames] == ["clip_000000", "clip_000001", "clip_000002", "zz"]
    blues = [int(frame[..., 2].mean()) for _, frame in frames[:3]]
    assert blues == pytest.approx([20, 120, 220], abs=12)  # JPEG's chroma is coarse
    assert frames[0][1].shape == (24, 32, 3)


def test_folders_behind_links_are_searched_once(tmp_path):
    for name in ("real/a.png", "data/b.png", "data/2024/best/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "1best").symlink_to(tmp_path / "data" / "2024" / "best")
    (tmp_path / "data" / "latest").symlink_to(tmp_path / "data" / "2024")
    (tmp_path / "data" / "itself").symlink_to(tmp_path / "data" / "itself")
    found = expand_inputs([tmp_path / "data"])
    assert [file.relative_to(tmp_path / "data").as_posix() for file in found] == [
        "2024/best/c.png", "b.png", "linked/a.png",
    ]  # fmt: skip
