"""KolektorSDD as it lies on disk: ``kos01/Part0.jpg`` beside ``kos01/Part0_label.bmp``."""

import re
from os import PathLike
from pathlib import Path

from wsfast._check import check_choice, value_error
from wsfast.data.records import ImageDataset, Record
from wsfast.data.sample import SPLITS
from wsfast.data.splits import held_out

_ITEM = re.compile(r"kos(\d+)")
_PART = re.compile(r"Part\d+\.(jpg|png|bmp)")
_LAST_TRAINING_ITEM = 40

# In one of the published archives only, and left out by its authors' own code.
_NOT_COUNTED = "kos21/Part7"


class KSDD(ImageDataset):
    """A split of KolektorSDD by items.

    Items 1-40 are ``train`` and 41-50 ``test``, which gives the counts of LTGrad-CAM and RA-CAM (42
    of 319 and 10 of 80 with a defect). The label is 1 where the mask has any pixel.

    Args:
        root: folder of ``kos01`` … ``kos50``.
        split: ``"train"``, ``"val"`` or ``"test"``; ``val`` is a part of the items of ``train``.
        holdout: share of these items that ``val`` takes, 0–1. Both must be given the same.
        seed: of the choice of that part.
        size: see :class:`ImageDataset`.
        channels: see :class:`ImageDataset`.
        strict: see :class:`ImageDataset`.

    Raises:
        ValueError: no readable image of the split, or with ``strict`` an unreadable one.

    Example:
        >>> import cv2, numpy, tempfile
        >>> item = Path(tempfile.mkdtemp()) / "kos41"
        >>> item.mkdir()
        >>> for name in ("Part0.jpg", "Part0_label.bmp"):
        ...     _ = cv2.imwrite(str(item / name), numpy.zeros((8, 4), numpy.uint8))
        >>> KSDD(item.parent, "test").names
        ['kos41/Part0']
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
        check_choice("KSDD", "split", split, SPLITS)
        if split == "val" and not 0 < holdout < 1:
            value_error("KSDD", "holdout", "between 0 and 1 for split val", f"{holdout}")
        super().__init__(
            _records(Path(root), test=split == "test"),
            source=Path(root),
            class_names=("good", "defect"),
            normal_label=0,
            complete=False,
            mask_kind="nonzero",
            size=size,
            channels=channels,
            strict=strict,
        )
        if split != "test" and holdout:
            items = [name.split("/")[0] for name in self.names]
            aside = held_out(self.labels.tolist(), holdout, seed=seed, groups=items)
            wanted = split == "val"
            self.keep(r for r, out in zip(self.records, aside, strict=True) if out == wanted)
        if not self.names:
            value_error("KSDD", "root", f"a folder with items kosNN of {split}", f"{root}")


def _records(root: Path, *, test: bool) -> list[Record]:
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        item = _ITEM.fullmatch(folder.name)
        if item is None or (int(item[1]) > _LAST_TRAINING_ITEM) != test:
            continue
        for path in sorted(folder.iterdir()):
            name = f"{folder.name}/{path.stem}"
            if _PART.fullmatch(path.name) and name != _NOT_COUNTED:
                mask = path.with_name(f"{path.stem}_label.bmp")
                found.append(Record(name, path, masks=(mask,)))
    return found
