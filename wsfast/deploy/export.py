"""Localizers as files: TorchScript, AOTInductor packages, and ONNX up to the heat map.

Every file is opened again and compared with the eager module on pictures of its size before it
takes its name: where they differ, :class:`ExportError` is raised and nothing is left behind.
Convolutions that are compiled in another way round in another way, by about 1e-6 of a map of 0-1;
a pixel of the mask that lies so close to the threshold may fall either way.
"""

import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast._check import type_error, value_error
from wsfast._files import write_atomically
from wsfast.data.sample import check_size
from wsfast.deploy.localizer import Localizer
from wsfast.deploy.programs import (
    METADATA_FILE,
    LoadedLocalizer,
    check_name,
    describe,
    load,
    without_torchscript_warnings,
)
from wsfast.deploy.steps import LocalizerOutput, find_boxes, resize_cams
from wsfast.ops.fusion.registration import fuse_cams_in_torch

# Of maps in 0-1, and of logits over their largest; float32 stays far below. TF32, which a GPU's
# convolutions may use, has float16's precision.
_TOLERANCE = 1e-3
_HALF_TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
_BATCHES = (1, 3)
_TRACED_BATCH = 2
ONNX_BOUNDARY = (
    "outputs are logits and heat map; threshold, mask and boxes have no standard operators: "
    "apply wsfast.cam_boxes, or your own, to the heat map"
)


class ExportError(RuntimeError):
    """A localizer that cannot be exported, or an export that differs from it."""


def export_torchscript(
    localizer: Localizer,
    path: str | PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
) -> LoadedLocalizer:
    """Write a frozen TorchScript program, for Python and for C++ without Python.

    The frame is scripted; the network, whose input has one size, is traced in it.

    Args:
        localizer: on the device where the program is to run.
        path: file to write.
        image_size: height and width of the pictures; None for the network's input size.

    Returns:
        The program, opened again.

    Raises:
        ExportError: a network that cannot be traced, a program that differs from the localizer.
        ValueError: a path to no file or that ends in ``.pt2`` or ``.onnx``, no such folder, a size
            below 1.
        TypeError: not a :class:`Localizer`.
        OSError: the file cannot be written.

    Note:
        The program takes (N, C, *image_size) uint8 for any N >= 1 and returns six tensors, see
        :class:`wsfast.deploy.LocalizerOutput`. C++ programs have to open wsfast's operator library
        first. Metadata: ``_extra_files["wsfast.json"]``.
    """
    where = "deploy.export_torchscript"
    size = _checked(where, localizer, image_size)
    if Path(path).suffix in (".pt2", ".onnx"):
        value_error(where, "path", "a file that ends in neither .pt2 nor .onnx", f"{path}")
    with _replacing(where, Path(path)) as file, torch.no_grad(), without_torchscript_warnings():
        prepared = localizer.prepare(pictures(localizer, size, _TRACED_BATCH))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the result is verified
            traced = torch.jit.trace(localizer.network, prepared, check_trace=False, strict=False)
        frozen = torch.jit.freeze(torch.jit.script(localizer.with_network(traced)))
        extra = {METADATA_FILE: json.dumps(describe(localizer, size))}
        written = io.BytesIO()
        torch.jit.save(frozen, written, _extra_files=extra)
        write_atomically(file, written.getbuffer())
        _verify(where, localizer, load(file, device=localizer.mean.device), size)
    return load(path, device=localizer.mean.device)


