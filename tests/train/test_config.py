"""Settings: the shipped ones are valid, presets give way to what is said, schedules are torch's."""

from pathlib import Path

import pytest
import torch

from wsfast.train.config import CONFIG, documented, read_recipe, read_settings
from wsfast.train.fcam import FCAMConfig
from wsfast.train.runs import CONFIGS, configure
from wsfast.train.schedule import Schedule

RECIPES = sorted((Path(__file__).parents[2] / "scripts" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_say_what_to_expect(path):
    recipe, settings = read_recipe(path)
    config = configure(recipe, {}, file=path)
    assert config.recipe == recipe == path.stem.split("_")[1]
    assert config.data == "CHANGE_ME"
    assert "# Expected: " in path.read_text()
    assert f"wsfast train {recipe} --config scripts/recipes/{path.name}" in path.read_text()
    assert settings["format"] in path.stem or settings["format"] == "wsol"


def test_all_data_sets_have_their_recipes():
    assert {path.stem.split("_")[0] for path in RECIPES} == {
        "cub", "openimages", "ilsvrc", "ksdd", "ksdd2"
    }  # fmt: skip


def test_every_setting_is_explained():
    missing = {
        (recipe, name)
        for recipe, config in CONFIGS.items()
        for name in config.__dataclass_fields__
        if name not in ("preset", "recipe", "presets") and not documented(name, config)
    }
    assert not missing


def test_presets_give_way_to_what_is_said_and_survive_a_round_trip(tmp_path):
    config = FCAMConfig.build({"preset": "small", "background": 7})
    assert (config.foreground, config.background, config.region) == (10, 7, "top")
    config.save(tmp_path)
    assert FCAMConfig.build(read_settings(tmp_path / CONFIG, "fcam")) == config


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("classifier", {"schedule": "onecycle", "momentum": 0.0},
         r"momentum must be left out \(or 0.9\) with schedule onecycle, got 0.0"),
        ("fcam", {"schedule": "onecycle", "warmup_epochs": 2},
         r"warmup_epochs must be left out \(or 0\) with schedule onecycle, got 2"),
        ("dips", {"optimizer": "adamw", "momentum": 0.5}, "momentum .* with optimizer adamw"),
        ("classifier", {"fast_factor": 10}, "fast_factor .* with model small_vgg, got 10.0"),
        ("dips", {"pretrained": True}, "pretrained .* with encoder classifier, got True"),
        ("pseudo", {"pretrained": True}, "pretrained .* with segmenter unet, got True"),
        ("classifier", {"decay_every": 3}, "decay_every .* with schedule constant, got 3"),
        ("dips", {"schedule": "cosine", "decay_factor": 0.5}, "decay_factor .* schedule cosine"),
        ("fcam", {"foreground_share": 0.01}, "foreground_share .* with region otsu, got 0.01"),
        ("fcam", {"size_weight": 0, "size_normalize": True}, "size_normalize .* size_weight 0"),
        ("dips", {"maps": "cam", "transformer": "x"}, "transformer .* with maps cam, got x"),
        ("fcam", {"method": "layercam", "percentile": 40},
         r"percentile must be left out \(or 50.0\) with method layercam, got 40.0"),
    ],
)  # fmt: skip
def test_what_is_given_in_vain_is_refused(tmp_path, recipe, settings, message):
    with pytest.raises(ValueError, match=f"wsfast.train: {message}"):
        configure(recipe, settings)
    lines = [f"{name}: {value}" for name, value in settings.items()]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        configure(recipe, {}, file=tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("classifier", {"model": "vgg16", "fast_factor": -1}, "fast_factor must be between 0"),
        ("classifier", {"weight_decay": float("nan")}, "weight_decay must be between 0 and"),
        ("classifier", {"momentum": 7}, "momentum must be between 0 and 1, got 7.0"),
        ("classifier", {"schedule": "step", "decay_factor": -1}, "decay_factor must be between 0"),
        ("classifier", {"method": "racam", "percentile": 500}, "percentile must be between 0"),
        ("pseudo", {"percentile": 500}, "percentile must be between 0 and 100, got 500.0"),
        ("pseudo", {"segmenter": "deeplabv3", "batch_size": 1},
         "batch_size must be at least 2 x accumulate with segmenter deeplabv3, got 1"),
        ("pseudo", {"preset": "paper", "accumulate": 4}, "batch_size must be at least 2 x accum"),
    ],
)  # fmt: skip
def test_what_could_not_be_trained_is_refused_at_once(recipe, settings, message):
    with pytest.raises(ValueError, match=f"wsfast.train: {message}"):
        configure(recipe, settings)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("classifier", {"model": "resnet50", "fast_factor": 10, "method": "racam",
                        "percentile": 40}),
        ("classifier", {"checkpoint": "mine.pt", "fast_factor": 10}),
        ("dips", {"encoder": "resnet50", "pretrained": True}),
        ("pseudo", {"preset": "paper", "segmenter": "unet"}),  # the preset's word is no order
    ],
)  # fmt: skip
def test_what_has_an_effect_or_was_not_given_is_taken(tmp_path, recipe, settings):
    config = configure(recipe, settings)
    config.save(tmp_path)
    # A run's file names all settings, of which none was given in vain.
    assert configure(recipe, {}, file=tmp_path / CONFIG) == config
    assert configure(recipe, {}, out=tmp_path, resume=True) == config


def test_a_folder_with_a_run_of_another_recipe_is_named(tmp_path):
    configure("classifier", {}).save(tmp_path)
    told = f"--out must be a new folder or a run of fcam, got {tmp_path}, of classifier"
    with pytest.raises(ValueError, match=told):
        configure("fcam", {}, out=tmp_path, resume=True)


def test_yaml_reads_off_as_false(tmp_path):
    (tmp_path / CONFIG).write_text("amp: off\n")
    assert FCAMConfig.build(read_settings(tmp_path / CONFIG, "fcam")).amp == "off"


def test_papers_settings():
    paper = FCAMConfig.build({"preset": "paper"})
    assert (paper.crf_weight, paper.sigma_rgb, paper.sigma_xy) == (2e-9, 15.0, 100.0)
    assert (paper.ce_weight, paper.size_weight, paper.foreground, paper.dilate) == (1, 0.1, 1, 3)


@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_one_cycle_is_torchs(epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1, 0.9, nesterov=True)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=7 * epochs)
    ours = Schedule("onecycle", 7, epochs)
    for step in range(7 * epochs):
        assert 0.1 * ours.factor(step) == pytest.approx(theirs.get_last_lr()[0])
        assert ours.momentum(step) == pytest.approx(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < 7 * epochs - 1:
            theirs.step()


def test_other_schedules():
    step = Schedule("step", 10, 50, every=15, gamma=0.1)
    assert [step.factor(s) for s in (0, 149, 150, 300)] == pytest.approx([1, 1, 0.1, 0.01])
    warm = Schedule("constant", 10, 2, warmup=4)
    assert [warm.factor(s) for s in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    cosine = Schedule("cosine", 10, 2)
    assert [cosine.factor(s) for s in (0, 10)] == pytest.approx([1, 0.5])
