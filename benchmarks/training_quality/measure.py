"""Trains everything of one seed and scores it; what is done is kept and not done again."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.measure import DEFECT, Explained, Images, scores_of
from benchmarks.training_quality.settings import (
    CAMS,
    CLASSIFIER,
    TRAININGS,
    Settings,
    Source,
    Training,
)
from wsfast._files import write_atomically
from wsfast.cam import METHODS
from wsfast.data import inclusive_corners
from wsfast.metrics import MaxBoxAcc
from wsfast.ops import component_boxes
from wsfast.train import RunMaps, configure, run
from wsfast.train.data import open_split
from wsfast.train.images import normalization
from wsfast.train.validation import ClassScores

_BATCH = 20
_MOST_BOXES = 64

Maps = Callable[[Tensor], Tensor]
Row = dict[str, Any]


def measure_seed(source: Source, seed: int, folder: Path, threads: int = 1) -> dict[str, Any]:
    """Every row of one seed.

    Args:
        source: the data.
        seed: of data, weights and order.
        folder: for the runs and what was measured of them; what it holds is not made again.
        threads: of torch.

    Returns:
        Numbers ready for JSON.

    Raises:
        ValueError: the folder holds runs of other settings.
    """
    torch.set_num_threads(threads)
    work = _Work(source, seed, folder)
    return {
        "seed": seed,
        "epochs": [source.epochs, source.map_epochs],
        **work.kept("classifier", work.classifier),
        "methods": {
            **{name: work.kept(name, partial(work.cam, name)) for name in CAMS},
            **{name: work.kept(name, partial(work.trained, name)) for name in TRAININGS},
        },
    }


class _Work:
    def __init__(self, source: Source, seed: int, folder: Path) -> None:
        self.source, self.seed, self.folder = source, seed, folder
        self._images: Images | None = None

    def kept(self, name: str, make: Callable[[], Row]) -> Row:
        """What was measured before under the same settings, or now."""
        file = self.folder / f"{_slug(name)}.json"
        told = json.loads(json.dumps([self._told(), *_specific(name)]))
        if file.is_file():
            known = json.loads(file.read_text())
            if known["settings"] != told:
                raise ValueError(f"{file} was measured with other settings; take another folder")
            return dict(known["measured"])
        start = time.perf_counter()
        measured = make()
        text = json.dumps({"settings": told, "measured": measured})
        write_atomically(file, (text + "\n").encode())
        print(f"seed {self.seed}: {name}, {time.perf_counter() - start:.0f} s", flush=True)
        return measured

    def _told(self) -> Settings:
        epochs = {"classifier": self.source.epochs, "maps": self.source.map_epochs}
        return {**self.source.settings(self.seed), "epochs": epochs}

    def classifier(self) -> Row:
        """The classifier's accuracy on the test images, and what it is tested on."""
        seconds = self._train("classifier", CLASSIFIER)
        maps = RunMaps(self._run("classifier"), torch.device("cpu"))
        data = self._open(maps, "test")
        normalize = normalization(maps.checkpoint.mean, maps.checkpoint.std)
        scores = ClassScores(2)
        for first in range(0, len(data), _BATCH):
            samples = [data[i] for i in range(first, min(first + _BATCH, len(data)))]
            with torch.inference_mode():
                logits = maps.model(normalize(torch.stack([s.image for s in samples])))
            scores.update(logits, torch.tensor([s.label for s in samples]))
        images = self.images()
        return {
            "classifier": scores.compute(),
            "seconds": seconds,
            "images": {split: len(self._open(maps, split)) for split in ("train", "val", "test")},
            "explained": {
                "defects": len(images.test),
                "validation": len(images.validation),
                "good": len(images.good),
            },
            "defect_share": images.test_masks.float().mean().item(),
        }

    def cam(self, name: str) -> Row:
        """A CAM method of the classifier."""
        kind, options = CAMS[name]
        explain = METHODS[kind](RunMaps(self._run("classifier"), torch.device("cpu")).model,
                                **options)  # fmt: skip
        return self._scores(lambda images: explain(images, DEFECT).cams)

    def trained(self, name: str) -> Row:
        """A training method."""
        seconds = self._train(_slug(name), TRAININGS[name])
        maps = RunMaps(self._run(_slug(name)), torch.device("cpu"))
        row = self._scores(lambda images: maps(images, DEFECT).cams)
        return {**row, "seconds": seconds, "epoch": maps.checkpoint.extra.get("epoch")}

    def _run(self, name: str) -> Path:
        return self.folder / name

    def _train(self, name: str, training: Training) -> float:
        """Train, or go on where it was interrupted; the seconds it took in all."""
        settings = {**self.source.settings(self.seed), **training.settings}
        if training is CLASSIFIER:
            settings["epochs"] = self.source.epochs
        else:
            settings["epochs"] = self.source.map_epochs
            settings["classifier"] = str(self._run("classifier"))
        config = configure(training.recipe, settings)
        history = run(config, self._run(name), resume=True, progress=False)
        return sum(float(record["seconds"]) for record in history)

    def images(self) -> Images:
        """Validation and test images of the classes, normalised, with masks."""
        if self._images is None:
            maps = RunMaps(self._run("classifier"), torch.device("cpu"))
            normalize = normalization(maps.checkpoint.mean, maps.checkpoint.std)
            validation, validation_masks, _ = _parted(self._open(maps, "val"))
            test, test_masks, good = _parted(self._open(maps, "test"))
            self._images = Images(
                normalize(validation), validation_masks, normalize(test), test_masks,
                normalize(good),
            )  # fmt: skip
        return self._images

    def _open(self, maps: RunMaps, split: str) -> Any:
        length = self.source.images if split == "train" else self.source.held_out
        return open_split(
            maps.config, split, channels=len(maps.checkpoint.mean),
            size=maps.checkpoint.input_size, length=length if self.source.generated else None,
        )  # fmt: skip

    def _scores(self, maps: Maps) -> Row:
        images = self.images()

        def all_maps(batch: Tensor) -> Tensor:
            if not len(batch):
                return torch.zeros(0, *batch.shape[2:])
            return torch.cat([maps(part).float().clamp(0, 1) for part in batch.split(_BATCH)])

        start = time.perf_counter()
        test = all_maps(images.test)
        seconds = (time.perf_counter() - start) / len(test)
        found = Explained(all_maps(images.validation), test, all_maps(images.good), seconds)
        return {**scores_of(found, images), **box_scores(found, images)}


