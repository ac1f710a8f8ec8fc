import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsfast.models import SmallVGG, load_weights


def trained():
    torch.manual_seed(1)
    return SmallVGG(channels=(4, 8))


def same(first, second):
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state},
        lambda state: {"model_ema": state, "model": {"wrong": torch.zeros(1)}},
        lambda state: prefixed(state, "module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: {"model": prefixed(state, "module._orig_mod.")},
        lambda state: prefixed(state, "_orig_mod.module."),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_torch_files_in_their_usual_wrappings(tmp_path, wrap, suffix):
    source, target = trained(), SmallVGG(channels=(4, 8))
    torch.save(wrap(source.state_dict()), tmp_path / f"w.{suffix}")
    assert not same(source, target)
    load_weights(target, tmp_path / f"w.{suffix}")
    assert same(source, target)


def test_safetensors(tmp_path):
    source, target = trained(), SmallVGG(channels=(4, 8))
    save_file(prefixed(source.state_dict(), "module."), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_a_prefix_of_the_models_own_stays(tmp_path):
    source, target = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_files_from_before_batch_norm_counted_its_steps(tmp_path):
    source, target = trained(), SmallVGG(channels=(4, 8))
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save(dict(state), tmp_path / "old.pt")
    load_weights(target, tmp_path / "old.pt")
    assert same(source, target)


def refused(model, path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^wsfast\.load_weights: path must be ") as caught:
        load_weights(model, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_and_unexpected_names_are_listed_in_short(tmp_path):
    state = trained().state_dict()
    torch.save({"head.0": state.pop("fc.weight"), **state}, tmp_path / "w.pt")
    message = refused(SmallVGG(channels=(4, 8)), tmp_path / "w.pt")
    assert message.endswith("(missing: fc.weight; unexpected: head.0)")
    torch.save({"backbone.x": torch.zeros(1)}, tmp_path / "other.pt")
    message = refused(SmallVGG(channels=(4, 8)), tmp_path / "other.pt")
    assert "stages.0.0.weight, stages.0.1.weight, stages.0.1.bias and 19 more" in message


def test_other_shapes_are_named_with_both(tmp_path):
    torch.save(SmallVGG(channels=(4, 8), num_classes=7).state_dict(), tmp_path / "w.pt")
    message = refused(SmallVGG(channels=(4, 8)), tmp_path / "w.pt")
    assert "shape: fc.weight [7, 8] for [2, 8], fc.bias [7] for [2]" in message


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def write_payload(path):
    path.write_bytes(pickle.dumps({"model": Payload()}, protocol=2))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x02garbage" * 9),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)),
        lambda path: path.mkdir(),
        lambda path: None,
        write_payload,
    ],
)
def test_corrupt_missing_and_dangerous_files(tmp_path, write, suffix):
    path = tmp_path / f"w.{suffix}"
    write(path)
    refused(SmallVGG(channels=(4, 8)), path)


def test_a_cut_file(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-2000])
    refused(SmallVGG(channels=(4, 8)), tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"epoch": 4}, torch.zeros(2)])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    assert "a state dict of tensors" in refused(SmallVGG(channels=(4, 8)), tmp_path / "w.pt")
