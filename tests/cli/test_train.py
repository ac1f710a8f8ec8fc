"""wsfast train, and evaluate and localize on what it writes."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

from wsfast.cli import build_parser, harvest, main, train
from wsfast.data import FORMATS, SyntheticDefects
from wsfast.train import harvest as harvesting
from wsfast.train.config import read_settings
from wsfast.train.evaluation import RunMaps
from wsfast.train.runs import configure, preview

ROOT = Path(__file__).parents[2]
TINY = ["--images", "24", "--size", "32x16", "--batch-size", "8", "--holdout", "0.25"]


def run(*arguments):
    torch.set_num_threads(1)
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classifier and one run of each recipe that starts from it."""
    root = tmp_path_factory.mktemp("runs")
    first = ["--channels", "1", "--epochs", "2", "--out", root / "classifier"]
    assert run("train", "classifier", *TINY, *first) == 0
    for recipe, *more in (
        ("fcam", "--preset", "small"),
        ("dips", "--preset", "small", "--blur-kernel", "9"),
        ("pseudo", "--method", "ltgradcam"),
    ):
        out = ["--classifier", root / "classifier", "--epochs", "1", "--out", root / recipe]
        assert run("train", recipe, *TINY, *out, *more) == 0
    return root


@pytest.mark.parametrize("command", [["train", "classifier"], ["train", "fcam"], ["evaluate"]])
def test_the_formats_of_data_are_named_in_the_help(command, capsys):
    with pytest.raises(SystemExit):
        run(*command, "--help")
    said = " ".join(capsys.readouterr().out.split())
    told = said[said.rindex("--format") :].partition(" --")[0]
    assert [name for name in ("auto", *FORMATS) if name not in told] == []


def test_a_run_is_summed_up(runs, tmp_path, capsys):
    out = ["--classifier", runs / "classifier", "--epochs", "1", "--out", tmp_path / "run"]
    assert run("train", "fcam", *TINY, *out) == 0
    said = capsys.readouterr()
    assert "1 epochs; the last: " in said.out
    assert "iou" in said.out
    assert "image/s" in said.err


@pytest.mark.parametrize("recipe", ["classifier", "fcam", "dips", "pseudo"])
def test_every_run_is_evaluated_and_localizes(runs, tmp_path, recipe, capsys):
    report = tmp_path / "scores.json"
    folder = SyntheticDefects(6, size=(40, 20), split="test").write_ksdd2(tmp_path / "data").parent
    data = ["--data", folder, "--split", "test"]
    assert run("evaluate", "--run", runs / recipe, *data, "--out", report) == 0
    figures = json.loads(report.read_text())
    assert figures["recipe"] == recipe
    assert figures["images"] == 6
    assert 0 <= figures["at_threshold"]["iou"] <= 1
    assert 0 <= figures["iou_per_image"] <= 1
    capsys.readouterr()

    cv2.imwrite(str(tmp_path / "part.png"), SyntheticDefects(2)[1].image[0].numpy())
    out = tmp_path / "found"
    assert run("localize", tmp_path / "part.png", "--run", runs / recipe, "--out", out) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["images"][0]["predicted_name"] in ("good", "defect")
    assert (out / "part.png").is_file()


@pytest.mark.parametrize("text", [train.EXAMPLES, (ROOT / "docs/guides/training.md").read_text()])
def test_examples_start_from_a_classifier_of_the_same_data(text):
    classifiers = {}
    lines = re.findall(r"^ *wsfast train (?!RECIPE).*--out.*", text.replace("\\\n", ""), re.M)
    assert len(lines) == 5
    for line in lines:
        recipe, *words = shlex.split(line)[2:]
        given = dict(zip(words[::2], words[1::2], strict=False))
        if recipe == "classifier":
            classifiers[given["--out"]] = given["--data"]
        else:
            assert classifiers[given["--classifier"]] == given["--data"]
            assert given["--out"] not in classifiers
        if "--config" in given:
            read_settings(ROOT / given["--config"], recipe)


@pytest.mark.parametrize("text", [train.EXAMPLES, harvest.EXAMPLES])
def test_examples_under_torchrun_reach_the_command(text):
    (line,) = re.findall(r"^ *torchrun (.*)", text.replace("\\\n", ""), re.M)
    started = get_args_parser().parse_args(shlex.split(line))
    assert (started.module, started.training_script) == (True, "wsfast")
    build_parser().parse_args(started.training_script_args)


