"""Exports give the boxes of the eager module, or nothing at all."""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.deploy.small import (
    FEED,
    INPUT,
    TwoLayers,
    defects,
    small_localizer,
    small_model,
    train_runs,
)
from tests.processes import python
from wsfast import ops
from wsfast.deploy import (
    ExportError,
    GradientLocalizer,
    LoadedLocalizer,
    Localizer,
    LocalizerOutput,
    export_onnx,
    export_pt2,
    export_torchscript,
    load,
)
from wsfast.deploy.programs import describe

PICTURES = (64, 32)
KEYS = {
    "wsfast_version", "input_height", "input_width", "image_height", "image_width", "channels",
    "class_names", "max_boxes", "min_area", "connectivity", "threshold",
}  # fmt: skip

pytestmark = pytest.mark.timeout(900)  # a compiler runs, on machines of any speed

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxscript", "onnxruntime")),
    reason="onnxscript and onnxruntime are not installed",
)


def assert_same_boxes(found: LocalizerOutput, expected: LocalizerOutput) -> None:
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.cams, expected.cams, atol=1e-4, rtol=0)
    # Another compiler's convolutions round otherwise: a pixel at the threshold may fall either way.
    assert (found.masks != expected.masks).float().mean() < 1e-4
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.counts, expected.counts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def localizer(runs: dict[str, Path]) -> Localizer:
    return Localizer.from_checkpoint(runs["classifier"], threshold="otsu", max_boxes=6)


