"""Folders of images, one subfolder per class, perhaps with masks."""

import dataclasses
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from wsfast._check import check_choice, value_error
from wsfast.data.classes import Classes, number_classes
from wsfast.data.inputs import IMAGE_SUFFIXES, files_below
from wsfast.data.records import ImageDataset, Record
from wsfast.data.sample import SPLITS
from wsfast.data.splits import choose_split

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_MASK_FOLDERS = ("masks", "mask", "ground_truth", "gt", "annotations")
_MASK_ENDINGS = ("_mask", "_GT", "_gt", "_label", "_seg")
_LOSSLESS = {".png", ".bmp", ".tif", ".tiff"}


class ImageFolder(ImageDataset):
    """Images in one folder per class, at any depth below it.

    ``root/CLASS/…``, or ``root/train/CLASS/…`` with ``root/test/…`` and perhaps ``root/val/…``. A
    missing ``val`` is taken from the training images, ``test`` too where there are no such folders,
    of each class the same share. A mask lies beside its image, with the same name in a lossless
    format beside a JPEG (``a.jpg``, ``a.png``) or with ``_mask``, ``_GT``, ``_gt``, ``_label`` or
    ``_seg`` behind it, or in a parallel tree (``root/masks/CLASS/a.png``), with or without such an
    ending. Images of the normal class need none where others have one.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        masks: the parallel tree; by default ``masks``, ``mask``, ``ground_truth``, ``gt`` or
            ``annotations`` in ``root``.
        mask_kind: what the object is in a mask file. ``"binary"``: what reaches half of 255, or is
            1 in a file of 0 and 1; ``"nonzero"``: all that is not 0; ``"index"``: every class
            number but 0 of a grey or palette file, where 255 is ignored.
        normal: the class without an object, which is label 0. None takes the one that is called
            good, normal, ok, free, clean, negative, no_defect, no_object or no_finding, also behind
            a prefix (``MT_Free``); ``""`` says that there is none.
        merge: make all other classes one, ``"defect"``.
        holdout: share of the training images that ``val`` takes where it has no folder.
        test_share: share of all images that ``test`` takes where there are no such folders.
        seed: of both choices. All splits must be given the same.
        size: see :class:`ImageDataset`.
        channels: see :class:`ImageDataset`.
        strict: see :class:`ImageDataset`.
        verify: see :class:`ImageDataset`.

    Raises:
        ValueError: a class without images, two images of one name, a mask that fits images of two
            splits, no image in the split, ``normal`` that is no class or left out where several
            fit.

    Example:
        >>> import cv2, numpy, tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("good/1.jpg", "good/2.jpg", "crack/3.jpg", "crack/3.png", "crack/4.jpg"):
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     _ = cv2.imwrite(str(root / name), numpy.full((8, 8), 255, numpy.uint8))
        >>> data = ImageFolder(root, "train", test_share=0, holdout=0)
        >>> data.class_names, data.names, [s.mask is not None for s in data]
        (('good', 'crack'), ['crack/3', 'crack/4', 'good/1', 'good/2'], [True, False, True, True])
    """

    def __init__(
        self,
        root: str | PathLike[str],
        split: str,
        *,
        masks: str | PathLike[str] | None = None,
        mask_kind: str = "binary",
        normal: str | None = None,
        merge: bool = False,
        holdout: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        strict: bool = False,
        verify: bool | None = None,
    ) -> None:
        where = "ImageFolder"
        check_choice(where, "split", split, SPLITS)
        root = Path(root)
        trees = _MaskTree(root, _mask_folder(root, masks))
        parts = {
            part: list(_entries(folder, trees)) for part, folder in _split_folders(root).items()
        }
        _check_masks(record for part in parts.values() for _, record in part)
        own_names = sorted({name for part in parts.values() for name, _ in part})
        number = {name: place for place, name in enumerate(own_names)}
        classes = number_classes(where, own_names, normal, merge)
        chosen = choose_split(
            parts,
            split,
            lambda entry: number[entry[0]],
            holdout=holdout,
            test_share=test_share,
            seed=seed,
        )
        has_masks = any(record.masks for part in parts.values() for _, record in part)
        if masks is not None and not has_masks:
            expected = "a folder with masks of the images, by their places in root"
            value_error(where, "masks", expected, f"{masks}, without any")
        super().__init__(
            [_labelled(record, classes, name, has_masks) for name, record in chosen],
            source=root,
            class_names=classes.names,
            normal_label=classes.normal,
            complete=split == "train",
            mask_kind=mask_kind,
            size=size,
            channels=channels,
            strict=strict,
            verify=verify,
        )
        if not self.names:
            value_error(where, "root", f"a folder with images for {split}", f"{root}")


def _labelled(record: Record, classes: Classes, name: str, has_masks: bool) -> Record:
    label = classes.label_of[name]
    empty = has_masks and label == classes.normal and not record.masks
    return dataclasses.replace(record, label=label, empty=empty)


