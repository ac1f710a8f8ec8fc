"""The measurement of the training methods: one command, taken up where it was left."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality.measure import Explained, Images
from benchmarks.training_quality import measure
from benchmarks.training_quality.__main__ import main
from benchmarks.training_quality.measure import box_scores, measure_seed
from benchmarks.training_quality.report import BEGIN, END, section
from benchmarks.training_quality.settings import CAMS, TRAININGS, Source

TINY = Source(images=24, epochs=1, map_epochs=1, size=(48, 32))


def test_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_seed(TINY, 0, tmp_path)
    assert list(found["methods"]) == [*CAMS, *TRAININGS]
    for row in found["methods"].values():
        for bound in ("validation", "otsu"):
            assert 0 <= row[bound]["iou"] <= 1
            assert 0 <= row[bound]["false_on_good"] <= 1
        assert row["oracle"]["iou"] >= max(row["validation"]["iou"] - 1e-6, 0)
        assert 0 <= row["box_acc"] <= row["max_box_acc"] <= 1
    assert found["images"] == {"train": 24, "val": 8, "test": 8}
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    runs = [found, {**found, "seed": 1}]
    (tmp_path / "training.json").write_text(json.dumps({"synthetic": runs}))
    main(["--tables-only", "--out", str(tmp_path)])
    assert section("Generated surfaces", runs) in page.read_text()
    assert "| F-CAM, small-object preset |" in page.read_text()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(measure, "run", never)
    again = measure_seed(TINY, 0, tmp_path)
    assert json.dumps(again) == json.dumps(found)
    with pytest.raises(ValueError, match="other settings"):
        measure_seed(Source(images=24, epochs=2, map_epochs=1, size=(48, 32)), 0, tmp_path)


def test_box_accuracy_has_its_threshold_from_validation() -> None:
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[:, 4:10, 4:10] = True
    inner, outer = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    inner[:, :14, :14], inner[:, 4:10, 4:10] = 0.4, 1.0  # right above 0.4 only
    outer[:, 4:10, 4:10], outer[:, 5:7, 5:7] = 0.4, 1.0  # right below 0.4 only
    images = Images(inner, truth, inner, truth, inner[:0])
    same = box_scores(Explained(inner, inner, inner[:0], 0.0), images)
    assert same == {"max_box_acc": 1.0, "box_acc": 1.0}
    other = box_scores(Explained(inner, outer, inner[:0], 0.0), images)
    assert other == {"max_box_acc": 1.0, "box_acc": 0.0}
