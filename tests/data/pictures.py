"""Small pictures and masks on disk."""

import struct

import cv2
import numpy as np


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(image, np.uint8))
    return path


def picture(path, *, size=(12, 8), value=100):
    """A grey picture, told apart by its value."""
    return write(path, np.full(size, value))


def mask(path, box, *, size=(12, 8), value=255):
    """A mask with a half-open box (x0, y0, x1, y1) in it, or none."""
    drawn = np.zeros(size)
    if box is not None:
        x0, y0, x1, y1 = box
        drawn[y0:y1, x0:x1] = value
    return write(path, drawn)


def torn(path):
    """A picture that ends too early."""
    picture(path)
    path.write_bytes(path.read_bytes()[:40])
    return path


def with_orientation(jpeg, orientation):
    """Insert an EXIF block with nothing but an orientation after the start marker."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]
