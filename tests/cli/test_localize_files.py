"""`wsfast localize` over files that is stopped or fails on its way."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.cli.live_files import DeadPipe, lines
from wsfast.cli import localize, main
from wsfast.models import SmallVGG, save_checkpoint


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of a.png, b.png and c.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
    for name, picture in zip("abc", noise, strict=True):
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


def test_a_stopped_run_over_files_has_its_results(
    clip: Path, checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    write = localize.write_localization

    def stop_at_ten(item: Any, out: Path, *, npy: bool) -> None:
        write(item, out, npy=npy)
        if item.name == "belt_000009":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(localize, "write_localization", stop_at_ten)
    command = ["localize", str(clip), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    command += ["--method", "cam"]
    assert main([*command, "--batch-size", "4"]) == 143
    whole = json.loads((tmp_path / "results.json").read_text())
    assert not whole["complete"]
    assert whole["images"] == lines(tmp_path)
    assert len(whole["images"]) == 12  # the batch in progress was finished
    monkeypatch.setattr(localize, "write_localization", write)
    assert main(command) == 0
    assert len(lines(tmp_path)) == 30
    assert json.loads((tmp_path / "results.json").read_text())["complete"]


def test_an_error_midway_keeps_what_was_reported(
    clip: Path, checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    write = localize.write_localization

    def full(item: Any, out: Path, *, npy: bool) -> None:
        if item.name == "belt_000010":
            raise OSError(28, "No space left on device")
        write(item, out, npy=npy)

    monkeypatch.setattr(localize, "write_localization", full)
    command = ["localize", str(clip), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert main(command) == 2
    assert [record["name"] for record in lines(tmp_path)] == [f"belt_{i:06d}" for i in range(10)]
    assert not (tmp_path / "results.json").exists()


def test_scores_that_are_not_finite_are_null(clip: Path, tmp_path: Path) -> None:
    model = SmallVGG()
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    net = tmp_path / "net.safetensors"
    save_checkpoint(
        model, net, class_names=("a", "b"), mean=(0.5,), std=(0.2,), input_size=(48, 64)
    )
    assert main(["localize", str(clip), "--checkpoint", str(net), "--out", str(tmp_path)]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "results.json").read_text()
    images = json.loads(text, parse_constant=refuse)["images"]
    assert len(images) == 30
    assert all(not image["valid"] and image["predicted_class"] is None for image in images)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["localize", "--run", "a", "--pretrained"], "localize: --pretrained must be left out"),
        (["localize", "--run", "a", "--layers", "last"], "localize: --layers must be left out"),
        (["harvest", "--run", "a", "--threshold", "2"], "wsfast.harvest: --threshold must be otsu"),
    ],
)
def test_options_are_checked_in_the_commands_own_name(
    clip: Path, tmp_path: Path, capsys, command: list[str], message: str
) -> None:
    assert main([*command, str(clip), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_an_earlier_run_has_left_is_counted(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    command = ["--checkpoint", str(checkpoint), "--method", "cam", "--out", str(out)]
    assert main(["localize", str(pictures), *command, "--npy"]) == 0
    assert "earlier" not in capsys.readouterr().err
    (out / "notes.png").touch()  # of the user, no run's
    assert main(["localize", str(pictures / "a.png"), *command]) == 0
    line = f"wsfast localize: 5 files of an earlier run are left in {out}, not in results.json"
    assert line in capsys.readouterr().err.splitlines()  # a.npy, and both files of b and c
    assert len(json.loads((out / "results.json").read_text())["images"]) == 1
    assert main(["localize", str(pictures / "a.png"), *command, "--npy"]) == 0
    assert "earlier" not in capsys.readouterr().err


def test_images_are_not_replaced_by_their_overlays(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    before = (pictures / "a.png").read_bytes()
    command = ["localize", str(pictures / "*.png"), "--checkpoint", str(checkpoint)]
    assert main([*command, "--out", f"{pictures}/../{pictures.name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out must be another folder than the images', whose PNGs could be replaced" in line
    assert (pictures / "a.png").read_bytes() == before
    assert len(list(pictures.iterdir())) == 3
    assert main([*command, "--out", str(pictures / "found")]) == 0


def test_pictures_beside_the_images_are_not_replaced(
    pictures: Path, checkpoint: Path, capsys
) -> None:
    cv2.imwrite(str(pictures / "part.jpg"), cv2.imread(str(pictures / "a.png")))
    mask = (pictures / "a.png").rename(pictures / "part.png").read_bytes()
    command = ["localize", str(pictures / "part.jpg"), "--checkpoint", str(checkpoint)]
    assert main([*command, "--out", str(pictures)]) == 2
    assert f"got {pictures} with part.jpg" in capsys.readouterr().err
    assert (pictures / "part.png").read_bytes() == mask


@pytest.mark.parametrize("mode", [[], ["--compare", "--method", "cam,gradcam"]])
def test_messages_that_cannot_be_written_stop_no_image(
    pictures: Path, checkpoint: Path, tmp_path: Path, monkeypatch, mode: list[str]
) -> None:
    (pictures / "torn.png").write_bytes(b"half")  # something to tell
    monkeypatch.setattr("sys.stderr", DeadPipe())
    out = tmp_path / "out"
    command = ["localize", str(pictures), "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*command, *mode]) == 0
    report = json.loads((out / ("compare.json" if mode else "results.json")).read_text())
    assert len(report["images"]) == 3


def test_an_error_of_the_system_is_one_plain_line(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    def full(item: Any, out: Path, *, npy: bool) -> None:
        raise OSError(28, "No space left on device", str(out / "a.png"))

    monkeypatch.setattr(localize, "write_localization", full)
    command = ["localize", str(pictures), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"wsfast localize: error: {tmp_path / 'a.png'}: No space left on device"


FAILING = ["--model", "vgg11", "--method", "cam", "--num-classes", "2", "--size", "32"]


def test_a_method_that_fails_keeps_the_results_of_an_earlier_run(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    assert (
        main(["localize", str(pictures), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    )
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert main(["localize", str(pictures), *FAILING, "--out", str(out)]) == 2
    assert "model must be one with a linear layer" in capsys.readouterr().err.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert main(["localize", str(pictures), *FAILING, "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_a_live_method_that_fails_keeps_the_results_of_an_earlier_run(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    command = ["localize", str(clip), "--live", "--out", str(tmp_path), "--overwrite"]
    assert main([*command, "--checkpoint", str(checkpoint)]) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    layers = ["--layers", "features.0"]  # with others the exportable CAM is taken, or refused
    assert main([*command, *FAILING, *layers]) == 2
    assert "model must be one with a linear layer" in capsys.readouterr().err.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_plain_line(pictures: Path, tmp_path: Path, capsys) -> None:
    command = ["localize", str(pictures / "a.png"), "--model", "vit_tiny_patch16_224"]
    assert main([*command, "--method", "cam", "--out", str(tmp_path)]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "approximation" in line]
    assert len(warned) == 1
    assert "wsfast localize: warning: wsfast.cam.CAM: the logits are not" in warned[0]


def test_pictures_of_an_earlier_run_are_no_input(
    pictures: Path, checkpoint: Path, tmp_path, capsys
) -> None:
    photos = shutil.copytree(pictures, tmp_path / "photos")
    command = ["localize", photos, "--checkpoint", checkpoint, "--out", photos / "result"]
    records = []
    for _ in range(2):
        assert main([str(word) for word in command]) == 0
        saved = json.loads((photos / "result" / "results.json").read_text())
        records.append([record["name"] for record in saved["images"]])
    assert records[0] == records[1]
    command[-1] = photos / "compared"
    for options in (["--compare", "--method", "gradcam"],) * 2 + ([],):
        assert main([str(word) for word in [*command, *options]]) == 0
    command[-1] = tmp_path / "elsewhere"
    (photos / "live").mkdir()
    for name in ("annotated.mkv", "summary.json"):
        (photos / "live" / name).touch()
    capsys.readouterr()
    assert main([str(word) for word in command]) == 0
    found = json.loads((tmp_path / "elsewhere" / "results.json").read_text())
    assert [record["name"] for record in found["images"]] == records[0]
    drawn = 2 * len(records[0]) + 2  # of two folders, a contact sheet and a video
    assert f"localize: {drawn} pictures that wsfast localize has drawn" in capsys.readouterr().err
    command[1] = photos / "compared"  # where nothing else is
    assert main([str(word) for word in command]) == 0


def test_what_a_link_leads_to_is_not_replaced(pictures: Path, checkpoint: Path, tmp_path) -> None:
    photos = shutil.copytree(pictures, tmp_path / "photos")
    picks = tmp_path / "picks"
    picks.mkdir()
    picture = sorted(photos.glob("*.png"))[0]
    (picks / picture.name).symlink_to(picture)
    before = picture.read_bytes()
    for options in ([], ["--compare"]):
        command = ["localize", picks, "--checkpoint", checkpoint, "--out", photos, *options]
        assert main([str(word) for word in command]) == 2
    assert picture.read_bytes() == before
    command = ["localize", photos, "--checkpoint", checkpoint, "--out", photos, "--compare"]
    assert main([str(word) for word in command]) == 2
