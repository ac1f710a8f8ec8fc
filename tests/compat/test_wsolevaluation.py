"""compat.wsolevaluation against the protocol in plain OpenCV and NumPy."""

import numpy as np
import pytest
import torch

from benchmarks import opencv_protocol as protocol
from tests.wsol_files import score_map, write_split
from wsfast.compat import wsolevaluation as compat

THRESHOLDS = list(np.arange(0, 1, 0.001))


def evaluator(kind, split, dataset: str, multi: bool = False):
    return kind(
        metadata=compat.configure_metadata(str(split.metadata)),
        dataset_name=dataset,
        split="test",
        cam_threshold_list=THRESHOLDS,
        iou_threshold_list=[30, 50, 70],
        mask_root=str(split.masks),
        multi_contour_eval=multi,
    )


@pytest.mark.parametrize("multi", [False, True])
def test_box_evaluator(tmp_path, multi: bool) -> None:
    split = write_split(tmp_path, "CUB")
    found = evaluator(compat.BoxEvaluator, split, "CUB", multi)
    maps, truths = [], []
    for name, scoremap in split.maps.items():
        found.accumulate(scoremap, name)
        width, height = split.sizes[name]
        scale = [224 / width, 224 / height] * 2
        boxes = [[int(float(v) * 224 / s) for v, s in zip(box, (width, height) * 2, strict=True)]
                 for box in split.boxes[name]]  # fmt: skip
        assert np.abs(np.array(boxes) - np.array(split.boxes[name]) * scale).max() < 1
        assert [list(box) for box in found.gt_bboxes[name]] == boxes
        maps.append(scoremap)
        truths.append(np.array(boxes))
    counts = protocol.num_correct(
        maps, truths, np.array(THRESHOLDS), (30, 50, 70), every_contour=multi, collapse=True
    )
    for row, iou in enumerate((30, 50, 70)):
        np.testing.assert_array_equal(found.num_correct[iou], counts[row])
    assert found.cnt == len(maps)
    assert found.compute() == [(row * 100.0 / len(maps)).max() for row in counts]


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("cells", [3, 14])
def test_boxes_from_scoremaps(multi: bool, cells: int) -> None:
    scoremap = score_map(5, cells)[:90, :117]
    boxes, counts = compat.compute_bboxes_from_scoremaps(scoremap, THRESHOLDS, multi)
    image, levels = protocol.levels_of(scoremap, THRESHOLDS)
    for found, count, level in zip(boxes, counts, levels, strict=True):
        expected = protocol.boxes_at_level(image, level, multi)
        np.testing.assert_array_equal(found, expected)
        assert count == len(expected)


def test_boxes_of_the_benchmarks_own_test() -> None:
    """The maps and boxes that the evaluation module is tested with."""
    one = [[0, 0, 0, 0, 0], [0, 4, 4, 4, 6], [0, 4, 10, 8, 6], [0, 4, 4, 4, 6]]
    several = [[4, 0, 2, 2, 2], [4, 4, 0, 4, 0], [0, 0, 0, 4, 0], [10, 6, 8, 2, 2]]
    expected = {
        str(one): [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]],
        str(several): [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]],
    }
    for scores in (one, several):
        boxes, counts = compat.compute_bboxes_from_scoremaps(
            np.array(scores) / 10, np.arange(0, 1, 0.2)
        )
        assert [box.tolist() for box in np.concatenate(boxes)] == expected[str(scores)]
        assert counts == [1] * 5


def test_an_empty_map_gives_one_empty_box() -> None:
    for multi in (False, True):
        boxes, counts = compat.compute_bboxes_from_scoremaps(np.zeros((3, 3)), [0, 0.5], multi)
        assert [b.tolist() for b in boxes] == [[[0, 0, 0, 0]]] * 2
        assert counts == [1, 1]


def test_mask_evaluator(tmp_path, capsys) -> None:
    split = write_split(tmp_path, "OpenImages")
    found = evaluator(compat.MaskEvaluator, split, "OpenImages")
    for name, scoremap in split.maps.items():
        found.accumulate(scoremap, name)
        mask = compat.get_mask(str(split.masks), found.mask_paths[name], found.ignore_paths[name])
        np.testing.assert_array_equal(mask, split.truth[name])
    expected = 100 * protocol.pixel_average_precision(
        list(split.maps.values()), list(split.truth.values()), np.array(THRESHOLDS)
    )
    assert found.compute() == pytest.approx(expected, abs=1e-12)
    assert "Mask AUC on split test: " in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"No positive ground truth in the eval set\."):
        evaluator(compat.MaskEvaluator, split, "OpenImages").compute()
    with pytest.raises(ValueError, match="Mask evaluation must be performed on OpenImages"):
        evaluator(compat.MaskEvaluator, split, "CUB")


