"""Where the frames of a live loop come from."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsfast._check import value_error
from wsfast.data.video import VideoFrames, is_address


@dataclass(frozen=True, slots=True, eq=False)
class LiveFrame:
    """One picture of a source.

    Attributes:
        index: running number of the frames that could be read, from 0.
        seconds: its time in the file; of a live source since the start.
        image: uint8 RGB (H, W, 3).
    """

    index: int
    seconds: float
    image: NDArray[np.uint8]


class FrameSource(Protocol):
    """What :class:`wsfast.deploy.LiveLoop` reads from, in one thread.

    Attributes:
        live: frames come at their own pace and do not wait.
        unreadable: damaged frames left out so far.
        missing: at the end, frames that are announced and not there.
    """

    live: bool
    unreadable: int
    missing: int

    def read(self) -> LiveFrame | None:
        """Wait for the next frame; None at the end, or when the source is gone."""

    def reopen(self) -> None:
        """Try to get a lost live source back; the next ``read`` tells whether it worked."""

    def close(self) -> None:
        """Give the source back; nothing is read any more."""


class VideoSource:
    """A video file, a camera or a stream as a :class:`FrameSource`.

    An address with a known number of frames, such as a file on a web server, counts as a file.

    Args:
        source: path, index of a camera, or address; text of digits is a camera unless there is a
            file of that name.

    Attributes:
        name: what was opened.
        fps: frames per second that the source announces.
        count: frames that a file announces, 0 where it says nothing.

    Raises:
        ValueError: nothing there that can be read as a video.
    """

    def __init__(self, source: str | PathLike[str] | int) -> None:
        self.name = str(source)
        self._source = parse_source(source)
        self._video = VideoFrames(self._source)
        self.live, self.fps, self.count = self._video.live, self._video.fps, self._video.count
        self.unreadable = self.missing = self._index = 0
        self._unreadable_before = 0
        self._seconds_before = 0.0

    def read(self) -> LiveFrame | None:
        """The next frame that can be read."""
        image = self._video.read()
        self.unreadable = self._unreadable_before + self._video.unreadable
        self.missing = self._video.missing
        if image is None:
            return None
        if self.live and self._index == 0:  # a model may have been loaded since it was opened
            self._seconds_before = -self._video.seconds
        frame = LiveFrame(self._index, self._seconds_before + self._video.seconds, image)
        self._index += 1
        return frame

    def reopen(self) -> None:
        """Try to open a live source once more; numbers and times go on."""
        self._video.close()
        try:
            video = VideoFrames(self._source)
        except ValueError:
            return
        self._unreadable_before = self.unreadable
        self._seconds_before += video.opened - self._video.opened
        self._video = video

    def close(self) -> None:
        """Give the file or device back."""
        self._video.close()


def parse_source(source: str | PathLike[str] | int) -> str | Path | int:
    """The index of a camera, an address, or the path of an existing file.

    Raises:
        ValueError: no such file.

    Example:
        >>> parse_source("1"), parse_source("rtsp://camera/1")
        (1, 'rtsp://camera/1')
    """
    text = str(source)
    path = Path(text)
    if path.is_file():
        return path
    if text.isdecimal():
        return int(text)
    if not is_address(text):
        expected = "an existing video file, the index of a camera or an address (rtsp://…)"
        value_error("VideoSource", "source", expected, text)
    return text
