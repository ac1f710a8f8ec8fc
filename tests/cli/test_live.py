"""`wsfast localize --live` as a user meets it: files on disk while it runs, whatever ends it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.live_files import DeadPipe, lines, summary
from tests.data.videos import cut_clip, damage_clip, read_clip, write_clip
from wsfast.cli import live, live_output, localize, main
from wsfast.deploy import GradientLocalizer, LiveFrame, LiveLoop, LiveStatistics, Localizer
from wsfast.train.runs import configure
from wsfast.train.runs import run as train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier of CAM, one of a method that needs gradients, and a localizer."""
    root = tmp_path_factory.mktemp("runs")
    data = {"size": [32, 32], "images": 16, "channels": 1, "batch_size": 8, "epochs": 1}
    own = {
        "classifier": {"method": "cam"},
        "ltgradcam": {"method": "ltgradcam"},
        "fcam": {"preset": "small", "classifier": str(root / "classifier")},
    }
    for name, settings in own.items():
        recipe = "fcam" if name == "fcam" else "classifier"
        train(configure(recipe, {**data, **settings}), root / name, progress=False)
    return {name: root / name for name in own}


def run(source: object, out: Path, checkpoint: Path, *options: object) -> int:
    arguments = ["localize", source, "--live", "--checkpoint", checkpoint, "--out", out, *options]
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("method", ["cam", "ltgradcam"])
def test_a_file_gives_a_line_and_a_picture_per_frame(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys, method: str
) -> None:
    assert run(clip, tmp_path, checkpoint, "--method", method, "--queue", 3) == 0
    records = lines(tmp_path)
    assert [record["frame"] for record in records] == list(range(30))
    assert [record["seconds"] for record in records] == pytest.approx([i / 10 for i in range(30)])
    for record in records:
        assert (record["height"], record["width"]) == (48, 64)
        assert record["predicted_name"] in ("good", "defect")
        assert record["valid"]
        for box in record["boxes"]:
            x0, y0, x1, y1 = box["box"]
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 48
            assert 0 <= box["score"] <= 1
    assert any(record["boxes"] for record in records)
    pictures = read_clip(tmp_path / "annotated.mkv")
    assert len(pictures) == 30
    assert pictures[0].shape == (48, 64, 3)
    said = capsys.readouterr().out
    assert "30 written" in said
    assert "end_to_end" in said
    figures = summary(tmp_path)
    assert figures["ended"] == "end"
    assert figures["frames"]["accepted"] == figures["frames"]["written"] == 30
    assert figures["method"] == method
    latency = figures["latency_ms"]["end_to_end"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]


def test_live_and_files_agree(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = ("--method", "gradcam", "--threshold", "0.5", "--target", "1")
    assert run(clip, tmp_path / "live", checkpoint, *settings) == 0
    files = ["localize", clip, "--checkpoint", checkpoint, "--out", tmp_path / "files", *settings]
    assert main([str(argument) for argument in files]) == 0
    images = json.loads((tmp_path / "files" / "results.json").read_text())["images"]
    for image, record in zip(images, lines(tmp_path / "live"), strict=True):
        assert record["predicted_class"] == image["predicted_class"]
        assert record["probability"] == pytest.approx(image["probability"], abs=1e-4)
        assert record["components"] == image["components"]
        for one, other in zip(record["boxes"], image["boxes"], strict=True):
            assert one["box"] == other["box"]


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("classifier", Localizer), ("ltgradcam", GradientLocalizer), ("fcam", Localizer)],
)
def test_live_and_files_agree_on_a_run(
    clip: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch, recipe: str, kind: type
) -> None:
    built = []
    opened = localize.open_localizer
    monkeypatch.setattr(
        localize, "open_localizer", lambda *options: built.append(opened(*options)) or built[0]
    )
    command = ["localize", str(clip), "--run", str(runs[recipe])]
    assert main([*command, "--live", "--out", str(tmp_path / "live"), "--no-video"]) == 0
    assert type(built[0]) is kind
    assert main([*command, "--out", str(tmp_path / "files")]) == 0
    images = json.loads((tmp_path / "files" / "results.json").read_text())["images"]
    for image, record in zip(images, lines(tmp_path / "live"), strict=True):
        assert record["predicted_name"] == image["predicted_name"]
        assert record["probability"] == pytest.approx(image["probability"], abs=1e-4)
        boxes = [box["box"] for box in image["boxes"]]
        assert [box["box"] for box in record["boxes"]] == boxes


