"""`wsfast localize` over files that is stopped or fails on its way."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.live_files import lines
from wsfast.cli import localize, main
from wsfast.models import SmallVGG, save_checkpoint


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
