"""One way to open every data set, as the commands' ``--data`` and ``--format`` do."""

import inspect
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from wsfast._check import check_choice, value_error
from wsfast.data.folder import ImageFolder
from wsfast.data.ksdd import KSDD
from wsfast.data.ksdd2 import KSDD2, is_ksdd2_file
from wsfast.data.sample import SPLITS, Sample
from wsfast.data.synthetic import SyntheticDefects
from wsfast.data.table import ImageTable
from wsfast.data.wsol_images import WSOLImages

SYNTHETIC = "synthetic"
_DEFAULT_HOLDOUT = 0.2


class LabelledDataset(Protocol):
    """What :func:`open_dataset` returns.

    Attributes:
        labels: int64 (length,).
        names: one per image.
        class_names: one per label.
        normal_label: the class without an object, None where every image has one.
    """

    labels: Tensor
    names: list[str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per label."""

    @property
    def normal_label(self) -> int | None:
        """The class without an object, None where every image has one."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Sample:
        """Return one sample."""


def _open_table(source: str | PathLike[str], split: str, **options: Any) -> ImageTable:
    path = Path(source)
    table = _only_table(path) if path.is_dir() else path
    if table is None:
        value_error("open_dataset", "source", "a CSV file or a folder with one", f"{source}")
    assert table is not None
    return ImageTable(table, split, **options)


_FORMATS: dict[str, tuple[Any, Callable[..., LabelledDataset]]] = {
    "wsol": (WSOLImages, WSOLImages),
    "ksdd": (KSDD, KSDD),
    "ksdd2": (KSDD2, KSDD2),
    "folder": (ImageFolder, ImageFolder),
    "csv": (ImageTable, _open_table),
}
FORMATS = [*_FORMATS]
"""What ``format`` takes beside ``"auto"``: ``wsol``, ``ksdd``, ``ksdd2``, ``folder``, ``csv``."""


def open_dataset(
    source: str | PathLike[str],
    *,
    format: str = "auto",
    split: str = "train",
    **options: Any,
) -> LabelledDataset:
    """Open a data set.

    Args:
        source: ``"synthetic"`` for :class:`SyntheticDefects`, else a folder or a CSV file.
        format: ``"wsol"``, ``"ksdd"``, ``"ksdd2"``, ``"folder"`` or ``"csv"``; ``"auto"`` looks at
            what is there.
        split: ``"train"``, ``"val"`` or ``"test"``.
        **options: of the format's class: ``size``, ``channels``, ``strict`` (of all but
            ``"synthetic"``), ``holdout`` (the share of the training images that ``val`` takes where
            the data have none; 0.2), ``seed``, ``length`` (``"synthetic"``), ``metadata``
            (``"wsol"``), ``masks``, ``mask_kind``, ``normal``, ``merge``, …. ``None`` leaves an
            option at its default, and so do ``holdout``, ``seed`` and ``strict`` where a format has
            no use for them.

    Raises:
        ValueError: no such source, an unknown option, bad data.

    Example:
        >>> data = open_dataset("synthetic", split="val", length=4, channels=1)
        >>> data[1].image.shape, data.class_names, data.names
        (torch.Size([1, 160, 64]), ('good', 'defect'), ['30000', '30001', '30002', '30003'])
    """
    check_choice("open_dataset", "format", format, ["auto", SYNTHETIC, *FORMATS])
    check_choice("open_dataset", "split", split, SPLITS)
    options = {name: value for name, value in options.items() if value is not None}
    if str(source) == SYNTHETIC or format == SYNTHETIC:
        return SyntheticDefects(split=split, **_known(SyntheticDefects, options))
    if not Path(source).exists():
        value_error("open_dataset", "source", '"synthetic", a folder or a CSV file', f"{source}")
    kind, constructor = _FORMATS[detect_format(source) if format == "auto" else format]
    options.setdefault("holdout", _DEFAULT_HOLDOUT)
    return constructor(source, split, **_known(kind, options))


def detect_format(source: str | PathLike[str]) -> str:
    """Tell a data set's format by its files.

    Args:
        source: a folder or file.

    Returns:
        One of ``"wsol"``, ``"ksdd"``, ``"ksdd2"``, ``"folder"`` and ``"csv"``.
    """
    path = Path(source)
    if not path.is_dir():
        return "csv"
    if any((path / "metadata" / split / "image_ids.txt").is_file() for split in SPLITS):
        return "wsol"
    if any(re.fullmatch(r"kos\d+", entry.name) for entry in path.iterdir()):
        return "ksdd"
    if any(is_ksdd2_file(f.name) for split in SPLITS for f in (path / split).glob("*_GT.png")):
        return "ksdd2"
    return "csv" if _only_table(path) else "folder"


def _only_table(folder: Path) -> Path | None:
    tables = list(folder.glob("*.csv"))
    return tables[0] if len(tables) == 1 else None


def _known(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a class takes."""
    names = set(inspect.signature(kind).parameters) - {"root", "path", "split"}
    idle = {"holdout", "seed", "strict"} - names
    unknown = set(options) - names - idle
    if unknown:
        expected = f"known to {kind.__name__} ({', '.join(sorted(names))})"
        value_error("open_dataset", "an option", expected, ", ".join(sorted(unknown)))
    return {name: value for name, value in options.items() if name not in idle}