def test_a_file_of_settings_and_the_command_line(runs, tmp_path):
    settings = tmp_path / "mine.yaml"
    lines = [
        "recipe: fcam",
        "epochs: 1",
        "crf_weight: 2e-9",
        "learning_rate: 0.5",
        "size: [32, 16]",
    ]
    settings.write_text("\n".join(lines))
    out = tmp_path / "run"
    assert run("train", "fcam", "--config", settings, "--classifier", runs / "classifier",
               "--images", "16", "--learning-rate", "0.02", "--out", out) == 0  # fmt: skip
    import yaml

    written = yaml.safe_load((out / "config.yaml").read_text())
    assert written["learning_rate"] == 0.02
    assert written["crf_weight"] == 2e-9
    assert written["images"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fcam"], "classifier must be a run of `wsfast train classifier`, got nothing"),
        (["fcam", "--classifier", "/nowhere"], "path must be a wsfast checkpoint, got /nowhere"),
        (["classifier", "--data", "/nowhere"], "source must be"),
        (["classifier", "--epochs", "0"], "epochs must be between 1"),
        (["classifier", "--schedule", "sometimes"], "schedule must be one of constant, step"),
        (["classifier", "--device", "abacus"], "device must be auto, cpu or cuda, got abacus"),
        (["classifier", "--model", "nonet"], "nonet"),
        (["classifier", "--config", "/none.yaml"], "--config must be a readable YAML file"),
        (["fcam", "--preset", "large"], "preset must be one of paper, small, got large"),
        (["fcam", "--method", "cam", "--select-on", "luck"], "select_on must be one of"),
        (["fcam", "--erode", "4"], "erode must be 0 or odd, got 4"),
        (["fcam", "--percentile", "101"], "percentile must be between 0"),
        (["dips", "--blur-kernel", "8"], "blur_kernel must be odd, got 8"),
        (["dips", "--dilate", "-3"], "dilate must be 0 or odd, got -3"),
        (["dips", "--sigma-xy", "0"], "sigma_xy must be between"),
        (["pseudo", "--threshold", "high"], "threshold must be otsu, otsu2 or a number of 0-1"),
    ],
)
def test_bad_input_gives_one_plain_line(tmp_path, capsys, arguments, message):
    assert run("train", *arguments, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("wsfast train: error: ")
    assert message in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "a setting must be known to classifier, got 'epoch' (did you mean epochs?)"),
        ("epochs: many", "epochs must be a whole number, got 'many'"),
        ("size: 32", "size must be a list, as [256, 256], got 32"),
        ("strict: 1", "strict must be true or false, got 1"),
        ("recipe: fcam", "--config must be of the recipe classifier"),
        ("- 1", "--config must be a YAML file of `name: value` lines"),
        ("a: [", "--config must be a readable YAML file"),
    ],
)
def test_bad_files_of_settings_are_explained(tmp_path, capsys, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert run("train", "classifier", "--config", file, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


def test_a_classifier_of_other_classes_is_refused(runs, tmp_path, capsys):
    for name in ("free", "crack", "hole"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for number in range(4):
            picture = SyntheticDefects(4, size=(32, 16))[number].image[0].numpy()
            cv2.imwrite(str(tmp_path / "data" / "train" / name / f"{number}.png"), picture)
    found = run("train", "fcam", "--data", tmp_path / "data", "--format", "folder",
                "--classifier", runs / "classifier", "--out", tmp_path / "run")  # fmt: skip
    assert found == 2
    expected = "must be of the model's 2 classes in their order (good, defect), got 3 (free, crack"
    assert expected in capsys.readouterr().err


def test_sigterm_ends_the_command_with_143_and_resume_goes_on(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wsfast", "train", "classifier", *TINY, "--channels", "1",
               "--epochs", "400", "--workers", "2", "--out", str(out)]  # fmt: skip
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=root, env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "last.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)  # as a scheduler does: the readers get it too
    said = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 143, said
    assert "stopped by SIGTERM; continue with --resume" in said
    done = torch.load(out / "last.pt", weights_only=True)["epoch"]
    assert run("train", "classifier", "--resume", "--epochs", done + 1, "--out", out) == 0
    assert len((out / "log.jsonl").read_text().splitlines()) == done + 1


def test_what_changed_on_resume_is_said(runs, capsys):
    code = run("train", "classifier", "--resume", "--batch-size", "4", "--out", runs / "classifier")
    assert code == 2
    assert "given the run's own settings, got batch_size: 8 -> 4" in capsys.readouterr().err


def test_a_folder_is_harvested_whole_however_often_it_is_broken_off(
    runs, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, sample in enumerate(SyntheticDefects(9, size=(48, 24))):
        cv2.imwrite(str(folder / f"{number}.png"), sample.image[0].numpy())
    (folder / "torn.png").touch()
    (folder / "drawn").mkdir()  # by wsfast localize
    (folder / "drawn" / "0.png").touch()
    (folder / "drawn" / "results.jsonl").write_text('{"name": "0"}\n')
    command = ["harvest", folder, "--run", runs / "fcam", "--batch-size", "2", "--device", "cpu"]
    assert run(*command, "--out", tmp_path / "whole") == 0
    said = capsys.readouterr()
    assert "9 images harvested, 1 files skipped" in said.out
    assert "torn.png (empty file)" in said.err
    assert "wsfast harvest: 1 pictures that wsfast localize has drawn are left out" in said.err

    read = []
    plain = harvesting.read_image

    def breaking(path):
        if len(read) == 5:
            read.append(None)
            raise KeyboardInterrupt
        read.append(path)
        return plain(path)

    monkeypatch.setattr(harvesting, "read_image", breaking)
    assert run(*command, "--out", tmp_path / "broken") == 130
    assert not list((tmp_path / "broken").glob("harvest-*.npy"))
    assert run(*command, "--out", tmp_path / "broken") == 0
    finished = [path for path in read if path is not None]
    again = 2  # the image whose batch was broken off, and at the end the torn one, to say why
    assert len(finished) == 10 + again
    whole, broken = (
        np.load(next((tmp_path / name).glob("harvest-*.npy")), mmap_mode="r")
        for name in ("whole", "broken")
    )
    assert whole.tobytes() == broken.tobytes()
    assert whole["readable"].sum() == 9
    names = json.loads((tmp_path / "whole" / "harvest.json").read_text())["files"]
    assert [Path(name).name for name in names][-1] == "torn.png"
    maps = RunMaps(runs / "fcam", torch.device("cpu"))
    record = whole[3]
    assert record["map"].shape == (32, 16)
    assert (record["height"], record["width"]) == (48, 24)
    assert np.array_equal(record["mask"], (record["map"] + 0.5) / 255 >= maps.threshold)
    for box in record["boxes"][record["boxes"][:, 0] >= 0]:
        x0, y0, x1, y1 = box
        assert record["mask"][y0:y1, x0:x1].any()


def test_a_file_name_of_any_bytes_is_harvested(runs, tmp_path):
    file = tmp_path / os.fsdecode(b"M\xfcnchen.png")  # Latin-1, from an old archive
    (tmp_path / "1.png").write_bytes(cv2.imencode(".png", np.zeros((32, 32, 3)))[1].tobytes())
    (tmp_path / "1.png").rename(file)
    maps = RunMaps(runs / "fcam", torch.device("cpu"))
    found = harvesting.harvest(maps, [file], tmp_path / "out", progress=False)
    assert found.records["readable"].all()
    assert json.loads((tmp_path / "out" / "harvest.json").read_text())["files"] == [str(file)]


def test_what_another_model_or_picture_gave_is_not_harvested_again(runs, tmp_path):
    torch.set_num_threads(1)
    pictures = [s.image[0].numpy() for s in SyntheticDefects(4, size=(48, 24))]
    files = [tmp_path / f"{number}.bmp" for number in range(2)]
    for file, picture in zip(files, pictures, strict=False):
        cv2.imwrite(str(file), picture)

    def harvested(**settings):
        maps = RunMaps(runs / "classifier", torch.device("cpu"))
        maps.config = dataclasses.replace(maps.config, method="ltgradcam", **settings)
        maps._explain = maps._method()
        return harvesting.harvest(maps, files, tmp_path / "out", target=1, progress=False)

    first, layers, cut = harvested(), harvested(layers="last"), harvested(percentile=90.0)
    assert len({first.path, layers.path, cut.path}) == 3
    assert not np.array_equal(first.records["map"], cut.records["map"])
    assert harvested().path == first.path
    size = files[1].stat().st_size
    cv2.imwrite(str(files[1]), pictures[2])
    os.utime(files[1], ns=(0, files[1].stat().st_mtime_ns + 1))
    assert files[1].stat().st_size == size
    replaced = harvested().records
    assert replaced[0] == first.records[0]
    assert replaced[1] != first.records[1]


def test_what_a_classifier_calls_good_is_harvested_empty(runs, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, sample in zip(files, SyntheticDefects(3, size=(48, 24)), strict=True):
        cv2.imwrite(str(file), sample.image[0].numpy())
    plain = RunMaps.__call__
    good_bad_good = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])

    def called(maps, images, target):
        result = plain(maps, images, target)
        return result._replace(cams=torch.ones_like(result.cams), logits=good_bad_good)

    monkeypatch.setattr(RunMaps, "__call__", called)

    def marked(recipe, **settings):
        maps = RunMaps(runs / recipe, torch.device("cpu"))
        assert maps.clean_class == 0
        out = tmp_path / f"{recipe} {settings}"
        records = harvesting.harvest(maps, files, out, progress=False, **settings).records
        assert (records["boxes"][:, 0, 0] >= 0).tolist() == records["mask"].any((1, 2)).tolist()
        return records["mask"].any((1, 2)).tolist()

    assert marked("classifier") == [False, True, False]
    assert marked("classifier", target=1) == [True, True, True]
    assert marked("fcam") == [True, True, True]


def test_boxes_at_threshold_0_are_those_of_the_masks(runs, tmp_path, monkeypatch):
    plain = RunMaps.__call__

    def two_regions(maps, images, target):
        cams = torch.zeros(len(images), 32, 16)
        cams[:, 2:6, 3:7] = 0.9
        cams[:, 20:22, 10:15] = 0.1
        return plain(maps, images, target)._replace(cams=cams)

    monkeypatch.setattr(RunMaps, "__call__", two_regions)
    cv2.imwrite(str(tmp_path / "part.png"), SyntheticDefects(1, size=(48, 24))[0].image[0].numpy())
    command = ["harvest", tmp_path / "part.png", "--run", runs / "fcam", "--device", "cpu"]
    assert run(*command, "--threshold", "0", "--out", tmp_path / "out") == 0
    (record,) = np.load(next((tmp_path / "out").glob("harvest-*.npy")))
    assert np.array_equal(record["mask"], record["map"] > 0)
    assert record["boxes"][:3].tolist() == [[3, 2, 7, 6], [10, 20, 15, 22], [-1, -1, -1, -1]]


def test_a_harvest_of_a_class_that_is_none_leaves_nothing(runs, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "part.png"), SyntheticDefects(1, size=(48, 24))[0].image[0].numpy())
    command = ["harvest", tmp_path / "part.png", "--run", runs / "classifier", "--device", "cpu"]
    assert run(*command, "--target", "9", "--out", tmp_path / "out") == 2
    assert "target must be between 0 and 1, got 9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_strict_harvest_of_a_bad_image_leaves_nothing(runs, tmp_path, capsys, there):
    (tmp_path / "images").mkdir()
    for number, sample in enumerate(SyntheticDefects(5, size=(48, 24))):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), sample.image[0].numpy())
    (tmp_path / "images" / "torn.png").write_bytes(b"no image")
    out = tmp_path / "out"
    if there:
        out.mkdir()
    command = ["harvest", tmp_path / "images", "--run", runs / "fcam", "--device", "cpu"]
    assert run(*command, "--batch-size", "2", "--strict", "--out", out) == 2
    assert "torn.png (not an image or damaged)" in capsys.readouterr().err
    assert out.exists() == there
    assert not list(out.glob("*"))  # pathlib's patterns match hidden files, too
    assert run(*command, "--out", out) == 0
    assert run(*command, "--strict", "--out", out) == 2  # what is there has no torn.png
    assert not list(out.glob(".*"))


