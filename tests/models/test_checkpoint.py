import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsfast.models import (
    FCAMModel,
    SmallVGG,
    UNetLocalizer,
    WSOLClassifier,
    load_checkpoint,
    save_checkpoint,
)

DESCRIPTION = {
    "class_names": ("good", "defect"),
    "mean": (0.45,),
    "std": (0.1,),
    "input_size": (160, 64),
}


def test_a_model_comes_back_as_it_was(tmp_path):
    model = SmallVGG(channels=(4, 8))
    for _ in range(3):  # batch statistics differ from their initial values
        model(torch.rand(4, 1, 16, 16))
    file = tmp_path / "m.safetensors"
    save_checkpoint(model, file, **DESCRIPTION)
    loaded = load_checkpoint(file)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded.model(images), model.eval()(images))
    assert not loaded.model.training
    assert loaded.model.channels == (4, 8)
    assert {name: getattr(loaded, name) for name in DESCRIPTION} == DESCRIPTION
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FCAMModel(SmallVGG(channels=(4, 8))),
        lambda: UNetLocalizer("small_vgg", {"input_skip": True}, in_chans=1, channels=(4, 8)),
        lambda: WSOLClassifier("timm/resnet10t", 2, in_chans=1),
    ],
    ids=["F-CAM", "U-Net", "timm encoder"],
)
def test_any_model_comes_back_without_knowing_its_class(tmp_path, make):
    model = make().eval()
    file = tmp_path / "m.safetensors"
    save_checkpoint(model, file, **DESCRIPTION, extra={"threshold": 0.25, "recipe": "fcam"})
    state = torch.random.get_rng_state()
    loaded = load_checkpoint(file)
    assert torch.equal(torch.random.get_rng_state(), state)
    images = torch.rand(2, 1, 32, 32)
    outputs = (net(images) for net in (model, loaded.model))
    first, second = (out if isinstance(out, tuple) else (out,) for out in outputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert type(loaded.model) is type(model)
    assert loaded.config == model.config
    assert loaded.extra == {"threshold": 0.25, "recipe": "fcam"}


def test_models_of_other_packages_need_a_description(tmp_path):
    config = {"architecture": "timm", "name": "resnet10t", "num_classes": 2, "in_chans": 1}
    model = timm.create_model("resnet10t", num_classes=2, in_chans=1).eval()
    file = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="config must be given for a ResNet, got nothing"):
        save_checkpoint(model, file, **DESCRIPTION)
    with pytest.raises(ValueError, match="config must be given for a Linear"):
        save_checkpoint(nn.Linear(1, 1), file, **DESCRIPTION)
    save_checkpoint(model, file, **DESCRIPTION, config=config)
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(load_checkpoint(file).model(images), model(images))


def test_files_of_the_first_version_still_load(tmp_path):
    model = SmallVGG(1, 2, (4, 8)).eval()
    description = {
        "architecture": "SmallVGG", "in_chans": 1, "num_classes": 2, "channels": [4, 8],
        **DESCRIPTION,
    }  # fmt: skip
    file = tmp_path / "old.safetensors"
    metadata = {name: json.dumps(value) for name, value in description.items()}
    save_file(model.state_dict(), file, metadata=metadata)
    loaded = load_checkpoint(file, config=model.config)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded.model(images), model(images))
    assert loaded.class_names == ("good", "defect")
    assert loaded.extra == {}


def test_a_checkpoint_of_another_model_is_refused_by_what_differs(tmp_path):
    file = tmp_path / "m.safetensors"
    save_checkpoint(FCAMModel(SmallVGG(channels=(4, 8))), file, **DESCRIPTION)
    wanted = FCAMModel(SmallVGG(channels=(4, 6))).config
    message = r"the model asked for, got .*m\.safetensors \(classifier\.channels is \[4, 8\], not"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(file, config=wanted)
    with pytest.raises(ValueError, match="architecture is FCAMModel, not SmallVGG"):
        load_checkpoint(file, config=SmallVGG().config)


@pytest.mark.parametrize("field", ["class_names", "mean", "std", "input_size"])
def test_a_description_must_fit_the_model(tmp_path, field):
    description = DESCRIPTION | {field: (1, 2, 3)}
    with pytest.raises(ValueError, match=rf"{field} must be \d values, got 3"):
        save_checkpoint(SmallVGG(), tmp_path / "m.safetensors", **description)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("std", (0.0,), ValueError), ("std", (math.nan,), ValueError),
     ("mean", (math.inf,), ValueError), ("mean", ("0",), TypeError),
     ("input_size", (0, 32), ValueError), ("input_size", (32.0, 32.0), TypeError)],
)  # fmt: skip
def test_a_description_that_prepares_no_image_is_refused(tmp_path, field, value, error):
    with pytest.raises(error, match=rf"wsfast\.save_checkpoint: {field} must be"):
        save_checkpoint(SmallVGG(), tmp_path / "m.safetensors", **DESCRIPTION | {field: value})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_are_kept(tmp_path):
    file = tmp_path / "m.safetensors"
    save_checkpoint(SmallVGG(), file, **DESCRIPTION | {"std": np.float32([0.25])})
    assert load_checkpoint(file).std == (0.25,)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "m.safetensors"
    save_checkpoint(SmallVGG(), file, **DESCRIPTION)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(SmallVGG(), file, **DESCRIPTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def corrupt(path):
    save_checkpoint(SmallVGG(), path, **DESCRIPTION)
    path.write_bytes(path.read_bytes()[:-1000])


def foreign(path):
    save_file(SmallVGG().state_dict(), path)


def other_architecture(path):
    save_file({}, path, metadata={"architecture": '"ResNet"'})


def bad_metadata(path):
    save_file({}, path, metadata={"architecture": "{"})


def wrong_types(path):
    save_file({}, path, metadata={"architecture": '"SmallVGG"', "in_chans": '"x"'})


@pytest.mark.parametrize(
    "write",
    [corrupt, foreign, other_architecture, bad_metadata, wrong_types, Path.touch, Path.mkdir,
     lambda path: None],
)  # fmt: skip
def test_what_is_not_a_checkpoint_gives_one_line(tmp_path, write):
    file = tmp_path / "m.safetensors"
    write(file)
    with pytest.raises(ValueError, match=r"^wsfast\.load_checkpoint: path must be a") as caught:
        load_checkpoint(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["best.ckpt", "best", "best.SAFETENSORS"])
def test_a_name_that_could_not_be_read_again_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"path must be a file that ends in \.safetensors, got"):
        save_checkpoint(SmallVGG(), tmp_path / name, **DESCRIPTION)
    assert not list(tmp_path.iterdir())
