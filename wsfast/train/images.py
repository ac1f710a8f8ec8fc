"""Image data as recipes need them: training samples, validation batches, normalisation."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from wsfast.data import JointTransform
from wsfast.data.opening import SYNTHETIC
from wsfast.data.records import ImageDataset
from wsfast.models import save_checkpoint
from wsfast.models.checkpoint import description_of, saved_normalization
from wsfast.models.encoders import NOT_OF_TIMM
from wsfast.train import distributed
from wsfast.train.config import HELD_OUT, TrainConfig
from wsfast.train.recipe import Draw, Recipe
from wsfast.train.store import shared_digest
from wsfast.train.validation import explained_classes, with_regions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LEVELS = 256  # of 8-bit images
_STATISTICS_IMAGES = 256  # enough for a mean and a standard deviation
_AT_ONCE = 32  # images explained where the training batch would allow more
_LOOKED_AT = 16  # images, to see whether there are masks or boxes


class LabelledImages(Protocol):
    """A data set that knows its labels without reading its images."""

    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one sample: ``image``, ``label``, perhaps ``mask`` or ``boxes``."""


class TrainingSample(NamedTuple):
    """One augmented image; batched by torch's default collate function.

    Attributes:
        image: uint8 (C, H, W).
        label: the class.
        draw: epoch and position of the draw, and the item that was read.
        map: uint8 (1, H, W), what is to be learnt from, cropped and flipped as the image; empty
            where a recipe has none.
        box: int32 (4,), where the object is supposed, likewise; of no area where a recipe has none.
    """

    image: Tensor
    label: int
    draw: Draw
    map: Tensor
    box: Tensor


@dataclass
class ImageData:
    """Training and validation images, and how a model is fed with them.

    Attributes:
        train: the training images.
        validation: the validation images at the size the model sees; None where there are none.
        mean: per channel, of images in 0-1.
        std: per channel, of images in 0-1.
        class_names: one per class.
        size: height and width that training images are resized to; None where all have one.
        crop: height and width of the random crop taken of that; None takes all.
        flips: ``"none"``, ``"horizontal"`` or ``"both"``.
        clean_class: the class of images without an object; -1 where all have one.
    """

    train: LabelledImages
    validation: LabelledImages | None
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str] = ()
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    flips: str = "none"
    clean_class: int = -1

    def __post_init__(self) -> None:
        self.transform = JointTransform(size=self.size, crop=self.crop, flips=self.flips)

    @cached_property
    def map_size(self) -> tuple[int, int]:
        """Height and width of a whole training image as it is before cropping."""
        if self.size is not None:
            return self.size
        height, width = self.train[0].image.shape[1:]
        return height, width

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the model is trained on."""
        return self.crop or self.map_size

    def whole(self, index: int) -> Tensor:
        """A training image (C, H, W) uint8, resized but not cropped or flipped."""
        return self.taken(index)[1]

    def taken(self, index: int) -> tuple[int, Tensor]:
        """The same with the number of the image that was really taken.

        It is another one's where the data set has replaced a file that became unreadable.
        """
        sample = self.train[index]
        image: Tensor = JointTransform(size=self.size, flips="none")(sample.image).image
        names: Sequence[str] | None = getattr(self.train, "names", None)
        name = getattr(sample, "name", None)
        if names is None or name == names[index] or name not in names:
            return index, image
        return names.index(name), image

    def targets(self) -> Tensor:
        """The class to explain in each training image; of clean images the object's."""
        return explained_classes(self.train.labels, self.clean_class)


