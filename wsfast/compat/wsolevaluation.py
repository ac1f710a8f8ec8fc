"""The ``evaluation`` module of the localisation benchmark, answered by wsfast.

``from wsfast.compat.wsolevaluation import BoxEvaluator`` in place of ``from evaluation import
BoxEvaluator``: the same names, arguments, exceptions and results (Choe et al., "Evaluating Weakly
Supervised Object Localization Methods Right", CVPR 2020), at every threshold in one pass.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .. import ops
from ..data import wsol
from ..metrics._protocol import best_iou_of_largest
from ..metrics.pixels import average_precision
from ..ops.levels.protocol import inclusive_iou, protocol_corners

__all__ = [
    "BoxEvaluator",
    "CamDataset",
    "LocalizationEvaluator",
    "MaskEvaluator",
    "calculate_multiple_iou",
    "check_box_convention",
    "check_scoremap_validity",
    "compute_bboxes_from_scoremaps",
    "configure_metadata",
    "evaluate_wsol",
    "get_bounding_boxes",
    "get_class_labels",
    "get_image_ids",
    "get_image_sizes",
    "get_mask",
    "get_mask_paths",
    "load_mask_image",
    "resize_bbox",
    "t2n",
]

Array = NDArray[Any]
_RESIZE_LENGTH = wsol.SIDE


# Checks -----------------------------------------------------------------------------------------


def check_scoremap_validity(scoremap: Any) -> None:
    """Raise unless ``scoremap`` is a 2-D float64 array without NaN and within 0-1.

    Raises:
        TypeError: not an array, or not float64.
        ValueError: another rank, NaN, values outside 0-1.
    """
    if not isinstance(scoremap, np.ndarray):
        raise TypeError(f"Scoremap must be a numpy array; it is {type(scoremap)}.")
    if scoremap.dtype != np.float64:
        raise TypeError(f"Scoremap must be of np.float type; it is of {scoremap.dtype} type.")
    if scoremap.ndim != 2:
        raise ValueError(f"Scoremap must be a 2D array; it is {scoremap.ndim}D.")
    low, high = scoremap.min(), scoremap.max()  # NaN if any value is
    if np.isnan(low):
        raise ValueError("Scoremap must not contain nans.")
    if low < 0 or high > 1:
        raise ValueError(
            f"Scoremap must be in range [0, 1].scoremap.min()={low}, scoremap.max()={high}."
        )


def check_box_convention(boxes: Array, convention: str) -> None:
    """Raise unless boxes, (4,) or (num_boxes, 4), follow ``"x0y0x1y1"`` or ``"xywh"``.

    Raises:
        RuntimeError: negative coordinates, another shape, negative extents.
        ValueError: unknown convention.
    """
    if (boxes < 0).any():
        raise RuntimeError("Box coordinates must be non-negative.")
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
        raise RuntimeError("Box array must have dimension (4) or (num_boxes, 4).")
    if convention == "x0y0x1y1":
        extents = boxes[..., 2:] - boxes[..., :2]
    elif convention == "xywh":
        extents = boxes[..., 2:]
    else:
        raise ValueError(f"Unknown convention {convention}.")
    if (extents < 0).any():
        raise RuntimeError(f"Boxes do not follow the {convention} convention.")


def t2n(t: torch.Tensor) -> Array:
    """Turn a tensor into a float64 array."""
    return t.detach().cpu().numpy().astype(np.float64)


# Boxes ------------------------------------------------------------------------------------------


def calculate_multiple_iou(box_a: Array, box_b: Array) -> Array:
    """IoU of every pair of boxes (x0, y0, x1, y1), corners inclusive: (num_a, num_b) float64.

    Raises:
        RuntimeError: boxes out of convention.
    """
    check_box_convention(box_a, "x0y0x1y1")
    check_box_convention(box_b, "x0y0x1y1")
    a, b = (torch.from_numpy(np.ascontiguousarray(boxes)) for boxes in (box_a, box_b))
    return inclusive_iou(a[:, None], b[None]).numpy()


def resize_bbox(
    box: Iterable[float], image_size: Iterable[int], resize_size: Iterable[int]
) -> tuple[int, int, int, int]:
    """Scale a box from ``image_size`` to ``resize_size``, both (width, height); cut off to ints.

    Raises:
        RuntimeError: a box out of convention.
    """
    corners = list(box)
    check_box_convention(np.array(corners), "x0y0x1y1")
    return wsol.resize_box(corners, image_size, resize_size)


def _threshold_levels(scoremap: Array, thresholds: Iterable[float]) -> NDArray[np.int64]:
    """The 8-bit level of every threshold: trunc of the double product with the highest level."""
    highest = int(scoremap.max() * 255)
    return (np.asarray(thresholds, np.float64) * highest).astype(np.int64)


def _boxes_of_contours(image: NDArray[np.uint8], level: int) -> Array:
    """Boxes of every contour of one mask in OpenCV's order; [[0, 0, 0, 0]] without any."""
    mask = (image > level).astype(np.uint8)
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if not contours:
        return np.zeros((1, 4), np.int64)
    boxes = np.array([cv2.boundingRect(contour) for contour in contours], np.int64)
    boxes[:, 2:] += boxes[:, :2]
    return protocol_corners(torch.from_numpy(boxes), *image.shape).numpy()


