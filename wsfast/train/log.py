"""The log of a run: one JSON object per epoch and line, and TensorBoard where it is wanted."""

import json
import os
from pathlib import Path
from typing import Any

from wsfast._check import value_error
from wsfast._files import write_atomically

LOG = "log.jsonl"
Record = dict[str, Any]


def read_log(folder: Path) -> list[Record]:
    """The records of a run; a line that a kill cut short is left out."""
    path = folder / LOG
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class RunLog:
    """Appends records to ``log.jsonl``; each is on the disk before :meth:`write` returns.

    Args:
        folder: of the run.
        epochs: records of later epochs are dropped, as a resumed run will write them again.
        tensorboard: also write TensorBoard's event files; needs the ``tensorboard`` package.
    """

    def __init__(self, folder: Path, *, epochs: int, tensorboard: bool = False) -> None:
        self._path = folder / LOG
        kept = [record for record in read_log(folder) if record["epoch"] <= epochs]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self._path, lines.encode(), durable=True)
        self._board: Any = None
        if tensorboard:
            self._board = summary_writer()(str(folder / "tensorboard"), purge_step=epochs + 1)

    def write(self, record: Record) -> None:
        """Append one record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, record["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Release TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def summary_writer() -> Any:
    """TensorBoard's writer class.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        value_error("train", "tensorboard", "false without the tensorboard package", "true")
    return SummaryWriter
