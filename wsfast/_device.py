"""The device a user names."""

import torch

from ._check import value_error


def parse_device(where: str, argument: str, text: str) -> torch.device:
    """The device named, ``auto`` for CUDA where there is one.

    Raises:
        ValueError: no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        value_error(where, argument, "auto, cpu or cuda", text)
    if device.type == "meta":
        value_error(where, argument, "a device that computes", text)
    count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        actual = f"{text} with {count} CUDA devices" if count else f"{text} without a CUDA device"
        value_error(where, argument, "available", actual)
    return device