def compute_bboxes_from_scoremaps(
    scoremap: Array, scoremap_threshold_list: Sequence[float], multi_contour_eval: bool = False
) -> tuple[list[Array], list[int]]:
    """Boxes of a score map at every threshold.

    Args:
        scoremap: (H, W) float64 in 0-1.
        scoremap_threshold_list: thresholds in 0-1.
        multi_contour_eval: boxes of every contour, not of the largest alone.

    Returns:
        One (K, 4) int array per threshold, and the K of each.

    Raises:
        TypeError, ValueError: as :func:`check_scoremap_validity`.
    """
    check_scoremap_validity(scoremap)
    levels = _threshold_levels(scoremap, scoremap_threshold_list)
    if multi_contour_eval:
        image = (scoremap * 255).astype(np.uint8)
        known = {level: _boxes_of_contours(image, level) for level in np.unique(levels).tolist()}
        found = [known[level].copy() for level in levels.tolist()]
    else:
        boxes, _ = ops.level_boxes(torch.from_numpy(np.ascontiguousarray(scoremap))[None])
        at_levels = protocol_corners(boxes[0], *scoremap.shape).numpy()
        found = list(at_levels[levels][:, None])
    return found, [len(boxes) for boxes in found]


# Metadata ---------------------------------------------------------------------------------------


class Metadata(dict[str, str]):
    """Paths of a split's metadata files, as items and as attributes."""

    def __getattr__(self, name: str) -> str:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__


def configure_metadata(metadata_root: str) -> Metadata:
    """Return the paths of the metadata files in a folder."""
    names = ("image_ids", "image_ids_proxy", "class_labels", "image_sizes", "localization")
    return Metadata({name: os.path.join(metadata_root, f"{name}.txt") for name in names})


def _there(path: str) -> str:
    """The path of a file that exists, as the original's ``open`` wants it."""
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return path


def get_image_ids(metadata: Metadata, proxy: bool = False) -> list[str]:
    """Return the image ids in file order.

    Raises:
        FileNotFoundError: as every reader of metadata, where the file is missing.
        MetadataError: a malformed line; a ValueError, as the original's.
    """
    return wsol.read_image_ids(_there(metadata["image_ids_proxy" if proxy else "image_ids"]))


def get_class_labels(metadata: Metadata) -> dict[str, int]:
    """Return the class of each image id."""
    return wsol.read_class_labels(_there(metadata["class_labels"]))


def get_bounding_boxes(metadata: Metadata) -> dict[str, list[wsol.Box]]:
    """Return the boxes of each image id as they are in the file; resize_bbox checks them."""
    return wsol.read_boxes(_there(metadata["localization"]), check=False)


