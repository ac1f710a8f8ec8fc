"""A small split in the localisation benchmark's format: metadata, score maps, masks."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SIDE = 224


@dataclass
class Split:
    """Where everything lies, and what is in it."""

    metadata: Path
    scoremaps: Path
    masks: Path
    maps: dict[str, np.ndarray]
    boxes: dict[str, list[tuple[int, int, int, int]]]
    sizes: dict[str, tuple[int, int]]
    truth: dict[str, np.ndarray]


def score_map(seed: int, cells: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((cells, cells))
    smooth = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    smooth += 0.1 * rng.random(smooth.shape)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def write_split(root: Path, dataset: str, images: int = 6) -> Split:
    """Write ``images`` maps with boxes (CUB) or masks (OpenImages); some have two."""
    rng = np.random.default_rng(0)
    metadata = root / "metadata" / dataset / "test"
    scoremaps, masks = root / "scoremaps", root / "dataset" / "OpenImages"
    for folder in (metadata, scoremaps / "cat", masks):
        folder.mkdir(parents=True)
    split = Split(metadata, scoremaps, masks, {}, {}, {}, {})
    lines: dict[str, list[str]] = {"image_ids": [], "class_labels": [], "image_sizes": []}
    localization = []
    for i in range(images):
        name = f"cat/{i}.jpg"
        split.maps[name] = score_map(i)
        np.save(scoremaps / f"{name}.npy", split.maps[name])
        width, height = (int(side) for side in rng.integers(100, 600, 2))
        split.sizes[name] = (width, height)
        lines["image_ids"].append(name)
        lines["class_labels"].append(f"{name},{i % 2}")
        lines["image_sizes"].append(f"{name},{width},{height}")
        count = 1 + i % 2
        if dataset == "OpenImages":
            localization += _write_masks(split, name, count, rng)
        else:
            localization += _draw_boxes(split, name, count, rng)
    for stem, content in {**lines, "localization": localization}.items():
        (metadata / f"{stem}.txt").write_text("\n".join(content) + "\n")
    return split


def _draw_boxes(split: Split, name: str, count: int, rng: np.random.Generator) -> list[str]:
    split.boxes[name] = []
    for _ in range(count):
        corners = np.sort(rng.integers(0, split.sizes[name], (2, 2)), axis=0)
        split.boxes[name].append(tuple(int(value) for value in corners.ravel()))
    return [",".join([name, *map(str, box)]) for box in split.boxes[name]]


def _write_masks(split: Split, name: str, count: int, rng: np.random.Generator) -> list[str]:
    stem = name.replace("/", "_")
    truth = np.zeros((SIDE, SIDE), np.uint8)
    ignored = np.zeros((SIDE, SIDE), np.uint8)
    ignored[:, :40] = 255
    cv2.imwrite(str(split.masks / f"{stem}_ignore.png"), ignored)
    lines = []
    for k in range(count):
        mask = (score_map(100 + 7 * k + int(rng.integers(50))) > 0.6).astype(np.uint8) * 255
        cv2.imwrite(str(split.masks / f"{stem}_{k}.png"), mask)
        truth |= mask
        lines.append(f"{name},{stem}_{k}.png,{stem}_ignore.png" if k == 0 else
                     f"{name},{stem}_{k}.png,")  # fmt: skip
    split.truth[name] = np.where(truth > 0, 1, np.where(ignored > 0, 255, 0)).astype(np.uint8)
    return lines
