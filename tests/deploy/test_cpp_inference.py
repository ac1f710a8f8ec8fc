"""wsfast_infer, the C++ program: the boxes of eager Python, and one plain line for bad input."""

import json
import os
import resource
import signal
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.data.videos import cut_clip, write_clip
from tests.deploy.cpp_program import Unavailable, build_program
from tests.deploy.small import INPUT, small_model
from wsfast import native
from wsfast.data import SyntheticDefects
from wsfast.deploy import (
    Localizer,
    LocalizerOutput,
    MatroskaWriter,
    export_pt2,
    export_torchscript,
    load,
)
from wsfast.deploy.programs import METADATA_FILE, describe

SIZE = (96, 48)
IMAGES = 50
MAX_BOXES = 2
THRESHOLD = 0.37  # no map has a value within 1e-5 of it, so rounding cannot move a box
CLASS_NAMES = ("good", "défaut")

pytestmark = [
    pytest.mark.timeout(600),  # the first build
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return build_program()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """RGB pictures whose channels differ, so that a swap would show: (50, 96, 48, 3)."""
    data = SyntheticDefects(IMAGES, size=SIZE)
    grey = np.stack([data[i].image[0].numpy() for i in range(IMAGES)])
    return np.stack([grey, 255 - grey, grey[:, ::-1]], axis=-1)


def localizer(channels: int = 3) -> Localizer:
    """Random weights, whose maps have several components; both classes are predicted."""
    model = small_model(channels=channels)
    with torch.no_grad():
        model.fc.bias[1] += 0.4093
    return Localizer.from_model(
        model, relu=False, mean=(0.5,) * channels, std=(0.25,) * channels,
        input_size=INPUT, class_names=CLASS_NAMES, threshold=THRESHOLD, max_boxes=MAX_BOXES,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8]) -> Path:
    """The pictures as PNG files in pictures/, and the TorchScript program net.ts."""
    root = tmp_path_factory.mktemp("cpp")
    (root / "pictures").mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(root / "pictures" / f"{i:02d}.png"), image[:, :, ::-1])
    export_torchscript(localizer(), root / "net.ts", image_size=SIZE)
    return root


@pytest.fixture(scope="module")
def eager(images: NDArray[np.uint8]) -> LocalizerOutput:
    return eagerly(images)


def eagerly(images: NDArray[np.uint8]) -> LocalizerOutput:
    return localizer()(batch_of(images))


def batch_of(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def ops() -> list[str]:
    """The op library of the CPU; loading the CUDA one takes seconds and is not needed here."""
    library = native.library_path("_C")
    assert library is not None
    return ["--ops", str(library)]


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), *(str(word) for word in words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def check_same(found: list[dict[str, Any]], expected: LocalizerOutput) -> None:
    """Every line is the image's row of the eager outputs; boxes to the bit."""
    assert len(found) == len(expected.counts)
    probabilities, classes = expected.logits.softmax(dim=1).max(dim=1)
    for i, line in enumerate(found):
        count = int(expected.counts[i])
        kept = min(count, MAX_BOXES)
        assert line["count"] == count
        assert line["boxes"] == expected.boxes[i, :kept].tolist()
        assert line["scores"] == pytest.approx(expected.scores[i, :kept].tolist(), abs=1e-5)
        assert line["class"] == int(classes[i])
        assert line["class_name"] == CLASS_NAMES[line["class"]]
        assert line["probability"] == pytest.approx(float(probabilities[i]), abs=1e-5)
        assert line["milliseconds"] > 0


def check_loaded(file: Path, images: NDArray[np.uint8], expected: LocalizerOutput) -> None:
    """The program in Python has the same boxes, too."""
    found = load(file)(batch_of(images))
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.counts, expected.counts)


