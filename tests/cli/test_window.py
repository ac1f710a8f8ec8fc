"""`wsfast localize --live --display`: the window, by a screen that records what it is shown."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cli.live_files import lines, summary
from tests.data.videos import write_clip
from wsfast.cli import live, main
from wsfast.cli.window import Window


class Screen:
    """OpenCV's windows; ``keys`` are pressed one after the other."""

    def __init__(self, keys: Iterator[str]) -> None:
        self.keys = keys
        self.shown: list[np.ndarray] = []
        self.visible = False
        self.size: tuple[int, int] | None = None

    def namedWindow(self, name: str, flags: int) -> None:
        self.visible = True

    def resizeWindow(self, name: str, width: int, height: int) -> None:
        self.size = (width, height)

    def getWindowProperty(self, name: str, flag: int) -> float:
        return float(self.visible)

    def imshow(self, name: str, picture: np.ndarray) -> None:
        assert self.visible
        self.shown.append(picture)

    def waitKey(self, milliseconds: int) -> int:
        key = next(self.keys, "")
        return ord(key) if key else -1

    def destroyAllWindows(self) -> None:
        self.visible = False


@pytest.fixture
def screen(monkeypatch) -> Screen:
    screen = Screen(iter(()))
    names = ("namedWindow", "resizeWindow", "getWindowProperty", "imshow", "waitKey")
    for name in (*names, "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, getattr(screen, name))
    return screen


def picture(red: int) -> np.ndarray:
    return np.full((4, 6, 3), (red, 0, 0), np.uint8)


def test_a_window_shows_each_picture_once_in_the_order_of_opencv(screen: Screen) -> None:
    window, first, second = Window(), picture(200), picture(100)
    assert all([window.show(first), window.show(first), window.show(second)])
    assert screen.size == (6, 4)
    assert [image[0, 0].tolist() for image in screen.shown] == [[0, 0, 200], [0, 0, 100]]
    window.close()
    assert not screen.visible


def test_a_window_that_was_never_shown_closes(screen: Screen) -> None:
    Window().close()
    assert screen.size is None


def test_q_ends_the_show(screen: Screen) -> None:
    screen.keys = iter("xq")
    window = Window()
    assert window.show(picture(1))
    assert not window.show(picture(2))


def test_windows_that_never_say_whether_they_are_seen(screen: Screen, monkeypatch) -> None:
    monkeypatch.setattr(cv2, "getWindowProperty", lambda name, flag: -1.0)  # as GTK does
    window = Window()
    assert all(window.show(picture(red)) for red in (1, 2, 3))
    assert len(screen.shown) == 3
    screen.keys = iter("q")
    assert not window.show(picture(4))


def gone(name: str, flag: int) -> float:
    raise cv2.error("NULL guiReceiver (please create a window)")


@pytest.mark.parametrize("qt", [False, True])
def test_a_closed_window_ends_the_show_and_does_not_come_back(
    screen: Screen, monkeypatch, qt: bool
) -> None:
    window = Window()
    assert window.show(picture(1))
    screen.visible = False
    if qt:
        monkeypatch.setattr(cv2, "getWindowProperty", gone)
    assert not window.show(picture(2))
    assert len(screen.shown) == 1


def test_q_ends_a_live_run_and_keeps_what_was_read(
    screen: Screen, tmp_path: Path, monkeypatch, capsys
) -> None:
    screen.keys = iter("q")
    monkeypatch.setattr(live, "check_windows", lambda: None)
    clip = write_clip(tmp_path / "clip.avi", range(60))
    out = tmp_path / "out"
    command = ["localize", str(clip), "--live", "--display", "--model", "resnet18", "--out"]
    options = ["--no-video", "--batch-size", "1", "--queue", "1", "--method", "gradcam"]
    assert main([*command, str(out), *options]) == 0
    assert "stopped; everything read was written" in capsys.readouterr().out
    frames = summary(out)["frames"]
    assert frames["written"] == frames["accepted"] == len(lines(out)) < 60
    assert screen.shown[0].shape == (48, 64, 3)
    assert not screen.visible


def test_display_is_refused_where_no_window_opens(tmp_path: Path, capsys) -> None:
    if "GUI:                           NONE" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has windows")
    clip = write_clip(tmp_path / "clip.avi", [0])
    out = tmp_path / "out"
    command = ["localize", str(clip), "--live", "--display", "--model", "resnet18", "--out"]
    assert main([*command, str(out)]) == 2
    assert "--display must be left out where OpenCV cannot open a window" in capsys.readouterr().err
    assert not out.exists()
