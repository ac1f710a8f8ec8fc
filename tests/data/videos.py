"""Small video files, whole, damaged and cut off."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np


def write_clip(path: Path, greys: Iterable[int], *, fps: float = 10, side: int = 48) -> Path:
    """A Motion JPEG file of evenly grey frames, (side, 64) pixels each."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, side))
    for grey in greys:
        writer.write(np.full((side, 64, 3), grey, np.uint8))
    writer.release()
    return path


def _pictures(data: bytes) -> list[tuple[int, int]]:
    """Where the JPEG of each frame begins and ends."""
    found, at, end = [], data.index(b"movi"), data.index(b"idx1")
    while 0 <= (at := data.find(b"00dc", at)) < end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((at + 8, at + 8 + size))
        at += 8 + size
    return found


def damage_clip(path: Path, frames: Iterable[int]) -> Path:
    """Overwrite frames of a clip with zeros."""
    data = bytearray(path.read_bytes())
    pictures = _pictures(bytes(data))
    for frame in frames:
        begin, end = pictures[frame]
        data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    return path


def cut_clip(path: Path, *, before: int) -> Path:
    """Cut a clip off in front of a frame."""
    data = path.read_bytes()
    path.write_bytes(data[: _pictures(data)[before][0] - 8])
    return path


def read_clip(path: Path) -> list[np.ndarray]:
    """The frames of a video, BGR."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read()[1]) is not None:
        frames.append(frame)
    return frames
