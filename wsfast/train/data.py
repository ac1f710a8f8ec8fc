"""From a configuration to training and validation images."""

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from wsfast._check import value_error
from wsfast.data import detect_format, open_dataset
from wsfast.data.opening import SYNTHETIC
from wsfast.models import Checkpoint
from wsfast.train.config import CONFIG, HELD_OUT, TrainConfig, as_saved, read_recipe
from wsfast.train.images import ImageData, identities
from wsfast.train.state import read_learnt


def open_split(
    config: TrainConfig,
    split: str,
    *,
    channels: int,
    size: tuple[int, int] | None,
    length: int | None = None,
    data: str = "",
    format: str = "auto",
    metadata: str = "",
    masks: str = "",
) -> Any:
    """A split of a configuration's data, or of other data in its place.

    The test split of other data that has no splits is all of it, unless it may be the
    configuration's, which has been moved: then it is the share that the run held out.

    Args:
        config: of any recipe.
        split: ``"train"``, ``"val"`` or ``"test"``.
        channels: of the images.
        size: height and width of the images; None keeps their own.
        length: of synthetic data; None takes as many as the configuration says, and of the test
            split, or of other data, as many as :class:`wsfast.data.SyntheticDefects` draws.
        data: other data than the configuration's.
        format: of the other data.
        metadata: of the other data.
        masks: of the other data.
    """
    if config.data == SYNTHETIC and data in ("", SYNTHETIC) and length is None:
        length = _drawn(config, split)
    if not data:
        format, metadata, masks = config.format, config.metadata, config.masks
    source = data or config.data
    listed = source != SYNTHETIC and _format(source, format) in ("folder", "csv")
    every = bool(data) and listed and split == "test" and not same_images(config.data, data)
    return open_dataset(
        source,
        format=format,
        split=split,
        length=length,
        size=size,
        channels=channels,
        strict=config.strict or None,
        holdout=config.holdout,
        seed=config.split_seed,
        normal=config.normal or None,
        merge=config.merge or None,
        metadata=metadata or None,
        masks=masks or None,
        mask_kind=config.mask_kind or None if listed or not data else None,
        test_share=1.0 if every else None,
    )


def _run_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def settings_around(path: Path) -> dict[str, Any]:
    """Settings of the run that a folder or a checkpoint in it is of; none without a run."""
    run = _run_of(path)
    return as_saved(read_recipe(run / CONFIG)[1]) if (run / CONFIG).is_file() else {}


def check_classes(model: Sequence[str], data: Sequence[str], normal: int | None) -> None:
    """Raise ValueError where a data set's labels do not mean what a model's do.

    Args:
        model: class names of the model.
        data: class names of the data set; beside one without an object, the only other one may
            have any name.
        normal: that class of the data set; None where there is none.
    """
    meant = 1 if normal == 0 and len(model) == len(data) == 2 else None
    if tuple(model[:meant]) != tuple(data[:meant]):
        equal = [one == other for one, other in zip(model, data, strict=False)]
        shown = slice(max(0, [*equal, False].index(False) - 2), None)
        expected = f"of the model's {len(model)} classes in their order ({_listed(model[shown])})"
        got = f"{len(data)} ({_listed(data[shown])}); name them alike, and give the --normal and "
        value_error("train", "--data", expected, got + "--merge that the classifier had")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def check_shared_split(config: TrainConfig, known: Mapping[str, Any]) -> None:
    """Raise ValueError where a classifier may have learnt from images held out from a run.

    Args:
        config: of the run that starts from the classifier.
        known: settings of the classifier's run, as far as they are known.
    """
    trained = str(known.get("data", config.data))
    if trained != SYNTHETIC and not Path(trained).exists():
        trained = config.data  # moved since: it may be the same
    if not Path(config.data).exists() or not _overlap(trained, config.data):
        return
    now = {**config.as_dict(), "format": _format(config.data, config.format)}
    before = {**known, "format": _format(trained, known.get("format", config.format))}
    for name in ("format",) if now["format"] == "wsol" else ("format", *HELD_OUT):
        if name in known and before[name] != now[name]:
            expected = f"the classifier's ({before[name]}), which else saw images held out here"
            value_error("train", name, expected, f"{now[name]}")


def learnt_before(config: Any) -> set[str]:
    """The images in a run's data that its classifier learnt from, as far as is known."""
    known = settings_around(Path(config.classifier))
    same = same_images(str(known.get("data", SYNTHETIC)), config.data)
    return read_learnt(_run_of(Path(config.classifier))) if same else set()