def image_statistics(dataset: LabelledImages) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 images spread evenly over the data set."""
    step = max(1, len(dataset) // _STATISTICS_IMAGES)
    # Counts of the 256 levels say as much as the pixels, of which there may be too many to keep.
    counts = torch.zeros(1, _LEVELS, dtype=torch.float64)
    for index in range(0, len(dataset), step):
        channels = dataset[index].image.flatten(1)
        counts = counts + torch.stack([torch.bincount(c, minlength=_LEVELS) for c in channels])
    levels = torch.arange(_LEVELS, dtype=torch.float64) / 255
    total = counts.sum(1)
    mean = (counts @ levels) / total
    squares = (counts * (levels - mean[:, None]).square()).sum(1)
    return mean.tolist(), (squares / (total - 1)).sqrt().clamp_min(1e-3).tolist()


def pretrained_normalization(
    name: str, checkpoint: str, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std per channel of the images that the weights an encoder starts from have seen.

    Args:
        name: of the encoder, as :func:`wsfast.models.create_encoder` takes it.
        checkpoint: file of the weights; its own normalisation counts where it says one. Empty for
            downloaded weights.
        channels: of the images.
    """
    found = saved_normalization(checkpoint) if checkpoint else None
    if found is None:
        known = None if name in NOT_OF_TIMM else timm.get_pretrained_cfg(name.removeprefix("timm/"))
        found = (known.mean, known.std) if known else (IMAGENET_MEAN, IMAGENET_STD)
    return found[0][:channels], found[1][:channels]


