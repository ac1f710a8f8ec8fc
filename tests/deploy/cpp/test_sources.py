"""What wsfast_infer reads: images of any depth, videos, and what is damaged among them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.pictures import tiff
from tests.data.videos import cut_clip, write_clip
from wsfast.deploy import MatroskaWriter

from .runs import MARKS, check_same, eagerly, lines, run

pytestmark = MARKS


def write_video(file: Path, frames: NDArray[np.uint8]) -> None:
    size = (frames.shape[2], frames.shape[1])
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"FFV1"), 25, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write FFV1 video")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()


def test_video_frames_are_numbered(
    command: list[str], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    video = tmp_path / "clip.avi"
    write_video(video, images[:10])
    capture = cv2.VideoCapture(str(video))
    decoded = [capture.read()[1][:, :, ::-1] for _ in range(10)]
    done = run(command, "--batch", 4, video)
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    assert [line["frame"] for line in found] == list(range(10))
    assert {line["file"] for line in found} == {str(video)}
    check_same(found, eagerly(np.stack(decoded)))


def test_broken_video_keeps_what_was_read(
    command: list[str], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    video = tmp_path / "clip.avi"
    write_video(video, images)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    out = tmp_path / "found.jsonl"
    done = run(command, "--out", out, video)
    assert done.returncode == 2
    assert "clip.avi: broken video, " in done.stderr
    assert "of 50 frames could be read" in done.stderr
    assert 1 < len(lines(out.read_text())) < 50
    (tmp_path / "noise.mp4").write_bytes(b"no video at all")
    done = run(command, tmp_path / "noise.mp4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("noise.mp4: not a video or damaged")
    assert len(done.stderr.splitlines()) == 2  # the reason and the summary, nothing of FFmpeg's


@pytest.mark.parametrize(("frames", "code"), [(16, 0), (14, 2)])
def test_a_header_may_promise_half_a_second_too_much(
    command: list[str], tmp_path: Path, frames: int, code: int
) -> None:
    clip = cut_clip(write_clip(tmp_path / "clip.avi", range(0, 200, 10), fps=10), before=frames)
    done = run(command, clip)
    assert done.returncode == code, done.stderr
    assert len(lines(done.stdout)) == frames
    assert ("broken video" in done.stderr) is (code == 2)


@pytest.mark.parametrize(("share", "code"), [(1.0, 0), (0.5, 2)])
def test_frames_that_a_recorder_has_dropped_are_no_damage(
    command: list[str], tmp_path: Path, share: float, code: int
) -> None:
    clip = tmp_path / "clip.mkv"
    writer = MatroskaWriter(clip, fps=10)
    for number in range(0, 120, 3):  # of 80 frames, twice the tolerance and more, there are none
        writer.write(np.full((48, 64, 3), number, np.uint8), number / 10)
    writer.close()
    clip.write_bytes(clip.read_bytes()[: int(share * clip.stat().st_size)])
    done = run(command, clip)
    assert done.returncode == code, done.stderr
    assert 15 < len(lines(done.stdout)) <= 40
    assert ("broken video" in done.stderr) is (code == 2)


def test_unreadable_images_are_reported_and_skipped(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    whole = (folder / "pictures" / "00.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.png").write_bytes(whole)
    (tmp_path / "c.jpg").write_bytes(b"not an image")
    (tmp_path / "d.png").touch()
    (tmp_path / "notes.txt").write_text("not looked at")
    out = tmp_path / "found.jsonl"
    done = run(command, "--out", out, tmp_path)
    assert done.returncode == 0
    assert [Path(line["file"]).name for line in lines(out.read_text())] == ["b.png"]
    said = done.stderr.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in said[:3]] == [
        "file is cut short", "not an image or damaged", "empty file",
    ]  # fmt: skip
    assert said[3] == "wsfast_infer: 1 images localized, 3 files skipped or broken"
    assert not list(tmp_path.glob(".*"))  # the temporary file got its name
    nothing = run(command, tmp_path / "c.jpg")
    assert nothing.returncode == 2


def test_what_cannot_be_looked_at_is_reported_and_skipped(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    loop = tmp_path / "a.png"
    loop.symlink_to(loop)
    (tmp_path / "b.png").write_bytes((folder / "pictures" / "00.png").read_bytes())
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [Path(line["file"]).name for line in lines(done.stdout)] == ["b.png"]
    assert done.stderr.splitlines() == [
        f"wsfast_infer: {loop}: Too many levels of symbolic links",
        "wsfast_infer: 1 images localized, 1 files skipped or broken",
    ]


def test_sixteen_bit_images_are_scaled(command: list[str], folder: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(folder / "pictures" / "02.png"))
    cv2.imwrite(str(tmp_path / "deep.png"), image.astype(np.uint16) * 257)
    done = run(command, tmp_path, folder / "pictures" / "02.png")
    deep, plain = lines(done.stdout)
    assert deep["boxes"] == plain["boxes"]
    assert deep["scores"] == plain["scores"]


def test_sixteen_bit_images_that_count_from_white(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    grey = cv2.imread(str(folder / "pictures" / "02.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "plain.png"), grey)
    wide = grey.astype(np.uint16) * 257
    for order, name in (("<", "little"), (">", "large")):
        for big in (False, True):
            negative = tiff(np.invert(wide), order, big=big)
            (tmp_path / f"{name}{big}.tif").write_bytes(negative)
        (tmp_path / f"{name}.tif").write_bytes(tiff(wide, order, white=False, kind=4))
    found = lines(run(command, tmp_path).stdout)
    assert len(found) == 7
    (maps,) = {json.dumps([line["boxes"], line["scores"]]) for line in found}
    assert maps != "[[], []]"


def test_float_images_and_markers_behind_the_picture(command: list[str], tmp_path: Path) -> None:
    floats = np.linspace(0, 1, 96 * 48, dtype=np.float32).reshape(96, 48)
    floats[0, 0] = -0.0
    cv2.imwrite(str(tmp_path / "floats.tif"), floats)
    cv2.imwrite(str(tmp_path / "above.tif"), floats + np.float32(1e-6))
    photo = tmp_path / "photo.jpg"
    cv2.imwrite(str(photo), np.uint8(255 * floats))
    picture = photo.read_bytes()
    photo.write_bytes(picture + b"a video: \xff\xd9 and \xff\xda")  # as phones do
    (tmp_path / "cut.jpg").write_bytes(picture[:-40])
    done = run(command, tmp_path)
    assert [Path(line["file"]).name for line in lines(done.stdout)] == ["floats.tif", "photo.jpg"]
    assert "above.tif: float samples outside 0-1" in done.stderr
    assert "cut.jpg: file is cut short" in done.stderr
