"""The module that is deployed: shapes, agreement with the command line, and what compilers need."""

import json
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from tests.deploy.small import (
    INPUT,
    RECIPES,
    TwoLayers,
    defects,
    small_localizer,
    small_model,
    train_runs,
)
from wsfast import ops
from wsfast.cam import CAM, LTGradCAM
from wsfast.cli import main
from wsfast.deploy import GradientLocalizer, Localizer, LocalizerOutput, capture, prepare_images
from wsfast.deploy.networks import DecoderNetwork, PairNetwork
from wsfast.models import FCAMModel, UNetLocalizer, WSOLClassifier, save_checkpoint
from wsfast.train.runs import load_run

FEED = {"mean": (0.4,), "std": (0.2,), "input_size": INPUT}


def gradient_localizer(**options: object) -> GradientLocalizer:
    return GradientLocalizer.from_model(small_model(), "gradcam", **FEED, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_runs(tmp_path_factory.mktemp("runs"))


def assert_same(found: LocalizerOutput, expected: LocalizerOutput) -> None:
    """Scores and maps up to rounding, masks and boxes exactly."""
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.cams, expected.cams, atol=1e-4, rtol=0)
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("size", [INPUT, (40, 57), (20, 12), (32, 17)])
def test_shapes_and_types_depend_on_the_images_shape_alone(count, size) -> None:
    found = small_localizer(max_boxes=5)(defects(count, (64, 64))[:, :, : size[0], : size[1]]
                                         if count else torch.zeros(0, 1, *size))  # fmt: skip
    shapes = [(count, 2), (count, *size), (count, *size), (count, 5, 4), (count, 5), (count,)]
    assert [tuple(part.shape) for part in found] == shapes
    assert [part.dtype for part in found] == [
        torch.float32, torch.float32, torch.bool, torch.int32, torch.float32, torch.int32,
    ]  # fmt: skip
    assert not any(part.requires_grad for part in found)


def test_maps_are_the_closed_form_of_cam_and_boxes_those_of_the_ops() -> None:
    model, images = small_model(), defects(6)
    found = Localizer.from_model(model, **FEED, relu=False, threshold=0.5)(images)
    resized = F.interpolate(images / 255, INPUT, mode="bilinear", antialias=True)
    result = CAM(model, relu=False)((resized - 0.4) / 0.2)
    torch.testing.assert_close(found.logits, result.logits, atol=1e-5, rtol=1e-5)
    wanted = F.interpolate(result.cams[:, None], (64, 32), mode="bilinear")[:, 0].clamp(0, 1)
    torch.testing.assert_close(found.cams, wanted, atol=1e-5, rtol=0)
    assert torch.equal(found.masks, found.cams >= 0.5)
    boxes = ops.component_boxes(found.masks, max_boxes=16)
    assert torch.equal(found.boxes, boxes.boxes)
    assert torch.equal(found.counts, boxes.counts)
    x0, y0, x1, y1 = found.boxes[0, 0].tolist()
    assert found.masks[0, y0:y1, x0:x1].any()


def test_a_batch_gives_what_its_images_give_alone() -> None:
    localizer, images = small_localizer(), defects(5)
    whole = localizer(images)
    for i in range(5):
        assert_same(localizer(images[i : i + 1]), LocalizerOutput(*(p[i : i + 1] for p in whole)))


@pytest.mark.parametrize("size", [INPUT, (64, 32)])
def test_uint8_and_floats_of_0_to_1_are_the_same_picture(size) -> None:
    localizer, images = small_localizer(), defects(3, size)
    expected = localizer(images)
    for same in (images.float() / 255, (images.double() / 255)):
        assert all(map(torch.equal, localizer(same), expected))


@pytest.mark.parametrize("kind", [small_localizer, gradient_localizer])
def test_floats_of_0_to_255_are_warned_of_at_each_call(kind) -> None:
    localizer, images = kind(), defects(2).float()
    for _ in range(2):
        with pytest.warns(UserWarning, match="images must be of 0-1 .* got values up to") as caught:
            localizer(images)
        assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (images / 255, images / 255 * 1.3, images.byte(), images[:0]):
            if len(fine) or kind is small_localizer:
                localizer(fine)