def _check_masks(records: Iterable[Record]) -> None:
    """Raise ValueError for a mask of two images: of ``a/1`` in one split and ``a/1`` in another."""
    images: dict[Path, str | Path] = {}
    for record in records:
        for mask in record.masks:
            other = images.setdefault(mask, record.image)
            # Splits may be links to one another.
            if other != record.image and not Path(other).samefile(record.image):
                expected = "of one image each (folders of the splits among them tell them apart)"
                what = f"{mask} for {other} and {record.image}"
                value_error("ImageFolder", "masks", expected, what)


def _split_folders(root: Path) -> dict[str, Path]:
    there = _by_name(root)
    found = {
        split: there[name]
        for split, names in _SPLIT_NAMES.items()
        for name in names
        if name in there
    }
    return found if "train" in found else {"all": root}


def _mask_folder(root: Path, masks: str | PathLike[str] | None) -> Path | None:
    if masks is None:
        # Of the classes "mask" and "no_mask" the first is no tree of masks.
        known = {path.name for part in (root, *_split_folders(root).values()) for path in _in(part)}
        there = _by_name(root)
        trees = (there[name] for name in _MASK_FOLDERS if name in there)
        return next((tree for tree in trees if known & {path.name for path in _in(tree)}), None)
    if not Path(masks).is_dir():
        value_error("ImageFolder", "masks", "a folder", f"{masks}")
    return Path(masks)


def _by_name(root: Path) -> dict[str, Path]:
    """The folders in a folder by their names in lower case: archives have train and Train."""
    return {path.name.lower(): path for path in _in(root)}


def _in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path.is_dir() and not path.name.startswith(".")]


class _MaskTree:
    """Masks that lie as the images do, in a folder of their own; of no folder none.

    Args:
        root: of the images.
        folder: of the masks.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        self._root = root
        self._folder = None if folder is None else folder.resolve()
        self._lossless: dict[str, Path] = {}
        self._others: dict[str, Path] = {}  # may be pictures: only where there is nothing else
        # Folders of masks may be links to one another: classes or splits share masks.
        for path in [] if folder is None else files_below(folder, aliases=True):
            suffix = path.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                masks = self._lossless if suffix in _LOSSLESS else self._others
                masks[path.relative_to(folder).with_suffix("").as_posix()] = path  # type: ignore[arg-type]

    def is_in(self, folder: Path) -> bool:
        """Whether a folder is the one of the masks, or holds it and no pictures but masks.

        Raises:
            ValueError: it holds others, too, so that it may be a class or not.
        """
        folder = folder.resolve()
        if self._folder is None or not self._folder.is_relative_to(folder):
            return False
        others = [path for path in _pictures(folder) if not path.is_relative_to(self._folder)]
        if others:
            expected = "a folder outside of the classes', or with no other pictures around it"
            value_error("ImageFolder", "masks", expected, f"{self._folder} beside {others[0]}")
        return True

    def mask_of(self, image: Path, split_folder: Path) -> Path | None:
        """By the image's place in the root or in its split, with or without an ending."""
        bases = (self._root, split_folder)
        places = [image.relative_to(base).with_suffix("").as_posix() for base in bases]
        names = [place + ending for place in places for ending in ("", *_MASK_ENDINGS)]
        found = (masks[name] for masks in (self._lossless, self._others) for name in names
                 if name in masks)  # fmt: skip
        return next(found, None)


def _entries(folder: Path, trees: _MaskTree) -> Iterator[tuple[str, Record]]:
    """Class and record of every image of a split, sorted."""
    classes = [path for path in _in(folder) if not trees.is_in(path)]
    if not classes:
        value_error("ImageFolder", "root", "a folder with one subfolder per class", f"{folder}")
    for path in classes:
        records = _records(folder, path, trees)
        if not records:
            value_error("ImageFolder", "root", "without empty classes", f"no image in {path}")
        yield from ((path.name, record) for record in records)


def _records(folder: Path, class_folder: Path, trees: _MaskTree) -> list[Record]:
    files = _pictures(class_folder)
    beside = _masks_beside(files)
    masks = set(beside.values())
    found: dict[str, Record] = {}
    for path in files:
        if path in masks:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            what = f"{Path(found[name].image).name} and {path.name} in {path.parent}"
            value_error("ImageFolder", "root", "of images with different names", what)
        mask = beside.get(path) or trees.mask_of(path, folder)
        found[name] = Record(name, path, masks=() if mask is None else (mask,))
    return list(found.values())


def _pictures(folder: Path) -> list[Path]:
    """The images below a folder that are not hidden."""
    return [
        path
        for path in files_below(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _masks_beside(files: list[Path]) -> dict[Path, Path]:
    """Mask by image, of the files that lie together."""
    by_name: dict[Path, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.with_suffix(""), []).append(path)
    found = {}
    for name, alike in by_name.items():
        photographs = [path for path in alike if path.suffix.lower() in (".jpg", ".jpeg")]
        lossless = [path for path in alike if path.suffix.lower() in _LOSSLESS]
        if len(photographs) == len(lossless) == 1:
            found[photographs[0]] = lossless[0]
        for ending in _MASK_ENDINGS:
            stem = name.name.removesuffix(ending)
            owner = by_name.get(name.with_name(stem), []) if stem else []
            if name.name.endswith(ending) and owner:
                found[owner[0]] = alike[0]
    return found
