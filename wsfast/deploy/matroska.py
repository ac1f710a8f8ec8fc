"""Video files that play however they were cut off: Motion JPEG in a Matroska container.

OpenCV's own writer keeps the newest frames in memory, completes most containers only at the end,
and says nothing when the disk is full. Here each frame is one write of a whole Matroska cluster,
with its time; the open-ended segment before it needs no completion to play. (RFC 9559; element
numbers as there.)
"""

import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsfast._check import check_range, value_error
from wsfast._files import AppendedFile
from wsfast.data.sample import check_whole

_WHERE = "deploy.MatroskaWriter"
_LATEST = 1e12  # seconds; times are milliseconds of at most 64 bits
_UNKNOWN_SIZE = b"\x01" + b"\xff" * 7


def _element(number: int, content: bytes) -> bytes:
    """An element: its number, the size of its content as eight bytes, its content."""
    return _name(number) + _size(len(content)) + content


def _name(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _size(length: int) -> bytes:
    return (1 << 56 | length).to_bytes(8)


def _whole(number: int, value: int) -> bytes:
    return _element(number, value.to_bytes(max(1, (value.bit_length() + 7) // 8)))


def _text(number: int, value: str) -> bytes:
    return _element(number, value.encode())


_HEADER = _element(
    0x1A45DFA3,  # EBML
    _whole(0x4286, 1)  # versions of EBML written and needed
    + _whole(0x42F7, 1)
    + _whole(0x42F2, 4)  # longest number and size in bytes
    + _whole(0x42F3, 8)
    + _text(0x4282, "matroska")
    + _whole(0x4287, 4)  # versions of Matroska written and needed
    + _whole(0x4285, 2),
)
_SEGMENT = 0x18538067
_DURATION = 0x4489
_NO_DURATION = _element(0xEC, bytes(9))  # Void, as long as the duration that replaces it


class MatroskaWriter:
    """A video of JPEG pictures that is playable at any time, also when its writer was killed.

    Args:
        path: of the file, ``.mkv``; replaced where it exists.
        fps: frames per second, 0.001 to 1e6, where they are evenly spaced; the times of the frames
            count.
        quality: of the JPEG pictures, 1-100.

    Raises:
        TypeError: ``fps`` that is no number, ``quality`` that is no integer.
        ValueError: one that is out of range.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "clip.mkv"
        >>> writer = MatroskaWriter(path)
        >>> for i in range(3):
        ...     writer.write(np.zeros((24, 32, 3), np.uint8), seconds=i / 10)
        >>> video = cv2.VideoCapture(str(path))  # not closed yet
        >>> sum(video.grab() for _ in range(3))
        3
        >>> writer.close()
    """

    def __init__(self, path: Path, *, fps: float | None = None, quality: int = 90) -> None:
        if fps is not None:
            check_range(_WHERE, "fps", fps, 1e-3, 1e6)
        check_whole(_WHERE, "quality", quality, 1, 100)
        self._file = AppendedFile(path)
        self._fps, self._quality = fps, quality
        self._size: tuple[int, int] | None = None  # width and height
        self._segment_start = self._duration_at = self._length = 0
        self._milliseconds = -1

    def write(self, picture: NDArray[np.uint8], seconds: float) -> None:
        """Append an RGB picture (H, W, 3); it is scaled to the size of the first one.

        Args:
            picture: uint8.
            seconds: time of the picture, 0 or more, later than that of the one before.

        Raises:
            TypeError: ``seconds`` that is no number.
            ValueError: another kind of picture, an empty one, a time that no file can hold.
            OSError: the picture could not be written; the file is as it was before.
        """
        check_range(_WHERE, "seconds", seconds, 0, _LATEST)
        colour = picture.ndim == 3 and picture.shape[2] == 3
        if picture.dtype != np.uint8 or not colour or not picture.size:
            actual = f"{picture.dtype} of shape {picture.shape}"
            value_error(_WHERE, "picture", "uint8 (H, W, 3), not empty", actual)
        height, width = picture.shape[:2]
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        head = b""
        if self._size is None:
            head = self._head(width, height)
        elif (width, height) != self._size:
            bgr = cv2.resize(bgr, self._size, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])[1].tobytes()
        milliseconds = max(self._milliseconds + 1, round(seconds * 1000))
        block = b"\x81" + struct.pack(">hB", 0, 0x80) + jpeg  # track 1, at the cluster's time, key
        cluster = _whole(0xE7, milliseconds) + _element(0xA3, block)
        data = head + _element(0x1F43B675, cluster)
        self._file.append(data)
        self._size = self._size or (width, height)
        self._length += len(data)
        self._milliseconds = milliseconds

    def close(self) -> None:
        """Complete the file with its length, which players like to know, and close it, once."""
        try:
            if self._size is not None and not self._file.closed:
                frame = 1000 / self._fps if self._fps else 0
                duration = struct.pack(">d", max(1.0, self._milliseconds + frame))
                size = _size(self._length - self._segment_start)
                self._file.overwrite(self._duration_at, _element(_DURATION, duration))
                self._file.overwrite(self._segment_start - len(size), size)
        finally:
            self._file.close()

    def _head(self, width: int, height: int) -> bytes:
        """All that comes before the first picture."""
        opening = _HEADER + _name(_SEGMENT) + _UNKNOWN_SIZE
        times = _whole(0x2AD7B1, 1_000_000)  # nanoseconds a tick
        names = _text(0x4D80, "wsfast") + _text(0x5741, "wsfast")
        information = _element(0x1549A966, times + names + _NO_DURATION)
        self._segment_start = len(opening)
        self._duration_at = len(opening) + len(information) - len(_NO_DURATION)
        picture = _whole(0xB0, width) + _whole(0xBA, height)
        entry = _whole(0xD7, 1) + _whole(0x73C5, 1)  # number and UID of the track
        entry += _whole(0x83, 1) + _whole(0x9C, 0)  # video, without lacing
        entry += _text(0x86, "V_MJPEG")
        if self._fps:
            entry += _whole(0x23E383, round(1e9 / self._fps))  # nanoseconds a frame
        entry += _element(0xE0, picture)
        return opening + information + _element(0x1654AE6B, _element(0xAE, entry))
