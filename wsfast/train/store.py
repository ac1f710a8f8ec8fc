"""One array on disk for a whole data set, filled by any number of processes, restartable."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from wsfast._files import allocate, write_atomically
from wsfast.train import distributed

Array = NDArray[Any]


def shared_digest(files: Sequence[Path], names: Sequence[object]) -> str:
    """What tells one list of named files from another, and a file from what replaced it.

    The writing process's, for all: other machines may have copies of their own. A collective call.
    """
    lines = [f"{name} {_state(file)}" for file, name in zip(files, names, strict=True)]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return str(distributed.gather_objects(digest)[0])


def _state(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:  # whoever reads it finds out
        return "gone"
    # Uncompressed pictures of one camera are all of one size in bytes: the time tells them apart.
    return f"{found.st_size} {found.st_mtime_ns}"


def weights_digest(model: nn.Module) -> str:
    """What tells one set of weights from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class ArrayStore:
    """A memory-mapped ``.npy`` of one row per image, named after what it holds.

    It is filled under a temporary name, each process its share, and renamed when complete. Which
    rows are done is noted beside it after they are written, so that a broken run goes on where it
    was, with any number of processes, and no row is made twice or left out.

    Args:
        folder: where it is; made where missing. Processes of one run must see the same folder.
        name: for people.
        key: what the rows depend on, such as weights, method and data; JSON must be able to hold
            it. Another key is another file.
        shape: of all rows together, (rows, ...).
        dtype: of the values.

    Attributes:
        path: of the complete file.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        key: Mapping[str, Any],
        shape: Sequence[int],
        dtype: Any = np.uint8,
    ) -> None:
        told = json.dumps({**key, "shape": list(shape), "dtype": str(np.dtype(dtype))}, indent=1)
        self._told = told
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.path = folder / f"{name}-{digest}.npy"
        self._partial = folder / f".{name}-{digest}.unfinished.npy"
        self._done = folder / f".{name}-{digest}.done.npy"
        self._shape = tuple(shape)
        self._dtype = np.dtype(dtype)

    def open(self) -> Array:
        """The complete array, read only; FileNotFoundError where it is not complete yet."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def fill(
        self,
        compute: Callable[[list[int]], Array],
        *,
        batch_size: int = 32,
        description: str = "maps",
        progress: bool = True,
    ) -> Array:
        """The array, computed where it is not there yet.

        Args:
            compute: from row numbers to their values.
            batch_size: rows at a time.
            description: what the progress bar says.
            progress: show a bar.

        Raises:
            OSError: the disk has no place for the array.

        Note:
            A collective call: every process of the group must make it.
        """
        if not all(distributed.gather_objects(self.path.is_file())):
            self._prepare()
            self._compute(compute, batch_size, description, progress)
            distributed.barrier()
            if distributed.is_writer():
                write_atomically(self.path.with_suffix(".json"), self._told.encode())
                self._partial.replace(self.path)
                self._done.unlink()
            distributed.barrier()
        return self.open()

    def discard(self) -> None:
        """Delete what there is of an array that is not complete."""
        for path in (self._partial, self._done):
            path.unlink(missing_ok=True)

    def _prepare(self) -> None:
        if distributed.is_writer():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not (self._partial.is_file() and self._done.is_file()):
                self._create(self._partial, self._shape, self._dtype)
                self._create(self._done, self._shape[:1], np.dtype(bool))
        distributed.barrier()

    def _create(self, path: Path, shape: Sequence[int], dtype: Any) -> None:
        """A file of zeros, which has its name only when it has its size and its place on disk."""
        beginning = path.with_suffix(".new")
        try:
            np.lib.format.open_memmap(beginning, "w+", dtype, tuple(shape)).flush()
            allocate(beginning)
            beginning.replace(path)
        finally:
            beginning.unlink(missing_ok=True)

    def _compute(
        self,
        compute: Callable[[list[int]], Array],
        batch_size: int,
        description: str,
        progress: bool,
    ) -> None:
        rows = np.load(self._partial, mmap_mode="r+", allow_pickle=False)
        done = np.load(self._done, mmap_mode="r+", allow_pickle=False)
        left = np.flatnonzero(~np.asarray(done))
        distributed.barrier()  # all see the same rows to be left before anybody adds to them
        own = left[distributed.rank() :: distributed.world_size()].tolist()
        show = progress and distributed.is_writer()
        with tqdm(total=len(own), unit="image", desc=description, disable=not show) as bar:
            for first in range(0, len(own), batch_size):
                chosen = own[first : first + batch_size]
                rows[chosen] = compute(chosen)
                rows.flush()
                done[chosen] = True
                done.flush()
                bar.update(len(chosen))
