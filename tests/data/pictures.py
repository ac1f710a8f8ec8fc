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


def tiff(samples, order, *, big=False, white=True, kind=3):
    """A grey TIFF or BigTIFF in this byte order; what 0 means is a number of this TIFF type."""
    (height, width), bits = samples.shape, 8 * samples.itemsize
    word, length, start = ("Q", "Q", 16) if big else ("I", "H", 8)
    pixels = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    pixels += bytes(len(pixels) % 2)  # a table begins at an even place
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white), 273: start, 277: 1,
            278: height, 279: samples.nbytes}  # fmt: skip
    table = struct.pack(order + length, len(tags))
    for tag, value in tags.items():
        of_type = kind if tag == 262 else 3
        number = struct.pack(order + {3: "H", 4: "I"}[of_type], value)
        table += struct.pack(order + "HH" + word, tag, of_type, 1)
        table += number.ljust(struct.calcsize(order + word), b"\0")
    magic = struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    header = {"<": b"II", ">": b"MM"}[order] + magic
    return header + struct.pack(order + word, start + len(pixels)) + pixels + table + bytes(8)