def test_damage_goes_on_and_a_cut_file_has_its_own_exit_code(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    clip = damage_clip(write_clip(tmp_path / "clip.avi", range(0, 240, 10)), [5])
    assert run(clip, tmp_path / "damaged", checkpoint, "--no-video") == 0
    assert len(lines(tmp_path / "damaged")) == 23
    assert summary(tmp_path / "damaged")["frames"]["unreadable"] == 1
    assert not (tmp_path / "damaged" / "annotated.mkv").exists()
    assert "1 unreadable" in capsys.readouterr().out
    assert run(cut_clip(clip, before=15), tmp_path / "cut", checkpoint) == live.VANISHED
    assert len(lines(tmp_path / "cut")) == 14
    assert len(read_clip(tmp_path / "cut" / "annotated.mkv")) == 14
    assert summary(tmp_path / "cut")["ended"] == "vanished"
    assert "gave out before its end" in capsys.readouterr().out


def test_results_are_never_replaced_unasked(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "results.jsonl").write_text("precious\n")
    assert run(clip, tmp_path, checkpoint) == 2
    assert "--overwrite replaces them" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_text() == "precious\n"
    assert run(clip, tmp_path, checkpoint, "--overwrite") == 0
    assert len(lines(tmp_path)) == 30


def test_results_stay_where_a_folder_is_in_the_way(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "results.jsonl").write_text("precious\n")
    (tmp_path / "annotated.mkv").mkdir()
    assert run(clip, tmp_path, checkpoint, "--overwrite") == 2
    assert "with a folder annotated.mkv" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_text() == "precious\n"


@pytest.mark.parametrize("written", ["annotated.mkv", "results.jsonl", "summary.json"])
def test_the_source_is_not_replaced(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys, written: str
) -> None:
    source = tmp_path / written
    source.write_bytes(clip.read_bytes())
    link = tmp_path / "link.avi"
    link.symlink_to(source)
    for name in (source, link):
        assert run(name, tmp_path, checkpoint, "--overwrite") == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "--out must be another folder than the source's, which would be replaced" in said
    assert source.read_bytes() == clip.read_bytes()


@pytest.mark.parametrize("left", ["summary.json", "annotated.mkv"])
def test_files_do_not_replace_the_results_of_a_live_run(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys, left: str
) -> None:
    (tmp_path / "results.jsonl").write_text("precious\n")
    (tmp_path / left).write_text("precious")
    command = ["localize", str(clip), "--checkpoint", str(checkpoint), "--method", "cam", "--out"]
    assert main([*command, str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "--out must be a folder without the results of a live run" in said[0]
    assert (tmp_path / "results.jsonl").read_text() == "precious\n"


BAD = [
    (["nowhere.avi"], [], "source must be an existing video file"),
    (["98"], [], "source must be a readable video, camera or stream, got 98"),
    (["a.avi", "b.avi"], [], "--live must be given with one source, got 2"),
    (["a.avi"], ["--queue", "0"], "--queue must be at least 1"),
    (["a.avi"], ["--batch-size", "0"], "--batch-size must be at least 1"),
    (["a.avi"], ["--npy"], "--npy must be left out with --live"),
    (["a.avi"], ["--compare"], "--compare must be left out with --live"),
    (["a.avi"], ["--refine", "crf"], "--refine must be left out with --live"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_one_line(checkpoint: Path, tmp_path: Path, capsys, case: int) -> None:
    sources, options, message = BAD[case]
    model = ["--checkpoint", str(checkpoint)]
    out = tmp_path / "out"
    assert main(["localize", *sources, "--live", *model, "--out", str(out), *options]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not out.exists()


class Camera:
    """A camera that never ends, a frame every two milliseconds."""

    live, fps, count, unreadable, missing = True, 500.0, 0, 0, 0
    limit: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0

    def read(self) -> LiveFrame | None:
        time.sleep(0.002)
        if self.frames == self.limit:
            return None
        self.frames += 1
        image = np.full((48, 64, 3), self.frames % 256, np.uint8)
        return LiveFrame(self.frames - 1, self.frames * 0.002, image)

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def once(ready: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Do something from another thread as soon as a condition holds, while the block runs."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.01):
            if ready():
                act()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def reported(out: Path, count: int) -> Callable[[], bool]:
    """Whether this many lines are on the disk."""
    file = out / "results.jsonl"
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= count


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["sigint", "sigterm"]
)
def test_a_signal_ends_with_everything_written(
    checkpoint: Path, tmp_path: Path, monkeypatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(live, "VideoSource", Camera)
    with once(reported(tmp_path, 8), lambda: os.kill(os.getpid(), number)):
        assert run("0", tmp_path, checkpoint, "--method", "cam") == code
    figures = summary(tmp_path)
    frames = figures["frames"]
    assert figures["ended"] == "stopped"
    assert frames["accepted"] == frames["written"] == len(lines(tmp_path)) >= 8
    assert frames["read"] == frames["accepted"] + frames["skipped"]
    assert len(read_clip(tmp_path / "annotated.mkv")) == frames["written"]


def test_a_second_ctrl_c_ends_at_once(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(live, "VideoSource", Camera)
    monkeypatch.setattr("wsfast.deploy.stream._JOIN_SECONDS", 0.2)
    hang = threading.Event()
    write = live_output.Output.write

    def stuck(output: live_output.Output, found: Any) -> None:
        write(output, found)
        if found.frame.index >= 3:
            hang.wait(60)

    monkeypatch.setattr(live_output.Output, "write", stuck)

    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    with once(reported(tmp_path, 1), interrupt_twice):
        assert run("0", tmp_path, checkpoint, "--method", "cam", "--no-video") == 130
    hang.set()
    assert summary(tmp_path)["ended"] == "aborted"
    assert len(lines(tmp_path)) >= 1


def test_a_camera_that_is_unplugged(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(live, "VideoSource", Camera)
    monkeypatch.setattr(Camera, "limit", 20)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.01)
    assert run("0", tmp_path, checkpoint, "--method", "cam") == live.VANISHED
    frames = summary(tmp_path)["frames"]
    assert frames["read"] == 20
    assert frames["accepted"] == frames["written"] == len(lines(tmp_path))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond this, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("video", [True, False], ids=["video", "results"])
def test_a_full_disk_loses_nothing_reported(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys, video: bool
) -> None:
    options = [] if video else ["--no-video"]
    with largest_file(20_001 if video else 3_001):
        assert run(clip, tmp_path, checkpoint, *options) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert ("annotated.mkv" if video else "results.jsonl") in said[0]
    records = lines(tmp_path)
    assert [record["frame"] for record in records] == list(range(len(records)))
    assert 0 < len(records) < 30
    figures = summary(tmp_path)
    assert figures["ended"] == "failed"
    assert figures["frames"]["written"] == len(records)
    if video:
        assert len(read_clip(tmp_path / "annotated.mkv")) == len(records)


def test_messages_that_cannot_be_written_stop_no_frame(
    clip: Path, checkpoint: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    pipe = DeadPipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    assert run(clip, tmp_path, checkpoint, "--method", "cam", "--no-video") == 0
    assert sys.stderr is pipe
    assert pipe.attempts == 1
    assert len(lines(tmp_path)) == 30
    assert summary(tmp_path)["ended"] == "end"
    assert "30 written" in capsys.readouterr().out


@pytest.mark.parametrize("of", ["file", "run"])
@pytest.mark.parametrize(
    ("method", "batch_size", "patience"),
    [("cam", 8, 120.0), ("ltgradcam", 8, 120.0), ("scorecam", 1, 3600.0)],
)
def test_slow_methods_are_not_taken_for_hanging(
    runs,
    clip: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch,
    method,
    batch_size,
    patience,
    of,
) -> None:
    built: list[dict[str, Any]] = []

    def build(*arguments: object, **options: Any) -> LiveLoop:
        built.append(options)
        return LiveLoop(*arguments, **options)

    monkeypatch.setattr(live, "LiveLoop", build)
    monkeypatch.setattr(Camera, "live", False)
    monkeypatch.setattr(Camera, "limit", 2)
    monkeypatch.setattr(live, "VideoSource", Camera)
    source = ["--checkpoint", checkpoint, "--method", method]
    if of == "run":
        folder = shutil.copytree(runs["classifier"], tmp_path / "run")
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("method: cam", f"method: {method}"))
        source = ["--run", folder]
    command = ["localize", "0", "--live", *source, "--out", tmp_path / "out", "--no-video"]
    assert main([str(argument) for argument in command]) == 0
    (options,) = built
    assert (options["batch_size"], options["patience"]) == (batch_size, patience)
    assert options["queue"] == 8


def test_a_file_without_a_frame_is_bad_input(checkpoint: Path, tmp_path: Path, capsys) -> None:
    clip = damage_clip(write_clip(tmp_path / "clip.avi", range(0, 240, 10)), range(24))
    assert run(clip, tmp_path / "out", checkpoint, "--method", "cam") == 2
    assert "no frame could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ended", "written", "signal", "code"),
    [
        ("end", 1, 0, 0), ("end", 0, 0, 2), ("vanished", 1, 0, 3), ("vanished", 0, 0, 2),
        ("stopped", 0, 0, 0), ("stopped", 0, 15, 143),
    ],
)  # fmt: skip
def test_exit_codes(ended: str, written: int, signal: int, code: int) -> None:
    statistics = LiveStatistics()
    statistics.ended, statistics.written = ended, written
    assert live.exit_code(statistics, signal) == code


@pytest.mark.parametrize("lasting", [False, True])
def test_a_summary_that_cannot_be_written_stops_no_frame(
    clip: Path, checkpoint: Path, tmp_path: Path, monkeypatch, capsys, lasting: bool
) -> None:
    calls = []
    write = live_output.write_atomically

    def full(path: Path, data: bytes) -> None:
        calls.append(path)
        if lasting or len(calls) == 1:
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(live_output, "write_atomically", full)
    code = run(clip, tmp_path, checkpoint, "--method", "cam", "--no-video", "--queue", 1)
    assert len(calls) > 1
    assert [record["frame"] for record in lines(tmp_path)] == list(range(30))
    if lasting:
        assert code == 2
        assert "summary.json" in capsys.readouterr().err.splitlines()[-1]
    else:
        assert code == 0
        assert summary(tmp_path)["frames"]["accepted"] == 30


def test_a_killed_process_has_lost_nothing(checkpoint: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.avi", (i % 256 for i in range(6000)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "wsfast", "localize", clip, "--live", "--out", out]
    process = subprocess.Popen(
        [str(c) for c in [*command, "--checkpoint", checkpoint, "--method", "cam"]],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ready = reported(out, 40)
    while not ready():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    records = lines(out)
    assert [record["frame"] for record in records] == list(range(len(records)))
    assert 40 <= len(records) < 6000
    pictures = read_clip(out / "annotated.mkv")
    assert len(records) <= len(pictures) <= len(records) + 1
    assert summary(out)["ended"] == "running"