def get_mask_paths(metadata: Metadata) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the mask paths and the ignore path of each image id."""
    return wsol.read_mask_paths(_there(metadata["localization"]))


def get_image_sizes(metadata: Metadata) -> dict[str, tuple[int, int]]:
    """Return (width, height) of each image id."""
    return wsol.read_image_sizes(_there(metadata["image_sizes"]))


# Evaluators -------------------------------------------------------------------------------------


class LocalizationEvaluator:
    """Base of the evaluators: :meth:`accumulate` score maps, then :meth:`compute`."""

    def __init__(
        self,
        metadata: Metadata,
        dataset_name: str,
        split: str,
        cam_threshold_list: Sequence[float],
        iou_threshold_list: Sequence[int],
        mask_root: str,
        multi_contour_eval: bool,
    ) -> None:
        self.metadata = metadata
        self.cam_threshold_list = cam_threshold_list
        self.iou_threshold_list = iou_threshold_list
        self.dataset_name = dataset_name
        self.split = split
        self.mask_root = mask_root
        self.multi_contour_eval = multi_contour_eval

    def accumulate(self, scoremap: Array, image_id: str) -> None:
        """Count one score map."""
        raise NotImplementedError

    def compute(self) -> Any:
        """Return the score of all maps counted so far."""
        raise NotImplementedError


class BoxEvaluator(LocalizationEvaluator):
    """MaxBoxAcc (largest contour) and MaxBoxAccV2 (``multi_contour_eval``).

    ``num_correct`` maps every IoU threshold (percent) to the hits at every score threshold;
    ``cnt`` is the number of maps.

    Raises:
        RuntimeError: a box out of convention.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_ids = get_image_ids(metadata=self.metadata)
        self.resize_length = _RESIZE_LENGTH
        self.cnt = 0
        self.num_correct = {
            iou: np.zeros(len(self.cam_threshold_list)) for iou in self.iou_threshold_list
        }
        self.original_bboxes = get_bounding_boxes(self.metadata)
        self.image_sizes = get_image_sizes(self.metadata)
        self.gt_bboxes = self._load_resized_boxes(self.original_bboxes)
        self._thresholds = np.asarray(self.cam_threshold_list, np.float64)

    def _load_resized_boxes(
        self, original_bboxes: dict[str, list[wsol.Box]]
    ) -> dict[str, list[tuple[int, int, int, int]]]:
        size = (self.resize_length, self.resize_length)
        return {
            image_id: [
                resize_bbox(box, self.image_sizes[image_id], size)
                for box in original_bboxes[image_id]
            ]
            for image_id in self.image_ids
        }

    def accumulate(self, scoremap: Array, image_id: str) -> None:
        """Count one score map.

        Args:
            scoremap: (H, W) float64 in 0-1.
            image_id: one of the metadata's ids.

        Raises:
            TypeError, ValueError: as :func:`check_scoremap_validity`.
            KeyError: an unknown image id.
        """
        check_scoremap_validity(scoremap)
        maps = torch.from_numpy(np.ascontiguousarray(scoremap))[None]
        truth = torch.tensor(self.gt_bboxes[image_id])
        offsets = torch.tensor([0, len(truth)])
        best_iou = ops.level_best_iou if self.multi_contour_eval else best_iou_of_largest
        at_levels = best_iou(maps, truth, offsets)[0].numpy()
        best = at_levels[_threshold_levels(scoremap, self._thresholds)]
        for iou in self.iou_threshold_list:
            self.num_correct[iou] += best >= iou / 100
        self.cnt += 1

    def compute(self) -> list[float]:
        """Return the best accuracy in percent for each IoU threshold."""
        return [
            (self.num_correct[iou] * 100.0 / float(self.cnt)).max()
            for iou in self.iou_threshold_list
        ]


def load_mask_image(file_path: str, resize_size: tuple[int, int]) -> NDArray[np.float32]:
    """Read a grey image as float32 and resize it, (width, height), by its nearest pixels.

    Raises:
        MetadataError: the file cannot be read.
    """
    return wsol.read_grey(file_path, resize_size)


def get_mask(mask_root: str, mask_paths: Iterable[str], ignore_path: str) -> NDArray[np.uint8]:
    """(224, 224) uint8 mask of an image: 1 foreground, 255 ignored, else 0."""
    return wsol.read_protocol_mask(mask_root, list(mask_paths), ignore_path)


