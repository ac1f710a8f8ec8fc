"""Reading a video file, a camera or a stream frame by frame, past the frames that are damaged."""

import math
import time
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsfast._check import value_error

_ATTEMPTS = 250  # damaged frames in a row that a file may have
_LIVE_ATTEMPTS = 3  # the same of a camera, which may take seconds for each
_STREAM_TIMEOUT = 10_000  # milliseconds
_ADDRESS_SECONDS = 10.0  # for the attempts at a frame, of which each may take the timeout
_DEFAULT_FPS = 25.0
# Only AVI's header is a plain count of frames. MP4's includes what an edit list hides, and others
# are computed from a duration that belongs to the sound as well: their last seconds prove nothing.
_EXACT_COUNT = frozenset({".avi"})
# What is computed from a duration includes the frames that a recorder never had: only what the
# clock has not reached is missing.
_KNOWN_COUNT = frozenset({*_EXACT_COUNT, ".mp4", ".mov"})
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # 4, 5
_SILENT = 0
_SLACK = {True: 0.5, False: 2.0}  # seconds that the header may promise too much


class VideoFrames:
    """The frames of a video file, a camera or a stream, one at a time.

    OpenCV answers a damaged frame as it answers the end, with nothing; it is asked again, so that
    damage in the middle does not end a file; at an address for ten seconds, the connection's limit.

    Args:
        source: a video file, the index of a camera, or the address of a stream (``rtsp://…``).

    Attributes:
        live: frames come at their own pace, as of a camera or of a stream without an end.
        fps: frames per second that the source announces; 25 where it says nothing.
        count: frames that a file's header announces, 0 where it says nothing; of others than AVI,
            MP4 and MOV duration times ``fps``, more than there are where frames were dropped.
        delivered: frames read.
        unreadable: damaged frames left out; exact once the end is reached, of others than AVI, MP4
            and MOV with OpenCV 5 only.
        missing: frames that the header announces and that are not there, known at the end: the file
            was cut off, or the connection to it.
        seconds: time of the latest frame in the file; of a live source since it was opened.
        opened: when that was, by the monotonic clock.

    Raises:
        ValueError: nothing there that can be read as a video, or a path that is not UTF-8.

    Example:
        >>> import tempfile
        >>> clip = Path(tempfile.mkdtemp()) / "clip.avi"
        >>> writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
        >>> _ = [writer.write(np.zeros((24, 32, 3), np.uint8)) for _ in range(3)]
        >>> writer.release()
        >>> video = VideoFrames(clip)
        >>> while (frame := video.read()) is not None:
        ...     print(frame.shape, round(video.seconds, 1))
        (24, 32, 3) 0.0
        (24, 32, 3) 0.1
        (24, 32, 3) 0.2
        >>> video.unreadable, video.missing
        (0, 0)
    """

    def __init__(self, source: str | PathLike[str] | int) -> None:
        self._capture = _open(source)
        if not self._capture.isOpened():
            value_error("VideoFrames", "source", "a readable video, camera or stream", f"{source}")
        announced = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(announced) if math.isfinite(announced) and announced > 0 else 0
        self.live = isinstance(source, int) or (is_address(source) and self.count == 0)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else _DEFAULT_FPS
        self.delivered = self.unreadable = self.missing = 0
        self.seconds = 0.0
        self._patience = _ADDRESS_SECONDS if is_address(source) else math.inf
        suffix = Path(str(source)).suffix.lower()
        self._exact = suffix in _EXACT_COUNT
        self._counted = suffix in _KNOWN_COUNT
        self.opened = time.monotonic()

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame that can be read, uint8 RGB (H, W, 3), or None at the end."""
        begun = time.monotonic()
        for attempt in range(_LIVE_ATTEMPTS if self.live else _ATTEMPTS):
            if time.monotonic() - begun > self._patience:  # the connection is lost
                break
            frame = self._next()
            if frame is not None:
                self.unreadable += attempt
                self.seconds = self._time()
                self.delivered += 1
                return frame
        if self.count and not self.live:
            self._account()
        return None

    def close(self) -> None:
        """Give the file or device back."""
        self._capture.release()

    def _next(self) -> NDArray[np.uint8] | None:
        try:
            frame = self._capture.read()[1]
            if frame is None:
                return None
            return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        except cv2.error:  # such as a frame without pixels
            return None

    def _time(self) -> float:
        if self.live:
            return time.monotonic() - self.opened
        position = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        known = math.isfinite(position) and (position > 0 or self.delivered == 0)
        return position if known else self.delivered / self.fps

    def _account(self) -> None:
        """Tell frames that were damaged from those that are not there.

        OpenCV before version 5 leaves damaged frames out without a word; the clock shows them.
        """
        absent = max(0, self.count - self.delivered - self.unreadable)
        passed = round(self.seconds * self.fps) + 1 if self.delivered else 0
        inside = min(absent, max(0, passed - self.delivered - self.unreadable))
        if self._counted:
            self.unreadable += inside
        absent -= inside
        if absent > _SLACK[self._exact] * self.fps:
            self.missing = absent
        elif self._exact:
            self.unreadable += absent


def is_address(source: object) -> bool:
    """Whether a source is the address of a stream, such as ``rtsp://camera/1``."""
    return "://" in str(source)


def _open(source: str | PathLike[str] | int) -> cv2.VideoCapture:
    """Open quietly: what OpenCV prints of each backend that fails says less than our error."""
    level = _set_log_level(_SILENT)
    try:
        if isinstance(source, int):
            return cv2.VideoCapture(source)
        if is_address(source):
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _STREAM_TIMEOUT,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, _STREAM_TIMEOUT,
            ]  # fmt: skip
            return cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, limits)
        if Path(source).exists():  # FFmpeg would take what stands before a colon for a protocol
            source = Path(source).absolute()
        str(source).encode()  # of a name that is not UTF-8 OpenCV may crash
        return cv2.VideoCapture(str(source))
    except UnicodeEncodeError:
        return cv2.VideoCapture()
    finally:
        _set_log_level(level)