@pytest.fixture(scope="module")
def package(localizer: Localizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "small.pt2"
    export_pt2(localizer, path, image_size=PICTURES)
    return path


@pytest.fixture(scope="module")
def script(localizer: Localizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "small.ts"
    export_torchscript(localizer, path, image_size=PICTURES)
    return path


def test_eager_torchscript_and_pt2_give_the_same_boxes(localizer, script, package) -> None:
    images = defects(50, PICTURES)
    expected = localizer(images)
    assert int((expected.counts > 0).sum()) > 40
    for program in (load(script), load(package)):
        assert_same_boxes(program(images), expected)
        assert_same_boxes(program(images[:1]), LocalizerOutput(*(p[:1] for p in expected)))


def test_both_programs_say_what_they_are(script, package) -> None:
    for program in (load(script), load(package)):
        assert program.metadata.keys() >= KEYS
        assert all(isinstance(value, str) for value in program.metadata.values())
        assert (program.input_size, program.image_size) == (INPUT, PICTURES)
        assert (program.channels, program.class_names) == (1, ("good", "defect"))
        assert program.metadata["max_boxes"] == "6"
        assert program.metadata["threshold"] == "otsu"


def test_the_file_alone_is_a_program_of_six_tensors(script) -> None:
    """What C++ meets: no class of this package in the way."""
    extra = {"wsfast.json": ""}
    program = torch.jit.load(str(script), _extra_files=extra)
    assert json.loads(extra["wsfast.json"])["image_height"] == "64"
    found = program(defects(2, PICTURES))
    assert len(found) == 6
    assert [part.shape[0] for part in found] == [2] * 6


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_every_recipe_exports_as_torchscript(runs, tmp_path, recipe) -> None:
    localizer = Localizer.from_checkpoint(runs[recipe])
    program = export_torchscript(localizer, tmp_path / "it.ts", image_size=PICTURES)
    images = defects(12, PICTURES)
    assert_same_boxes(program(images), localizer(images))


def test_layers_output_size_and_fixed_threshold_survive(tmp_path) -> None:
    localizer = Localizer(TwoLayers(), **FEED, threshold=0.4, output_size=(24, 20), reduce="max")
    program = export_torchscript(localizer, tmp_path / "it.ts")
    images = defects(7, INPUT)
    assert_same_boxes(program(images), localizer(images))
    assert program.metadata["output_height"] == "24"
    assert program.metadata["threshold"] == "0.4"


def test_programs_refuse_other_pictures(script, package) -> None:
    for program in (load(script), load(package)):
        for images in (
            torch.zeros(1, 1, 32, 32, dtype=torch.uint8),
            torch.zeros(1, 3, *PICTURES, dtype=torch.uint8),
            torch.zeros(0, 1, *PICTURES, dtype=torch.uint8),
        ):
            with pytest.raises(ValueError, match="images must be of shape"):
                program(images)
        with pytest.raises(TypeError, match=r"LoadedLocalizer: images must be uint8, got torch\.f"):
            program(torch.zeros(1, 1, *PICTURES))
        with pytest.raises(ValueError, match="images must be on cpu"):
            program(torch.zeros(1, 1, *PICTURES, dtype=torch.uint8, device="meta"))


def test_a_package_takes_pictures_of_any_strides(package) -> None:
    program = load(package)
    height, width = PICTURES
    columns = torch.randint(256, (2, 1, width, height), dtype=torch.uint8)
    for images in (
        columns.transpose(2, 3),
        columns[:, :, :1, :].transpose(2, 3).expand(-1, -1, -1, width),
    ):
        assert not images.is_contiguous()
        for ours, theirs in zip(
            program(images),
            program(images.clone(memory_format=torch.contiguous_format)),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


IN_THREADS = """
import sys, threading, torch, wsfast.deploy
program = wsfast.deploy.load(sys.argv[1])
images = torch.randint(256, (2, 1, *program.image_size), dtype=torch.uint8)
expected, same = program(images), []

def serve():
    for _ in range(100):
        same.append(all(map(torch.equal, program(images), expected)))

threads = [threading.Thread(target=serve) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(same) == 200 and all(same)
"""


def test_threads_share_a_package(package) -> None:
    """In a process of its own: what would stop there is all of Python."""
    ended = python("-c", IN_THREADS, package, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_a_package_for_cuda_runs_on_the_gpu_that_is_named(tmp_path, monkeypatch) -> None:
    """Torch's loader is a stand-in, as the second GPU is."""
    asked, inside = [], []
    metadata = {**describe(small_localizer(), INPUT), "AOTI_DEVICE_KEY": "cuda"}

    def stand_in(path: str, *, device_index: int = -1) -> SimpleNamespace:
        asked.append(device_index)
        assert inside == [1]
        return SimpleNamespace(loader=SimpleNamespace(get_metadata=lambda: metadata))

    @contextmanager
    def current(index: int) -> Iterator[None]:
        inside.append(index)
        yield
        inside.pop()

    monkeypatch.setattr(torch._inductor, "aoti_load_package", stand_in)
    monkeypatch.setattr(torch.cuda, "device", current)
    place = "wsfast.deploy.programs.parse_device"
    monkeypatch.setattr(place, lambda where, argument, text: torch.device(text))
    (tmp_path / "it.pt2").touch()
    program = load(tmp_path / "it.pt2", device="cuda:1")
    assert asked == [1]
    assert program.device == torch.device("cuda", 1)
    with FakeTensorMode(), pytest.raises(ValueError, match="images must be on cuda:1"):
        program(torch.zeros(1, 1, *INPUT, dtype=torch.uint8, device="cuda:0"))
    metadata["AOTI_DEVICE_KEY"] = "cpu"
    with pytest.raises(ValueError, match="device must be without an index for a program"):
        load(tmp_path / "it.pt2", device="cuda:1")
    assert not inside


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_not_the_file_s_fault(tmp_path, device: str) -> None:
    (tmp_path / "it.ts").touch()
    with pytest.raises(ValueError, match=f"deploy.load: device must be .*, got {device}"):
        load(tmp_path / "it.ts", device=device)


def test_a_package_is_opened_again_where_its_localizer_is(tmp_path, monkeypatch) -> None:
    """Nothing is compiled; another device than the default is all that counts."""

    opened = []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **options: None)
    place = "wsfast.deploy.export"
    monkeypatch.setattr(f"{place}.load", lambda path, device="cpu": opened.append(device))
    monkeypatch.setattr(f"{place}._exported", lambda module, images: None)
    monkeypatch.setattr(f"{place}._verify", lambda *_: None)
    export_pt2(small_localizer().to("meta"), tmp_path / "it.pt2")
    assert opened == [torch.device("meta")] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_of_fewer_bits_are_exported(tmp_path, dtype) -> None:
    localizer = small_localizer(threshold=0.5).to(dtype)
    program = export_torchscript(localizer, tmp_path / "it.ts")
    images = defects(5, INPUT)
    torch.testing.assert_close(program(images).cams, localizer(images).cams, atol=0.1, rtol=0)


class Wavering(nn.Module):
    """Whose trace differs from itself: what it adds is frozen into the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.mean(dim=(2, 3)) + self.calls, images[:, 0]


class FrozenBatch(nn.Module):
    """Whose trace holds for one batch size only."""

    def forward(self, images):
        return images.reshape(int(images.shape[0]), -1)[:, :2], images[:, 0]


class Untraceable(nn.Module):
    def forward(self, images):
        raise ArithmeticError("no way through\nsecond line")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Wavering(), r"logits differ .* nothing was written"),
        (FrozenBatch(), r"logits is \[2, 2\] .* not \[1, 2\]"),
        (Untraceable(), r"torch cannot export it: no way through$"),
    ],
)
def test_what_differs_or_fails_leaves_nothing_behind(tmp_path, network, message) -> None:
    kept = tmp_path / "it.ts"
    kept.write_text("before")
    with pytest.raises(ExportError, match=message):
        export_torchscript(Localizer(network, **FEED), kept)
    assert kept.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["it.ts"]


def test_masks_that_are_not_those_of_the_maps_are_found(tmp_path, monkeypatch) -> None:
    """Verification does not trust boxes because the maps agree."""
    plain = LoadedLocalizer.__call__

    def shifted(self, images):
        found = plain(self, images)
        return found._replace(boxes=found.boxes.roll(1, dims=1))

    monkeypatch.setattr(LoadedLocalizer, "__call__", shifted)
    with pytest.raises(ExportError, match="boxes are not those of the program's own maps"):
        export_torchscript(small_localizer(threshold=0.5), tmp_path / "it.ts")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path) -> None:
    localizer = small_localizer()
    gradients = GradientLocalizer.from_model(small_model(), "gradcam", **FEED)
    for export in (export_torchscript, export_pt2, export_onnx):
        with pytest.raises(TypeError, match=r"localizer must be .*eager"):
            export(gradients, tmp_path / "it.pt2")
        with pytest.raises(ValueError, match="image_size must be"):
            export(localizer, tmp_path / "it.pt2", image_size=(0, 5))
    for export, suffix in ((export_pt2, ".pt2"), (export_onnx, ".onnx")):
        with pytest.raises(ValueError, match=rf"path must be a file that ends in \{suffix}"):
            export(localizer, tmp_path / "it.so")
    with pytest.raises(ValueError, match="path must be"):
        export_torchscript(localizer, tmp_path / "it.pt2")
    with pytest.raises(ValueError, match="path must be in an existing folder"):
        export_torchscript(localizer, tmp_path / "no" / "it.ts")
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        export_torchscript(localizer, tmp_path)
    fifo = tmp_path / "it.ts"
    os.mkfifo(fifo)  # as /dev/null, it is not to be replaced
    with pytest.raises(ValueError, match=r"path must be a file, got .*which is none"):
        export_torchscript(localizer, fifo)
    assert fifo.is_fifo()


ON_A_FULL_DISK = """
import resource, sys
from tests.deploy.small import small_localizer
from wsfast.deploy import export_torchscript
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # as if it were
try:
    export_torchscript(small_localizer(), sys.argv[1])
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_is_an_error_and_keeps_the_old_file(tmp_path) -> None:
    """In a process of its own, which torch's writer would end."""
    file = tmp_path / "it.ts"
    file.write_text("before")
    ended = python("-c", ON_A_FULL_DISK, file)
    assert (ended.returncode, ended.stdout) == (0, "File too large\n"), ended.stderr
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "v1.pt2").write_text("before")
    (tmp_path / "latest.ts").symlink_to("v1.pt2")
    export_torchscript(small_localizer(), tmp_path / "latest.ts")
    assert (tmp_path / "latest.ts").is_symlink()
    assert (tmp_path / "v1.pt2").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "export"),
    [
        ("a.ts", export_torchscript),
        ("a.pt2", export_pt2),
        pytest.param("a.onnx", export_onnx, marks=needs_onnx),
    ],
)
def test_names_that_torch_cannot_open_are_refused(tmp_path, name: str, export) -> None:
    folder = tmp_path / os.fsdecode(b"lat\xe9")
    folder.mkdir()
    with pytest.raises(ValueError, match="path must be a name in UTF-8"):
        export(small_localizer(), folder / name)
    assert not list(folder.iterdir())
    (folder / name).touch()
    with pytest.raises(ValueError, match=r"deploy.load: path must be a name in UTF-8"):
        load(folder / name)


