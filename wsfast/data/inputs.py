"""The pictures a user points at: files, folders, patterns and videos as one lazy stream."""

import glob
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsfast._check import value_error
from wsfast.data.images import SkippedFile, UnreadableImageError, read_image
from wsfast.data.video import VideoFrames

# Of an animated .gif the first frame is read, by OpenCV 4.11 and later.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mjpg", ".mpg", ".mpeg", ".wmv", ".flv",
     ".3gp", ".mts", ".m2ts"}
)  # fmt: skip
_NO_FRAME = "no video frame could be decoded"


def expand_inputs(inputs: Iterable[str | PathLike[str]]) -> list[Path]:
    """List the image and video files behind files, folders and patterns.

    Folders are searched recursively; one that cannot be read is left out with a warning. Folders
    and patterns give only files of a known image or video suffix, sorted, and never hidden ones; a
    file named outright is taken whatever its suffix.

    Args:
        inputs: files, folders and glob patterns (``**`` goes through folders).

    Returns:
        The files, in the order of ``inputs``, each once.

    Raises:
        ValueError: an input matches no image or video.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.JPG", "notes.txt"):
        ...     (folder / name).touch()
        >>> [file.name for file in expand_inputs([folder])]
        ['a.JPG', 'b.png']
    """
    files: dict[Path, None] = {}  # a dictionary keeps the order and drops what is named twice
    for item in inputs:
        matches = _expand(Path(item))
        if not matches:
            suffixes = " ".join(sorted(s[1:] for s in IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            value_error(
                "expand_inputs",
                "inputs",
                f"files, folders or patterns with an image or video ({suffixes})",
                f"{item}, which matches none",
            )
        files.update(dict.fromkeys(matches))
    if not files:
        value_error("expand_inputs", "inputs", "at least one file, folder or pattern", "none")
    return list(files)


def _expand(item: Path) -> list[Path]:
    if item.is_file():
        return [item]
    if item.is_dir():
        return [path for path in files_below(item) if _is_wanted(path.relative_to(item), path)]
    matches: list[Path] = []
    for match in sorted(glob.glob(str(item), recursive=True)):
        path = Path(match)
        matches += _expand(path) if path.is_dir() or _is_wanted(Path(path.name), path) else []
    return matches


def files_below(folder: Path, *, aliases: bool = False) -> list[Path]:
    """All files in a folder and those below, also behind links, sorted.

    A folder to which several ways lead counts once, by its own place rather than a link's. With
    ``aliases`` it counts in every place, but never inside itself.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting: deque[tuple[Path, frozenset[str]]] = deque([(folder, frozenset())])
    while waiting:
        place, around = waiting.popleft()
        real = os.path.realpath(place)
        if real in (around if aliases else seen):
            continue
        seen.add(real)
        for entry in _entries(place):
            if not _is_folder(entry):
                found.append(place / entry.name)
            elif entry.is_symlink():
                waiting.append((place / entry.name, around | {real}))
            else:
                waiting.appendleft((place / entry.name, around | {real}))
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:  # of a folder that may not be read
        if not folder.name.startswith("."):
            warnings.warn(f"{folder} is left out ({error.strerror})", stacklevel=3)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False


def _is_wanted(relative: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_file()


class ImageFiles:
    """A lazy stream of ``(name, image)`` over files, folders, patterns and videos.

    Images are uint8 RGB arrays of shape (H, W, 3), read one at a time. A name is the file's stem,
    for a video frame the stem and the frame's index (``clip_000012``); a name met before gets a
    number, so names are unique. A file that cannot be read is noted in ``skipped``, the rest read;
    so is a video of which some frames could not be decoded (inside of others than AVI, MP4 and MOV
    only OpenCV 5 tells).

    Args:
        inputs: as for :func:`expand_inputs`.

    Attributes:
        files: what will be read.
        skipped: the files left out by the latest iteration, wholly or in part, with the reason.
        sources: for each name of the latest iteration, its file.

    Raises:
        ValueError: an input matches no image or video.

    Example:
        >>> import cv2, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = cv2.imwrite(str(folder / "part.png"), np.zeros((4, 6), np.uint8))
        >>> _ = (folder / "torn.png").write_bytes(b"half a file")
        >>> images = ImageFiles([folder])
        >>> [(name, image.shape) for name, image in images]
        [('part', (4, 6, 3))]
        >>> [(file.path.name, file.reason) for file in images.skipped]
        [('torn.png', 'not an image or damaged')]
    """

    def __init__(self, inputs: Iterable[str | PathLike[str]]) -> None:
        self.files = expand_inputs(inputs)
        self.skipped: list[SkippedFile] = []
        self.sources: dict[str, Path] = {}

    def __length_hint__(self) -> int:
        """Return the expected number of images; a video counts as its header says."""
        return sum(_frame_count(file) if _is_video(file) else 1 for file in self.files)

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Start again from the first file."""
        self.skipped = []
        self.sources = {}
        for file in self.files:
            try:
                images = _video_frames(file) if _is_video(file) else _single_image(file)
                for stem, image in images:
                    name = self._unique(stem)
                    self.sources[name] = file
                    yield name, image
            except UnreadableImageError as error:
                self.skipped.append(SkippedFile(error.path, error.reason))

    def _unique(self, stem: str) -> str:
        name, number = stem, 2
        while name in self.sources:
            name, number = f"{stem}_{number}", number + 1
        return name


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES


def _single_image(file: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    yield file.stem, read_image(file)


def _video_frames(file: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    video = _open_video(file)
    try:
        while (frame := video.read()) is not None:
            yield f"{file.stem}_{video.delivered - 1:06d}", frame
    finally:
        video.close()
    lost = video.unreadable + video.missing
    if video.delivered == 0 or lost:
        reason = f"{lost} of its {video.delivered + lost} frames could not be decoded"
        raise UnreadableImageError(file, reason if video.delivered else _NO_FRAME)


def _open_video(file: Path) -> VideoFrames:
    try:
        return VideoFrames(file)
    except ValueError:
        raise UnreadableImageError(file, _NO_FRAME) from None


def _frame_count(file: Path) -> int:
    try:
        video = VideoFrames(file)
    except ValueError:
        return 0
    video.close()
    return video.count