def test_what_is_no_folder_is_told_before_any_work(runs, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    run_of = ["--run", runs / "fcam"]
    for out, got in ((file, f"the file {file}"), (file / "x", f"{file}/x below the file {file}")):
        for command in (
            ["train", "classifier", "--out", out],
            ["harvest", tmp_path, *run_of, "--out", out],
            ["localize", tmp_path, *run_of, "--out", out],
            ["localize", "0", "--live", *run_of, "--out", out],
            ["demo", "--out", out],
        ):
            assert run(*command) == 2
            (line,) = capsys.readouterr().err.splitlines()
            named = f"wsfast.{command[0]}: --out must be a folder, got {got}"
            assert line == f"wsfast {command[0]}: error: {named}"
    pictures = ["train", "fcam", "--classifier", runs / "classifier", "--out", tmp_path / "run"]
    for command, argument in (
        (pictures, "--preview"),
        (["evaluate", *run_of], "--out"),
        (["evaluate"], "--plot"),
        (["bench"], "--json"),
        (["bench"], "--html"),
    ):
        assert run(*command, argument, tmp_path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f": {argument} must be a file, got the folder {tmp_path}")
        assert run(*command, argument, file / "x") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f": {argument} must be " in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert run("evaluate", *run_of, "--out", tmp_path / "no" / "scores.json") == 2
    assert "--out must be in an existing folder" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_what_is_learnt_from_can_be_looked_at(runs, tmp_path, recipe):
    picture = tmp_path / "seeds.png"
    more = {"fcam": ["--preset", "small"], "dips": ["--preset", "small", "--blur-kernel", "9"]}
    command = ["train", recipe, *TINY, "--classifier", runs / "classifier", *more.get(recipe, [])]
    assert run(*command, "--out", tmp_path / "run", "--preview", picture) == 0
    sheet = cv2.imread(str(picture)).astype(int)
    blue, _, red = np.moveaxis(sheet, 2, 0)
    seeds = np.arange(sheet.shape[1]) > 2 * sheet.shape[1] // 3  # the last column of three
    assert ((red == 255) & (blue == 40))[:, seeds].any()
    assert ((red == 40) & (blue == 255))[:, seeds].any()
    assert not (tmp_path / "run" / "last.pt").exists()


def test_there_is_no_preview_of_a_classifier(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("train", "classifier", *TINY, "--out", tmp_path / "c", "--preview", tmp_path / "p.png")
    assert ended.value.code == 2
    assert "unrecognized arguments: --preview" in capsys.readouterr().err
    config = configure("classifier", {})
    with pytest.raises(ValueError, match="--preview must be of a recipe that learns from maps"):
        preview(config, tmp_path / "c")


def test_proposals_can_be_looked_at(runs, tmp_path):
    command = ["train", "dips", *TINY, "--classifier", runs / "classifier", "--preset", "small",
               "--blur-kernel", "9", "--proposals", "3"]  # fmt: skip
    assert run(*command, "--out", tmp_path / "run", "--preview", tmp_path / "seen.png") == 0
    sheet = cv2.imread(str(tmp_path / "seen-proposals.png")).astype(int)
    blue, green, red = np.moveaxis(sheet, 2, 0)
    column = np.arange(sheet.shape[1]) * 3 // sheet.shape[1]
    boxes = (green == 255) & (red == 0) & (blue == 90)
    assert boxes[:, column == 0].sum() >= boxes[:, column == 1].sum() > 0
    assert not boxes[:, column == 2].any()

    settings = configure("dips", {"classifier": str(runs / "classifier"), "preset": "small",
                                  "images": 24, "size": [32, 16], "blur_kernel": 9,
                                  "holdout": 0.25, "proposals": 3})  # fmt: skip
    batch, found = preview(settings, tmp_path / "run", count=3, progress=False)
    assert len(found.proposals) == len(batch.image) == 3
    for image, boxes, scores, cam, seen in found.proposals:
        x0, y0, x1, y1 = boxes[0].tolist()
        assert bool((scores.diff() <= 0).all())
        assert torch.equal(seen[:, y0:y1, x0:x1], image[:, y0:y1, x0:x1])
        assert image.shape[1:] == cam.shape
        assert bool(cam[y0:y1, x0:x1].amax() >= 0.5)