def normalization(mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """From uint8 images (..., C, H, W) to the float32 input of a model."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


def images_at_once(config: TrainConfig) -> int:
    """How many images are explained at a time: no more than training has in memory."""
    parts = config.accumulate * distributed.world_size()
    return min(_AT_ONCE, max(1, config.batch_size // parts))


def image_files(dataset: Any) -> list[Path]:
    """The files of a split's images; none of images that do not come from files."""
    if not isinstance(dataset, ImageDataset):
        return []
    return [dataset.root / record.image for record in dataset.records]


def identities(dataset: Any, data: str) -> list[str]:
    """The files of a split's images, seen from the folder of all splits; names where it has none.

    Names do not do for files: in folders of their own, splits may have images of the same names.
    """
    files = image_files(dataset)
    if not files:
        return list(getattr(dataset, "names", ()))
    place = Path(data)
    folder = (place if place.is_dir() else place.parent).resolve()
    parents = {file.parent for file in files}  # a few folders may have a million files
    places = {parent: os.path.relpath(parent.resolve(), folder) for parent in parents}
    return [Path(places[file.parent], file.name).as_posix() for file in files]


class ImageRecipe(Recipe):
    """Base of the recipes on images: reading, validation batches and checkpoints."""

    def __init__(
        self, config: TrainConfig, model: nn.Module, device: torch.device, data: ImageData
    ) -> None:
        super().__init__(config, model, device)
        self.data = data
        self.normalize = normalization(data.mean, data.std)

    @property
    def labels(self) -> Tensor:
        """Class of every training image."""
        return self.data.train.labels

    @property
    def names(self) -> Sequence[str]:
        """Name of every training image, its number where it has none."""
        known: Sequence[str] | None = getattr(self.data.train, "names", None)
        return known if known is not None else [str(i) for i in range(len(self.data.train))]

    @property
    def identities(self) -> Sequence[str]:
        """The files of the training images, see :func:`identities`."""
        return identities(self.data.train, self.config.data) or self.names

    def guide(self, item: int) -> tuple[Tensor | None, Tensor]:
        """What is to be learnt from in a training image.

        Returns:
            A uint8 (1, h, w) map of the whole image at any resolution, and a box (4,) in pixels of
            :meth:`ImageData.whole`.
        """
        return None, torch.zeros(4, dtype=torch.int32)

    def read(self, draw: Draw) -> TrainingSample:
        """One augmented sample with its map; both of another image where one was replaced."""
        item, image = self.data.taken(draw.item)
        seen, box = self.guide(item)
        found = self.data.transform(image, seen, boxes=box[None])
        empty = torch.zeros(0, dtype=torch.uint8)
        return TrainingSample(
            found.image,
            int(self.labels[item]),
            draw._replace(item=item),
            empty if found.map is None else found.map,
            box if found.boxes is None else found.boxes[0].to(torch.int32),
        )

    def has_object(self, item: int) -> bool:
        """Whether a training image is of a class with an object."""
        return int(self.labels[item]) != self.data.clean_class

    def has_regions(self) -> bool:
        """Whether validation images have masks or boxes.

        Of images that do not come from files, as far as the first ones tell.
        """
        data = self.data.validation
        if data is None:
            return False
        objects = torch.nonzero(data.labels != self.data.clean_class)[:, 0].tolist()
        if isinstance(data, ImageDataset):
            return any(data.records[item].masks or data.records[item].boxes for item in objects)
        return bool(with_regions([data[item] for item in objects[:_LOOKED_AT]]))

    def validation_batches(self) -> Iterator[list[Any]]:
        """This process' share of the validation images, in lists of samples of one size."""
        data = self.data.validation
        if data is None:
            return
        own = range(distributed.rank(), len(data), distributed.world_size())
        count = images_at_once(self.config)
        for first in range(0, len(own), count):
            chosen = own[first : first + count]
            samples = self.in_parallel(data.__getitem__, chosen)
            by_size: dict[tuple[int, ...], list[Any]] = {}
            for sample in samples:
                by_size.setdefault(tuple(sample.image.shape), []).append(sample)
            yield from by_size.values()

    def in_parallel(self, read: Callable[[int], Any], items: Sequence[int]) -> list[Any]:
        """What ``read`` gives for each item, by as many threads as there are readers."""
        if not self.config.workers:
            return [read(item) for item in items]
        with ThreadPoolExecutor(self.config.workers) as pool:  # decoding releases the interpreter
            return list(pool.map(read, items))

    def read_whole(self, items: Sequence[int]) -> Tensor:
        """Training images as they are before cropping and flipping, uint8, on the device.

        In place of one that cannot be read another is given (see :meth:`ImageData.taken`), and its
        map is kept: where the file, unchanged, is readable again later, that map is the wrong one.
        """
        return torch.stack(self.in_parallel(self.data.whole, items)).to(self.device)

    def image_key(self) -> dict[str, Any]:
        """What maps of whole training images depend on, beside the model.

        ``files`` changes where a file is replaced, but also where it is copied without its time. A
        collective call.
        """
        # Other synthetic images have the same names.
        drawn = {"drawn": self.config.split_seed} if self.config.data == SYNTHETIC else {}
        files = image_files(self.data.train)
        return {
            **drawn,
            "images": self.fingerprint(),
            "files": shared_digest(files, self.names) if files else None,
            "resized": list(self.data.map_size),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
        }

    def stack(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of samples, on the device."""
        images = torch.stack([sample.image for sample in samples]).to(self.device)
        labels = torch.tensor([int(sample.label) for sample in samples], device=self.device)
        return self.normalize(images), labels

    def check_saving(self) -> None:
        """Another package's model, or one with other classes, unless it is saved otherwise."""
        if type(self).save_model is ImageRecipe.save_model:
            description_of(self.model, **self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "class_names": self.data.class_names,
            "mean": self.data.mean,
            "std": self.data.std,
            "input_size": self.data.input_size,
        }

    def save_model(self, path: Path, figures: Mapping[str, float]) -> None:
        """Write the model with all that is needed to use it."""
        split = {name: getattr(self.config, name) for name in HELD_OUT}
        kept = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        save_checkpoint(
            self.model,
            path,
            **self._description(),
            extra={
                "recipe": self.name,
                "classifier_digest": self.classifier_digest,
                "clean_class": self.data.clean_class,
                "size": self.data.size,
                "crop": self.data.crop,
                **split,
                **kept,
                **self.extra(),
            },
        )

    def extra(self) -> dict[str, Any]:
        """What a recipe's checkpoints say besides."""
        return {}
