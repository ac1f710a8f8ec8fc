"""Where wsfast_infer writes, --bench, --help, and one plain line for bad input."""

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from wsfast.deploy.programs import describe

from .runs import IMAGES, MARKS, SIZE, check_error, lines, localizer, ops, run, write_program

pytestmark = MARKS


def test_bench_prints_percentiles_and_frames_per_second(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    done = run(
        command,
        "--bench=7",
        "--batch",
        3,
        "--threads",
        2,
        "--out",
        out,
        folder / "pictures",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (line,) = lines(out.read_text())
    assert {key: line[key] for key in ("runs", "warm_up", "batch", "threads", "device")} == {
        "runs": 7, "warm_up": 10, "batch": 3, "threads": 2, "device": "cpu",
    }  # fmt: skip
    times, net = line["milliseconds"], line["model_milliseconds"]
    assert 0 < times["min"] <= times["p50"] <= times["p95"] <= times["p99"] <= times["max"]
    assert times["mean"] > net["mean"] > 0
    assert line["frames_per_second"] == pytest.approx(3e3 / times["mean"], rel=0.02)
    noise = run(command, "--bench", 1)
    assert lines(noise.stdout)[0]["runs"] == 1


def test_interrupt_writes_what_was_found(command: list[str], folder: Path, tmp_path: Path) -> None:
    fifo, out = tmp_path / "live.png", tmp_path / "found.jsonl"
    os.mkfifo(fifo)  # the program waits here, with the first image done
    words = ["--out", out, folder / "pictures" / "00.png", fifo]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    with fifo.open("wb") as pipe:  # opens when the program does
        process.send_signal(signal.SIGINT)
        pipe.write((folder / "pictures" / "01.png").read_bytes())
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert ", interrupted" in process.stderr.read()
    assert len(lines(out.read_text())) in (1, 2)


def test_full_disk_is_one_line(command: list[str], folder: Path) -> None:
    with open("/dev/full", "w") as full:  # every write fails: no space left
        done = subprocess.run(
            [*command, folder / "pictures" / "00.png"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "wsfast_infer: error: standard output cannot be written: No space left on device\n"
    )


def test_a_full_disk_keeps_whole_lines(command: list[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    done = subprocess.run(
        [*command, "--out", out, folder / "pictures"], capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3001, 3001)),
        restore_signals=False,  # Python ignores that of this limit: the write is an error
    )  # fmt: skip
    assert done.returncode == 2
    (partial,) = tmp_path.iterdir()
    assert done.stderr.splitlines() == [
        f"wsfast_infer: the lines so far are in {partial}",
        f"wsfast_infer: error: --out {out} cannot be written: File too large",
    ]
    text = partial.read_text()
    assert text.endswith("}\n")
    assert 1 < len(lines(text)) < IMAGES


def test_lines_that_cannot_get_their_name_are_told_of(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    fifo, out = tmp_path / "last.png", tmp_path / "found.jsonl"
    os.mkfifo(fifo)
    picture = folder / "pictures" / "00.png"
    words = ["--out", out, picture, fifo]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    with fifo.open("wb") as pipe:  # opens when the program does
        out.mkdir()
        pipe.write(picture.read_bytes())
    assert process.wait(60) == 2
    assert process.stderr is not None
    (partial,) = tmp_path.glob(".*")
    assert process.stderr.read().splitlines() == [
        f"wsfast_infer: the lines so far are in {partial}",
        f"wsfast_infer: error: --out {out}: Is a directory",
    ]
    assert len(lines(partial.read_text())) == 2


def test_what_is_no_file_is_written_into(command: list[str], folder: Path, tmp_path: Path) -> None:
    """As root, /dev/null would else become a file."""
    fifo, link, kept = tmp_path / "fifo", tmp_path / "link", tmp_path / "kept.jsonl"
    os.mkfifo(fifo)
    link.symlink_to(kept)
    picture = folder / "pictures" / "00.png"
    process = subprocess.Popen([*command, picture, "--out", fifo])
    found = lines(fifo.read_text())  # opens when the program does
    assert process.wait(60) == 0
    assert len(found) == 1
    assert fifo.is_fifo()
    for _ in range(2):  # its target does not exist, then it does
        subprocess.run([*command, picture, "--out", link], check=True, timeout=120)
        assert link.is_symlink()
        assert lines(kept.read_text())[0]["boxes"] == found[0]["boxes"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fifo", "kept.jsonl", "link"]


def test_what_is_read_is_not_replaced(command: list[str], folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(before := (folder / "pictures" / "00.png").read_bytes())
    (tmp_path / "link").symlink_to(picture)
    for out in (picture, tmp_path / "link"):
        done = run(command, "--out", out, tmp_path)
        assert done.returncode == 2
        expected = "--out must be another file than those that are read"
        assert done.stderr == f"wsfast_infer: error: {expected}, got {out}\n"
        assert picture.read_bytes() == before


def test_help_teaches(program: Path) -> None:
    done = run([program], "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in ("--model", "--ops", "--bench", "half-open", "examples:", "Exit code"):
        assert word in done.stdout


PICTURE = "{folder}/pictures/00.png"
NET = ["--model", "{folder}/net.ts"]
OPS = ["--ops", "{ops}"]
BAD = [
    ([], "--model must be given"),
    (NET, "an image, folder or video must be given"),
    ([*NET, PICTURE, "--fast"], "no such option: --fast"),
    ([*NET, PICTURE, "--batch"], "--batch must be followed by a value"),
    ([*NET, PICTURE, "--batch", "0"], "--batch must be a whole number of at least 1, got '0'"),
    ([*NET, PICTURE, "--threads", "two"], "--threads must be a whole number"),
    ([*NET, PICTURE, "--bench", "1e3"], "--bench must be a whole number"),
    ([*NET, PICTURE, "--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
    ([*NET, *OPS, "{tmp}/nowhere.png"], "nowhere.png: no such file or folder"),
    ([*NET, *OPS, "{tmp}/empty"], "no image or video in this folder"),
    ([*NET, PICTURE], "needs wsfast's operators: give --ops LIBRARY"),
    ([*NET, PICTURE, "--ops", "{tmp}/_C.so"], "--ops {tmp}/_C.so: no such file"),
    ([*NET, PICTURE, "--ops", "{tmp}/noise"], "--ops cannot be opened: "),
    (["--model", "{tmp}/none.pt2", PICTURE], "none.pt2: no such model file"),
    (["--model", "{tmp}/noise", PICTURE], "noise cannot be loaded: "),
    (["--model", "{tmp}/noise.pt2", PICTURE], "noise.pt2 cannot be loaded: "),
    (["--model", "{tmp}/bare.ts", *OPS, PICTURE], "has no metadata of `wsfast export`"),
    (["--model", "{tmp}/odd.ts", *OPS, PICTURE], "has damaged metadata (image_width)"),
    (["--model", "{tmp}/huge.ts", *OPS, PICTURE], "has damaged metadata (image_height, image_wid"),
    ([*NET, *OPS, "{tmp}/loop"], "loop: Too many levels of symbolic links"),
    (["--model", "{tmp}/loop", *OPS, PICTURE], "loop: no such model file"),
    ([*NET, "--ops", "{tmp}/loop", PICTURE], "--ops {tmp}/loop: no such file"),
    (["--model", "{tmp}/wrong.ts", *OPS, PICTURE], "the model must return (logits, cams, masks"),
    (["--model", "{tmp}/failing.ts", *OPS, PICTURE], "the model failed: "),
    ([*NET, *OPS, PICTURE, "--out", "{tmp}"], "--out must be a file"),
    (
        [*NET, *OPS, PICTURE, "--out", "{tmp}/loop"],
        "--out {tmp}/loop cannot be written: Too many l",
    ),
    ([*NET, *OPS, PICTURE, "--out", "{tmp}/no/such.jsonl"], "cannot be written: No such file"),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "loop").symlink_to(root / "loop")
    for name in ("noise", "noise.pt2"):
        (root / name).write_bytes(b"neither a program nor a library")
    facts = describe(localizer(), SIZE)
    write_program(root / "bare.ts", torch.nn.Identity(), {})
    write_program(root / "odd.ts", torch.nn.Identity(), facts | {"image_width": "wide"})
    huge = {"image_height": "65536", "image_width": "65536"}
    write_program(root / "huge.ts", torch.nn.Identity(), facts | huge)
    write_program(root / "wrong.ts", torch.nn.Identity(), facts)
    write_program(root / "failing.ts", torch.nn.Linear(7, 7), facts)
    return root


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_one_line(program: Path, folder: Path, bad_files: Path, case: int) -> None:
    words, message = BAD[case]
    names = {"folder": folder, "tmp": bad_files, "ops": ops()[1]}
    done = run([program], *(word.format(**names) for word in words))
    check_error(done, message.format(**names))
    assert not [file for file in bad_files.iterdir() if file.name.startswith(".")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_one_line(command: list[str], folder: Path) -> None:
    done = run(command, "--device", "cuda", folder / "pictures")
    check_error(done, "cuda")