def box_scores(found: Explained, images: Images) -> dict[str, float]:
    """MaxBoxAcc, which has its threshold from the test images, and box accuracy at validation's.

    A box is right that has IoU 0.5 or more with the box of a component of the mask.
    """
    validation, test = MaxBoxAcc(), MaxBoxAcc()
    validation.update(found.validation, _boxes(images.validation_masks))
    test.update(found.test, _boxes(images.test_masks))
    chosen = int(validation.curve()[1][0].argmax())
    return {
        "max_box_acc": float(test.compute()),
        "box_acc": float(test.curve()[1][0, chosen]),
    }


def _boxes(masks: Tensor) -> list[Tensor]:
    found = component_boxes(masks, max_boxes=_MOST_BOXES)
    counts = found.counts.clamp_max(_MOST_BOXES).tolist()
    pairs = zip(found.boxes, counts, strict=True)
    return [inclusive_corners(boxes[:count]) for boxes, count in pairs]


def _parted(data: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a defect, their masks, and images without one."""
    samples = [data[index] for index in range(len(data))]
    defective = [s for s in samples if s.mask is not None and bool((s.mask == 1).any())]
    good = [s.image for s in samples if s.label == data.normal_label]
    if not (defective and good):
        raise ValueError("there must be images of both classes in each split, defects with masks")
    masks = torch.stack([sample.mask == 1 for sample in defective])
    return torch.stack([s.image for s in defective]), masks, torch.stack(good)


def _slug(name: str) -> str:
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _specific(name: str) -> Any:
    return [CLASSIFIER, CAMS.get(name), TRAININGS.get(name)]
