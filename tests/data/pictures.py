"""Small pictures and masks on disk."""

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
