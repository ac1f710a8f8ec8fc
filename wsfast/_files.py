"""Writing files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PARTIAL = ".partial"


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside the target that replaces it when the block ends without an error.

    ``durable`` waits until the content is on the disk, so that the file survives a power cut too.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write beside the target and rename, so that readers never meet half a file."""
    with atomic_file(path, durable=durable) as file:
        file.write(data)


def remove_partial_files(folder: Path) -> None:
    """Delete what processes that were killed while writing have left in a folder."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)
