"""KolektorSDD2 as it lies on disk: ``train/10000.png`` beside its mask ``train/10000_GT.png``."""

import re
from os import PathLike
from pathlib import Path

from wsfast._check import check_choice, value_error
from wsfast.data.records import ImageDataset, Record
from wsfast.data.sample import SPLITS
from wsfast.data.splits import held_out

FIRST_NUMBER = {"train": 10000, "test": 20000, "val": 30000}
_IMAGE_NAME = re.compile(r"\d+\.png")
_FILE_NAME = re.compile(r"\d+(_GT)?\.png")


def is_ksdd2_file(name: str) -> bool:
    """Whether a file name is that of a KolektorSDD2 image or mask."""
    return _FILE_NAME.fullmatch(name) is not None


class KSDD2(ImageDataset):
    """A split of KolektorSDD2, or of a data set in its format.

    The label is 1 where the mask has any pixel. Every file is decoded once at construction: an
    image that cannot be read, or has no mask of its size, is named in one warning, listed in
    ``skipped`` and left out. Files whose names are not a plain number are ignored: the published
    archive holds ``10301 (copy).png`` and ``10301_GT (copy).png``, and the latter is a mask that a
    search for images would take for one.

    Args:
        root: folder that holds ``train`` and ``test``.
        split: ``"train"``, ``"val"`` or ``"test"``. The published data have no ``val``: without
            such a folder it is a part of ``train``.
        holdout: share of each class in ``train`` that ``val`` takes where it has no folder, 0–1.
            Both splits must be given the same.
        seed: of the choice of that part.
        size: see :class:`ImageDataset`; KolektorSDD2's differ by a few pixels, so batches need one.
        channels: 3 for RGB, 1 for grey.
        strict: raise for an unreadable file instead of leaving it out.

    Attributes:
        labels: int64 (length,).
        names: the images' file stems.
        skipped: the files left out, with the reason.

    Raises:
        ValueError: no readable image of the split, or with ``strict`` an unreadable one.

    Example:
        >>> import tempfile
        >>> from wsfast.data import SyntheticDefects
        >>> root = SyntheticDefects(2).write_ksdd2(tempfile.mkdtemp()).parent
        >>> data = KSDD2(root, "train")
        >>> data[0].image.shape, data.names, data.labels.tolist()
        (torch.Size([3, 160, 64]), ['10000', '10001'], [0, 1])
    """

    def __init__(
        self,
        root: str | PathLike[str],
        split: str,
        *,
        holdout: float = 0.0,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        strict: bool = False,
    ) -> None:
        check_choice("KSDD2", "split", split, SPLITS)
        has_validation = (Path(root) / "val").is_dir()
        carved = split == "val" and not has_validation
        if carved and not 0 < holdout < 1:
            value_error("KSDD2", "holdout", "between 0 and 1 for split val", f"{holdout}")
        self.folder = Path(root) / ("train" if carved else split)
        super().__init__(
            _records(self.folder),
            source=self.folder,
            class_names=("good", "defect"),
            normal_label=0,
            complete=False,
            mask_kind="nonzero",
            size=size,
            channels=channels,
            strict=strict,
        )
        if split != "test" and holdout and not has_validation:
            aside = held_out(self.labels.tolist(), holdout, seed=seed)
            self.keep(r for r, out in zip(self.records, aside, strict=True) if out == carved)
        if not self.names:
            value_error("KSDD2", "root", f"a folder with images in {self.folder.name}/", f"{root}")


def _records(folder: Path) -> list[Record]:
    files = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(
        (path for path in files if _IMAGE_NAME.fullmatch(path.name)), key=lambda p: int(p.stem)
    )
    return [
        Record(path.stem, path, masks=(path.with_name(f"{path.stem}_GT.png"),)) for path in paths
    ]
