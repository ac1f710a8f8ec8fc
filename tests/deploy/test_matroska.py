"""Videos of our own container, read back by FFmpeg: whole, unfinished and cut anywhere."""

import errno
from io import FileIO
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.videos import read_clip
from wsfast.deploy import MatroskaWriter


def frame(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A red picture with a moving square."""
    picture = np.full((*size, 3), (200, 40, 20), np.uint8)
    picture[8:24, number : number + 16] = 255
    return picture


def write(path: Path, count: int, *, fps: float = 10) -> tuple[MatroskaWriter, list[int]]:
    """Write frames; the file's size after each is returned."""
    writer = MatroskaWriter(path, fps=fps)
    sizes = []
    for number in range(count):
        writer.write(frame(number), number / fps)
        sizes.append(path.stat().st_size)
    return writer, sizes


def check(frames: list[np.ndarray], count: int) -> None:
    assert len(frames) == count
    for number, found in enumerate(frames):
        difference = np.abs(found[..., ::-1].astype(int) - frame(number))
        assert difference.mean() < 6


def test_a_finished_video_has_frames_times_and_length(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write(path, 20)[0].close()
    check(read_clip(path), 20)
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 20
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    for number in range(20):
        video.grab()
        assert video.get(cv2.CAP_PROP_POS_MSEC) == pytest.approx(100 * number, abs=1)
    video.set(cv2.CAP_PROP_POS_FRAMES, 7)  # players seek
    assert np.abs(video.read()[1][..., ::-1].astype(int) - frame(7)).mean() < 6


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.03, 0.5, 0.5, 61.25, 4000.0]
    writer = MatroskaWriter(tmp_path / "clip.mkv")
    for number, seconds in enumerate(times):
        writer.write(frame(number), seconds)
    writer.close()
    video = cv2.VideoCapture(str(tmp_path / "clip.mkv"))
    for seconds in times:
        assert video.grab()
        assert video.get(cv2.CAP_PROP_POS_MSEC) == pytest.approx(1000 * seconds, abs=1.1)


def test_a_video_is_playable_before_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    writer, _ = write(path, 12)
    check(read_clip(path), 12)
    writer.close()


@pytest.mark.parametrize("offset", [0, 1, 13, 300])
def test_a_video_cut_anywhere_plays_up_to_there(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "clip.mkv"
    writer, sizes = write(path, 12)
    writer.close()
    path.write_bytes(path.read_bytes()[: sizes[6] + offset])
    check(read_clip(path)[:7], 7)


def test_pictures_of_another_size_are_scaled(tmp_path: Path) -> None:
    writer = MatroskaWriter(tmp_path / "clip.mkv")
    for size in ((48, 64), (96, 128), (20, 30)):
        writer.write(frame(0, size), 0)
    writer.close()
    assert {f.shape for f in read_clip(tmp_path / "clip.mkv")} == {(48, 64, 3)}


def test_a_full_disk_is_an_error_and_leaves_whole_frames(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "clip.mkv"
    writer, sizes = write(path, 5)
    room = sizes[-1] + 300

    class Full(FileIO):
        def write(self, data: memoryview) -> int:
            taken = data[: max(0, room - self.tell())]
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(taken)

    full = Full(path, "r+")
    full.seek(0, 2)
    monkeypatch.setattr(writer._file, "_file", full)
    with pytest.raises(OSError, match=r"No space left on device: .*clip\.mkv") as caught:
        writer.write(frame(5), 0.5)
    assert caught.value.errno == errno.ENOSPC
    assert path.stat().st_size == sizes[-1]
    writer.close()
    check(read_clip(path), 5)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"fps": 0}, ValueError), ({"fps": float("nan")}, ValueError), ({"quality": 0}, ValueError),
     ({"quality": 101}, ValueError), ({"quality": 9.5}, TypeError), ({"fps": "10"}, TypeError)],
)  # fmt: skip
def test_settings_out_of_range_make_no_file(tmp_path: Path, settings: dict, error: type) -> None:
    with pytest.raises(
        error, match=rf"^wsfast\.deploy\.MatroskaWriter: {next(iter(settings))} must"
    ):
        MatroskaWriter(tmp_path / "clip.mkv", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("picture", "seconds", "named"),
    [(frame(0).astype(np.float32), 0.0, "picture"), (frame(0)[..., 0], 0.0, "picture"),
     (frame(0)[:0], 0.0, "picture"), (frame(0), -1.0, "seconds"), (frame(0), np.nan, "seconds"),
     (frame(0), np.inf, "seconds")],
)  # fmt: skip
def test_what_is_no_frame_leaves_the_video(
    tmp_path: Path, picture: np.ndarray, seconds: float, named: str
) -> None:
    path = tmp_path / "clip.mkv"
    writer, _ = write(path, 5)
    with pytest.raises(ValueError, match=rf"^wsfast\.deploy\.MatroskaWriter: {named} must be"):
        writer.write(picture, seconds)
    writer.close()
    check(read_clip(path), 5)


def test_no_frames_no_harm(tmp_path: Path) -> None:
    MatroskaWriter(tmp_path / "clip.mkv").close()
    assert (tmp_path / "clip.mkv").read_bytes() == b""
