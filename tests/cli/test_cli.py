"""The command line as a user meets it: results on disk, and one plain line for bad input."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.processes import python
from wsfast import native
from wsfast.cam import METHODS, LayerCAM
from wsfast.cli import compare, demo, main
from wsfast.data import SyntheticDefects
from wsfast.models import SmallVGG, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wsfast checkpoint, three images of other sizes and a torn one."""
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    save_checkpoint(
        SmallVGG(), root / "net.safetensors", class_names=("good", "defect"), mean=(0.5,),
        std=(0.2,), input_size=(64, 32),
    )  # fmt: skip
    images = root / "images"
    images.mkdir()
    for i, size in enumerate(((64, 32), (90, 120), (41, 57))):
        data = SyntheticDefects(2, size=size)
        cv2.imwrite(str(images / f"part{i}.png"), data[1].image[0].numpy())
    (images / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_localize_writes_everything(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    code = run(
        "localize", folder / "images", "--checkpoint", folder / "net.safetensors", "--out", out,
        "--npy", "--batch-size", 2, "--target", 1,
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr()
    assert "3 images localized, 1 files skipped" in said.out
    assert "torn.png" in said.err
    results = json.loads((out / "results.json").read_text())
    assert [image["name"] for image in results["images"]] == ["part0", "part1", "part2"]
    assert [Path(file["file"]).name for file in results["skipped"]] == ["torn.png"]
    for image in results["images"]:
        height, width = image["height"], image["width"]
        cam = np.load(out / f"{image['name']}.npy")
        assert cam.shape == (height, width)
        assert cv2.imread(str(out / f"{image['name']}.png")).shape[0] == height
        assert image["explained_class"] == 1
        assert 0 <= image["probability"] <= 1
        x0, y0, x1, y1 = image["boxes"][0]["box"]
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        areas = [box["area"] for box in image["boxes"]]
        assert areas == sorted(areas, reverse=True)


def test_localize_refines_with_a_crf(folder: Path, tmp_path: Path, capsys) -> None:
    maps = {}
    for refine in ("none", "crf"):
        out = tmp_path / refine
        code = run(
            "localize", folder / "images" / "part1.png", "--checkpoint",
            folder / "net.safetensors", "--out", out, "--npy", "--refine", refine,
        )  # fmt: skip
        assert code == 0
        results = json.loads((out / "results.json").read_text())
        assert results["settings"]["refine"] == refine
        maps[refine] = np.load(out / "part1.npy")
    assert maps["crf"].shape == maps["none"].shape
    assert 0 <= maps["crf"].min() <= maps["crf"].max() <= 1
    assert not np.allclose(maps["crf"], maps["none"], atol=0.01)
    capsys.readouterr()
    assert run("localize", folder / "images", "--out", tmp_path / "x", "--refine", "grabcut") == 2
    assert "--refine must be one of none, crf, got grabcut" in capsys.readouterr().err


def test_localize_takes_videos_and_timm_models(tmp_path: Path, capsys) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        writer.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    out = tmp_path / "out"
    code = run(
        "localize", clip, "--model", "resnet18", "--num-classes", 2, "--size", "64",
        "--method", "gradcam", "--threshold", "0.5", "--out", out,
    )  # fmt: skip
    assert code == 0
    assert "random weights" in capsys.readouterr().err
    names = [image["name"] for image in json.loads((out / "results.json").read_text())["images"]]
    assert names == ["clip_000000", "clip_000001", "clip_000002"]


@pytest.mark.parametrize("method", METHODS)
def test_localize_takes_every_method(folder: Path, tmp_path: Path, method: str) -> None:
    code = run(
        "localize", folder / "images" / "part0.png", "--checkpoint", folder / "net.safetensors",
        "--method", method, "--out", tmp_path,
        *(("--percentile", 40) if method.startswith("lt") or method == "racam" else ()),
    )  # fmt: skip
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["method"].lower() == method
    assert results["images"][0]["valid"]


def test_compare_makes_a_contact_sheet(folder: Path, tmp_path: Path, capsys) -> None:
    names = "CAM,Grad-CAM++,LT_GradCAM,RA-CAM,FullGrad"
    code = run(
        "localize", folder / "images", "--checkpoint", folder / "net.safetensors", "--compare",
        "--method", names, "--batch-size", 2, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "compare.json").read_text())
    assert report["images"] == ["part0", "part1", "part2"]
    assert list(report["methods"]) == ["CAM", "GradCAMPlusPlus", "LTGradCAM", "RACAM", "FullGrad"]
    assert all(entry["milliseconds"] > 0 for entry in report["methods"].values())
    assert len(report["methods"]["LTGradCAM"]["layers"]) == 4
    sheet = cv2.imread(str(tmp_path / "compare.png"))
    assert sheet.shape[0] > 3 * 192  # a row per image, a column per method and one for the image
    assert sheet.shape[1] > 6 * 192
    assert sheet.std() > 30
    said = capsys.readouterr()
    assert "torn.png" in said.err
    assert "3 images compared" in said.out


def test_compare_tells_which_methods_do_not_apply(folder: Path, tmp_path: Path, capsys) -> None:
    code = run(
        "localize", folder / "images" / "part1.png", "--model", "vgg11_bn", "--num-classes", 2,
        "--size", 32, "--compare", "--method", "cam,gradcam", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    methods = json.loads((tmp_path / "compare.json").read_text())["methods"]
    assert "linear layer from 512 channels" in methods["CAM"]["not_applicable"]
    assert methods["GradCAM"]["milliseconds"] > 0
    assert "CAM" in capsys.readouterr().out


def test_compare_needs_no_method_that_was_not_asked_for(tmp_path: Path, capsys) -> None:
    picture = tmp_path / "part.png"
    cv2.imwrite(str(picture), np.zeros((60, 80, 3), np.uint8))
    code = run(
        "localize", picture, "--model", "pit_ti_224", "--compare", "--method", "gradcam,fullgrad",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    methods = json.loads((tmp_path / "out" / "compare.json").read_text())["methods"]
    assert "layers must be" in methods["GradCAM"]["not_applicable"]
    assert methods["FullGrad"]["milliseconds"] > 0


def test_an_error_of_one_method_does_not_end_the_comparison(
    folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck\nin two lines")

    told: list[list[str]] = []
    draw = compare.text_block

    def watched(texts: list[str], width: int) -> np.ndarray:
        told.append(texts)
        return draw(texts, width)

    monkeypatch.setattr(LayerCAM, "explain", broken)
    monkeypatch.setattr(compare, "text_block", watched)
    command = ["localize", folder / "images", "--checkpoint", folder / "net.safetensors"]
    command += ["--compare", "--out", tmp_path, "--method"]
    assert run(*command, "layercam,gradcam") == 0
    assert "LayerCAM  RuntimeError: out of luck" in capsys.readouterr().out.splitlines()
    assert told[-1] == ["No map of LayerCAM: RuntimeError: out of luck"]  # on the sheet
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert run(*command, "layercam") == 2
    said = capsys.readouterr()
    assert "out of luck" in said.out
    assert "no method has a map; nothing written" in said.err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_compare_says_what_is_explained(folder: Path, tmp_path: Path, monkeypatch) -> None:
    sheets: list[tuple[list[str], list[str]]] = []
    draw = compare.contact_sheet

    def watched(rows: list, titles: list[str], captions: list[str]) -> np.ndarray:
        sheets.append((titles, captions))
        return draw(rows, titles, captions)

    monkeypatch.setattr(compare, "contact_sheet", watched)
    code = run(
        "localize", folder / "images", "--checkpoint", folder / "net.safetensors", "--compare",
        "--target", 1, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert [len(titles) for titles, _ in sheets] == [8, 8]  # the image and seven methods each
    assert sheets[0][0][4].startswith("SmoothGradCAM++\n")
    assert len(sheets[0][1]) == 3
    assert sheets[0][1][2].startswith("part2: predicted class ")
    assert sheets[0][1][2].endswith("; explained: 1, defect")
    settings = json.loads((tmp_path / "compare.json").read_text())["settings"]
    assert (settings["threshold"], settings["target"]) == ("otsu", 1)


def test_demo_end_to_end(tmp_path: Path, capsys) -> None:
    assert run("demo", "--out", tmp_path, "--images", 24, "--test-images", 8, "--epochs", 1) == 0
    said = capsys.readouterr().out
    assert "LTGrad-CAM" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["methods"]) == {"Grad-CAM", "LayerCAM", "LTGrad-CAM", "LTGrad-CAM, CRF"}
    assert cv2.imread(str(tmp_path / "contact_sheet.png")) is not None
    assert (tmp_path / "data" / "test" / "20000_GT.png").exists()


def test_demo_replaces_its_own_data_only(tmp_path: Path, capsys) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "1.png").write_bytes(b"mine")
    assert run("demo", "--out", tmp_path, "--images", 24, "--test-images", 8) == 2
    assert "--out must be a folder without data/ but that of a" in capsys.readouterr().err
    for split in ("train", "test"):
        assert (tmp_path / "data" / split / "1.png").read_bytes() == b"mine"
    out = tmp_path / "other"
    for length in (8, 6):
        _, test = demo.make_data(out, 12, length, 0)
        assert len(test) == length


def test_info(capsys) -> None:
    assert run("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ops"]["truncate_gradients"]["cpu"] == "native"
    assert "checks" not in facts
    assert run("info") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"wsfast    {facts['distribution']['version']}, ")
    assert max(len(line) for line in said if not line.startswith("folder")) <= 120
    assert any(
        line.split() == ["fuse_cams", "native", facts["ops"]["fuse_cams"]["cuda"]] for line in said
    )


def test_info_checks_every_op(capsys, monkeypatch) -> None:
    assert run("info", "--check", "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert set(checks) == set(native.registered_schemas())
    assert {row["cpu"] for row in checks.values()} == {"ok"}
    wrong = native.reference_of("positive_percentile")
    monkeypatch.setitem(
        native._references, "positive_percentile", lambda *arguments: wrong(*arguments) + 1
    )
    assert run("info", "--check") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if "failed" in line] == ["positive_percentile"]


def test_info_prints_the_libraries_that_cpp_opens(capsys) -> None:
    assert run("info", "--libs") == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert files[0].name == "_C.so"
    assert all(file.is_absolute() and file.is_file() for file in files)


BAD = [
    (["--model", "no_such_net"], "--model must be a timm model name, got 'no_such_net'"),
    ([], "--model must be given"),
    (["--model", "resnet18", "--method", "bestcam"], "--method must be one of"),
    (["--model", "resnet18", "--compare", "--method", "cam,bestcam"], "--method must be one of"),
    (["--model", "resnet18", "--method", "cam,gradcam"], "--method must be one method without"),
    (["--model", "resnet18", "--method", "fullgrad", "--layers", "last"], "layers must be"),
    (["--model", "resnet18", "--layers", "layer9"], "layers must be"),
    (["--model", "resnet18", "--threshold", "1.5"], "--threshold must be otsu, otsu2"),
    (["--model", "resnet18", "--size", "12y"], "--size must be N or HxW"),
    (["--model", "resnet18", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["--model", "resnet18", "--target", "1000"], "target must be between 0 and 999, got 1000"),
    (["--model", "inception_v3", "--size", "16"], "--size must be one that the model takes, got"),
    (["--model", "vit_tiny_patch16_224", "--size", "100"], "--size must be one that the model"),
    (["--model", "resnet18", "--percentile", "120"], "percentile must be between"),
    (["--model", "resnet18", "--method", "cam", "--percentile", "0"],
     "--percentile must be left out with --method cam, got 0.0"),
    (["--model", "resnet18", "--compare", "--method", "cam,layercam", "--percentile", "40"],
     "--percentile must be left out with --method cam,layercam, got 40.0"),
    (["--model", "resnet18", "--compare", "--refine", "crf"],
     "--refine must be left out with --compare, got crf"),
    (["--model", "resnet18", "--compare", "--npy"], "--npy must be left out with --compare, got g"),
    (["--model", "resnet18", "--compare", "--max-boxes", "16"],
     "--max-boxes must be left out with --compare, got 16"),
    (["--model", "resnet18", "--compare", "--min-area", "1"],
     "--min-area must be left out with --compare, got 1"),
    (["--model", "resnet18", "--display"], "--display must be left out with files (no --live)"),
    (["--model", "resnet18", "--no-video"], "--no-video must be left out with files (no --live)"),
    (["--model", "resnet18", "--overwrite"], "--overwrite must be left out with files (no --live"),
    (["--model", "resnet18", "--compare", "--queue", "8"],
     "--queue must be left out with files (no --live), got 8"),
    (["--model", "resnet18", "--method", "cam", "--filtered-backprop", "50"],
     "--filtered-backprop must be left out with --method cam, got 50.0"),
    (["--model", "resnet18", "--method", "racam", "--filtered-backprop", "50"],
     "--filtered-backprop must be left out with --method racam, got 50.0"),
    (["--model", "resnet18", "--filtered-backprop", "120"], "--filtered-backprop must be between"),
    (["--model", "vit_tiny_patch16_224", "--filtered-backprop", "50"],
     "--filtered-backprop must be left out with a VisionTransformer without ReLU modules"),
    (["--model", "resnet18", "--attention-model", "vit_tiny_patch16_224"],
     "--attention-model must be left out with --method ltgradcam"),
    (["--model", "resnet18", "--method", "msca"], "--attention-model must be given with --method"),
    (["--model", "resnet18", "--method", "msca", "--attention-model", "resnet18:{net}"],
     "--attention-model: model must be a timm vision transformer with a class token"),
    (["--model", "resnet18", "--method", "rollout", "--layers", "last"],
     "--layers must be left out with --method rollout, got last"),
    (["--model", "resnet18", "--method", "attention", "--target", "0"],
     "--target must be left out with --method attention, got 0"),
    (["--model", "resnet18", "--method", "attention"], "model must be a timm vision transformer"),
    (["--model", "resnet18", "--method", "tscam"], "model must be a timm vision transformer"),
    (["--checkpoint", "{net}", "--num-classes", "2"],
     "--num-classes must be left out with a wsfast checkpoint, got 2"),
    (["--checkpoint", "{net}", "--method", "tscam"], "--method tscam must be given with --model"),
    (["--model", "resnet18", "--scales", "0.5,x"], "--scales must be positive factors"),
    (["--model", "resnet18", "--scales", "0,1"], "--scales must be positive factors"),
    (["--run", "a", "--scales", "1"], "--scales must be left out with --run, got 1"),
    (["--run", "a", "--percentile", "0"], "--percentile must be left out with --run, got 0.0"),
    (["--model", "resnet18", "--device", "tpu9"], "--device must be"),
    (["--model", "resnet18", "--checkpoint", "nowhere.pt"], "path must be an existing file"),
    (["--model", "resnet18", "--checkpoint", "{corrupt}"], "path must be"),
    (["--model", "resnet18", "--checkpoint", "{net}"], "path must be weights of this ResNet"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, capsys, case: int) -> None:
    arguments, message = BAD[case]
    corrupt = tmp_path / "corrupt.pt"
    corrupt.write_bytes(b"not a checkpoint")
    files = {"corrupt": corrupt, "net": folder / "net.safetensors"}
    arguments = [argument.format(**files) for argument in arguments]
    out = tmp_path / "out"
    assert run("localize", folder / "images", *arguments, "--out", out) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if "wsfast localize: error: " in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(out.glob("*"))  # nothing half-written


def test_no_images_is_one_line(tmp_path: Path, capsys) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("localize", empty, "--model", "resnet18", "--out", tmp_path / "out") == 2
    assert "which matches none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localize", "x.png", "--out", "o", "--batch-size", "two"], "invalid int value: 'two'"),
        (["localize"], "arguments are required: images, --out"),
        (["train", "nothing"], "invalid choice: 'nothing'"),
        (["train", "classifier", "--out", "o", "--modle", "vgg16"], "unrecognized arguments"),
        ([], "arguments are required: COMMAND"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--help` explains" in line


@pytest.mark.parametrize("command", ["localize", "harvest"])
def test_what_is_no_run_is_named(folder: Path, tmp_path: Path, capsys, command: str) -> None:
    out = tmp_path / "out"
    assert run(command, folder / "images", "--run", tmp_path / "gone", "--out", out) == 2
    said = capsys.readouterr().err
    assert "--run must be the folder of a run of `wsfast train`, got" in said
    assert "gone\n" in said
    assert not out.exists()


def test_help_teaches(capsys) -> None:
    for command in ("localize", "demo", "info"):
        with pytest.raises(SystemExit) as stop:
            run(command, "--help")
        assert stop.value.code == 0
        assert "example" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["info"], ["--", "info"]])
def test_a_command_reads_no_other(words: list[str]) -> None:
    """Behind dashes some Pythons find a command and some do not."""
    code = "import atexit, sys; from wsfast.cli import main; "
    code += f"atexit.register(lambda: print(*sys.modules)); main({words})"
    done = python("-c", code)
    assert "Traceback" not in done.stderr
    loaded = set(done.stdout.split())
    assert "wsfast.cli.info" in loaded
    assert loaded.isdisjoint({"wsfast.cli.localize", "wsfast.data", "torchmetrics", "torchvision"})