def export_pt2(
    localizer: Localizer,
    path: str | PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
) -> LoadedLocalizer:
    """Write an AOTInductor package: compiled for this machine, for Python and for C++.

    Args:
        localizer: on the device where the program is to run.
        path: file to write, ``.pt2``.
        image_size: height and width of the pictures; None for the network's input size.

    Returns:
        The program, opened again.

    Raises:
        ExportError: a network that torch cannot export or compile, a program that differs from the
            localizer.
        ValueError: another suffix, a path to no file, no such folder, a size below 1.
        TypeError: not a :class:`Localizer`.
        OSError: the file cannot be written.

    Note:
        Needs a C++ compiler (on CUDA also Triton) and takes from seconds to minutes. Input and
        outputs as :func:`export_torchscript`'s. Metadata: those of the package.
    """
    where = "deploy.export_pt2"
    size = _checked(where, localizer, image_size)
    if Path(path).suffix != ".pt2":
        value_error(where, "path", "a file that ends in .pt2", f"{path}")
    options: dict[str, Any] = {"aot_inductor.metadata": describe(localizer, size)}
    # Batch norms are folded and weights packed for the processor's convolutions.
    options["freezing"] = localizer.mean.device.type == "cpu"
    # Compiled for the threads of this process, a program never uses more, and on a machine with
    # more cores its reductions write past the end of their per-thread arrays.
    options["cpp.dynamic_threads"] = True
    with _replacing(where, Path(path)) as file, torch.no_grad():
        program = _exported(_Plain(localizer), pictures(localizer, size, _TRACED_BATCH))
        written = io.BytesIO()
        with _quiet_compiler():
            torch._inductor.aoti_compile_and_package(
                program, package_path=written, inductor_configs=options
            )
        write_atomically(file, written.getbuffer())
        _verify(where, localizer, load(file, device=localizer.mean.device), size)
    return load(path, device=localizer.mean.device)


def export_onnx(
    localizer: Localizer,
    path: str | PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
) -> dict[str, str]:
    """Write what standard ONNX operators express: from pictures to class scores and heat map.

    The boundary: threshold, mask and boxes are not in the file. Otsu's threshold and connected
    components have no standard operators; apply :func:`wsfast.cam_boxes` to the heat map.

    Args:
        localizer: what to export.
        path: file to write, ``.onnx``.
        image_size: height and width of the pictures; None for the network's input size.

    Returns:
        The metadata, as they are in the file.

    Raises:
        ExportError: a network that torch cannot export, a program that differs from the localizer.
        ValueError: another suffix, a path to no file, no such folder, a size below 1; onnxscript
            is not installed.
        TypeError: not a :class:`Localizer`.
        OSError: the file cannot be written.

    Note:
        Input ``images`` (N, C, *image_size) uint8; outputs ``logits`` (N, K), ``cams`` (N, H, W).
        Verified by onnxruntime; a warning says so where that is not installed.
    """
    where = "deploy.export_onnx"
    size = _checked(where, localizer, image_size)
    if Path(path).suffix != ".onnx":
        value_error(where, "path", "a file that ends in .onnx", f"{path}")
    if importlib.util.find_spec("onnxscript") is None:
        value_error(where, "onnxscript", "installed (pip install 'wsfast[onnx]')", "not found")
    metadata = {**describe(localizer, size), "boundary": ONNX_BOUNDARY}
    with _replacing(where, Path(path)) as file, torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own code
            exported = _exported(_HeatMaps(localizer), pictures(localizer, size, _TRACED_BATCH))
            table = torch.export.default_decompositions()
            table[torch.ops.wsfast.fuse_cams.default] = fuse_cams_in_torch
            program = torch.onnx.export(
                exported.run_decompositions(table),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits", "cams"],
            )
        assert program is not None
        program.model.metadata_props.update(metadata)
        program.save(str(file), external_data=False)
        _verify_onnx(where, localizer, file, size)
    return metadata


class _Plain(nn.Module):
    """A localizer whose result is a plain tuple, which needs no wsfast to be unpacked."""

    def __init__(self, localizer: Localizer) -> None:
        super().__init__()
        self.localizer = localizer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.localizer(images))


class _HeatMaps(nn.Module):
    """A localizer up to its heat map."""

    def __init__(self, localizer: Localizer) -> None:
        super().__init__()
        self.localizer = localizer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, cams = self.localizer.heat_maps(self.localizer.prepare(images))
        size = self.localizer.output_size or (images.shape[2], images.shape[3])
        return logits.float(), resize_cams(cams, size)


def pictures(localizer: Localizer, size: tuple[int, int], count: int) -> Tensor:
    """Random uint8 pictures with coarse shapes and grain, the same at every call."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, localizer.channels, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
    grain = 0.1 * torch.randn(smooth.shape, generator=generator)
    images = ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8)
    return images.to(localizer.mean.device)


def _checked(where: str, localizer: object, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """The pictures' size, if this can be exported."""
    if not isinstance(localizer, Localizer):
        expected = "a Localizer (gradient CAMs run in eager mode only)"
        type_error(where, "localizer", expected, type(localizer).__name__)
    assert isinstance(localizer, Localizer)
    size = image_size or localizer.input_size
    check_size(where, size, 1, "image_size")
    return size[0], size[1]


