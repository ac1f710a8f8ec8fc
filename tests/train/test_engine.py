"""Runs that are stopped, killed, resumed, spread over processes or out of disk."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.train.tiny import BrightOrDark, assert_same_result, make_recipe, result, train_tiny
from wsfast.models import load_checkpoint
from wsfast.train import Interrupted, fit
from wsfast.train.log import RunLog, read_log
from wsfast.train.state import save_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("unbroken")
    train_tiny(out)
    return out


def test_a_run_leaves_its_files(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names == {
        "config.yaml", "learnt.txt", "log.jsonl", "last.pt", "last.safetensors", "best.safetensors"
    }  # fmt: skip
    names = (unbroken / "learnt.txt").read_text().split("\n")
    assert names == [str(number) for number in range(40)]
    log = result(unbroken)[2]
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert {"loss", "accuracy", "balanced_accuracy", "iou", "learning_rate"} <= log[0].keys()


def run_kill_server(tmp_path, kills, epochs):
    outs = [str(tmp_path / name) for name in ("whole", "broken")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.kill_server", *outs, str(kills), str(epochs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert_same_result(result(outs[0]), result(outs[1]))
    leftovers = [path.name for path in Path(outs[1]).iterdir() if path.name.startswith(".")]
    assert not leftovers
    return int(done.stdout)


def test_killed_at_random_moments_and_resumed_it_ends_as_if_unbroken(tmp_path):
    assert run_kill_server(tmp_path, 4, 12) >= 3


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    assert run_kill_server(tmp_path, 20, 60) >= 18


@pytest.mark.parametrize("step", [2, 5, 11, 15])
def test_sigterm_finishes_the_step_and_resumes_bit_for_bit(tmp_path, unbroken, step):
    recipe = make_recipe()
    seen = 0
    plain = recipe.step

    def counting(batch, epoch):
        nonlocal seen
        seen += 1
        if seen == step:
            signal.raise_signal(signal.SIGTERM)
        return plain(batch, epoch)

    recipe.step = counting
    with pytest.raises(Interrupted) as stopped:
        fit(recipe, out=tmp_path, progress=False)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert seen == step  # not one more
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] * 5 + state["step"] == step
    train_tiny(tmp_path, resume=True)
    assert_same_result(result(tmp_path), result(unbroken))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_resuming_a_finished_run_changes_nothing_and_more_epochs_continue_it(tmp_path):
    train_tiny(tmp_path / "three", schedule="constant")
    before = result(tmp_path / "three")
    history = train_tiny(tmp_path / "three", schedule="constant", resume=True)
    assert_same_result(result(tmp_path / "three"), before)
    assert len(history) == 3
    train_tiny(tmp_path / "three", schedule="constant", epochs=4, resume=True)
    train_tiny(tmp_path / "four", schedule="constant", epochs=4)
    assert_same_result(result(tmp_path / "three"), result(tmp_path / "four"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4, "learning_rate": 0.02},
         r"batch_size: 8 -> 4; learning_rate: 0.1 -> 0.02"),
        ({"epochs": 5}, "epochs: 3 -> 5"),  # a one-cycle schedule depends on it
        ({"labels": torch.arange(40) // 20}, r"the run's own images \(40 images, \w+\), got 40"),
        ({"labels": torch.arange(39) % 2}, r"got 39 images"),
    ],
)  # fmt: skip
def test_a_changed_run_is_not_resumed_and_what_changed_is_said(unbroken, settings, message):
    before = result(unbroken)
    with pytest.raises(ValueError, match=f"wsfast.train: --resume must be .*{message}"):
        train_tiny(unbroken, resume=True, **settings)
    assert_same_result(result(unbroken), before)


def test_a_run_is_not_overwritten(unbroken):
    with pytest.raises(ValueError, match="--out must be a new folder, or --resume"):
        train_tiny(unbroken)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"--resume must be of a readable last\.pt"):
        train_tiny(tmp_path, resume=True)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, unbroken):
    saves = 0
    plain = torch.save

    def refuse(state, file):
        nonlocal saves
        saves += 1
        if saves == 4:
            file.write(b"a part of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(state, file)

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(OSError, match="No space left"):
        train_tiny(tmp_path)
    monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1
    train_tiny(tmp_path, resume=True)
    assert_same_result(result(tmp_path), result(unbroken))


def test_the_disk_is_named_when_it_is_full(tmp_path):
    save_state(tmp_path, {"epoch": 1})
    before = (tmp_path / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as if it were
    try:
        with pytest.raises(OSError, match="File too large"):
            save_state(tmp_path, {"epoch": 2, "model": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("resume", [False, True])
def test_models_are_not_overwritten_where_the_state_is_gone(tmp_path, unbroken, resume):
    out = shutil.copytree(unbroken, tmp_path / "run")
    (out / "last.pt").unlink()  # the largest file
    before = (out / "best.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"--out must be a new folder .*without its last\.pt"):
        train_tiny(out, resume=resume)
    assert (out / "best.safetensors").read_bytes() == before
    assert len(read_log(out)) == 3
    (out / "log.jsonl").unlink()  # as of a run that was killed in its first epoch
    if resume:
        train_tiny(out, resume=True)
        assert_same_result(result(out), result(unbroken))


def test_accumulated_parts_make_the_gradient_of_the_whole_batch(tmp_path):
    # Without batch statistics and dropout the parts' mean gradient is the batch's.
    weights = []
    for parts in (1, 4):
        recipe = make_recipe(dropout=False, accumulate=parts, epochs=1)
        recipe.model.eval()
        recipe.model.train = lambda mode=True, model=recipe.model: model
        fit(recipe, progress=False)
        weights.append(torch.cat([p.flatten() for p in recipe.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_batches_must_be_divisible():
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of processes x accumul"):
        fit(make_recipe(accumulate=3), progress=False)


@pytest.mark.parametrize("settings", [{"amp": "bf16"}, {"channels_last": True}, {"workers": 2}])
def test_ways_to_be_faster_learn_the_same(settings):
    plain = fit(make_recipe(dropout=False), progress=False)
    other = fit(make_recipe(dropout=False, **settings), progress=False)
    assert other[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.05)


def test_workers_read_the_same_samples():
    first, second = (fit(make_recipe(workers=w, epochs=1), progress=False) for w in (0, 2))
    assert first[0]["loss"] == second[0]["loss"]
    assert first[0]["iou"] == second[0]["iou"]


def test_the_best_epoch_is_kept(tmp_path):
    recipe = make_recipe(epochs=3)
    scores = iter([0.5, 0.9, 0.7])
    recipe.validate = lambda: {"balanced_accuracy": next(scores)}
    fit(recipe, out=tmp_path, progress=False)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (state["best"], state["best_epoch"]) == (0.9, 2)
    last, best, _ = result(tmp_path)
    assert not all(torch.equal(last[name], best[name]) for name in last)


def test_patience_ends_a_run_that_a_resumed_one_with_more_goes_on_with(tmp_path):
    def train(out, patience, **settings):
        recipe = make_recipe(epochs=6, schedule="constant", patience=patience, **settings)
        scores = [0.5, 0.9, 0.7, 0.8, 0.95, 0.1]
        recipe.validate = lambda: {"balanced_accuracy": scores[len(read_log(out))]}
        return fit(recipe, out=out, resume=(out / "last.pt").exists(), progress=False)

    assert len(train(tmp_path / "run", 2)) == 4
    before = result(tmp_path / "run")
    assert len(train(tmp_path / "run", 2)) == 4  # it has ended
    assert_same_result(result(tmp_path / "run"), before)
    assert len(train(tmp_path / "run", 3)) == 6
    assert len(train(tmp_path / "whole", 0)) == 6
    assert_same_result(result(tmp_path / "run"), result(tmp_path / "whole"))
    # Nothing was better or worse in the epochs between two validations.
    assert len(train(tmp_path / "seldom", 1, validate_every=3)) == 6


@pytest.mark.parametrize("parts", [1, 2])
def test_clipped_gradients_are_scaled_to_the_norm(parts):
    def moved(**settings):
        plain = {"momentum": 0, "weight_decay": 0, "schedule": "constant"}
        recipe = make_recipe(
            dropout=False, epochs=1, batch_size=40, accumulate=parts, **plain, **settings
        )
        before = [p.detach().clone() for p in recipe.model.parameters()]
        fit(recipe, progress=False)
        after = recipe.model.parameters()
        return torch.cat([(b - a).flatten() for a, b in zip(after, before, strict=True)]) / 0.1

    gradient = moved()
    bound = gradient.norm().item() / 4
    torch.testing.assert_close(moved(clip_gradients=bound), gradient / 4, rtol=1e-3, atol=1e-6)
    assert torch.equal(moved(clip_gradients=bound * 8), gradient)


def test_models_are_on_the_disk_before_the_state_that_says_so(tmp_path, monkeypatch):
    synced = []
    plain = os.fsync

    def noting(descriptor):
        plain(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noting)
    train_tiny(tmp_path, epochs=1)
    names = ("last.safetensors", "best.safetensors", "last.pt")
    at = [synced.index((tmp_path / name).stat().st_ino) for name in names]
    assert at == sorted(at)


def test_what_to_select_on_must_be_known():
    recipe = make_recipe(select_on="localization")
    recipe.selections = {"classification": "accuracy"}
    with pytest.raises(ValueError, match="select_on must be classification, last for this data"):
        fit(recipe, progress=False)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    recipe = make_recipe(epochs=1)
    torch.manual_seed(5)
    fit(recipe, progress=False)
    assert torch.equal(torch.rand(2), expected)


def test_tensorboard_is_asked_for_only_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="tensorboard must be false without the tensorboard pack"):
        fit(make_recipe(epochs=1, tensorboard=True), out=out, progress=False)
    assert not out.exists()


def test_a_line_that_a_kill_cut_short_and_later_epochs_are_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3, "lo')
    log = RunLog(tmp_path, epochs=1)
    log.write({"epoch": 2, "loss": 0.5})
    assert read_log(tmp_path) == [{"epoch": 1}, {"epoch": 2, "loss": 0.5}]


def test_weights_that_the_last_step_spoilt_are_not_saved(tmp_path):
    recipe = make_recipe(epochs=1, batch_size=40, dropout=False)
    recipe.model.fc.weight.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(RuntimeError, match="a weight in epoch 1 is no longer finite"):
        fit(recipe, out=tmp_path, progress=False)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "last.pt").exists()


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained(tmp_path):
    recipe = make_recipe(epochs=1, dropout=False)
    recipe.model = nn.Sequential(recipe.model)
    with pytest.raises(ValueError, match="config must be given for a Sequential"):
        fit(recipe, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    recipe = make_recipe(epochs=1)
    recipe.data.class_names = ()
    with pytest.raises(ValueError, match="class_names must be 2 values, got 0"):
        fit(recipe, out=tmp_path / "run", progress=False)
    assert len(fit(recipe, progress=False)) == 1  # which saves nothing


def test_localization_cannot_select_where_nothing_is_marked(tmp_path):
    recipe = make_recipe()
    assert set(recipe.selections) == {"classification", "localization"}

    class Unmarked(BrightOrDark):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(mask=None)

    recipe = make_recipe(validation=Unmarked(8))
    assert set(recipe.selections) == {"classification"}
    assert "iou" not in fit(recipe, progress=False)[-1]


def test_empty_masks_choose_no_best_model_but_stop_no_run(tmp_path):
    class Hollow(BrightOrDark):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample._replace(mask=torch.zeros_like(sample.mask))

    recipe = make_recipe(validation=Hollow(8), select_on="localization", epochs=2)
    log = fit(recipe, out=tmp_path, progress=False)
    assert all("localization" not in record for record in log)
    assert all("no figure for localization" in " ".join(r["warnings"]) for r in log)
    assert load_checkpoint(tmp_path / "best.safetensors").extra["epoch"] == 1
