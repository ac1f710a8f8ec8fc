"""`wsfast export` as a user meets it."""

import importlib.util
import json
import signal
from pathlib import Path

import pytest
import torch

from tests.deploy.small import defects, small_model
from wsfast.cli import main
from wsfast.cli.export import _EXPORTERS
from wsfast.deploy import Localizer, load
from wsfast.models import FCAMModel, UNetLocalizer, save_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(
        small_model(), tmp_path / "net.safetensors", class_names=("good", "defect"), mean=(0.4,),
        std=(0.2,), input_size=(32, 16),
    )  # fmt: skip
    return tmp_path / "net.safetensors"


def run(*arguments: object) -> int:
    return main(["export", *(str(argument) for argument in arguments)])


def test_a_checkpoint_becomes_a_program(checkpoint: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "net.ts"
    code = run(
        "--checkpoint", checkpoint, "--format", "torchscript", "--image-size", "48x40",
        "--threshold", 0.4, "--max-boxes", 3, "--target", 1, "--out", out,
    )  # fmt: skip
    assert code == 0
    assert "(N, 1, 48, 40)" in capsys.readouterr().out
    program = load(out)
    assert program.image_size == (48, 40)
    images = defects(8, (48, 40))
    expected = Localizer.from_checkpoint(checkpoint, threshold=0.4, max_boxes=3, target=1)(images)
    assert torch.equal(program(images).boxes, expected.boxes)


@pytest.mark.parametrize("runtime", [True, False])
def test_what_was_not_verified_is_not_said_to_be(
    checkpoint, tmp_path, capsys, monkeypatch, runtime
) -> None:
    plain = importlib.util.find_spec

    def find(name: str, *more: object) -> object:
        return runtime or None if name == "onnxruntime" else plain(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setitem(_EXPORTERS, "onnx", lambda _, path, **__: path.write_bytes(b"onnx"))
    assert run("--checkpoint", checkpoint, "--format", "onnx", "--out", tmp_path / "it.onnx") == 0
    said = capsys.readouterr().out
    assert ("; verified against the model in " in said) is runtime
    assert ("; not verified, as onnxruntime is not installed; made in " in said) is not runtime


def test_a_timm_model_becomes_a_program(tmp_path: Path, capsys) -> None:
    out = tmp_path / "net.ts"
    code = run(
        "--model", "test_resnet", "--num-classes", 2, "--size", 64, "--format", "torchscript",
        "--out", out,
    )  # fmt: skip
    assert code == 0
    assert "random weights" in capsys.readouterr().err
    metadata = load(out).metadata
    assert metadata["input_width"] == metadata["image_width"] == "64"
    assert json.loads(metadata["class_names"]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "--format must be one of torchscript, pt2, onnx, got tflite"),
        ([], "--model must be given, or --run, or a wsfast --checkpoint, got none of them"),
        (["--model", "resnet18x"], "--model must be a timm model name, got 'resnet18x'"),
        (["--model", "vit_tiny_patch16_224"], "model must be a classifier of timm or wsf"),
        (["--run", "nowhere"], "nowhere"),
        (["--run", "a", "--model", "resnet18"], "--model must be left out with --run"),
        (["--model", "resnet18", "--method", "ltgradcam"], "--method must be cam (others need"),
        (["--model", "resnet18", "--classifier", "a"], "--classifier must be left out with --mod"),
        (["--checkpoint", "NET", "--pretrained"], "--pretrained must be left out with a wsfast"),
        (["--checkpoint", "NET", "--threshold", "2"], "--threshold must be otsu, otsu2 or"),
        (["--checkpoint", "NET", "--image-size", "0x5"], "--image-size must be N or HxW"),
        (["--checkpoint", "NET", "--size", "big"], "export: --size must be N or HxW"),
        (["--checkpoint", "NET", "--max-boxes", "0"], "max_boxes must be at least 1"),
        (["--checkpoint", "NET", "--target", "7"], "target must be below 2"),
        (["--checkpoint", "NET", "--device", "abacus"], "--device must be auto, cpu or cuda"),
        (["--checkpoint", "NET", "--out", "missing/it.ts"], "path must be in an existing folder"),
        (["--checkpoint", "NET", "--out", "."], "path must be a file, got the folder ."),
        (["--checkpoint", "NET", "--format", "pt2"], "path must be a file that ends in .pt2"),
        (["--checkpoint", "UNET"], "classifier must be given for a localizer"),
        (["--checkpoint", "UNET", "--classifier", "NET", "--target", "1"],
         "target must be left out for a model that learnt its maps, got 1"),
        (["--checkpoint", "FCAM", "--method", "cam"], "method must be left out for a model that l"),
        (["--checkpoint", "FCAM", "--target", "1"], "target must be left out for a model that l"),
        (["--checkpoint", "FCAM", "--classifier", "NET"], "classifier must be left out for a mode"),
        (["--checkpoint", "NET", "--classifier", "NET"], "classifier must be left out for a model"),
    ],
)  # fmt: skip
def test_bad_input_is_one_plain_line(checkpoint, tmp_path, capsys, arguments, message) -> None:
    names = {"NET": checkpoint}
    models = {"UNET": UNetLocalizer("small_vgg", in_chans=1), "FCAM": FCAMModel(small_model())}
    for name, model in models.items():
        names[name] = tmp_path / f"{name}.safetensors"
        save_checkpoint(
            model, names[name], class_names=("good", "defect"), mean=(0.4,), std=(0.2,),
            input_size=(32, 16),
        )  # fmt: skip
    out = tmp_path / "it.ts"
    given = [str(names.get(argument, argument)) for argument in arguments]
    assert run("--format", "torchscript", "--out", out, *given) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("wsfast export: error: ")
    assert not out.exists()


def test_what_torch_cannot_export_is_one_line_and_exit_code_1(
    checkpoint, tmp_path, capsys, monkeypatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(torch.jit, "trace", broken)
    out = tmp_path / "it.ts"
    assert run("--checkpoint", checkpoint, "--format", "torchscript", "--out", out) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [
        "wsfast export: error: wsfast.deploy.export_torchscript: torch cannot export it: "
        "no such thing"
    ]
    assert not out.exists()


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "wsfast export --run runs/fcam --format pt2" in said


def test_sigterm_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch.jit, "save", stopped)
    with pytest.raises(SystemExit) as left:
        run("--checkpoint", checkpoint, "--format", "torchscript", "--out", tmp_path / "net.ts")
    assert left.value.code == 143
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