@pytest.mark.parametrize("name", ["it.ts", "it.pt2", "it.onnx"])
def test_what_is_no_program_cannot_be_loaded(tmp_path, name) -> None:
    with pytest.raises(ValueError, match=r"deploy.load: path must be an existing file"):
        load(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match=r"deploy.load: path must be"):
        load(tmp_path / name)


def test_torchscript_of_others_is_refused(tmp_path) -> None:
    torch.jit.save(torch.jit.script(TwoLayers()), str(tmp_path / "it.ts"))
    with pytest.raises(ValueError, match=r"no 'wsfast.json' in it"):
        load(tmp_path / "it.ts")


@needs_onnx
@pytest.mark.parametrize(("recipe", "size"), [("classifier", PICTURES), ("fcam", INPUT)])
def test_onnx_gives_the_heat_map(runs, tmp_path, recipe, size) -> None:
    import onnxruntime

    localizer = Localizer.from_checkpoint(runs[recipe], min_area=3)
    metadata = export_onnx(localizer, tmp_path / "it.onnx", image_size=size)
    session = onnxruntime.InferenceSession(str(tmp_path / "it.onnx"))
    assert session.get_modelmeta().custom_metadata_map == metadata
    assert "heat map" in metadata["boundary"]
    assert [entry.name for entry in session.get_outputs()] == ["logits", "cams"]
    images = defects(10, size)
    expected = localizer(images)
    logits, cams = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(cams, expected.cams, atol=1e-3)
    assert metadata.keys() >= KEYS
    settings = {name: int(metadata[name]) for name in ("max_boxes", "min_area", "connectivity")}
    boxes = ops.cam_boxes(torch.from_numpy(cams), localizer.threshold, **settings)
    pairs = zip(boxes.boxes, expected.boxes, boxes.counts, expected.counts, strict=True)
    same = [found[:count].equal(wanted[:other]) for found, wanted, count, other in pairs]
    assert sum(same) >= 9  # of ten pictures; rounding may lift a pixel over the threshold
    assert int(expected.counts.sum()) > 0
