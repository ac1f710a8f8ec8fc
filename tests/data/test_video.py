"""Videos with damage: what can be read is read, and what is lost is counted."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.videos import cut_clip, damage_clip, write_clip
from wsfast.data import ImageFiles, VideoFrames
from wsfast.deploy import MatroskaWriter


def values(video: VideoFrames) -> list[int]:
    """The grey levels of all frames."""
    found = []
    while (frame := video.read()) is not None:
        found.append(round(float(frame.mean())))
    return found


def test_every_frame_comes_in_order_with_its_time(tmp_path: Path) -> None:
    video = VideoFrames(write_clip(tmp_path / "clip.avi", range(0, 240, 10), fps=8))
    assert (video.count, video.fps, video.live) == (24, 8.0, False)
    assert video.read().shape == (48, 64, 3)
    assert video.seconds == 0
    assert values(video) == pytest.approx(list(range(10, 240, 10)), abs=3)
    assert video.seconds == pytest.approx(23 / 8)
    assert (video.delivered, video.unreadable, video.missing) == (24, 0, 0)


@pytest.mark.parametrize("damaged", [[5], [5, 6, 7], [3, 12, 13], [0], [23]])
def test_damaged_frames_are_left_out_and_counted(tmp_path: Path, damaged: list[int]) -> None:
    clip = write_clip(tmp_path / "clip.avi", range(0, 240, 10), fps=8)
    video = VideoFrames(damage_clip(clip, damaged))
    expected = [10 * i for i in range(24) if i not in damaged]
    assert values(video) == pytest.approx(expected, abs=3)
    assert (video.delivered, video.unreadable, video.missing) == (len(expected), len(damaged), 0)


def test_a_file_that_was_cut_off_says_how_much_is_missing(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", range(0, 240, 10), fps=8)
    video = VideoFrames(cut_clip(damage_clip(clip, [4]), before=15))
    expected = [10 * i for i in range(15) if i != 4]
    assert values(video) == pytest.approx(expected, abs=3)
    assert (video.unreadable, video.missing) == (1, 24 - 15)


class SilentCapture:
    """Leaves damaged frames out without a word, as OpenCV before version 5."""

    def __init__(self, frames: list[int], count: int, fps: float) -> None:
        self.frames, self.at, self.count, self.fps = frames, -1, count, fps

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.at += 1
        if self.at < len(self.frames):
            return True, np.zeros((4, 4, 3), np.uint8)
        return False, None

    def get(self, prop: int) -> float:
        return {
            cv2.CAP_PROP_FRAME_COUNT: self.count,
            cv2.CAP_PROP_FPS: self.fps,
            cv2.CAP_PROP_POS_MSEC: 1000
            * self.frames[min(self.at, len(self.frames) - 1)]
            / self.fps,
        }[prop]


@pytest.mark.parametrize(
    ("name", "frames", "count", "unreadable", "missing"),
    [
        ("a.avi", [0, 1, 2, 5, 6, 9], 10, 4, 0),
        ("a.avi", [0, 1, 2, 5, 6], 100, 2, 93),
        ("a.mp4", [0, 1, 2, 4, 5, 7], 6, 0, 0),  # uneven frame times are no damage
        ("a.mkv", [0, 1, 2], 10, 0, 0),  # the sound may be longer than the picture
        ("a.mkv", [0, 1, 2], 60, 0, 57),
        ("a.mkv", [0, 1, 2], 0, 0, 0),
        ("a.mkv", [n for n in range(60) if n % 3], 60, 0, 0),  # a recorder has dropped frames
        ("a.WEBM", [n for n in range(60) if n % 3], 100, 0, 40),
    ],
)
def test_the_clock_shows_what_is_lost(
    monkeypatch, name: str, frames: list[int], count: int, unreadable: int, missing: int
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: SilentCapture(frames, count, 10.0))
    video = VideoFrames(name)
    assert len(values(video)) == len(frames)
    assert (video.unreadable, video.missing) == (unreadable, missing)


def test_frames_that_a_recorder_has_dropped_are_no_damage(tmp_path: Path) -> None:
    writer = MatroskaWriter(tmp_path / "clip.mkv", fps=10)
    for number in range(0, 60, 2):
        writer.write(np.zeros((48, 64, 3), np.uint8), number / 10)
    writer.close()
    video = VideoFrames(tmp_path / "clip.mkv")
    assert len(values(video)) == 30
    assert video.count > 50  # computed from the duration
    assert (video.unreadable, video.missing) == (0, 0)


def test_a_file_at_an_address_is_not_asked_for_ever(monkeypatch) -> None:
    clock = [0.0]

    class LostConnection(SilentCapture):
        def read(self) -> tuple[bool, np.ndarray | None]:
            frame = super().read()
            clock[0] += 0.0 if frame[0] else 10.0  # the timeout
            return frame

    capture = LostConnection(list(range(5)), 100, 10.0)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: capture)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    video = VideoFrames("http://host/clip.mp4")
    assert not video.live
    assert len(values(video)) == 5
    assert clock[0] <= 20
    assert (video.delivered, video.missing) == (5, 95)


def test_damage_at_an_address_is_passed_like_that_of_a_file(monkeypatch) -> None:
    class Damaged(SilentCapture):
        def read(self) -> tuple[bool, np.ndarray | None]:
            found, frame = super().read()
            return found, None if 2 <= self.at < 22 else frame

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Damaged(list(range(30)), 30, 10.0))
    video = VideoFrames("http://host/clip.mp4")
    assert len(values(video)) == 10
    assert (video.unreadable, video.missing) == (20, 0)


@pytest.mark.parametrize("source", ["nowhere.avi", "noise.avi", 97, "rtsp://127.0.0.1:1/none"])
def test_what_is_no_video_is_one_plain_error(tmp_path: Path, source: str | int, capfd) -> None:
    (tmp_path / "noise.avi").write_bytes(b"no video" * 100)
    path = tmp_path / source if str(source).endswith(".avi") else source
    with pytest.raises(ValueError, match="source must be a readable video, camera or stream"):
        VideoFrames(path)
    assert "VIDEOIO" not in capfd.readouterr().err


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for grey in (0, 100, 200):
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()
    (tmp_path / "a.mp4").rename(tmp_path / "2024-01-01T12:30.mp4")  # FFmpeg alone reads these
    monkeypatch.chdir(tmp_path)
    assert VideoFrames("2024-01-01T12:30.mp4").read() is not None


def test_image_files_go_on_after_a_damaged_frame(tmp_path: Path) -> None:
    clip = damage_clip(write_clip(tmp_path / "clip.avi", range(0, 100, 10), fps=10), [3])
    images = ImageFiles([clip])
    assert [name for name, _ in images] == [f"clip_{i:06d}" for i in range(9)]
    assert [(f.path, f.reason) for f in images.skipped] == [
        (clip, "1 of its 10 frames could not be decoded")
    ]


def test_image_files_go_on_after_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"Pr\xfcfung.avi")  # Latin-1, from an old archive
    write_clip(tmp_path / "clip.avi", [0, 50]).rename(name)
    images = ImageFiles([name, write_clip(tmp_path / "clip.avi", [0, 50])])
    assert [found for found, _ in images] == ["clip_000000", "clip_000001"]
    assert [file.path for file in images.skipped] == [name]
