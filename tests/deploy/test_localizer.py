"""The module that is deployed: what comes out of it, and what may go in."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.deploy.small import (
    FEED,
    INPUT,
    TwoLayers,
    assert_same,
    defects,
    small_localizer,
    small_model,
)
from wsfast import ops
from wsfast.cam import CAM
from wsfast.deploy import GradientLocalizer, Localizer, LocalizerOutput, prepare_images


def gradient_localizer(**options: object) -> GradientLocalizer:
    return GradientLocalizer.from_model(small_model(), "gradcam", **FEED, **options)


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


@pytest.mark.parametrize("kind", [Localizer, GradientLocalizer])
def test_pictures_are_prepared_for_the_model_as_it_is(kind) -> None:
    images = defects(2)
    plain = kind.from_model(small_model(), **FEED)(images)
    exact = kind.from_model(small_model().double(), **FEED)(images)
    torch.testing.assert_close(exact.cams, plain.cams, atol=1e-4, rtol=0)
    assert exact.cams.dtype == plain.cams.dtype == torch.float32


def test_whole_numbers_of_normalisation_do_not_cut_pictures() -> None:
    localizer = Localizer.from_model(small_model(), mean=[0], std=[1], input_size=INPUT)
    prepared = localizer.prepare(defects(2))
    assert prepared.dtype == torch.float32
    assert len(prepared.unique()) > 10
    again = localizer.with_network(localizer.network)
    assert torch.equal(again.prepare(defects(2)), prepared)


@pytest.mark.parametrize("kind", [Localizer, GradientLocalizer])
def test_timms_normalisation_is_of_three_channels(kind) -> None:
    grey = timm.create_model("resnet10t", in_chans=1, num_classes=2).eval()
    with pytest.raises(ValueError, match="mean must be given for this ResNet, got None"):
        kind.from_model(grey)
    given = kind.from_model(grey, mean=(0.4,), std=(0.2,), input_size=(32, 32))
    assert given(defects(2)).logits.shape == (2, 2)
    colour = kind.from_model(timm.create_model("resnet10t", num_classes=2).eval())
    assert colour.channels == 3


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
        ({"connectivity": 8.0}, TypeError, "connectivity"),
        ({"input_size": (0, 4)}, ValueError, "input_size"),
        ({"output_size": (3.5, 4)}, TypeError, "output_size"),
        ({"std": (0.0,)}, ValueError, "std"),
        ({"std": (math.nan,)}, ValueError, "std"),
        ({"std": (math.inf,)}, ValueError, "std"),
        ({"mean": (math.nan,)}, ValueError, "mean"),
        ({"mean": ("0.1",)}, TypeError, "mean"),
        ({"mean": (0.1, 0.2)}, ValueError, "std"),
        ({"target": 2}, ValueError, "target"),
        ({"target": -1}, ValueError, "target"),
    ],
)
def test_bad_settings(options, kind, argument) -> None:
    with pytest.raises(kind, match=f"{argument} must be"):
        small_localizer(**options)
