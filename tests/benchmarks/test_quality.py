"""The measurement behind docs/results.md: its data, its thresholds and its page."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.quality.data import SIDE, Samples, folder_splits, read_pairs, synthetic_splits
from benchmarks.quality.measure import best_threshold, mask_scores
from benchmarks.quality.methods import all_methods
from benchmarks.quality.models import train_models
from benchmarks.quality.report import BEGIN, END, table, write_page
from wsfast.data import SyntheticDefects


def test_splits_share_no_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        mask = np.zeros((30, 40), np.uint8)
        mask[5:10, 8:20] = 255 * (i % 2)
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), rng.integers(0, 255, (30, 40), np.uint8))
        cv2.imwrite(str(tmp_path / f"{i}.png"), mask)
    samples = read_pairs(tmp_path)
    assert [sample.label for sample in samples] == [int(s.name) % 2 for s in samples]
    assert samples[0].image.shape == (1, SIDE, SIDE)
    for splits in (folder_splits(samples, 3), folder_splits(samples, 4)):
        names = [sample.name for split in splits for sample in split.samples]
        assert sorted(names) == sorted(sample.name for sample in samples)
        assert [len(split) for split in splits] == [12, 4, 4]
        assert all(float(split.labels.float().mean()) == 0.5 for split in splits)
    splits = synthetic_splits(0, 6)
    pictures = {bytes(s.image.numpy()) for split in splits for s in split.samples}
    assert len(pictures) == 10


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(tmp_path)
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"its mask a\.png cannot be read"):
        read_pairs(tmp_path)


def test_best_threshold_against_all_of_them() -> None:
    cams, masks = torch.rand(3, 12, 14), torch.rand(3, 12, 14) > 0.7
    cams[masks] += 0.2
    cams = cams.clamp(0, 1)
    found, iou = best_threshold(cams, masks)
    all_of_them = {t / 256: mask_scores(cams >= t / 256, masks)["iou"] for t in range(256)}
    assert iou == pytest.approx(max(all_of_them.values()))
    assert all_of_them[found] == pytest.approx(iou)


def test_every_method_explains_uint8_images() -> None:
    pytest.importorskip("skimage")
    torch.set_num_threads(1)
    samples = Samples(SyntheticDefects(8, size=(64, 64)))
    models = train_models(samples, seed=0, epochs=1)
    images, _ = samples.of_class(1, 2)
    found = {name: explain(images) for name, explain in all_methods(models).items()}
    for name, maps in found.items():
        assert maps.shape == (2, 64, 64), name
        assert 0 <= float(maps.min()) <= float(maps.max()) <= 1, name
        assert not maps.requires_grad, name
    # No channel of a network that has learnt nothing lowers the score by its absence.
    assert {name for name, maps in found.items() if not maps.any()} <= {"AblationCAM"}
    for name, maps in found.items():
        inner = name.removeprefix("MSCA of ").removesuffix(", 3 scales")
        for plain in {inner, inner.partition(",")[0]} & found.keys() - {name}:
            assert not torch.allclose(maps, found[plain]), (name, plain)


def test_scores() -> None:
    truth = torch.tensor([[[True, True, False, False]], [[True, False, False, False]]])
    masks = torch.tensor([[[True, False, False, False]], [[True, True, True, False]]])
    found = mask_scores(masks, truth)
    assert found["iou"] == pytest.approx(2 / 5)
    assert found["iou_per_image"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["precision"] == pytest.approx(2 / 4)
    assert found["recall"] == pytest.approx(2 / 3)


def test_the_page_keeps_what_was_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, {}, {})
    assert page.read_text() == f"before\n{BEGIN}\n\n\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        write_page(page, {}, {})
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| :-- | --: |\n| x | 1 |"
