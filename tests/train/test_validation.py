"""Figures of validation images against counting by hand."""

import numpy as np
import pytest
import torch

from wsfast.data import DefectSample
from wsfast.metrics import MaxBoxAcc, PxAP
from wsfast.train.evaluation import _Scores
from wsfast.train.validation import ClassScores, MapScores, score_regions, with_regions


def test_pixel_figures_are_those_of_the_best_common_threshold():
    rng = np.random.default_rng(0)
    maps = rng.random((6, 9, 7)).astype(np.float32)
    masks = np.zeros((6, 9, 7), bool)
    masks[:4, 2:6, 1:5] = True
    maps *= 0.6
    maps[:4][masks[:4]] += 0.39
    scores = MapScores(torch.device("cpu"))
    for part in (slice(0, 2), slice(2, 6)):
        scores.update_masks(torch.from_numpy(maps[part]), torch.from_numpy(masks[part]))
    figures = scores.compute()
    best = (-1.0, 0.0)
    for threshold in np.arange(0, 1, 0.01):
        found = maps[:4] >= threshold
        iou = (found & masks[:4]).sum() / (found | masks[:4]).sum()
        best = max(best, (float(iou), -float(threshold)))
    assert figures["iou"] == figures["localization"] == pytest.approx(best[0])
    assert figures["threshold"] == pytest.approx(-best[1])
    found = maps[:4] >= figures["threshold"]
    assert figures["precision"] == pytest.approx(masks[:4][found].mean())
    assert figures["recall"] == pytest.approx(found[masks[:4]].mean())
    metric = PxAP(thresholds=torch.arange(0, 1, 0.01, dtype=torch.float64))
    metric.update(torch.from_numpy(maps[:4]), torch.from_numpy(masks[:4]))
    assert figures["pxap"] == pytest.approx(metric.compute().item())
    false_positives = (maps[4:] >= figures["threshold"]).mean()
    assert figures["false_positives"] == pytest.approx(false_positives)
    assert figures["covered"] == pytest.approx((maps[:4] >= 0.5).mean())


def test_ignored_pixels_of_clean_images_are_no_false_positives():
    maps, masks = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)
    maps[0, :2], masks[0, :2] = 0.8, 1
    maps[1, 0], masks[1, :2] = 0.9, 255
    maps[1, 3, 0] = 0.9
    scores = MapScores(torch.device("cpu"))
    scores.update_masks(maps, masks)
    assert scores.compute()["false_positives"] == 1 / 8
    evaluated = _Scores(0.5, 2)
    masks = [*masks, torch.full((4, 4), 255, dtype=torch.uint8)]  # of the last nothing counts
    samples = [DefectSample(torch.zeros(1, 4, 4), mask, 0, "a") for mask in masks]
    maps = torch.cat([maps, torch.ones(1, 4, 4)])
    evaluated.update(samples, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), maps)
    assert evaluated.compute()["false_positives"] == 1 / 8


def test_boxes_are_scored_where_there_are_no_masks():
    maps = torch.full((2, 12, 12), 0.3)  # to be cut away
    maps[0, 2:8, 3:9] = 0.5
    maps[1, :2, :2] = 0.9
    box = torch.tensor([[3, 2, 9, 8]], dtype=torch.int32)
    image = torch.zeros(1, 12, 12, dtype=torch.uint8)
    samples = [DefectSample(image, None, 0, "a", box), DefectSample(image, None, 0, "b", box)]
    scores = MapScores(torch.device("cpu"))
    assert with_regions([*samples, DefectSample(image, None, 0, "c")]) == [0, 1]
    score_regions(scores, samples, maps)
    figures = scores.compute()
    assert figures["max_box_acc"] == 0.5
    assert figures["box_acc"] == 0.5
    assert 0.3 < figures["threshold"] <= 0.5  # of maps as they are, not of their maximum


