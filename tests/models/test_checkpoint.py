from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wsfast.models import SmallVGG, load_checkpoint, save_checkpoint

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


@pytest.mark.parametrize("field", ["class_names", "mean", "std", "input_size"])
def test_a_description_must_fit_the_model(tmp_path, field):
    description = DESCRIPTION | {field: (1, 2, 3)}
    with pytest.raises(ValueError, match=rf"{field} must be \d values, got 3"):
        save_checkpoint(SmallVGG(), tmp_path / "m.safetensors", **description)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "m.safetensors"
    save_checkpoint(SmallVGG(), file, **DESCRIPTION)
    before = file.read_bytes()

    def disk_full(path, data):
        with path.open("wb") as stream:
            stream.write(data[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(SmallVGG(), file, **DESCRIPTION)
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