def check_unseen(config: TrainConfig, data: "OpenedData") -> None:
    """Raise ValueError where a classifier has learnt from images that are held out from a run.

    The same settings hold out other images once images have been added or taken away.

    Args:
        config: of the run that starts from the classifier.
        data: of the run.
    """
    known = learnt_before(config)
    doubtful = known and known.difference(identities(data.train, config.data))
    if not doubtful:
        return
    parts = {} if data.validation is None else {"val": data.validation}
    with suppress(ValueError):  # there are none for test
        parts["test"] = open_split(config, "test", channels=1, size=None)
    for split, part in parts.items():
        seen = told_seen(part, config.data, doubtful)
        if seen:
            expected = f"one that learnt from no image of {split}"
            remedy = "images have come or gone since; train it anew, or split the data in files"
            value_error("train", "classifier", expected, f"one that did from {seen}: {remedy}")


def told_seen(dataset: Any, data: str, learnt: Container[str]) -> str:
    """How many of a split's images were learnt from, with the first one; empty where none was."""
    images = identities(dataset, data)
    seen = [image for image in images if image in learnt]
    return f"{len(seen)} of {len(images)} ({seen[0]}, ...)" if seen else ""


def same_images(first: str, second: str) -> bool:
    """Whether two data sets, the first of which may have been moved since, can be the same."""
    if SYNTHETIC in (first, second):  # whose splits are drawn apart
        return False
    return not Path(first).exists() or Path(first).resolve() == Path(second).resolve()


def _overlap(first: str, second: str) -> bool:
    """Whether two data sets may have images in common."""
    if SYNTHETIC in (first, second):  # whose splits are drawn apart
        return False
    one, other = Path(first).resolve(), Path(second).resolve()
    return one == other or one in other.parents or other in one.parents


def _format(data: str, format: str) -> str:
    return detect_format(data) if format == "auto" else format


def _drawn(config: TrainConfig, split: str) -> int | None:
    """How many images a run on synthetic data has of a split; None for the test split."""
    if split == "test":
        return None
    if split == "train":
        return config.images
    if not config.holdout:
        value_error("train", "holdout", "above 0 for validation images", "0")
    return max(2, round(config.images * config.holdout))


def _size_of(config: Any, classifier: Checkpoint) -> tuple[int, int] | None:
    """The size of a classifier's images: of its input, and where both runs crop, before its crop.

    None where that is not said, as of synthetic images at their own size.

    Raises:
        ValueError: a crop, and the classifier's file does not say whether it had one.
    """
    known: Mapping[str, Any] = classifier.extra
    if "crop" not in known:
        known = settings_around(Path(config.classifier))
    if config.crop and "crop" not in known:
        expected = "given with a crop, as the classifier's file does not say whether it had one"
        value_error("train", "size", expected, "None")
    if not (config.crop and known["crop"]):
        return classifier.input_size
    size = known.get("size")
    return (int(size[0]), int(size[1])) if size else None


class OpenedData:
    """Images of a configuration, before it is known what they are normalised with.

    Args:
        config: of any recipe.
        like: the classifier that channels and size are taken from where the configuration has none.

    Attributes:
        train: training images.
        validation: validation images at the size the model will see; None where none are held out.
        class_names: one per class.
        clean_class: the class without an object, -1 where there is none.

    Raises:
        ValueError: no such data, one class only, a class without training images, and as
            :func:`wsfast.data.open_dataset`.
    """

    def __init__(self, config: TrainConfig, like: Checkpoint | None = None) -> None:
        self.config = config
        synthetic = config.data == SYNTHETIC
        self.size = config.size
        if self.size is None and like is not None:
            self.size = _size_of(config, like)
        channels = config.channels or (3 if like is None else len(like.mean))
        drawn = self.size if synthetic else None  # other images are resized when augmented
        self.train = open_split(config, "train", channels=channels, size=drawn)
        if self.size is None and not synthetic:
            height, width = self.train[0].image.shape[1:]
            self.size = (height, width)
        self.validation = None
        if config.holdout:
            seen = config.crop or self.size
            self.validation = open_split(config, "val", channels=channels, size=seen)
        self.class_names = tuple(self.train.class_names)
        normal = self.train.normal_label
        self.clean_class = -1 if normal is None else normal
        self._check()

    def _check(self) -> None:
        counts = torch.bincount(self.train.labels, minlength=len(self.class_names))
        empty = [n for n, count in zip(self.class_names, counts, strict=False) if not count]
        if empty:
            shown = ", ".join(empty[:3]) + (" and more" if len(empty) > 3 else "")
            expected = "with training images of every class"
            value_error("train", "--data", expected, f"none of {shown}")
        if len(self.class_names) < 2:  # all are right from the start, and nothing is learnt
            only = f"images of {self.class_names[0]} alone"
            value_error("train", "--data", "of at least 2 classes", only)

    def images(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """With the normalisation of a model."""
        config = self.config
        return ImageData(
            self.train, self.validation, mean, std, self.class_names, self.size, config.crop,
            config.flips, self.clean_class,
        )  # fmt: skip