def test_boxes_of_a_run_are_told_by_class_and_by_what_is_wrong():
    """Four maps of six classes: right, of another class, of the second class, and of a part."""
    box = torch.tensor([[3, 2, 9, 8]], dtype=torch.int32)
    image = torch.zeros(1, 12, 12, dtype=torch.uint8)
    maps = torch.zeros(5, 12, 12)
    maps[:3, 2:8, 3:9] = maps[3, 2:4, 3:6] = 1.0  # of the fifth nothing is found
    logits = torch.eye(6)[[0, 1, 1, 3, 4]] + torch.tensor([0, 0, 0.5, 0, 0.0, -0.5])
    labels = torch.tensor([0, 5, 2, 3, 4])
    scores = _Scores(0.5, 6)
    samples = [DefectSample(image, None, int(label), "a", box) for label in labels]
    scores.update(samples, labels, logits, maps)
    figures = scores.compute()
    assert (figures["box_acc"], figures["max_box_acc"]) == (0.6, 0.6)
    assert (figures["top1_loc"], figures["top5_loc"]) == (0.2, 0.4)
    shares = {"correct": 0.2, "class": 0.4, "part": 0.2, "other": 0.2}
    assert figures["box_errors"] == {"multi_instance": 0, "more": 0, **shares}
    few = _Scores(0.5, 5)
    few.update(samples[:1], labels[:1], logits[:1, :5], maps[:1])
    assert "top5_loc" not in few.compute()


def test_one_threshold_of_the_maps_as_they_are_is_found_for_boxes():
    """Where maximums differ, shares of them box everything and a common threshold half of it."""
    box = torch.tensor([[3, 2, 8, 7]])
    maps = torch.zeros(4, 12, 12)
    for n, (halo, inside) in enumerate([(0.3, 0.4), (0.32, 0.42), (0.6, 0.8), (0.36, 0.9)]):
        maps[n] = halo
        maps[n, 2:8, 3:9] = inside
    scores = MapScores(torch.device("cpu"))
    for part in (slice(0, 3), slice(3, 4)):
        scores.update_boxes(maps[part], [box] * len(maps[part]))
    figures = scores.compute()
    assert figures["max_box_acc"] == 1.0
    shares = torch.arange(0, 1, 0.01, dtype=torch.float64)
    for n in range(1, 5):  # as the metric has it, image by image
        metric, alone = MaxBoxAcc(thresholds=shares), MapScores(torch.device("cpu"))
        noisy = (maps[:n] + 0.1 * torch.rand(n, 12, 12)).clamp(0, 1)
        metric.update(noisy, [box] * n)
        alone.update_boxes(noisy, [box] * n)
        assert alone.compute()["max_box_acc"] == metric.compute().item()
    assert figures["box_acc"] == 0.75  # the third image needs more than 0.6
    assert 0.36 < figures["threshold"] <= 0.4


def test_shares_of_images_are_not_rounded():
    maps = torch.zeros(3, 12, 12)
    maps[0, 2:8, 3:9] = 1.0
    scores = MapScores(torch.device("cpu"))
    scores.update_boxes(maps, [torch.tensor([[3, 2, 9, 8]])] * 3)
    figures = scores.compute()
    assert (figures["localization"], figures["box_acc"]) == (1 / 3, 1 / 3)


def test_nothing_to_score_gives_no_figures():
    assert MapScores(torch.device("cpu")).compute() == {}


def test_balanced_accuracy_is_the_mean_over_classes_met():
    scores = ClassScores(3)
    logits = torch.eye(3)[torch.tensor([0, 0, 0, 0, 1])]
    scores.update(logits, torch.tensor([0, 0, 0, 1, 1]))
    assert scores.compute() == pytest.approx({"accuracy": 0.8, "balanced_accuracy": 0.75})


def test_ignored_pixels_count_nowhere():
    torch.manual_seed(0)
    maps, mask = torch.rand(1, 8, 8), (torch.rand(8, 8) > 0.7).to(torch.uint8)
    maps[0, :, 6:] = maps[0, :, :2]  # so that Otsu's threshold is one of these values, too
    mask[:, 6:] = 255
    figures = []
    for width in (8, 6):
        image = torch.zeros(1, 8, width, dtype=torch.uint8)
        sample = DefectSample(image, mask[:, :width], 1, "a")
        scores = _Scores(0.5, 2)
        limited = maps[:, :, :width]
        scores.update([sample], torch.tensor([1]), torch.tensor([[0.0, 1.0]]), limited)
        found = scores.compute()
        figures.append((found["at_threshold"], found["iou_per_image"], found["pxap"]))
    assert figures[0] == figures[1]
    assert 0 < figures[0][0]["miou"] < 1
    assert figures[0][1] == figures[0][0]["iou"]  # of the one image, to the last digit