@pytest.mark.parametrize("batch", [1, 8])
def test_torchscript_gives_the_boxes_of_eager_python(
    program: Path, folder: Path, images: NDArray[np.uint8], eager: LocalizerOutput, batch: int
) -> None:
    check_loaded(folder / "net.ts", images, eager)
    assert len(set(eager.counts.tolist())) > 2  # the pictures differ in what is found
    assert set(eager.logits.argmax(dim=1).tolist()) == {0, 1}
    assert int(eager.counts.max()) > MAX_BOXES
    done = run(
        program, "--model", folder / "net.ts", *ops(), "--batch", batch, folder / "pictures"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "wsfast_infer: 50 images localized, 0 files skipped or broken\n"
    found = lines(done.stdout)
    check_same(found, eager)
    assert [Path(line["file"]).name for line in found] == [f"{i:02d}.png" for i in range(IMAGES)]
    assert all((line["width"], line["height"]) == (SIZE[1], SIZE[0]) for line in found)
    assert not any("frame" in line for line in found)


def test_package_gives_the_boxes_of_eager_python(
    program: Path, folder: Path, images: NDArray[np.uint8], eager: LocalizerOutput, tmp_path: Path
) -> None:
    package = tmp_path / "net.pt2"
    torch.set_num_threads(1)
    export_pt2(localizer(), package, image_size=SIZE)
    check_loaded(package, images, eager)
    code = kernels_of(package)
    assert "#pragma omp parallel" in code  # for as many threads as it is run with
    assert "num_threads(" not in code
    for batch, threads in ((1, 1), (8, 4)):
        done = run(
            program, "--model", package, *ops(), "--batch", batch, "--threads", threads,
            folder / "pictures",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        check_same(lines(done.stdout), eager)
    bare = run(program, "--model", package, folder / "pictures")
    check_error(bare, "needs wsfast's operators: give --ops LIBRARY")
    foreign = tmp_path / "foreign.pt2"
    rename_device(package, foreign, "cuda")
    done = run(program, "--model", foreign, *ops(), folder / "pictures")
    check_error(done, f"{foreign} was made for cuda: run it with --device cuda")


def rename_device(package: Path, copy: Path, device: str) -> None:
    """Copy a package and let its metadata say that it was made for another device."""
    with zipfile.ZipFile(package) as archive, zipfile.ZipFile(copy, "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("metadata.json"):
                facts = json.loads(data)
                assert facts["AOTI_DEVICE_KEY"] == "cpu"
                data = json.dumps({**facts, "AOTI_DEVICE_KEY": device}).encode()
            other.writestr(name, data)


def kernels_of(package: Path) -> str:
    """The C++ code that the package was compiled from."""
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".kernel.cpp")]
        return "".join(archive.read(name).decode() for name in names)


def test_boxes_enclose_the_same_pixels_in_images_of_other_sizes(
    program: Path, folder: Path, images: NDArray[np.uint8], eager: LocalizerOutput, tmp_path: Path
) -> None:
    # Pixels repeated 3 x 2 times average back to the very same image.
    large = images[1].repeat(3, axis=0).repeat(2, axis=1)
    cv2.imwrite(str(tmp_path / "large.png"), large[:, :, ::-1])
    small = cv2.resize(images[1], (32, 40), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "small.png"), small[:, :, ::-1])
    done = run(program, "--model", folder / "net.ts", *ops(), tmp_path)
    first, second = lines(done.stdout)
    kept = min(int(eager.counts[1]), MAX_BOXES)
    scaled = eager.boxes[1, :kept] * torch.tensor([2, 3, 2, 3])
    assert (first["width"], first["height"]) == (96, 288)
    assert first["boxes"] == scaled.tolist()
    grown = cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    boxes = eagerly(grown[None]).boxes[0].tolist()
    scales = ((32, 48), (40, 96), (32, 48), (40, 96))
    rounding = (np.floor, np.floor, np.ceil, np.ceil)
    expected = [
        [int(up(at * to / of)) for at, (to, of), up in zip(box, scales, rounding, strict=True)]
        for box in boxes if box[0] >= 0
    ]  # fmt: skip
    assert second["boxes"] == expected