def test_no_program_looks_at_the_values_of_its_pictures() -> None:
    images = defects(2).float()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*images must be of 0-1")
        torch.jit.script(Localizer(TwoLayers(), **FEED))(images)
        program = torch.export.export(small_localizer(), (images,), strict=False)
        program.module()(images)
    with FakeTensorMode(allow_non_fake_inputs=True):
        small_localizer()(torch.empty(2, 1, 50, 40))


def test_class_names_are_one_per_class() -> None:
    names = ("good", "scratch", "dent")
    for kind in (small_localizer, gradient_localizer):
        with pytest.raises(ValueError, match=r"class_names must be one per class \(2\), got 3"):
            kind(class_names=names)
    network = Localizer(TwoLayers(), **FEED, class_names=names[:2])  # it has three
    with pytest.raises(ValueError, match=r"class_names must be one per class \(3\), got 2"):
        network(defects(1))
    assert Localizer(TwoLayers(), **FEED, class_names=names)(defects(1)).logits.shape == (1, 3)


def test_the_explained_class_is_the_predicted_one_unless_it_is_given() -> None:
    images = defects(4)
    free = small_localizer()(images)
    fixed = [small_localizer(target=target)(images) for target in (0, 1)]
    for i, predicted in enumerate(free.logits.argmax(1).tolist()):
        assert torch.equal(free.cams[i], fixed[predicted].cams[i])
    assert not torch.allclose(fixed[0].cams, fixed[1].cams, atol=0.1)


def test_otsu_is_each_maps_own_threshold() -> None:
    images = defects(4)
    for name, repeat in (("otsu", 1), ("otsu2", 2)):
        found = small_localizer(threshold=name)(images)
        limits = ops.otsu_threshold(found.cams, repeat=repeat)
        assert torch.equal(found.masks, found.cams >= limits[:, None, None])


def test_settings_of_boxes_are_kept() -> None:
    images = defects(4)
    plain = small_localizer(threshold=0.7)(images)
    few = small_localizer(threshold=0.7, max_boxes=1, output_size=(30, 20))(images)
    assert few.cams.shape == (4, 30, 20)
    assert few.boxes.shape == (4, 1, 4)
    large = small_localizer(threshold=0.7, min_area=10**6)(images)
    assert torch.equal(large.masks, plain.masks)
    assert (large.counts == 0).all()
    assert (large.boxes == -1).all()


def test_layers_are_fused_and_probabilities_left_alone() -> None:
    images = defects(3, INPUT)
    network = TwoLayers().eval()
    found = Localizer(network, **FEED, reduce="max")(images)
    logits, maps = network(
        prepare_images(images, INPUT, torch.tensor([[[0.4]]]), torch.tensor(0.2))
    )
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.cams, ops.fuse_cams(maps, INPUT, reduce="max"))

    class Probability(nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3)), images[:, 0].sigmoid()

    found = Localizer(Probability(), **FEED, layer_norm=None, norm=None)(images)
    torch.testing.assert_close(found.cams, ((images[:, 0] / 255 - 0.4) / 0.2).sigmoid())


def test_an_image_that_is_not_finite_spoils_no_other() -> None:
    localizer, images = small_localizer(threshold=0.3), defects(3).float() / 255
    expected = localizer(images)
    images[1, 0, 3, 4] = torch.nan
    found = localizer(images)
    assert found.cams[1].eq(0).all()
    assert found.counts[1] == 0
    for i in (0, 2):
        assert torch.equal(found.boxes[i], expected.boxes[i])


def test_flat_pictures_have_a_map_and_no_crash() -> None:
    for value in (0, 255):
        found = small_localizer()(torch.full((2, 1, 40, 40), value, dtype=torch.uint8))
        assert found.cams.isfinite().all()