def _exported(module: nn.Module, images: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module.eval(), (images,), dynamic_shapes={"images": {0: batch}})


@contextmanager
def _replacing(where: str, path: Path) -> Iterator[Path]:
    """A file of the same name in a folder beside the target, which it replaces at the end.

    Torch is to fill a buffer in its place: on a full disk its own files end the whole process.
    """
    if not path.parent.is_dir():
        value_error(where, "path", "in an existing folder", f"{path}")
    if path.is_dir():
        value_error(where, "path", "a file", f"the folder {path}")
    if path.exists() and not path.is_file():  # the system's own, such as /dev/null
        value_error(where, "path", "a file", f"{path}, which is none")
    name = path.name  # torch goes by its suffix
    path = path.resolve()  # what a link leads to is replaced, not the link
    check_name(where, path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        partial = Path(folder) / name
        with _explained(where):
            yield partial
        os.replace(partial, path)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Torch's many kinds of errors as one, with their first line."""
    try:
        yield
    except (OSError, ExportError):  # the disk's, and our own
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"wsfast.{where}: torch cannot export it: {line}") from error


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Without the compiler's warnings, which are about its own ways."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _verify(
    where: str, localizer: Localizer, program: LoadedLocalizer, size: tuple[int, int]
) -> None:
    """Compare a program with the module, on batches of several sizes.

    Scores and maps may differ by rounding. Masks and boxes have to be exactly what the maps that
    the program returns give in eager mode.
    """
    for count in _BATCHES:
        images = pictures(localizer, size, count)
        expected, found = localizer(images), program(images)
        for name, ours, theirs in zip(expected._fields, expected, found, strict=True):
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                kinds = [f"{list(part.shape)} {part.dtype}" for part in (ours, theirs)]
                raise ExportError(f"wsfast.{where}: {name} is {kinds[1]}, not {kinds[0]}")
        _compare(where, localizer, expected[:2], found[:2])
        boxes = find_boxes(
            found.logits, found.cams, localizer.threshold, localizer.max_boxes,
            localizer.connectivity, localizer.min_area,
        )  # fmt: skip
        for name in ("masks", "boxes", "scores", "counts"):
            if not torch.equal(getattr(boxes, name), getattr(found, name)):
                raise ExportError(f"wsfast.{where}: {name} are not those of the program's own maps")


def _compare(where: str, localizer: Localizer, expected: Any, found: Any) -> None:
    tolerance = _tolerance(localizer.mean)
    for name, ours, theirs in zip(LocalizerOutput._fields, expected, found, strict=False):
        scale = max(1.0, float(ours.abs().amax()))
        error = float((ours - theirs).abs().amax()) / scale
        if not error <= tolerance:
            raise ExportError(
                f"wsfast.{where}: {name} differ from the model's by {error:.2g} (at most "
                f"{tolerance:g} is rounding); nothing was written"
            )


def _tolerance(like: Tensor) -> float:
    """Of what is computed on the device and in the dtype of a tensor."""
    coarse = like.is_cuda and torch.backends.cudnn.allow_tf32 and like.dtype == torch.float32
    return _HALF_TOLERANCES.get(torch.float16 if coarse else like.dtype, _TOLERANCE)


def can_verify_onnx() -> bool:
    """Whether :func:`export_onnx` can compare its files with the model."""
    return importlib.util.find_spec("onnxruntime") is not None


def _verify_onnx(where: str, localizer: Localizer, file: Path, size: tuple[int, int]) -> None:
    if not can_verify_onnx():
        message = "not verified, as onnxruntime is not installed"
        warnings.warn(f"wsfast.{where}: {message}", stacklevel=4)
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in _BATCHES:
        images = pictures(localizer, size, count)
        found = session.run(["logits", "cams"], {"images": images.cpu().numpy()})
        ours = [part.cpu() for part in localizer(images)[:2]]
        _compare(where, localizer, ours, [torch.from_numpy(part) for part in found])
