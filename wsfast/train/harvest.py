"""Maps, masks and boxes of a large folder of images, by any number of processes, restartable."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsfast import ops
from wsfast._files import made_folder, write_atomically
from wsfast.data import SkippedFile, UnreadableImageError, read_image
from wsfast.data.sample import image_to_tensor
from wsfast.data.transforms import resized
from wsfast.train import distributed
from wsfast.train.evaluation import RunMaps
from wsfast.train.images import normalization
from wsfast.train.maps import dequantized, quantized
from wsfast.train.pseudo import without_small
from wsfast.train.state import only_run_in
from wsfast.train.store import Array, ArrayStore, shared_digest, weights_digest


@dataclass(frozen=True)
class Harvest:
    """What was harvested.

    Attributes:
        path: a ``.npy`` of one record per image, in the order of the images, to be read with
            ``numpy.load(path, mmap_mode="r")``. Fields: ``map`` uint8 (H, W), ``mask`` bool (H, W),
            ``boxes`` int32 (K, 4) half-open in pixels of the map with -1 where there are fewer,
            ``scores`` float32 (K,), ``label`` the predicted class and its ``probability``,
            ``height`` and ``width`` of the file's image, ``readable``.
        records: that array.
        skipped: files that could not be read.
    """

    path: Path
    records: Array
    skipped: list[SkippedFile]


def harvest(
    maps: RunMaps,
    files: Sequence[Path],
    out: Path,
    *,
    threshold: float | str | None = None,
    target: int | None = None,
    max_boxes: int = 16,
    min_area: int = 1,
    batch_size: int = 32,
    strict: bool = False,
    progress: bool = True,
) -> Harvest:
    """Compute maps, masks (pseudo-labels) and boxes of image files by a run's model.

    Each process of a ``torchrun`` takes its share. A broken run, called again in the same folder
    with any number of processes, makes what is missing: no image is done twice or left out. Where
    the model, a setting or a file (its name, size or time of change) is another one, all are made
    anew beside what is there.

    Args:
        maps: the run's model.
        files: images; the same list in every process.
        out: folder of the results.
        threshold: of masks and boxes, ``"otsu"``, ``"otsu2"`` or 0-1; None takes the one that
            validation chose. Pixels of level 0 are in none, at threshold 0 either.
        target: class to explain; None takes the predicted one. A classifier's maps of images that
            it predicts to be without an object are then empty.
        max_boxes: largest ones kept.
        min_area: smallest region of a mask, in pixels of the map.
        batch_size: images at a time.
        strict: an unreadable file is an error.
        progress: show a bar.

    Raises:
        UnreadableImageError: with ``strict``, a file cannot be read; nothing is left of what was
            done.
        ValueError: the model does not have the class ``target``; nothing is left, either.
        OSError: the disk refuses a file.
    """
    limit = maps.threshold if threshold is None else threshold
    size = maps.checkpoint.input_size
    settings = {
        "weights": [weights_digest(m) for m in (maps.model, maps.classifier) if m is not None],
        "maps": maps.method_name,
        **{name: getattr(maps.config, name, None) for name in ("layers", "percentile")},
        "mean": list(maps.checkpoint.mean),
        "std": list(maps.checkpoint.std),
        "threshold": limit,
        "target": target,
        "clean_class": maps.clean_class,
        "min_area": min_area,
        "files": shared_digest(files, files),
    }
    if strict:
        settings["strict"] = True  # what was harvested without may lack images
    kind = _record(size, max_boxes)
    store = ArrayStore(out, "harvest", settings, (len(files),), kind)
    worker = _Worker(maps, files, limit, target, max_boxes, min_area, strict, kind)
    with made_folder(out), only_run_in(out, "harvest"):
        try:
            records = store.fill(
                worker, batch_size=batch_size, description="harvesting", progress=progress
            )
        except ValueError:  # a class that the model has not, with strict a file
            store.discard()  # with the one or the other put right it is another array
            raise
        if distributed.is_writer():
            names = [str(file) for file in files]
            told = {"records": store.path.name, "size": list(size), "files": names}
            write_atomically(out / "harvest.json", json.dumps(told, indent=1).encode())
    skipped = [
        SkippedFile(files[row], _reason(files[row]))
        for row in np.flatnonzero(~records["readable"]).tolist()
    ]
    return Harvest(store.path, records, skipped)


def _reason(file: Path) -> str:
    """Why a file could not be read, by reading it again: records do not say."""
    try:
        read_image(file)
    except UnreadableImageError as error:
        return error.reason
    return "could not be read"


def _record(size: tuple[int, int], boxes: int) -> Any:
    return np.dtype(
        [
            ("map", np.uint8, size),
            ("mask", np.bool_, size),
            ("boxes", np.int32, (boxes, 4)),
            ("scores", np.float32, (boxes,)),
            ("label", np.int32),
            ("probability", np.float32),
            ("height", np.int32),
            ("width", np.int32),
            ("readable", np.bool_),
        ]
    )


@dataclass(frozen=True)
class _Worker:
    """From row numbers to their records."""

    maps: RunMaps
    files: Sequence[Path]
    threshold: float | str
    target: int | None
    max_boxes: int
    min_area: int
    strict: bool
    kind: Any

    def __call__(self, rows: list[int]) -> Array:
        records = np.zeros(len(rows), self.kind)
        records["boxes"] = -1
        images: list[Tensor] = []
        readable: list[int] = []
        for place, row in enumerate(rows):
            try:
                image = read_image(self.files[row])
            except UnreadableImageError:
                if self.strict:
                    raise
                continue
            records["height"][place], records["width"][place] = image.shape[:2]
            images.append(self._input(image))
            readable.append(place)
        if images:
            self._compute(torch.stack(images), records, readable)
        return records

    def _input(self, image: Any) -> Tensor:
        saved = self.maps.checkpoint
        whole = image_to_tensor(image, len(saved.mean))
        return normalization(saved.mean, saved.std)(resized(whole, saved.input_size))

    def _compute(self, images: Tensor, records: Array, places: list[int]) -> None:
        result = self.maps(images.to(next(self.maps.model.parameters()).device), self.target)
        probability, label = result.logits.float().softmax(1).max(1)
        cams = result.cams
        if self.target is None and self.maps.of_classes:
            clean = label == self.maps.clean_class
            cams = cams.masked_fill(clean[:, None, None], 0.0)  # the map of "good" is no object's
        levels = quantized(cams)
        cams = dequantized(levels)  # what is kept is what is cut
        # Above level 0 at least, or threshold 0 would make one box of the whole map.
        limits = ops.cam_thresholds(cams, self.threshold).clamp_min(1 / 255)
        masks = without_small(cams >= limits[:, None, None], self.min_area)
        found = ops.cam_boxes(
            cams.masked_fill(~masks, 0.0), limits, max_boxes=self.max_boxes, min_area=self.min_area
        )
        for name, values in (
            ("map", levels), ("mask", masks), ("boxes", found.boxes), ("scores", found.scores),
            ("label", label), ("probability", probability),
        ):  # fmt: skip
            records[name][places] = values.cpu().numpy()
        records["readable"][places] = True
