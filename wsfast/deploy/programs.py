"""Exported localizers: what is written beside them, and their call."""

import json
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsfast._check import type_error, value_error
from wsfast._device import parse_device
from wsfast._version import __version__
from wsfast.deploy.localizer import Localizer
from wsfast.deploy.steps import LocalizerOutput, check_images

METADATA_FILE = "wsfast.json"  # of TorchScript programs


def describe(localizer: Localizer, image_size: tuple[int, int]) -> dict[str, str]:
    """What a program's metadata say of it, all of it as text.

    Args:
        localizer: what is exported.
        image_size: height and width of the pictures it is exported for.
    """
    outputs = localizer.output_size or image_size
    facts = {
        "wsfast_version": __version__,
        "torch_version": torch.__version__,
        "input_height": localizer.input_size[0],
        "input_width": localizer.input_size[1],
        "image_height": image_size[0],
        "image_width": image_size[1],
        "output_height": outputs[0],
        "output_width": outputs[1],
        "channels": localizer.channels,
        "class_names": json.dumps(list(localizer.class_names)),
        "max_boxes": localizer.max_boxes,
        "min_area": localizer.min_area,
        "connectivity": localizer.connectivity,
        "threshold": localizer.threshold,
    }
    return {name: str(value) for name, value in facts.items()}


class LoadedLocalizer:
    """An exported program behind the call of :class:`wsfast.deploy.Localizer`.

    Args:
        run: from uint8 images to the six tensors.
        metadata: what was written beside it.
        device: where the program is.

    Attributes:
        metadata: as they were written, all of it text.
        input_size: height and width of the network's input.
        image_size: height and width of the pictures that the program takes.
        channels: of those pictures.
        class_names: one per class, or empty.
        device: where the pictures have to be.
    """

    def __init__(
        self, run: Callable[[Tensor], Any], metadata: dict[str, str], device: torch.device
    ) -> None:
        self.metadata = metadata
        self.input_size = int(metadata["input_height"]), int(metadata["input_width"])
        self.image_size = int(metadata["image_height"]), int(metadata["image_width"])
        self.channels = int(metadata["channels"])
        self.class_names: tuple[str, ...] = tuple(json.loads(metadata["class_names"]))
        self.device = device
        self._run = run

    def __call__(self, images: Tensor) -> LocalizerOutput:
        """Localise a batch (N, channels, *image_size) of uint8 pictures on the program's device.

        Raises:
            ValueError: pictures of another shape, or on another device.
            TypeError: other than uint8.
        """
        where = "deploy.LoadedLocalizer"
        check_images(where, images, self.channels)
        if images.dtype != torch.uint8:
            type_error(where, "images", "uint8", f"{images.dtype}")
        if images.shape[2:] != self.image_size or not len(images):
            height, width = self.image_size
            expected = f"of shape (N, {self.channels}, {height}, {width}) with N >= 1, as exported"
            value_error(where, "images", expected, f"shape {list(images.shape)}")
        indices = {images.device.index, self.device.index} - {None}
        if images.device.type != self.device.type or len(indices) > 1:
            value_error(where, "images", f"on {self.device}, as the program", f"{images.device}")
        return LocalizerOutput(*self._run(images))


def load(path: str | PathLike[str], *, device: str | torch.device = "cpu") -> LoadedLocalizer:
    """Open what :mod:`wsfast.deploy.export` wrote as TorchScript or ``.pt2``.

    Args:
        path: the file.
        device: where a TorchScript program is to run; a ``.pt2`` runs on the kind of device that it
            was compiled for, on CUDA on the GPU named here (the current one without an index).

    Raises:
        ValueError: no such file, not a program of ``wsfast export``, no such device, a GPU's number
            for a ``.pt2`` of the CPU.

    Note:
        A ``.pt2`` holds machine code: open files that you trust, as with any program.
    """
    file = Path(path)
    if not file.is_file():
        value_error("deploy.load", "path", "an existing file", f"{file}")
    check_name("deploy.load", file)
    if file.suffix == ".onnx":
        expected = "TorchScript or a .pt2 (ONNX runtimes open the other)"
        value_error("deploy.load", "path", expected, f"{file}")
    opened = _open_package if file.suffix == ".pt2" else _open_torchscript
    wanted = parse_device("deploy.load", "device", str(device))
    try:
        program = opened(file, wanted)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error).splitlines()[0]
        value_error("deploy.load", "path", "a program of `wsfast export`", f"{file} ({reason})")
        raise AssertionError from None  # value_error always raises
    if wanted.index is not None and wanted.type != program.device.type:
        expected = f"without an index for a program of the {program.device.type}"
        value_error("deploy.load", "device", expected, f"{wanted}")
    return program


def check_name(where: str, path: Path) -> None:
    """Raise ValueError for a path that torch and onnxruntime cannot open: they want UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        value_error(where, "path", "a name in UTF-8", f"{path}")


@contextmanager
def without_torchscript_warnings() -> Any:
    """Torch announces TorchScript's end at every call; it is tested with each torch supported."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=".*torch.jit", category=category)
        yield


def _open_torchscript(file: Path, device: torch.device) -> LoadedLocalizer:
    extra = {METADATA_FILE: ""}
    with without_torchscript_warnings():
        program = torch.jit.load(str(file), map_location=device, _extra_files=extra)
    if not extra[METADATA_FILE]:
        raise KeyError(METADATA_FILE)

    def run(images: Tensor) -> Any:
        with torch.no_grad():
            return program(images)

    return LoadedLocalizer(run, json.loads(extra[METADATA_FILE]), device)


def _open_package(file: Path, device: torch.device) -> LoadedLocalizer:
    # The package's own call reads its call specification anew each time. Its compiled code takes
    # strides and device for granted.
    index = device.index if device.type == "cuda" and device.index is not None else -1
    with _current(index):  # what is opened there would make it the process's own
        loader = torch._inductor.aoti_load_package(str(file), device_index=index).loader
    metadata = loader.get_metadata()
    place = torch.device(metadata.get("AOTI_DEVICE_KEY", "cpu"))
    if place.type == "cuda":
        index = torch.cuda.current_device() if index < 0 else index
        place = torch.device("cuda", index)
    # It runs one call at a time and lets the others wait with Python's lock in their hands, which
    # the first needs to go on in wsfast's operators.
    calls = threading.Lock()

    def run(images: Tensor) -> Any:
        with calls, _current(index):
            return loader.run([images.contiguous()])

    return LoadedLocalizer(run, metadata, place)


def _current(index: int) -> AbstractContextManager[object]:
    """Make a GPU the current one inside the block; below 0 none."""
    return torch.cuda.device(index) if index >= 0 else nullcontext()