def test_grey_program_takes_colour_files(
    program: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = localizer(channels=1)
    export_torchscript(model, tmp_path / "grey.ts", image_size=SIZE)
    cv2.imwrite(str(tmp_path / "colour.png"), images[0][:, :, ::-1])
    done = run(program, "--model", tmp_path / "grey.ts", *ops(), tmp_path / "colour.png")
    grey = cv2.cvtColor(images[0], cv2.COLOR_RGB2GRAY)
    check_same(lines(done.stdout), model(torch.from_numpy(grey)[None, None]))


def test_boxes_of_a_program_with_an_output_size_of_its_own(
    program: Path, folder: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = localizer()
    model.output_size = (48, 24)
    export_torchscript(model, tmp_path / "half.ts", image_size=SIZE)
    done = run(
        program, "--model", tmp_path / "half.ts", *ops(), folder / "pictures" / "00.png"
    )  # fmt: skip
    expected = model(torch.from_numpy(images[:1].transpose(0, 3, 1, 2).copy()))
    kept = min(int(expected.counts[0]), MAX_BOXES)
    assert lines(done.stdout)[0]["boxes"] == (expected.boxes[0, :kept] * 2).tolist()


def write_video(file: Path, frames: NDArray[np.uint8]) -> None:
    size = (frames.shape[2], frames.shape[1])
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"FFV1"), 25, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write FFV1 video")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()


def test_video_frames_are_numbered(
    program: Path, folder: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    video = tmp_path / "clip.avi"
    write_video(video, images[:10])
    capture = cv2.VideoCapture(str(video))
    decoded = [capture.read()[1][:, :, ::-1] for _ in range(10)]
    done = run(program, "--model", folder / "net.ts", *ops(), "--batch", 4, video)
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    assert [line["frame"] for line in found] == list(range(10))
    assert {line["file"] for line in found} == {str(video)}
    check_same(found, eagerly(np.stack(decoded)))


def test_broken_video_keeps_what_was_read(
    program: Path, folder: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    video = tmp_path / "clip.avi"
    write_video(video, images)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    out = tmp_path / "found.jsonl"
    done = run(program, "--model", folder / "net.ts", *ops(), "--out", out, video)
    assert done.returncode == 2
    assert "clip.avi: broken video, " in done.stderr
    assert "of 50 frames could be read" in done.stderr
    assert 1 < len(lines(out.read_text())) < 50
    (tmp_path / "noise.mp4").write_bytes(b"no video at all")
    done = run(program, "--model", folder / "net.ts", *ops(), tmp_path / "noise.mp4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("noise.mp4: not a video or damaged")
    assert len(done.stderr.splitlines()) == 2  # the reason and the summary, nothing of FFmpeg's


@pytest.mark.parametrize(("frames", "code"), [(16, 0), (14, 2)])
def test_a_header_may_promise_half_a_second_too_much(
    program: Path, folder: Path, tmp_path: Path, frames: int, code: int
) -> None:
    clip = cut_clip(write_clip(tmp_path / "clip.avi", range(0, 200, 10), fps=10), before=frames)
    done = run(program, "--model", folder / "net.ts", *ops(), clip)
    assert done.returncode == code, done.stderr
    assert len(lines(done.stdout)) == frames
    assert ("broken video" in done.stderr) is (code == 2)


@pytest.mark.parametrize(("share", "code"), [(1.0, 0), (0.5, 2)])
def test_frames_that_a_recorder_has_dropped_are_no_damage(
    program: Path, folder: Path, tmp_path: Path, share: float, code: int
) -> None:
    clip = tmp_path / "clip.mkv"
    writer = MatroskaWriter(clip, fps=10)
    for number in range(0, 120, 3):  # of 80 frames, twice the tolerance and more, there are none
        writer.write(np.full((48, 64, 3), number, np.uint8), number / 10)
    writer.close()
    clip.write_bytes(clip.read_bytes()[: int(share * clip.stat().st_size)])
    done = run(program, "--model", folder / "net.ts", *ops(), clip)
    assert done.returncode == code, done.stderr
    assert 15 < len(lines(done.stdout)) <= 40
    assert ("broken video" in done.stderr) is (code == 2)


def test_unreadable_images_are_reported_and_skipped(
    program: Path, folder: Path, tmp_path: Path
) -> None:
    whole = (folder / "pictures" / "00.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.png").write_bytes(whole)
    (tmp_path / "c.jpg").write_bytes(b"not an image")
    (tmp_path / "d.png").touch()
    (tmp_path / "notes.txt").write_text("not looked at")
    out = tmp_path / "found.jsonl"
    done = run(program, "--model", folder / "net.ts", *ops(), "--out", out, tmp_path)
    assert done.returncode == 0
    assert [Path(line["file"]).name for line in lines(out.read_text())] == ["b.png"]
    said = done.stderr.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in said[:3]] == [
        "file is cut short", "not an image or damaged", "empty file",
    ]  # fmt: skip
    assert said[3] == "wsfast_infer: 1 images localized, 3 files skipped or broken"
    assert not list(tmp_path.glob(".*"))  # the temporary file got its name
    nothing = run(program, "--model", folder / "net.ts", *ops(), tmp_path / "c.jpg")
    assert nothing.returncode == 2


def test_what_cannot_be_looked_at_is_reported_and_skipped(
    program: Path, folder: Path, tmp_path: Path
) -> None:
    loop = tmp_path / "a.png"
    loop.symlink_to(loop)
    (tmp_path / "b.png").write_bytes((folder / "pictures" / "00.png").read_bytes())
    done = run(program, "--model", folder / "net.ts", *ops(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert [Path(line["file"]).name for line in lines(done.stdout)] == ["b.png"]
    assert done.stderr.splitlines() == [
        f"wsfast_infer: {loop}: Too many levels of symbolic links",
        "wsfast_infer: 1 images localized, 1 files skipped or broken",
    ]


class Undecided(torch.nn.Module):
    """A program whose scores of every second image are not finite."""

    def forward(self, images: torch.Tensor):
        count = images.shape[0]
        logits = torch.tensor([[0.0, 1.0], [float("inf"), 0.0]]).repeat(count, 1)[:count]
        maps = torch.zeros(count, 96, 48)
        boxes = torch.full((count, 2, 4), -1, dtype=torch.int32)
        counts = torch.zeros(count, dtype=torch.int32)
        return logits, maps, maps > 0, boxes, torch.zeros(count, 2), counts


def test_scores_that_are_not_finite_are_null(program: Path, folder: Path, tmp_path: Path) -> None:
    write_program(tmp_path / "net.ts", Undecided(), describe(localizer(), SIZE))
    pictures = [folder / "pictures" / f"{i:02d}.png" for i in range(2)]
    done = run(program, "--model", tmp_path / "net.ts", *ops(), "--batch", 2, *pictures)
    found = [
        [line[key] for key in ("class", "class_name", "probability")] for line in lines(done.stdout)
    ]
    assert found == [[1, "défaut", pytest.approx(0.731059)], [None, None, None]]


def test_sixteen_bit_images_are_scaled(program: Path, folder: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(folder / "pictures" / "02.png"))
    cv2.imwrite(str(tmp_path / "deep.png"), image.astype(np.uint16) * 257)
    done = run(
        program, "--model", folder / "net.ts", *ops(), tmp_path, folder / "pictures" / "02.png"
    )  # fmt: skip
    deep, plain = lines(done.stdout)
    assert deep["boxes"] == plain["boxes"]
    assert deep["scores"] == plain["scores"]


def test_sixteen_bit_images_that_count_from_white(
    program: Path, folder: Path, tmp_path: Path
) -> None:
    grey = cv2.imread(str(folder / "pictures" / "02.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "plain.png"), grey)
    inverted = cv2.imencode(".tif", np.invert(grey.astype(np.uint16) * 257))[1].tobytes()
    black, white = (struct.pack("<HHII", 262, 3, 1, zero) for zero in (1, 0))
    assert inverted.count(black) == 1
    (tmp_path / "deep.tif").write_bytes(inverted.replace(black, white))
    done = run(program, "--model", folder / "net.ts", *ops(), tmp_path)
    deep, plain = lines(done.stdout)
    assert (deep["boxes"], deep["scores"]) == (plain["boxes"], plain["scores"])


def test_float_images_and_markers_behind_the_picture(
    program: Path, folder: Path, tmp_path: Path
) -> None:
    floats = np.linspace(0, 1, 96 * 48, dtype=np.float32).reshape(96, 48)
    floats[0, 0] = -0.0
    cv2.imwrite(str(tmp_path / "floats.tif"), floats)
    cv2.imwrite(str(tmp_path / "above.tif"), floats + np.float32(1e-6))
    photo = tmp_path / "photo.jpg"
    cv2.imwrite(str(photo), np.uint8(255 * floats))
    picture = photo.read_bytes()
    photo.write_bytes(picture + b"a video: \xff\xd9 and \xff\xda")  # as phones do
    (tmp_path / "cut.jpg").write_bytes(picture[:-40])
    done = run(program, "--model", folder / "net.ts", *ops(), tmp_path)
    assert [Path(line["file"]).name for line in lines(done.stdout)] == ["floats.tif", "photo.jpg"]
    assert "above.tif: float samples outside 0-1" in done.stderr
    assert "cut.jpg: file is cut short" in done.stderr


def test_bench_prints_percentiles_and_frames_per_second(
    program: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    done = run(
        program, "--model", folder / "net.ts", *ops(), "--bench=7", "--batch", 3, "--threads", 2,
        "--out", out, folder / "pictures",
    )  # fmt: skip
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
    noise = run(program, "--model", folder / "net.ts", *ops(), "--bench", 1)
    assert lines(noise.stdout)[0]["runs"] == 1


def test_interrupt_writes_what_was_found(
    program: Path, folder: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    fifo, out = tmp_path / "live.png", tmp_path / "found.jsonl"
    os.mkfifo(fifo)  # the program waits here, with the first image done
    command = [program, "--model", folder / "net.ts", *ops(), "--out", out,
               folder / "pictures" / "00.png", fifo]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with fifo.open("wb") as pipe:  # opens when the program does
        process.send_signal(signal.SIGINT)
        pipe.write((folder / "pictures" / "01.png").read_bytes())
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert ", interrupted" in process.stderr.read()
    assert len(lines(out.read_text())) in (1, 2)


def test_full_disk_is_one_line(program: Path, folder: Path) -> None:
    with open("/dev/full", "w") as full:  # every write fails: no space left
        done = subprocess.run(
            [program, "--model", folder / "net.ts", *ops(), folder / "pictures" / "00.png"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "wsfast_infer: error: standard output cannot be written: No space left on device\n"
    )


def test_a_full_disk_keeps_whole_lines(program: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    command = [program, "--model", folder / "net.ts", *ops(), "--out", out, folder / "pictures"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120,
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
    program: Path, folder: Path, tmp_path: Path
) -> None:
    fifo, out = tmp_path / "last.png", tmp_path / "found.jsonl"
    os.mkfifo(fifo)
    picture = folder / "pictures" / "00.png"
    command = [program, "--model", folder / "net.ts", *ops(), "--out", out, picture, fifo]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
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


def test_what_is_no_file_is_written_into(program: Path, folder: Path, tmp_path: Path) -> None:
    """As root, /dev/null would else become a file."""
    fifo, link, kept = tmp_path / "fifo", tmp_path / "link", tmp_path / "kept.jsonl"
    os.mkfifo(fifo)
    link.symlink_to(kept)
    picture = folder / "pictures" / "00.png"
    command = [program, "--model", folder / "net.ts", *ops(), picture, "--out"]
    process = subprocess.Popen([*command, fifo])
    found = lines(fifo.read_text())  # opens when the program does
    assert process.wait(60) == 0
    assert len(found) == 1
    assert fifo.is_fifo()
    for _ in range(2):  # its target does not exist, then it does
        subprocess.run([*command, link], check=True, timeout=120)
        assert link.is_symlink()
        assert lines(kept.read_text())[0]["boxes"] == found[0]["boxes"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fifo", "kept.jsonl", "link"]


def test_what_is_read_is_not_replaced(program: Path, folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(before := (folder / "pictures" / "00.png").read_bytes())
    (tmp_path / "link").symlink_to(picture)
    for out in (picture, tmp_path / "link"):
        done = run(program, "--model", folder / "net.ts", *ops(), "--out", out, tmp_path)
        assert done.returncode == 2
        expected = "--out must be another file than those that are read"
        assert done.stderr == f"wsfast_infer: error: {expected}, got {out}\n"
        assert picture.read_bytes() == before


def test_help_teaches(program: Path) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in ("--model", "--ops", "--bench", "half-open", "examples:", "Exit code"):
        assert word in done.stdout


def check_error(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert len(said) == 1, done.stderr
    assert said[0].startswith("wsfast_infer: error: ")
    assert message in said[0]


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


def write_program(file: Path, module: torch.nn.Module, facts: dict[str, str]) -> None:
    extra = {METADATA_FILE: json.dumps(facts)} if facts else {}
    torch.jit.save(torch.jit.script(module), file, _extra_files=extra)


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_one_line(program: Path, folder: Path, bad_files: Path, case: int) -> None:
    words, message = BAD[case]
    names = {"folder": folder, "tmp": bad_files, "ops": ops()[1]}
    done = run(program, *(word.format(**names) for word in words))
    check_error(done, message.format(**names))
    assert not [file for file in bad_files.iterdir() if file.name.startswith(".")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_one_line(program: Path, folder: Path) -> None:
    done = run(program, "--model", folder / "net.ts", *ops(), "--device", "cuda",
               folder / "pictures")  # fmt: skip
    check_error(done, "cuda")
