"""``wsfast evaluate`` as a user meets it."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.wsol_files import Split, write_split
from wsfast.cli import evaluate, main
from wsfast.compat import wsolevaluation as compat


def run(split: Split, *more: object) -> int:
    arguments = ["--scoremaps", split.scoremaps, "--metadata", split.metadata, *more]
    return main(["evaluate", *map(str, arguments)])


def test_boxes(tmp_path: Path, capsys) -> None:
    split = write_split(tmp_path, "CUB")
    assert run(split, "--out", tmp_path / "scores.json", "--batch-size", 4) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    report = json.loads((tmp_path / "scores.json").read_text())
    options = {"dataset_name": "CUB", "split": "test", "iou_threshold_list": [30, 50, 70]}
    roots = [str(tmp_path / name) for name in ("scoremaps", "metadata", "dataset")]
    for name, multi in (("MaxBoxAcc", False), ("MaxBoxAccV2", True)):
        expected = compat.evaluate_wsol(
            *roots, multi_contour_eval=multi, multi_iou_eval=multi, **options
        )
        assert report[name]["percent"] == pytest.approx(expected)
        assert printed[name] == f"{expected:.3f} %"
        curves = report["curves"]
        assert len(curves["accuracies"][name][0]) == len(curves["thresholds"]) == 1000
    assert not list(tmp_path.glob("*.partial"))


def test_masks_and_plot(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    split = write_split(tmp_path, "OpenImages")
    plot, out = tmp_path / "curve.png", tmp_path / "scores.json"
    assert run(split, "--masks", split.masks, "--plot", plot, "--out", out) == 0
    assert "PxAP" in capsys.readouterr().out
    assert cv2.imread(str(plot)).shape[0] > 100
    report = json.loads(out.read_text())
    assert 0 < report["PxAP"]["percent"] < 100
    curves = report["curves"]
    assert len(curves["thresholds"]) == len(curves["precision"]) == len(curves["recall"]) == 1001
    place = curves["thresholds"].index(0.5)
    masks = np.stack([split.truth[name] for name in split.maps])
    predicted = (np.stack(list(split.maps.values())) >= 0.5) & (masks != 255)
    hits = (predicted & (masks == 1)).sum()
    assert curves["precision"][place] == pytest.approx(hits / predicted.sum())
    assert curves["recall"][place] == pytest.approx(hits / (masks == 1).sum())
    assert curves["recall"][0] == 1


def test_maps_without_the_image_suffix(tmp_path: Path) -> None:
    split = write_split(tmp_path, "CUB")
    for path in (split.scoremaps / "cat").glob("*.jpg.npy"):
        path.rename(path.with_name(path.name.replace(".jpg", "")))
    assert run(split) == 0


def replace_line(split: Split, line: str) -> None:
    path = split.metadata / "localization.txt"
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines))


def break_line(split: Split) -> None:
    replace_line(split, "cat/1.jpg,3,four,5,6")


def cut_line(split: Split) -> None:
    replace_line(split, "cat/1.jpg,3")


def swap_corners(split: Split) -> None:
    path = split.metadata / "localization.txt"
    path.write_text("cat/0.jpg,9,9,3,3\n")


def drop_map(split: Split) -> None:
    (split.scoremaps / "cat" / "2.jpg.npy").unlink()


def tear_zip(split: Split) -> None:
    (split.scoremaps / "cat" / "2.jpg.npy").write_bytes(b"PK\x03\x04 and no more")


def overflow(split: Split) -> None:
    path = split.metadata / "localization.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"cat/0.jpg,0,0,{'9' * 30},5", *lines[1:]]))


def drop_class(split: Split) -> None:
    path = split.metadata / "class_labels.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:1]))


def drop_box(split: Split) -> None:
    path = split.metadata / "localization.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:1]))


def tear_map(split: Split) -> None:
    (split.scoremaps / "cat" / "2.jpg.npy").write_bytes(b"\x93NUMPY")


def zip_map(split: Split) -> None:
    path = split.scoremaps / "cat" / "2.jpg.npy"
    with path.open("wb") as file:
        np.savez(file, np.zeros((224, 224)))


def write_map(split: Split, values: np.ndarray) -> None:
    np.save(split.scoremaps / "cat" / "2.jpg.npy", values)


BREAKAGES = (
    (break_line, "line 2: must be an image id and whole numbers below 2^31, got 'cat/1.jpg,3,four"),
    (overflow, "line 1: must be an image id and whole numbers below 2^31, got 'cat/0.jpg,0,0,9"),
    (
        cut_line,
        "localization.txt, line 2: must be 3 or 5 comma-separated fields, got 'cat/1.jpg,3'",
    ),
    (swap_corners, "localization.txt, line 1: must be a box with 0 <= x0 <= x1"),
    (drop_map, "--scoremaps must be a map for every image id, got none for cat/2.jpg"),
    (drop_class, "class_labels.txt: must have a line for every image id, got none for cat/1.jpg"),
    (drop_box, "localization.txt: must have a line for every image id, got none for cat/1.jpg"),
    (tear_map, "2.jpg.npy: not a readable .npy file"),
    (zip_map, "2.jpg.npy: not a readable .npy file"),
    (tear_zip, "2.jpg.npy: not a readable .npy file"),
    (lambda split: write_map(split, np.zeros((9, 9))), "floating-point map of 224 x 224"),
    (lambda split: write_map(split, np.zeros((224, 224), int)), "floating-point map of 224"),
    (lambda split: write_map(split, np.full((224, 224), 2.0)), "free of NaN and within 0-1"),
    (lambda split: write_map(split, np.full((224, 224), np.nan)), "free of NaN and within 0-1"),
    (lambda split: (split.metadata / "image_sizes.txt").unlink(), "image_sizes.txt: No such file"),
    (lambda split: (split.metadata / "image_ids.txt").write_text(""), "an empty image_ids.txt"),
)


@pytest.mark.parametrize("case", range(len(BREAKAGES)))
def test_bad_input_ends_in_one_line(tmp_path: Path, capsys, case: int) -> None:
    split = write_split(tmp_path, "CUB", images=3)
    spoil, message = BREAKAGES[case]
    spoil(split)
    out = tmp_path / "scores.json"
    assert run(split, "--out", out) == 2
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert said.startswith("wsfast evaluate: error: ")
    assert message in said
    assert not out.exists()


def test_a_missing_map_is_found_before_any_is_read(tmp_path: Path, capsys, monkeypatch) -> None:
    split = write_split(tmp_path, "CUB", images=3)
    drop_map(split)
    monkeypatch.setattr(evaluate, "read_map", pytest.fail)
    assert run(split, "--batch-size", 1) == 2
    assert "got none for cat/2.jpg" in capsys.readouterr().err


def test_scores_go_into_a_pipe(tmp_path: Path) -> None:
    split = write_split(tmp_path, "CUB", images=1)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(split, "--out", path, "--interval", 0.1) == 0
        assert json.loads(os.read(reader, 1 << 16))["images"] == 1
    finally:
        os.close(reader)
    assert path.is_fifo()


def test_out_and_plot_are_two_files(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    split = write_split(tmp_path, "CUB", images=1)
    out = tmp_path / "result"
    same = tmp_path / "metadata" / ".." / "result"
    assert run(split, "--out", out, "--plot", same) == 2
    assert "--plot must be another file than --out, got " in capsys.readouterr().err
    assert not out.exists()


def test_a_plot_without_matplotlib_names_the_extra(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    split = write_split(tmp_path, "CUB", images=1)
    assert run(split, "--plot", tmp_path / "curve.png") == 2
    assert 'matplotlib installed (pip install "wsfast[plots]"), got ' in capsys.readouterr().err


def test_a_run_is_scored_where_the_other_commands_compute(tmp_path: Path, monkeypatch) -> None:
    named = []
    monkeypatch.setattr(evaluate, "parse_device", lambda *arguments: named.append(arguments[2]))
    monkeypatch.setattr(evaluate, "evaluate_run", lambda folder, **options: {})
    assert main(["evaluate", "--run", str(tmp_path)]) == 0
    assert named == ["auto"]


def test_other_data_bring_their_masks_and_metadata(tmp_path: Path, monkeypatch) -> None:
    told = {}
    monkeypatch.setattr(
        evaluate, "evaluate_run", lambda folder, **options: told.update(options) or {}
    )
    given = ["--data", "other", "--masks", "truth", "--metadata", "lists"]
    assert main(["evaluate", "--run", str(tmp_path), *given]) == 0
    assert (told["data"], told["masks"], told["metadata"]) == ("other", "truth", "lists")


def test_masks_beside_boxes_are_refused(tmp_path: Path, capsys) -> None:
    split = write_split(tmp_path, "CUB", images=1)
    assert run(split, "--masks", split.masks) == 2
    told = f"--masks must be left out with boxes in --metadata, got {split.masks}"
    assert told in capsys.readouterr().err


def test_missing_folders(tmp_path: Path, capsys) -> None:
    split = write_split(tmp_path, "CUB", images=1)
    split.scoremaps = tmp_path / "nowhere"
    assert run(split) == 2
    assert "--scoremaps must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("way", "option", "value", "beside"),
    [
        ("--run", "--scoremaps", "maps", "--run"),
        ("--run", "--interval", "0.001", "--run"),
        ("--run", "--batch-size", "64", "--run"),
        ("--run", "--format", "ksdd2", "the run's own data"),
        ("--run", "--masks", "masks", "the run's own data"),
        ("--run", "--metadata", "metadata", "the run's own data"),
        ("--scoremaps", "--data", "parts", "--scoremaps"),
        ("--scoremaps", "--format", "auto", "--scoremaps"),
        ("--scoremaps", "--split", "test", "--scoremaps"),
        ("--scoremaps", "--device", "cpu", "--scoremaps"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, capsys, way: str, option: str, value: str, beside: str
) -> None:
    assert main(["evaluate", way, str(tmp_path), option, value]) == 2
    told = f"wsfast.evaluate: {option} must be left out with {beside}, got {value}"
    assert told in capsys.readouterr().err


def test_masks_without_an_object(tmp_path: Path, capsys) -> None:
    split = write_split(tmp_path, "OpenImages", images=2)
    for path in split.masks.rglob("*.png"):
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    assert run(split, "--masks", split.masks) == 2
    said = capsys.readouterr().err.splitlines()
    assert "--masks must be masks with a foreground pixel, got none" in said[-1]