def test_it_stays_in_eval_mode_and_moves_as_a_module() -> None:
    localizer = small_localizer().train()
    assert not any(module.training for module in localizer.modules())
    half = small_localizer().to(torch.bfloat16)
    assert half(defects(2)).cams.dtype == torch.float32
    assert "threshold=otsu" in repr(localizer)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timm_classifiers_with_gap_and_a_linear_layer(name) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    localizer = Localizer.from_model(model, input_size=(64, 64), class_names="abcd")
    assert (localizer.channels, localizer.input_size) == (3, (64, 64))
    assert localizer.class_names == ("a", "b", "c", "d")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    found = localizer(images)
    prepared = localizer.prepare(images)
    torch.testing.assert_close(found.logits, model(prepared), atol=1e-4, rtol=1e-4)
    features, weight = model.forward_features(prepared), model.get_classifier().weight
    maps = torch.einsum("nc,nchw->nhw", weight[found.logits.argmax(1)], features).relu()
    torch.testing.assert_close(found.cams, ops.fuse_cams([maps], (64, 64)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit"])
def test_other_classifiers_are_refused_with_a_way_out(name) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    with pytest.raises(ValueError, match=r"from_model: model must be .*GradientLocalizer"):
        Localizer.from_model(model)


def test_input_size_is_a_pair() -> None:
    model = timm.create_model("resnet18", pretrained=False, num_classes=4).eval()
    with pytest.raises(TypeError, match=r"from_model: input_size must be .* integers, got 32"):
        Localizer.from_model(model, input_size=32)


def test_timm_encoders_are_taken_behind_this_packages_head() -> None:
    model = WSOLClassifier("timm/mobilenetv3_small_050", 3).eval()
    feed = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "input_size": (64, 64)}
    found = Localizer.from_model(model, **feed)(torch.rand(1, 3, 64, 64))
    assert found.cams.shape == (1, 64, 64)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_gives_the_boxes_of_localize(runs, tmp_path, recipe) -> None:
    localizer = Localizer.from_checkpoint(runs[recipe])
    assert localizer.input_size == INPUT
    assert localizer.class_names == ("good", "defect")
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate((INPUT, (90, 120), (41, 57), (20, 16))):
        cv2.imwrite(str(folder / f"{i}.png"), defects(2, size)[1, 0].numpy())
    out = tmp_path / "out"
    assert (
        main(["localize", str(folder), "--run", str(runs[recipe]), "--out", str(out), "--npy"]) == 0
    )
    records = json.loads((out / "results.json").read_text())["images"]
    assert len(records) == 4
    for i, record in enumerate(records):
        picture = cv2.imread(str(folder / f"{i}.png"), cv2.IMREAD_GRAYSCALE)
        found = localizer(torch.from_numpy(picture)[None, None])
        np.testing.assert_allclose(found.cams[0], np.load(out / f"{i}.npy"), atol=1e-5)
        kept = min(int(found.counts[0]), 16)
        assert int(found.counts[0]) == record["components"]
        assert found.boxes[0, :kept].tolist() == [box["box"] for box in record["boxes"]]
        assert int(found.logits[0].argmax()) == record["predicted_class"]


def test_a_runs_threshold_is_validations_unless_given(runs) -> None:
    for folder in runs.values():
        chosen = Localizer.from_checkpoint(folder).threshold
        assert chosen == load_run(folder).extra["threshold"]
        assert Localizer.from_checkpoint(folder, threshold="otsu2").threshold == "otsu2"


def test_files_of_a_run_alone(runs) -> None:
    images = defects(2)
    fcam = Localizer.from_checkpoint(runs["fcam"] / "best.safetensors")
    assert all(map(torch.equal, fcam(images), Localizer.from_checkpoint(runs["fcam"])(images)))
    assert Localizer.from_checkpoint(runs["classifier"] / "best.safetensors").threshold == "otsu"
    file = runs["dips"] / "best.safetensors"
    with pytest.raises(ValueError, match="classifier must be given for a localizer"):
        Localizer.from_checkpoint(file)
    found = Localizer.from_checkpoint(file, classifier=runs["classifier"])
    assert all(map(torch.equal, found(images), Localizer.from_checkpoint(runs["dips"])(images)))


def test_a_moved_classifier_can_be_named(runs, tmp_path) -> None:
    moved = tmp_path / "pseudo"
    moved.mkdir()
    for name in ("config.yaml", "best.safetensors"):
        text = (runs["pseudo"] / name).read_bytes()
        (moved / name).write_bytes(text.replace(b"/classifier\n", b"/elsewhere\n"))
    with pytest.raises(ValueError, match="elsewhere"):
        Localizer.from_checkpoint(moved)
    Localizer.from_checkpoint(moved, classifier=runs["classifier"])


def test_runs_of_gradient_methods_say_what_to_do(runs, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = (runs["classifier"] / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("method: cam", "method: ltgradcam"))
    shutil.copy(runs["classifier"] / "best.safetensors", folder)
    with pytest.raises(ValueError, match=r"of method 'ltgradcam'"):
        Localizer.from_checkpoint(folder)
    closed = Localizer.from_checkpoint(folder, method="cam")
    assert closed.threshold == "otsu"
    file = Localizer.from_checkpoint(folder / "best.safetensors")  # one model, one map
    assert torch.equal(closed(defects(2)).cams, file(defects(2)).cams)
    with pytest.raises(ValueError, match=r"target must be a class of 0 to 1, got 9"):
        GradientLocalizer.from_checkpoint(folder, target=9)
    with pytest.raises(ValueError, match="method must be left out for a model that learnt"):
        Localizer.from_checkpoint(runs["fcam"], method="cam")
    images = defects(2)
    found = GradientLocalizer.from_checkpoint(folder)
    assert isinstance(found.threshold, float)
    wanted = LTGradCAM(found.model)(found.prepare(images)).cams
    wanted = F.interpolate(wanted[:, None], (64, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(found(images).cams, wanted.clamp(0, 1), atol=1e-5, rtol=0)


def test_gradient_methods_have_the_same_call() -> None:
    images = defects(3)
    for method in ("gradcam", "ltgradcam", "racam"):
        localizer = GradientLocalizer.from_model(small_model(), method, **FEED, threshold=0.4)
        found = localizer(images)
        assert isinstance(found, LocalizerOutput)
        assert found.boxes.shape == (3, 16, 4)
        assert torch.equal(found.masks, found.cams >= 0.4)
    closed = Localizer.from_model(small_model(), **FEED)(images)
    last = GradientLocalizer.from_model(
        small_model(), "gradcam", **FEED, method_options={"layers": "last"}
    )(images)
    torch.testing.assert_close(last.cams, closed.cams, atol=1e-4, rtol=0)  # Selvaraju 2017, eq. 6
    with pytest.raises(ValueError, match="must be eager"):
        torch.export.export(localizer, (images,), strict=False)


def test_it_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    localizer, images = small_localizer(threshold=0.5), defects(3)
    compiled = torch.compile(localizer, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_same(compiled(images), localizer(images))


def test_it_waits_for_no_value_and_shapes_need_none() -> None:
    """Under fake tensors there are no values: anything that looked at one would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = small_localizer()(torch.empty(2, 1, 50, 40, dtype=torch.uint8))
    assert found.boxes.shape == (2, 16, 4)


def test_it_exports_with_a_dynamic_batch() -> None:
    localizer, images = small_localizer(), defects(5)
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(localizer, (images[:2],), dynamic_shapes=batch).module()
    for count in (1, 5):
        assert all(map(torch.equal, program(images[:count]), localizer(images[:count])))


def test_it_scripts_where_its_network_does(tmp_path) -> None:
    images = defects(4)
    for options in ({}, {"threshold": 0.4, "output_size": (20, 30)}, {"norm": None}):
        localizer = Localizer(TwoLayers(), **FEED, **options)
        scripted = torch.jit.script(localizer)
        for given in (images, images.float() / 255, images[:1]):
            assert all(map(torch.equal, scripted(given), localizer(given)))
    with pytest.raises(torch.jit.Error, match="images must be of shape"):
        scripted(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (torch.zeros(1, 3, 32, 16), ValueError, r"images must be of shape \(N, 1, H, W\)"),
        (torch.zeros(1, 1, 0, 16), ValueError, "images must be of shape"),
        (torch.zeros(1, 32, 16), ValueError, "images must be a tensor of 4 dimensions"),
        (torch.zeros(1, 1, 32, 16, dtype=torch.int32), TypeError, "images must be uint8"),
        (np.zeros((1, 1, 32, 16)), TypeError, "images must be a torch.Tensor"),
    ],
)
def test_bad_images(images, kind, message) -> None:
    with pytest.raises(kind, match=f"wsfast.deploy.Localizer: {message}"):
        small_localizer()(images)


@pytest.mark.parametrize(
    ("options", "kind", "argument"),
    [
        ({"threshold": "mean"}, ValueError, "threshold"),
        ({"threshold": 1.5}, ValueError, "threshold"),
        ({"threshold": None}, TypeError, "threshold"),
        ({"max_boxes": 0}, ValueError, "max_boxes"),
        ({"min_area": 0}, ValueError, "min_area"),
        ({"connectivity": 6}, ValueError, "connectivity"),
        ({"input_size": (0, 4)}, ValueError, "input_size"),
        ({"output_size": (3.5, 4)}, TypeError, "output_size"),
        ({"std": (0.0,)}, ValueError, "std"),
        ({"mean": (0.1, 0.2)}, ValueError, "std"),
        ({"target": 2}, ValueError, "target"),
        ({"target": -1}, ValueError, "target"),
    ],
)
def test_bad_settings(options, kind, argument) -> None:
    with pytest.raises(kind, match=f"{argument} must be"):
        small_localizer(**options)


def test_bad_networks_and_paths(tmp_path) -> None:
    with pytest.raises(TypeError, match="network must be"):
        Localizer(lambda images: images, **FEED)
    with pytest.raises(ValueError, match="reduce must be"):
        Localizer(TwoLayers(), **FEED, reduce="median")
    with pytest.raises(ValueError, match="mean must be given for a SmallVGG"):
        Localizer.from_model(small_model())
    with pytest.raises(ValueError, match="nowhere"):
        Localizer.from_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="method must be one of cam"):
        Localizer.from_checkpoint(tmp_path, method="gradcam")
    with pytest.raises(ValueError, match="method must be one of"):
        GradientLocalizer.from_model(small_model(), "nocam", **FEED)
    with pytest.raises(TypeError, match="method must be a method"):
        GradientLocalizer(small_model(), **FEED)


def test_timm_models_in_checkpoints(tmp_path) -> None:
    model = timm.create_model("test_resnet", pretrained=False, num_classes=2, in_chans=1).eval()
    config = {"architecture": "timm", "name": "test_resnet", "num_classes": 2, "in_chans": 1}
    save_checkpoint(
        model, tmp_path / "net.safetensors", class_names=("a", "b"), config=config, **FEED
    )
    found = Localizer.from_checkpoint(tmp_path / "net.safetensors")(defects(2))
    assert found.logits.shape == (2, 2)


def test_decoders_maps_are_their_foreground_probability() -> None:
    images = defects(2, INPUT)
    prepared = (images / 255 - 0.4) / 0.2
    fcam = FCAMModel(small_model()).eval()
    unet = UNetLocalizer("small_vgg", in_chans=1).eval()
    for network, map_logits in (
        (DecoderNetwork(fcam), fcam(prepared).map_logits),
        (PairNetwork(unet, small_model()), unet(prepared)),
    ):
        found = Localizer(network, **FEED, layer_norm=None, norm=None)(images)
        torch.testing.assert_close(found.cams, map_logits.softmax(1)[:, 1].detach())


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match=r"deploy.capture: example must be on a CUDA device"):
        capture(small_localizer(), defects(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_gives_the_same_boxes() -> None:
    localizer, images = small_localizer(threshold=0.5).cuda(), defects(6).cuda()
    captured = capture(localizer, images[:2])
    for first in (0, 2, 4):
        batch = images[first : first + 2]
        assert_same(captured(batch), localizer(batch))
    with pytest.raises(ValueError, match="images must be"):
        captured(images)