class MaskEvaluator(LocalizationEvaluator):
    """PxAP on OpenImages; histograms of scores over foreground and background pixels.

    Raises:
        ValueError: another data set.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.dataset_name != "OpenImages":
            raise ValueError("Mask evaluation must be performed on OpenImages.")
        self.mask_paths, self.ignore_paths = get_mask_paths(self.metadata)
        self.num_bins = len(self.cam_threshold_list) + 2
        self.threshold_list_right_edge = np.append(self.cam_threshold_list, [1.0, 2.0, 3.0])
        self.gt_true_score_hist = np.zeros(self.num_bins)
        self.gt_false_score_hist = np.zeros(self.num_bins)
        self._edges = torch.from_numpy(self.threshold_list_right_edge)

    def accumulate(self, scoremap: Array, image_id: str) -> None:
        """Count the pixels of one (224, 224) float64 score map in 0-1.

        Raises:
            TypeError, ValueError: as :func:`check_scoremap_validity`.
            KeyError: an unknown image id.
        """
        check_scoremap_validity(scoremap)
        mask = get_mask(self.mask_root, self.mask_paths[image_id], self.ignore_paths[image_id])
        maps = torch.from_numpy(np.ascontiguousarray(scoremap))[None]
        counts = ops.score_histograms(maps, torch.from_numpy(mask)[None], self._edges).numpy()
        self.gt_false_score_hist += counts[0]
        self.gt_true_score_hist += counts[1]

    def compute(self) -> float:
        """Return, and print, the area under the precision-recall curve in percent.

        Raises:
            RuntimeError: no foreground pixel was counted.
        """
        if not self.gt_true_score_hist.any():
            raise RuntimeError("No positive ground truth in the eval set.")
        auc = 100 * average_precision(self.gt_false_score_hist, self.gt_true_score_hist)
        print(f"Mask AUC on split {self.split}: {auc}")
        return auc


# Whole runs -------------------------------------------------------------------------------------


class CamDataset(torch.utils.data.Dataset[tuple[Array, str]]):
    """Score maps ``<image id>.npy`` of a folder."""

    def __init__(self, scoremap_path: str, image_ids: Sequence[str]) -> None:
        self.scoremap_path = scoremap_path
        self.image_ids = image_ids

    def __getitem__(self, index: int) -> tuple[Array, str]:
        """Return a score map and its image id."""
        image_id = self.image_ids[index]
        path = Path(self.scoremap_path) / f"{image_id}.npy"
        return np.load(path, allow_pickle=False), image_id

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)


def evaluate_wsol(
    scoremap_root: str,
    metadata_root: str,
    mask_root: str,
    dataset_name: str,
    split: str,
    multi_contour_eval: bool,
    multi_iou_eval: bool,
    iou_threshold_list: Sequence[int],
    cam_curve_interval: float = 0.001,
) -> float:
    """Score the maps of a split: percent of MaxBoxAcc, MaxBoxAccV2 or PxAP.

    Args:
        scoremap_root: folder of ``<image id>.npy``, (224, 224) each, in 0-1.
        metadata_root: folder of ``<dataset_name>/<split>/*.txt``.
        mask_root: folder of ``OpenImages/`` masks.
        dataset_name: ``"CUB"``, ``"ILSVRC"`` or ``"OpenImages"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        multi_contour_eval: boxes of every contour.
        multi_iou_eval: mean over ``iou_threshold_list``; else the accuracy at IoU 50.
        iou_threshold_list: percent, such as [30, 50, 70].
        cam_curve_interval: step of the score thresholds.
    """
    print("Loading and evaluating cams.")
    metadata = configure_metadata(os.path.join(metadata_root, dataset_name, split))
    evaluators = {"OpenImages": MaskEvaluator, "CUB": BoxEvaluator, "ILSVRC": BoxEvaluator}
    evaluator = evaluators[dataset_name](
        metadata=metadata,
        dataset_name=dataset_name,
        split=split,
        cam_threshold_list=list(np.arange(0, 1, cam_curve_interval)),
        mask_root=os.path.join(mask_root, "OpenImages"),
        multi_contour_eval=multi_contour_eval,
        iou_threshold_list=iou_threshold_list,
    )
    dataset = CamDataset(scoremap_root, get_image_ids(metadata))
    for index in tqdm(range(len(dataset)), unit="map", desc="evaluating"):
        scoremap, image_id = dataset[index]
        evaluator.accumulate(scoremap.astype(np.float64), image_id)
    performance = evaluator.compute()
    if multi_iou_eval or dataset_name == "OpenImages":
        performance = float(np.average(performance))
    else:
        performance = performance[list(iou_threshold_list).index(50)]
    print(f"localization: {performance}")
    return performance
