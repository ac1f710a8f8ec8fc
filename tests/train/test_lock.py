"""One folder, one run."""

import errno
import fcntl
import os
import signal
import time

import cv2
import numpy as np
import pytest
import torch

from wsfast.cli import main
from wsfast.train import state
from wsfast.train.evaluation import RunMaps
from wsfast.train.harvest import harvest
from wsfast.train.runs import configure, preview, run
from wsfast.train.state import only_run_in

SMALL = {
    "size": [32, 16], "channels": 1, "images": 8, "batch_size": 8, "epochs": 1, "device": "cpu",
}  # fmt: skip
TINY = configure("classifier", SMALL)


@pytest.fixture
def holder(tmp_path):
    """A process inside the block, which has itself started one, as those that read images."""
    out, told = tmp_path / "run", os.pipe()
    out.mkdir()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        with only_run_in(out):
            os.fork()
            os.write(told[1], b"x")
            time.sleep(60)
        os._exit(0)
    assert os.read(told[0], 2)
    yield pid, out
    os.killpg(pid, signal.SIGKILL)


def test_a_folder_that_a_run_is_in_is_refused_until_that_run_dies(holder):
    pid, out = holder
    for resume in (False, True):
        with pytest.raises(
            ValueError, match=rf"--out must be a folder that no other .* got {out}$"
        ):
            run(TINY, out, resume=resume, progress=False)
    assert [path.name for path in out.iterdir()] == [".lock"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    run(TINY, out, progress=False)
    assert (out / "last.pt").exists()
    assert not (out / ".lock").exists()


def test_neither_a_preview_nor_a_harvest_gets_into_a_folder_in_use(holder, tmp_path):
    _, out = holder
    first = tmp_path / "first"
    run(TINY, first, progress=False)
    config = configure("pseudo", {**SMALL, "classifier": str(first)})
    with pytest.raises(ValueError, match=r"wsfast\.train: --out must be a folder that no other"):
        preview(config, out, progress=False)
    file = tmp_path / "1.png"
    assert cv2.imwrite(str(file), np.zeros((32, 16), np.uint8))
    with pytest.raises(ValueError, match=r"wsfast\.harvest: --out must be a folder that no other"):
        harvest(RunMaps(first, torch.device("cpu")), [file], out, progress=False)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_localize_does_not_get_into_a_folder_in_use(holder, tmp_path, capsys):
    _, out = holder
    first, clip = tmp_path / "first", tmp_path / "clip.avi"
    run(TINY, first, progress=False)
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (16, 32))
    writer.write(np.zeros((32, 16, 3), np.uint8))
    writer.release()
    model = ["--checkpoint", str(first / "best.safetensors")]
    for more in (["--run", str(first)], ["--run", str(first), "--live"], [*model, "--compare"]):
        assert main(["localize", str(clip), "--out", str(out), *more]) == 2
        said = capsys.readouterr().err
        assert "wsfast.localize: --out must be a folder that no other run is writing to" in said
    assert main(["demo", "--out", str(out)]) == 2
    assert "wsfast.demo: --out must be a folder that no other run" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_lock_that_was_deleted_since_it_was_opened_is_none(tmp_path, monkeypatch):
    def late(file, flags):
        monkeypatch.undo()
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "lockf", late)
    with only_run_in(tmp_path):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", ["lockf", "open", "fcntl"])
def test_where_there_are_no_locks_nothing_is_refused(tmp_path, monkeypatch, name):
    def fails(*_):
        raise OSError(errno.ENOLCK if name == "lockf" else errno.EROFS, "no")

    if name == "fcntl":
        monkeypatch.setattr(state, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl if name == "lockf" else os, name, fails)
    with only_run_in(tmp_path), only_run_in(tmp_path):
        pass
