"""Where results go: told before any work where they cannot, and what is there already."""

import json
from collections.abc import Iterable
from pathlib import Path

from .._check import value_error


def check_folder(where: str, argument: str, path: Path) -> None:
    """Raise ValueError unless a path is a folder, or can become one."""
    file = _file_on_the_way(path)
    if file is not None:
        actual = f"the file {path}" if file == path else f"{path} below the file {file}"
        value_error(where, argument, "a folder", actual)


def check_file(where: str, argument: str, path: Path | None, *, made: bool = False) -> None:
    """Raise ValueError unless a path, if there is one, is a file or can become one.

    With ``made`` its folder will be made, else it must be there. Devices and FIFOs count as files.
    """
    if path is None:
        return
    if path.is_dir():
        value_error(where, argument, "a file", f"the folder {path}")
    if _file_on_the_way(path.parent) is not None or not (made or path.parent.is_dir()):
        value_error(where, argument, "in a folder" if made else "in an existing folder", f"{path}")


def _file_on_the_way(folder: Path) -> Path | None:
    """What is in the place of a folder, or of one that it lies in."""
    existing = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return None if existing is None or existing.is_dir() else existing


def check_images_kept(where: str, images: Iterable[Path], out: Path) -> None:
    """Raise ValueError where ``out`` is the folder of an image or video.

    An overlay there, NAME.png, could replace the image, what a link to it leads to, or what belongs
    to it, such as its mask.
    """
    folders: dict[Path, Path] = {}
    for image in images:
        folders.setdefault(image.parent, image)
        if image.is_symlink():
            folders.setdefault(image.resolve().parent, image)
    for folder, image in folders.items():
        if folder.resolve() == out.resolve():
            expected = "another folder than the images', whose PNGs could be replaced"
            value_error(where, "--out", expected, f"{out} with {image.name}")


def written_files(out: Path, results: str) -> set[Path]:
    """Pictures and maps that an earlier run lists in its results and that are still there.

    Args:
        out: the folder.
        results: its file of one JSON record per line, which a killed run has, too.
    """
    names = []
    try:
        for line in (out / results).read_text().splitlines():
            names.append(json.loads(line)["name"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no such file, of a live run, or cut short: what was read until then counts
    files = {out / f"{name}{suffix}" for name in names for suffix in (".png", ".npy")}
    return {file for file in files if file.is_file()}
