"""Reading one image file into 8-bit RGB, or saying plainly why that is impossible."""

import struct
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# Keeps 16-bit and float samples, gives grey or BGR without alpha, and applies the EXIF orientation
# (IMREAD_UNCHANGED would not) unless it is told not to.
_DECODE_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
_TWELVE_BITS = 1 << 12
_PHOTOMETRIC = 262  # TIFF's tag of what 0 means
_WIDTHS = {1: 1, 3: 2}  # bytes of a number by TIFF's type; others have 4
# By how a TIFF or a BigTIFF begins: byte order, where the place of the first table is, formats of
# that place and of the table's length, bytes of an entry and of the value at its end.
_TIFFS = {
    b"II*\0": ("<", 4, "I", "H", 12, 4), b"MM\0*": (">", 4, "I", "H", 12, 4),
    b"II+\0": ("<", 8, "Q", "Q", 20, 8), b"MM\0+": (">", 8, "Q", "Q", 20, 8),
}  # fmt: skip


class SkippedFile(NamedTuple):
    """A file that was left out, and why."""

    path: Path
    reason: str


class UnreadableImageError(ValueError):
    """An image file that cannot be read or decoded.

    Attributes:
        path: the file.
        reason: why, in a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"wsfast.read_image: path must be a readable image, got {path} ({reason})")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Be rebuilt in another process: from what it was made of, not from its message."""
        return type(self), (self.path, self.reason)


def read_image(path: str | PathLike[str], *, upright: bool = True) -> NDArray[np.uint8]:
    """Read an image file as 8-bit RGB, turned upright as its EXIF orientation says.

    Grey images are repeated over the three channels and alpha is dropped. 16-bit samples are
    scaled from their full range (65535 becomes 255), with a warning where none reaches 4096; float
    samples from 0–1.

    Args:
        path: file in any format OpenCV decodes.
        upright: turn it; False leaves the pixels as they lie in the file.

    Returns:
        uint8 array of shape (H, W, 3).

    Raises:
        UnreadableImageError: the file is missing, not an image, or cut short.

    Example:
        >>> import cv2, tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "blue.png"
        >>> _ = cv2.imwrite(str(file), np.full((2, 3, 3), (255, 0, 0), np.uint8))
        >>> read_image(file)[0, 0].tolist()
        [0, 0, 255]
    """
    path = Path(path)
    samples = read_samples(path, upright=upright)
    if samples.dtype == np.uint16 and 0 < samples.max() < _TWELVE_BITS:
        warnings.warn(  # the same words for every file: shown once
            "wsfast.read_image: a 16-bit image whose samples stay below 4096 turns nearly black; "
            "stretch those of a 10- or 12-bit camera to 16 bits first, or save 8",
            stacklevel=2,
        )
    return _to_rgb(to_8_bit(path, samples))


def read_samples(path: Path, *, upright: bool = True) -> NDArray[np.generic]:
    """A file's samples as they are: (H, W), or (H, W, 3) in OpenCV's order, without alpha.

    Raises:
        UnreadableImageError: the file is missing, not an image, or cut short.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or "cannot be opened") from None
    if not data:
        raise UnreadableImageError(path, "empty file")
    if is_cut_short(data):  # some OpenCV versions fill the rest with grey and say nothing
        raise UnreadableImageError(path, "file is cut short")
    try:
        flags = _DECODE_FLAGS | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise UnreadableImageError(path, "not an image or damaged")
    if decoded.dtype == np.uint16 and _counts_from_white(data):
        return np.invert(decoded)  # as OpenCV itself does with samples of 8 bits, but not of more
    return decoded


def _counts_from_white(data: bytes) -> bool:
    """Whether a TIFF's first picture has 0 for white, as X-ray detectors write them."""
    if data[:4] not in _TIFFS:
        return False
    order, place, offset, length, size, value = _TIFFS[data[:4]]
    try:
        (table,) = struct.unpack_from(order + offset, data, place)
        (count,) = struct.unpack_from(order + length, data, table)
        first = table + struct.calcsize(order + length)
        for entry in range(first, first + size * count, size):
            tag, kind = struct.unpack_from(order + "HH", data, entry)
            if tag == _PHOTOMETRIC:
                at = entry + size - value
                return not any(data[at : at + _WIDTHS.get(kind, 4)])
    except struct.error:  # OpenCV made something of it
        pass
    return False


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG ends before its end marker."""
    if data.startswith(b"\xff\xd8"):
        scan = _first_scan(data)
        return scan < 0 or data.find(b"\xff\xd9", scan) < 0
    return data.startswith(b"\x89PNG") and b"IEND" not in data


def _first_scan(data: bytes) -> int:
    """Where a JPEG's scan begins, -1 where it does not.

    Segment by segment: an EXIF thumbnail in one of them brings markers of its own, and so may what
    follows the picture (a phone's video).
    """
    at = 2
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1 : at + 2]):
        if marker == b"\xda":
            return at
        at += 1 if marker == b"\xff" else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xda")  # stray bytes between segments


def to_8_bit(path: Path, image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Samples scaled as :func:`read_image` says.

    Raises:
        UnreadableImageError: samples of another type, or floats outside 0-1.
    """
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    if image.dtype == np.uint16:
        return np.rint(image.astype(np.float32) / 257).astype(np.uint8)
    if image.dtype in (np.float32, np.float64):
        values = image.astype(np.float32)
        if not (values.min() >= 0 and values.max() <= 1):
            raise UnreadableImageError(path, "float samples outside 0-1")
        return np.rint(values * 255).astype(np.uint8)
    raise UnreadableImageError(path, f"{image.dtype} samples")


def _to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(image, code).astype(np.uint8, copy=False)
