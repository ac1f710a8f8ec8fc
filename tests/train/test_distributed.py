"""Two processes against one."""

import copy
import json
from datetime import timedelta

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.processes import python
from tests.train.tiny import result, train_tiny
from wsfast.models import WSOLClassifier
from wsfast.train import distributed
from wsfast.train.distributed import global_mean, synchronize_batchnorm
from wsfast.train.runs import configure, run


def test_two_gloo_processes_train_and_score_as_one(tmp_path):
    torch.set_num_threads(1)
    first = {"images": 24, "size": [32, 16], "batch_size": 8, "channels": 1, "epochs": 1}
    run(configure("classifier", first), tmp_path / "start", progress=False)
    settings = {**first, "epochs": 2, "preset": "small", "classifier": str(tmp_path / "start")}
    done = python(
        "-m",
        "tests.train.two_processes",
        tmp_path / "two",
        json.dumps(settings),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    train_tiny(tmp_path / "one" / "classifier", dropout=False)
    run(configure("fcam", settings), tmp_path / "one" / "fcam", progress=False)
    for recipe in ("classifier", "fcam"):
        two, one = (result(tmp_path / name / recipe) for name in ("two", "one"))
        for ours, theirs in zip(two[2], one[2], strict=True):
            assert ours.pop("warnings", None) == theirs.pop("warnings", None)
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        for name, weights in two[0].items():
            torch.testing.assert_close(weights, one[0][name], rtol=1e-3, atol=1e-4)
    caches = [next((tmp_path / n / "fcam" / "cache").glob("*.npy")) for n in ("one", "two")]
    assert caches[0].read_bytes() == caches[1].read_bytes()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (4, 5)),
        (nn.BatchNorm1d, (4, 5, 3)),
        (nn.BatchNorm2d, (4, 5, 3, 6)),
        (BatchNormAct2d, (4, 5, 3, 6)),
        (nn.BatchNorm3d, (4, 5, 3, 2, 2)),
    ],
)
def test_synchronized_batch_normalisation_is_the_layers_own_on_one_process(
    kind, shape, monkeypatch
):
    torch.manual_seed(0)
    plain = kind(5).double()
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.normal_()
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, dtype=torch.float64)
    synchronized = copy.deepcopy(plain)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        synchronize_batchnorm(synchronized, torch.device("cpu"))
    assert type(synchronized) is not kind
    results = []
    for layer in (plain, synchronized):
        with _single_process_group():
            out = layer(images)
            grads = torch.autograd.grad((out * weights).sum(), [images, *layer.parameters()])
        results.append([out, *grads, *layer.state_dict().values(), layer.eval()(images)])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_synchronized_batch_normalisation_sums_half_types_in_float32(dtype, monkeypatch):
    """Sums of squares of a batch overflow float16, and bfloat16 forgets the mean."""
    torch.manual_seed(0)
    plain, images = nn.BatchNorm2d(3), torch.randn(8, 3, 160, 64).mul(4).add(20).to(dtype)
    synchronized = copy.deepcopy(plain)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        synchronize_batchnorm(synchronized, torch.device("cpu"))
    with _single_process_group():
        found = synchronized(images)
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain(images), rtol=0.02, atol=0.02)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(synchronized, name), getattr(plain, name))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_network_keeps_the_activations_inside_its_normalisation(device, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = WSOLClassifier("timm/test_efficientnet", 2).eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    synchronize_batchnorm(model, torch.device(device))
    assert not any(type(m) in (nn.BatchNorm2d, BatchNormAct2d) for m in model.modules())
    torch.testing.assert_close(model.eval()(images), before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_normalisation_of_an_unknown_kind_is_refused(device, monkeypatch):
    class Own(nn.BatchNorm2d):
        def forward(self, input):
            return super().forward(input).relu()

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"model must be with torch's or timm's own .*, got Own$"):
        synchronize_batchnorm(nn.Sequential(Own(3)), torch.device(device))


class _single_process_group:
    def __enter__(self):
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def __exit__(self, *_):
        torch.distributed.destroy_process_group()


def test_processes_wait_for_the_slowest_however_long_it_makes_maps(monkeypatch):
    told = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _, **how: told.update(how))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with distributed.process_group(torch.device("cpu")):
        assert told["timeout"] >= timedelta(days=1)


def test_a_mean_over_nothing_is_zero():
    total = torch.zeros(()).requires_grad_()
    assert global_mean(total, torch.tensor(0)).item() == 0
