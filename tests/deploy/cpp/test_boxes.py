"""wsfast_infer finds the boxes of eager Python, whatever the program and the size of the image."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsfast.deploy import LocalizerOutput, export_pt2, export_torchscript, load
from wsfast.deploy.programs import describe

from .runs import (
    IMAGES,
    MARKS,
    MAX_BOXES,
    SIZE,
    batch_of,
    check_error,
    check_same,
    eagerly,
    lines,
    localizer,
    ops,
    run,
    write_program,
)

pytestmark = MARKS


@pytest.mark.parametrize("batch", [1, 8])
def test_torchscript_gives_the_boxes_of_eager_python(
    command: list[str], folder: Path, images: NDArray[np.uint8], eager: LocalizerOutput, batch: int
) -> None:
    check_loaded(folder / "net.ts", images, eager)
    assert len(set(eager.counts.tolist())) > 2  # the pictures differ in what is found
    assert set(eager.logits.argmax(dim=1).tolist()) == {0, 1}
    assert int(eager.counts.max()) > MAX_BOXES
    done = run(command, "--batch", batch, folder / "pictures")
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
            [program],
            "--model",
            package,
            *ops(),
            "--batch",
            batch,
            "--threads",
            threads,
            folder / "pictures",
        )
        assert done.returncode == 0, done.stderr
        check_same(lines(done.stdout), eager)
    bare = run([program], "--model", package, folder / "pictures")
    check_error(bare, "needs wsfast's operators: give --ops LIBRARY")
    foreign = tmp_path / "foreign.pt2"
    rename_device(package, foreign, "cuda")
    done = run([program], "--model", foreign, *ops(), folder / "pictures")
    check_error(done, f"{foreign} was made for cuda: run it with --device cuda")


def check_loaded(file: Path, images: NDArray[np.uint8], expected: LocalizerOutput) -> None:
    """The program in Python has the same boxes, too."""
    found = load(file)(batch_of(images))
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.counts, expected.counts)


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
    command: list[str], images: NDArray[np.uint8], eager: LocalizerOutput, tmp_path: Path
) -> None:
    # Pixels repeated 3 x 2 times average back to the very same image.
    large = images[1].repeat(3, axis=0).repeat(2, axis=1)
    cv2.imwrite(str(tmp_path / "large.png"), large[:, :, ::-1])
    small = cv2.resize(images[1], (32, 40), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "small.png"), small[:, :, ::-1])
    done = run(command, tmp_path)
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
    done = run([program], "--model", tmp_path / "grey.ts", *ops(), tmp_path / "colour.png")
    grey = cv2.cvtColor(images[0], cv2.COLOR_RGB2GRAY)
    check_same(lines(done.stdout), model(torch.from_numpy(grey)[None, None]))


def test_boxes_of_a_program_with_an_output_size_of_its_own(
    program: Path, folder: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = localizer()
    model.output_size = (48, 24)
    export_torchscript(model, tmp_path / "half.ts", image_size=SIZE)
    done = run([program], "--model", tmp_path / "half.ts", *ops(), folder / "pictures" / "00.png")
    expected = model(torch.from_numpy(images[:1].transpose(0, 3, 1, 2).copy()))
    kept = min(int(expected.counts[0]), MAX_BOXES)
    assert lines(done.stdout)[0]["boxes"] == (expected.boxes[0, :kept] * 2).tolist()


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
    done = run([program], "--model", tmp_path / "net.ts", *ops(), "--batch", 2, *pictures)
    found = [
        [line[key] for key in ("class", "class_name", "probability")] for line in lines(done.stdout)
    ]
    assert found == [[1, "défaut", pytest.approx(0.731059)], [None, None, None]]
