"""What `wsfast localize --method` reaches beside the classes of METHODS, and around them."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from wsfast.cam import (
    MSCA,
    TSCAM,
    CAMMethod,
    GradCAM,
    LayerCAM,
    attention_map,
    attention_rollout,
    filtered_backprop,
    multiscale,
)
from wsfast.cli import main
from wsfast.cli.classifier import open_classifier
from wsfast.models import load_checkpoint

VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the classifier's own size, so that no map is resized."""
    file = tmp_path_factory.mktemp("picture") / "part.png"
    noise = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
    cv2.imwrite(str(file), noise)
    return file


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a vision transformer's size."""
    file = tmp_path_factory.mktemp("square") / "part.png"
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    cv2.imwrite(str(file), noise)
    return file


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A vision transformer with a head for three classes, and its weights."""
    torch.manual_seed(0)
    model = timm.create_model(VIT, num_classes=3).eval()
    file = tmp_path_factory.mktemp("vit") / "vit.pt"
    torch.save(model.state_dict(), file)
    return model, file


def localize(source: Path, out: Path, *options: object) -> tuple[dict[str, Any], torch.Tensor]:
    """results.json and the map of the only picture."""
    arguments = ["localize", source, "--out", out, "--npy", *options]
    assert main([str(argument) for argument in arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    return results, torch.from_numpy(np.load(out / "part.npy"))


def prepared(source: Path, **model: Any) -> torch.Tensor:
    chosen = {"pretrained": False, "checkpoint": None, "num_classes": None, "size": None, **model}
    classifier = open_classifier(chosen.pop("name", None), device=torch.device("cpu"), **chosen)
    return classifier.prepare(cv2.imread(str(source))[:, :, ::-1].copy())[None]


def test_a_method_at_several_scales(picture: Path, checkpoint: Path, tmp_path: Path) -> None:
    results, found = localize(
        picture, tmp_path, "--checkpoint", checkpoint, "--method", "layercam", "--scales", "0.5,1"
    )
    images = prepared(picture, checkpoint=checkpoint)
    method = LayerCAM(load_checkpoint(checkpoint).model)
    expected = multiscale(method, images, scales=(0.5, 1.0)).cams
    torch.testing.assert_close(found[None], expected)
    assert not torch.allclose(found[None], method(images).cams, atol=0.01)
    settings = results["settings"]
    assert (settings["method"], settings["scales"]) == ("LayerCAM", [0.5, 1.0])
    assert len(settings["layers"]) == 4


def test_filtered_backprop_around_a_method(picture: Path, checkpoint: Path, tmp_path: Path) -> None:
    results, found = localize(
        picture, tmp_path, "--checkpoint", checkpoint, "--method", "layercam",
        "--filtered-backprop", 70,
    )  # fmt: skip
    images = prepared(picture, checkpoint=checkpoint)
    model = load_checkpoint(checkpoint).model
    with filtered_backprop(model, 70):
        expected = LayerCAM(model)(images).cams
    torch.testing.assert_close(found[None], expected)
    assert not torch.allclose(expected, LayerCAM(model)(images).cams, atol=0.01)
    assert results["settings"]["method"] == "LayerCAM"
    assert results["settings"]["filtered_backprop"] == 70


@pytest.mark.parametrize("name", ["attention", "rollout"])
def test_attention_of_a_transformer(
    square: Path, vit: tuple[nn.Module, Path], tmp_path: Path, name: str
) -> None:
    model, file = vit
    source = ("--model", VIT, "--checkpoint", file, "--num-classes", 3)
    results, found = localize(square, tmp_path, *source, "--method", name)
    images = prepared(square, name=VIT)
    if name == "attention":
        torch.testing.assert_close(found[None], attention_map(model, images))
    else:
        coarse = nn.functional.avg_pool2d(found[None, None], 16)[0, 0]
        rolled = attention_rollout(model, images)[0]
        assert torch.corrcoef(torch.stack([coarse.flatten(), rolled.flatten()]))[0, 1] > 0.8
    assert results["settings"]["method"].lower() == name
    (image,) = results["images"]
    assert image["explained_class"] is None
    assert image["predicted_class"] == int(model(images).argmax())


def test_msca_with_a_transformer_beside_the_classifier(
    picture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(VIT, num_classes=0).eval()
    torch.save(vit.state_dict(), tmp_path / "dino.pth")
    transformer = f"{VIT}:{tmp_path / 'dino.pth'}"
    results, found = localize(
        picture, tmp_path, "--checkpoint", checkpoint, "--method", "msca",
        "--attention-model", transformer, "--scales", "0.5,1",
    )  # fmt: skip
    images = prepared(picture, checkpoint=checkpoint)
    saved = load_checkpoint(checkpoint)
    grey = images * saved.std[0] + saved.mean[0]
    seen = ((grey - 0.5) / 0.5).expand(-1, 3, -1, -1)  # as timm says of this transformer
    method = MSCA(GradCAM(saved.model, "last"), vit, scales=(0.5, 1.0))
    torch.testing.assert_close(found[None], method(images, attention_images=seen).scores)
    settings = results["settings"]
    assert (settings["method"], settings["attention_model"]) == ("MSCA", transformer)


def test_msca_takes_the_attention_of_the_model_itself(
    square: Path, vit: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    source = ("--model", VIT, "--checkpoint", vit[1], "--num-classes", 3)
    results, found = localize(square, tmp_path, *source, "--method", "msca")
    assert results["settings"]["scales"] == [0.25, 0.5, 1.0]
    assert results["settings"]["attention_model"] == "the model itself"
    assert found.std() > 0.05


@pytest.mark.parametrize("own_head", [False, True])  # the transformer's, which is not used
def test_tscam_of_its_checkpoint(square: Path, tmp_path: Path, own_head: bool) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(VIT, **({} if own_head else {"num_classes": 0}))
    model = TSCAM(vit, 2)
    torch.save(model.state_dict(), tmp_path / "tscam.pt")
    source = ("--model", VIT, "--checkpoint", tmp_path / "tscam.pt", "--num-classes", 2)
    results, found = localize(square, tmp_path, *source, "--method", "tscam", "--target", 1)
    expected = model.explain(prepared(square, name=VIT), 1)
    torch.testing.assert_close(found[None], expected.cams)
    assert results["settings"]["method"] == "TSCAM"
    assert results["images"][0]["explained_class"] == 1


def test_compare_shows_what_the_model_can(
    square: Path, vit: tuple[nn.Module, Path], picture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["--compare", "--method", "attention,layercam,cam", "--filtered-backprop", "50"]
    command = ["localize", str(picture), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert main([*command, *arguments, "--scales", "0.5,1"]) == 0
    methods = json.loads((tmp_path / "compare.json").read_text())["methods"]
    assert "vision transformer" in methods["Attention"]["not_applicable"]
    assert methods["LayerCAM"]["filtered_backprop"] == 50
    assert methods["LayerCAM"]["scales"] == [0.5, 1.0]
    assert "filtered_backprop" not in methods["CAM"]
    assert main([*command, "--compare"]) == 0
    methods = json.loads((tmp_path / "compare.json").read_text())["methods"]
    assert len(methods) == 14  # those of transformers are not even mentioned
    assert methods["LTGradCAM"]["percentile"] == 50


def test_compare_of_a_transformer_has_its_attention(
    square: Path, vit: tuple[nn.Module, Path], tmp_path: Path, monkeypatch
) -> None:
    def slow(self: CAMMethod, *_: Any, **__: Any) -> Any:
        raise RuntimeError("left out of the test")

    monkeypatch.setattr(CAMMethod, "__call__", slow)
    source = ["--model", VIT, "--checkpoint", str(vit[1]), "--num-classes", "3"]
    assert main(["localize", str(square), *source, "--compare", "--out", str(tmp_path)]) == 0
    methods = json.loads((tmp_path / "compare.json").read_text())["methods"]
    assert methods["Attention"]["milliseconds"] > 0
    assert methods["Rollout"]["milliseconds"] > 0
    assert "TSCAM" not in methods


def test_live_takes_a_composed_method(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = ["localize", str(clip), "--live", "--checkpoint", str(checkpoint), "--no-video"]
    command += ["--method", "cam", "--scales", "0.5,1", "--out", str(tmp_path)]
    assert main(command) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["method"], summary["scales"]) == ("cam", [0.5, 1.0])


def test_scales_that_the_model_does_not_take_are_one_line(
    square: Path, tmp_path: Path, capsys
) -> None:
    command = ["localize", str(square), "--model", "swin_tiny_patch4_window7_224"]
    command += ["--method", "gradcam", "--scales", "0.5,1", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "--scales must be of sizes that the model takes, got 0.5,1.0 of 224x224 (" in told
    assert not (tmp_path / "out").exists()
