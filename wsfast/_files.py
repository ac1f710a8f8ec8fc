"""Writing files whole or not at all."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Self

_PARTIAL = ".partial"
_KEPT = 200  # bytes of a name, of which systems take 255


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside the target that replaces it when the block ends without an error.

    ``durable`` waits until content and name are on the disk, so that the file survives a power cut.
    What a link leads to is replaced, not the link; what is no file, such as /dev/stdout or a FIFO,
    is written into.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    if path.is_symlink():
        path = path.resolve()
    end = os.fsencode(path.name)[-_KEPT:].decode(errors="ignore")  # where numbers are
    partial = path.with_name(f".{end}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # which file it was
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    with suppress(OSError):  # Windows opens no folders, some network drives do not sync them
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def allocate(path: Path) -> None:
    """Take the place of a sparse file on the disk now.

    A full disk is then an OSError that names the file: met while the file is mapped, it would kill
    the process by SIGBUS. Systems and drives that cannot do so leave the file as it is.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, data: bytes | memoryview, *, durable: bool = False) -> None:
    """Write beside the target and rename, so that readers never meet half a file."""
    with atomic_file(path, durable=durable) as file:
        file.write(data)


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make a folder; an error in the block removes what was made of it again, where it is empty."""
    new = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, and then nor are the folders around it
            for place in new:
                place.rmdir()
        raise


def remove_partial_files(folder: Path) -> None:
    """Delete what processes that were killed while writing have left in a folder."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


class AppendedFile:
    """A file that grows by whole pieces: each is handed to the system before ``append`` returns.

    So a process that is killed loses nothing that it has appended, and what a full disk has taken
    of a piece is cut off again.

    Args:
        path: replaced where it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = FileIO(path, "w")

    def append(self, data: bytes) -> None:
        """Write all of the data at the end or, with an OSError that names the file, nothing."""
        start = self._file.tell()
        try:
            self._write(data)
        except OSError as error:
            self._file.truncate(start)
            self._file.seek(start)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def overwrite(self, position: int, data: bytes) -> None:
        """Replace bytes written before."""
        self._file.seek(position)
        self._write(data)
        self._file.seek(0, os.SEEK_END)

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    def close(self) -> None:
        """Close the file; nothing is left to write."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


class JSONLines(AppendedFile):
    """A file with a JSON document per line."""

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        self.append((json.dumps(record) + "\n").encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
