"""What a localizer is made of: models, weights files and the runs of ``wsfast train``."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from tests.deploy.small import FEED, INPUT, RECIPES, TwoLayers, defects, small_model, train_runs
from wsfast import ops
from wsfast.cam import LTGradCAM
from wsfast.cli import main
from wsfast.deploy import GradientLocalizer, Localizer
from wsfast.deploy.networks import DecoderNetwork, PairNetwork
from wsfast.models import FCAMModel, UNetLocalizer, WSOLClassifier, save_checkpoint
from wsfast.train.runs import load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timm_classifiers_with_gap_and_a_linear_layer(name) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    localizer = Localizer.from_model(model, input_size=(64, 64), class_names="abcd")
    assert (localizer.channels, localizer.input_size) == (3, (64, 64))
    assert localizer.class_names == ("a", "b", "c", "d")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    found = localizer(images)
    prepared = localizer.prepare(images)
    torch.testing.assert_close(found.logits, model(prepared), atol=1e-4, rtol=1e-4)
    features, weight = model.forward_features(prepared), model.get_classifier().weight
    maps = torch.einsum("nc,nchw->nhw", weight[found.logits.argmax(1)], features).relu()
    torch.testing.assert_close(found.cams, ops.fuse_cams([maps], (64, 64)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit"])
def test_other_classifiers_are_refused_with_a_way_out(name) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    with pytest.raises(ValueError, match=r"from_model: model must be .*GradientLocalizer"):
        Localizer.from_model(model)


def test_input_size_is_a_pair() -> None:
    model = timm.create_model("resnet18", pretrained=False, num_classes=4).eval()
    with pytest.raises(TypeError, match=r"from_model: input_size must be .* integers, got 32"):
        Localizer.from_model(model, input_size=32)


def test_timm_encoders_are_taken_behind_this_packages_head() -> None:
    model = WSOLClassifier("timm/mobilenetv3_small_050", 3).eval()
    feed = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "input_size": (64, 64)}
    found = Localizer.from_model(model, **feed)(torch.rand(1, 3, 64, 64))
    assert found.cams.shape == (1, 64, 64)


def test_timm_models_in_checkpoints(tmp_path) -> None:
    model = timm.create_model("test_resnet", pretrained=False, num_classes=2, in_chans=1).eval()
    config = {"architecture": "timm", "name": "test_resnet", "num_classes": 2, "in_chans": 1}
    save_checkpoint(
        model, tmp_path / "net.safetensors", class_names=("a", "b"), config=config, **FEED
    )
    found = Localizer.from_checkpoint(tmp_path / "net.safetensors")(defects(2))
    assert found.logits.shape == (2, 2)


def test_decoders_maps_are_their_foreground_probability() -> None:
    images = defects(2, INPUT)
    prepared = (images / 255 - 0.4) / 0.2
    fcam = FCAMModel(small_model()).eval()
    unet = UNetLocalizer("small_vgg", in_chans=1).eval()
    for network, map_logits in (
        (DecoderNetwork(fcam), fcam(prepared).map_logits),
        (PairNetwork(unet, small_model()), unet(prepared)),
    ):
        found = Localizer(network, **FEED, layer_norm=None, norm=None)(images)
        torch.testing.assert_close(found.cams, map_logits.softmax(1)[:, 1].detach())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_gives_the_boxes_of_localize(runs, tmp_path, recipe) -> None:
    localizer = Localizer.from_checkpoint(runs[recipe])
    assert localizer.input_size == INPUT
    assert localizer.class_names == ("good", "defect")
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate((INPUT, (90, 120), (41, 57), (20, 16))):
        cv2.imwrite(str(folder / f"{i}.png"), defects(2, size)[1, 0].numpy())
    out = tmp_path / "out"
    assert (
        main(["localize", str(folder), "--run", str(runs[recipe]), "--out", str(out), "--npy"]) == 0
    )
    records = json.loads((out / "results.json").read_text())["images"]
    assert len(records) == 4
    for i, record in enumerate(records):
        picture = cv2.imread(str(folder / f"{i}.png"), cv2.IMREAD_GRAYSCALE)
        found = localizer(torch.from_numpy(picture)[None, None])
        np.testing.assert_allclose(found.cams[0], np.load(out / f"{i}.npy"), atol=1e-5)
        kept = min(int(found.counts[0]), 16)
        assert int(found.counts[0]) == record["components"]
        assert found.boxes[0, :kept].tolist() == [box["box"] for box in record["boxes"]]
        assert int(found.logits[0].argmax()) == record["predicted_class"]


def test_a_runs_threshold_is_validations_unless_given(runs) -> None:
    for folder in runs.values():
        chosen = Localizer.from_checkpoint(folder).threshold
        assert chosen == load_run(folder).extra["threshold"]
        assert Localizer.from_checkpoint(folder, threshold="otsu2").threshold == "otsu2"


def test_files_of_a_run_alone(runs) -> None:
    images = defects(2)
    fcam = Localizer.from_checkpoint(runs["fcam"] / "best.safetensors")
    assert all(map(torch.equal, fcam(images), Localizer.from_checkpoint(runs["fcam"])(images)))
    assert Localizer.from_checkpoint(runs["classifier"] / "best.safetensors").threshold == "otsu"
    file = runs["dips"] / "best.safetensors"
    with pytest.raises(ValueError, match="classifier must be given for a localizer"):
        Localizer.from_checkpoint(file)
    found = Localizer.from_checkpoint(file, classifier=runs["classifier"])
    assert all(map(torch.equal, found(images), Localizer.from_checkpoint(runs["dips"])(images)))


def test_a_moved_classifier_can_be_named(runs, tmp_path) -> None:
    moved = tmp_path / "pseudo"
    moved.mkdir()
    for name in ("config.yaml", "best.safetensors"):
        text = (runs["pseudo"] / name).read_bytes()
        (moved / name).write_bytes(text.replace(b"/classifier\n", b"/elsewhere\n"))
    with pytest.raises(ValueError, match="elsewhere"):
        Localizer.from_checkpoint(moved)
    Localizer.from_checkpoint(moved, classifier=runs["classifier"])


def test_runs_of_gradient_methods_say_what_to_do(runs, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = (runs["classifier"] / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("method: cam", "method: ltgradcam"))
    shutil.copy(runs["classifier"] / "best.safetensors", folder)
    with pytest.raises(ValueError, match=r"of method 'ltgradcam'"):
        Localizer.from_checkpoint(folder)
    closed = Localizer.from_checkpoint(folder, method="cam")
    assert closed.threshold == "otsu"
    file = Localizer.from_checkpoint(folder / "best.safetensors")  # one model, one map
    assert torch.equal(closed(defects(2)).cams, file(defects(2)).cams)
    with pytest.raises(ValueError, match=r"target must be a class of 0 to 1, got 9"):
        GradientLocalizer.from_checkpoint(folder, target=9)
    with pytest.raises(ValueError, match=r"method_options must be given with a method, got {'lay"):
        GradientLocalizer.from_checkpoint(folder, method_options={"layers": "last"})
    with pytest.raises(ValueError, match="target must be left out for a model that learnt its ma"):
        GradientLocalizer.from_checkpoint(runs["fcam"], target=1)
    with pytest.raises(ValueError, match="method must be left out for a model that learnt"):
        Localizer.from_checkpoint(runs["fcam"], method="cam")
    with pytest.raises(ValueError, match="classifier must be left out for a model with class sco"):
        Localizer.from_checkpoint(folder, method="cam", classifier=runs["classifier"])
    images = defects(2)
    found = GradientLocalizer.from_checkpoint(folder)
    assert isinstance(found.threshold, float)
    wanted = LTGradCAM(found.model)(found.prepare(images)).cams
    wanted = F.interpolate(wanted[:, None], (64, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(found(images).cams, wanted.clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_maps_that_were_learnt_have_no_target(runs, tmp_path, capsys, recipe) -> None:
    with pytest.raises(ValueError, match="target must be left out for a model that learnt its ma"):
        Localizer.from_checkpoint(runs[recipe], target=1)
    cv2.imwrite(str(tmp_path / "part.png"), defects(1)[0, 0].numpy())
    command = ["localize", str(tmp_path / "part.png"), "--run", str(runs[recipe]), "--target", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "--target must be left out with a run that learnt its maps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["dips", "pseudo"])
def test_another_classifier_than_the_runs_own_is_refused(
    runs, tmp_path, recipe, monkeypatch
) -> None:
    """One of the same path, seen from another folder, would give its scores without a word."""
    other = tmp_path / "other.safetensors"
    save_checkpoint(
        small_model(1), other, class_names=("good", "defect"), mean=(0.4,), std=(0.2,),
        input_size=INPUT,
    )  # fmt: skip
    message = r"classifier must be the one that the model was trained with, got .*other\.safetens"
    for path in (runs[recipe], runs[recipe] / "best.safetensors"):
        with pytest.raises(ValueError, match=message):
            Localizer.from_checkpoint(path, classifier=other)
    moved = shutil.copytree(runs[recipe], tmp_path / "run")
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(runs["classifier"]), str(other)))
    with pytest.raises(ValueError, match=r"--run must be run where .*other.* is the classifier it"):
        Localizer.from_checkpoint(moved)
    (moved / "config.yaml").write_text(config.replace(str(runs["classifier"]), "runs/gone"))
    with pytest.raises(ValueError, match="--run must be run where its classifier is found, runs/g"):
        Localizer.from_checkpoint(moved)


@pytest.mark.parametrize("recipe", ["dips", "pseudo"])
def test_commands_are_told_where_the_classifier_is_now(runs, recipe, tmp_path, capsys) -> None:
    picture = tmp_path / "part.png"
    cv2.imwrite(str(picture), defects(1)[0, 0].numpy())
    moved = shutil.copytree(runs[recipe], tmp_path / "run")
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(runs["classifier"]), "runs/gone"))
    for name, *words in (
        ("localize", picture, "--out", tmp_path / "localized"),
        ("localize", picture, "--live", "--out", tmp_path / "live"),
        ("harvest", picture, "--out", tmp_path / "harvest"),
        ("evaluate",),
    ):
        command = [str(word) for word in (name, *words, "--run", moved)]
        assert main(command) == 2
        message = "is found, runs/gone seen from the working directory, or given as classifier"
        assert message in capsys.readouterr().err
        assert main([*command, "--classifier", str(runs["classifier"])]) == 0, command
    images = defects(2)
    here = GradientLocalizer.from_checkpoint(runs[recipe])(images)
    found = GradientLocalizer.from_checkpoint(moved, classifier=runs["classifier"])(images)
    assert torch.equal(found.logits, here.logits)
    assert torch.equal(found.cams, here.cams)


def test_a_classifier_is_named_for_localizers_alone(runs, tmp_path, capsys) -> None:
    picture = tmp_path / "part.png"
    cv2.imwrite(str(picture), defects(1)[0, 0].numpy())
    own = "classifier must be left out for a model with class scores of its own"
    beside_model = "--classifier must be left out with --model or --checkpoint"
    for words, message in (
        (("localize", picture, "--run", runs["fcam"], "--out", tmp_path / "out"), own),
        (("harvest", picture, "--run", runs["classifier"], "--out", tmp_path / "out"), own),
        (("evaluate", "--run", runs["classifier"]), own),
        (("localize", picture, "--model", "resnet18", "--out", tmp_path / "out"), beside_model),
        (
            ("localize", picture, "--live", "--model", "resnet18", "--out", tmp_path / "out"),
            beside_model,
        ),
        (
            ("evaluate", "--scoremaps", tmp_path, "--metadata", tmp_path),
            "--classifier must be left out with --scoremaps",
        ),
    ):
        assert main([str(word) for word in (*words, "--classifier", runs["classifier"])]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    file = runs["classifier"] / "best.safetensors"
    with pytest.raises(ValueError, match="classifier must be left out for a checkpoint file"):
        GradientLocalizer.from_checkpoint(file, classifier=runs["classifier"])


def test_what_has_no_effect_on_learnt_maps_is_refused(runs, tmp_path, capsys) -> None:
    picture = tmp_path / "part.png"
    cv2.imwrite(str(picture), defects(1)[0, 0].numpy())
    file = runs["fcam"] / "best.safetensors"
    for command, message in (
        (["harvest", picture, "--run", runs["fcam"], "--target", 1], "--target must be left out"),
        (["localize", picture, "--checkpoint", file], "--checkpoint must be of a classifier"),
        (
            ["localize", picture, "--run", runs["fcam"], "--device", "meta"],
            "--device must be a",
        ),
    ):
        assert main([str(word) for word in [*command, "--out", tmp_path / "out"]]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    command = ["localize", picture, "--run", runs["fcam"], "--out", tmp_path / "out"]
    assert main([str(word) for word in command]) == 0
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert found["explained_class"] is None


@pytest.mark.parametrize("recipe", ["classifier", "fcam"])
def test_models_with_scores_of_their_own_take_no_classifier(runs, recipe) -> None:
    for path in (runs[recipe], runs[recipe] / "best.safetensors"):
        with pytest.raises(ValueError, match="classifier must be left out for a model with class"):
            Localizer.from_checkpoint(path, classifier=runs["classifier"])


def test_bad_networks_and_paths(tmp_path) -> None:
    with pytest.raises(TypeError, match="network must be"):
        Localizer(lambda images: images, **FEED)
    with pytest.raises(ValueError, match="reduce must be"):
        Localizer(TwoLayers(), **FEED, reduce="median")
    with pytest.raises(ValueError, match="mean must be given for this SmallVGG"):
        Localizer.from_model(small_model())
    with pytest.raises(ValueError, match="nowhere"):
        Localizer.from_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="method must be one of cam"):
        Localizer.from_checkpoint(tmp_path, method="gradcam")
    with pytest.raises(ValueError, match="method must be one of"):
        GradientLocalizer.from_model(small_model(), "nocam", **FEED)
    with pytest.raises(TypeError, match="method must be a method"):
        GradientLocalizer(small_model(), **FEED)