def test_evaluate_wsol(tmp_path) -> None:
    split = write_split(tmp_path, "CUB")
    roots = [str(tmp_path / name) for name in ("scoremaps", "metadata", "dataset")]
    whole = evaluator(compat.BoxEvaluator, split, "CUB", True)
    for name, scoremap in split.maps.items():
        whole.accumulate(scoremap, name)
    options = {"dataset_name": "CUB", "split": "test", "iou_threshold_list": [30, 50, 70]}
    v2 = compat.evaluate_wsol(*roots, multi_contour_eval=True, multi_iou_eval=True, **options)
    assert v2 == pytest.approx(np.average(whole.compute()))
    v1 = compat.evaluate_wsol(*roots, multi_contour_eval=True, multi_iou_eval=False, **options)
    assert v1 == whole.compute()[1]


def test_metadata_functions(tmp_path) -> None:
    split = write_split(tmp_path, "CUB", images=2)
    metadata = compat.configure_metadata(str(split.metadata))
    assert compat.get_image_ids(metadata) == ["cat/0.jpg", "cat/1.jpg"]
    assert compat.get_class_labels(metadata) == {"cat/0.jpg": 0, "cat/1.jpg": 1}
    assert compat.get_image_sizes(metadata) == split.sizes
    assert compat.get_bounding_boxes(metadata) == split.boxes
    assert metadata.image_ids == metadata["image_ids"]
    with pytest.raises(AttributeError):
        metadata.nothing  # noqa: B018
    metadata.image_ids = str(split.metadata / "others.txt")
    assert metadata["image_ids"] == metadata.image_ids
    with pytest.raises(FileNotFoundError, match=r"others\.txt"):
        compat.get_image_ids(metadata)
    del metadata.image_ids
    assert "image_ids" not in metadata


def test_missing_files_and_bad_boxes_raise_what_the_original_does(tmp_path) -> None:
    metadata = compat.configure_metadata(str(tmp_path))
    for read in (compat.get_class_labels, compat.get_image_sizes, compat.get_mask_paths,
                 compat.get_bounding_boxes, compat.get_image_ids):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=r"\.txt"):
            read(metadata)
    split = write_split(tmp_path, "CUB", images=1)
    (split.metadata / "localization.txt").write_text("cat/0.jpg,9,9,3,3\n")
    with pytest.raises(RuntimeError, match="do not follow the x0y0x1y1 convention"):
        evaluator(compat.BoxEvaluator, split, "CUB")


def test_iou_known_values() -> None:
    a = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]])
    iou = compat.calculate_multiple_iou(a, a)
    np.testing.assert_allclose(iou, [[1, 4 / 14, 0], [4 / 14, 1, 0], [0, 0, 1]], rtol=1e-15)
    assert iou.dtype == np.float64
    np.testing.assert_array_equal(compat.calculate_multiple_iou(a[::-1], a), iou[::-1])
    assert compat.resize_bbox((10, 20, 30, 41), (100, 50), (224, 224)) == (22, 89, 67, 183)


GOOD = np.zeros((4, 4))
BAD_MAPS = (
    ([[0.0]], TypeError, "must be a numpy array"),
    (GOOD.astype(np.float32), TypeError, "must be of np.float type"),
    (GOOD[0], ValueError, "must be a 2D array; it is 1D"),
    (GOOD + np.nan, ValueError, "must not contain nans"),
    (GOOD + 1.5, ValueError, "must be in range"),
    (GOOD - 0.5, ValueError, "must be in range"),
)


@pytest.mark.parametrize("case", range(len(BAD_MAPS)))
def test_scoremap_validity(case: int) -> None:
    scoremap, error, message = BAD_MAPS[case]
    with pytest.raises(error, match=message):
        compat.compute_bboxes_from_scoremaps(scoremap, [0.5])


@pytest.mark.parametrize(
    "box", [(0, 0, -1, 2), (3, 3, 2, 4), (3, 3, 4, 2), (1, 2, 3), [[[1, 2, 3, 4]]]]
)
def test_box_convention(box) -> None:
    with pytest.raises(RuntimeError):
        compat.check_box_convention(np.array(box), "x0y0x1y1")


def test_tensors_become_float64() -> None:
    assert compat.t2n(torch.ones(2, requires_grad=True)).dtype == np.float64
    with pytest.raises(ValueError, match="Unknown convention"):
        compat.check_box_convention(np.array([1, 2, 3, 4]), "cxcywh")
    compat.check_box_convention(np.array([5, 5, 1, 1]), "xywh")
