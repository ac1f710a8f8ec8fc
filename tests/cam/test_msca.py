"""Multi-scale CAM, MS-CA, TS-CAM and the refinements beside them."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import GapNet, minmax
from tests.cam.test_attention import matrices, small_vit
from wsfast import ops
from wsfast.cam import (
    MSCA,
    TSCAM,
    GradCAM,
    attention_map,
    attention_rollout,
    multiscale,
)

SCALES = (0.25, 0.5, 1.0)


def shrunk(images: Tensor, scale: float) -> Tensor:
    size = [round(side * scale) for side in images.shape[2:]]
    if scale == 1:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=scale < 1)


def gapnet() -> nn.Module:
    torch.manual_seed(3)
    model = GapNet().eval()
    model.head.weight.data += 0.3
    return model


def test_multiscale_equals_the_formula() -> None:
    model, images = gapnet(), torch.randn(2, 3, 64, 80)
    found = multiscale(GradCAM(model, "act3"), images, 1, scales=SCALES)
    maps = [GradCAM(model, "act3", norm=None)(shrunk(images, s), 1).cams for s in SCALES]
    up = [F.interpolate(minmax(m)[:, None], (64, 80), mode="bilinear")[:, 0] for m in maps]
    torch.testing.assert_close(found.cams, minmax(torch.stack(up).mean(0)), rtol=0, atol=1e-5)
    assert [m.shape[1:] for m in found.per_layer] == [(16, 20), (32, 40), (64, 80)]


def test_raw_mean_is_an_option() -> None:
    model, images = gapnet(), torch.randn(1, 3, 32, 32)
    method = GradCAM(model, "act3", norm=None, layer_norm=None)
    found = multiscale(method, images, 1, scales=(1.0, 0.5), scale_norm=None, norm=None)
    maps = [method(shrunk(images, s), 1).cams for s in (1.0, 0.5)]
    up = [F.interpolate(m[:, None], (32, 32), mode="bilinear")[:, 0] for m in maps]
    torch.testing.assert_close(found.cams, torch.stack(up).mean(0))


def test_every_scale_explains_one_class() -> None:
    model, images = gapnet(), torch.randn(4, 3, 64, 64)
    found = multiscale(GradCAM(model, "act3"), images, scales=(0.25, 1.0, 0.5))
    assert torch.equal(found.target, model(images).argmax(1))
    assert torch.equal(found.logits, model(images).detach())
    fixed = multiscale(GradCAM(model, "act3"), images, found.target, scales=(0.25, 1.0, 0.5))
    assert torch.equal(found.cams, fixed.cams)
    several = multiscale(GradCAM(model, "act3"), images, [[0, 1]] * 4)
    assert several.cams.shape == (4, 2, 64, 64)
    one = multiscale(GradCAM(model, "act3"), images, 1)
    torch.testing.assert_close(several.cams[:, 1], one.cams)


def test_multiscale_keeps_invalid_images_apart() -> None:
    model, images = gapnet(), torch.randn(2, 3, 32, 32)
    images[1, 0, 5, 5] = math.nan
    found = multiscale(GradCAM(model, "act3"), images, 1)
    assert found.valid.tolist() == [True, False]
    assert not found.cams[1].any()
    for scales in ([], [0.5, 0.0], [math.inf], [math.nan]):
        with pytest.raises(ValueError, match="scales must be positive factors"):
            multiscale(GradCAM(model, "act3"), images, scales=scales)


@pytest.mark.parametrize("relative", [False, True])
def test_msca_equals_equations_4_to_7(relative: bool) -> None:
    model, vit, images = gapnet(), small_vit(), torch.randn(2, 3, 64, 96)
    method = GradCAM(model, "act3")
    found = MSCA(method, vit, threshold=0.6, relative=relative, min_area=4)(images, 1)
    attention = attention_map(vit, shrunk(images, 0.5), size=(64, 96))
    scores = (attention + multiscale(method, images, 1).cams) / 2
    torch.testing.assert_close(found.scores, scores)
    limits = 0.6 * scores.amax((1, 2)) if relative else torch.full((2,), 0.6)
    assert torch.equal(found.masks, found.scores >= limits[:, None, None])
    boxes = ops.suppress_overlaps(ops.cam_boxes(scores, limits, min_area=4), 0.5)
    assert torch.equal(found.boxes.boxes, boxes.boxes)
    assert found.boxes.counts.min() > 0
    kept = found.boxes.scores[0][: int(found.boxes.counts[0])]
    assert torch.equal(kept, kept.sort(descending=True).values)


def test_what_has_no_score_is_not_marked() -> None:
    model, vit, images = gapnet(), small_vit(), torch.randn(3, 3, 64, 64)
    images[1, 0, 5, 5] = math.nan
    for threshold, relative in ((0.5, True), (0.0, True), (0.0, False)):
        method = GradCAM(model, "act3")
        found = MSCA(method, vit, threshold=threshold, relative=relative)(images, 1)
        assert found.valid.tolist() == [True, False, True]
        assert found.masks.flatten(1).any(1).tolist() == [True, False, True]
        assert found.boxes.counts[1] == 0


def test_msca_otsu_and_images_of_its_own_for_the_transformer() -> None:
    model, vit, images = gapnet(), small_vit(), torch.randn(1, 3, 64, 64)
    msca = MSCA(GradCAM(model, "act3"), vit, threshold="otsu", attention_scale=1.0)
    found = msca(images, 1, attention_images=2 * images)
    torch.testing.assert_close(found.attention, attention_map(vit, 2 * images))
    limit = ops.otsu_threshold(found.scores)
    assert torch.equal(found.masks, found.scores >= limit[:, None, None])
    images[0, 0, 0, 0] = math.nan
    broken = MSCA(GradCAM(model, "act3"), vit)(
        images, 1, attention_images=torch.randn(1, 3, 64, 64)
    )
    assert not broken.scores.any()
    assert broken.boxes.counts.tolist() == [0]


@pytest.mark.parametrize("broken", ["both", "attention_images"])
def test_msca_keeps_invalid_images_apart(broken: str) -> None:
    msca, images = MSCA(GradCAM(gapnet(), "act3"), small_vit()), torch.randn(2, 3, 64, 64)
    alone = msca(images[:1], 1)
    bad = images.clone()
    bad[1, 0, 5, 5] = math.nan
    found = msca(bad, 1) if broken == "both" else msca(images, 1, attention_images=bad)
    assert found.valid.tolist() == [True, False]
    assert found.cam.valid.tolist() == [True, broken != "both"]
    assert not found.scores[1].any()
    assert found.boxes.counts[1] == 0
    torch.testing.assert_close(found.scores[:1], alone.scores)


def test_a_size_that_the_model_refuses_is_named() -> None:
    vit = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32, num_classes=2).eval()
    with pytest.raises(ValueError, match=r"scales must be .*dynamic_img_size=True.*got 0.5, which"):
        multiscale(GradCAM(vit), torch.randn(1, 3, 32, 32), scales=(0.5, 1.0))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("scales", (0.5, math.inf)),
        ("scale_norm", "mean"),
        ("attention_scale", math.nan),
        ("head_norm", "mean"),
        ("attention_mode", "cubic"),
        ("max_boxes", 0),
        ("connectivity", 6),
        ("min_area", 0),
    ],
)
def test_msca_is_not_made_of_options_out_of_range(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"cam.MSCA: {argument} must be"):
        MSCA(GradCAM(gapnet(), "act3"), small_vit(), **{argument: value})


def test_msca_errors() -> None:
    method, vit = GradCAM(gapnet(), "act3"), small_vit()
    with pytest.raises(ValueError, match="threshold must be otsu"):
        MSCA(method, vit, threshold="mean")
    with pytest.raises(ValueError, match="threshold must be between"):
        MSCA(method, vit, threshold=1.5)
    with pytest.raises(ValueError, match="attention_scale must be positive"):
        MSCA(method, vit, attention_scale=0)
    with pytest.raises(ValueError, match="model must be a timm vision transformer"):
        MSCA(method, gapnet())
    with pytest.raises(ValueError, match=r"target must be of shape \(1,\)"):
        MSCA(method, vit)(torch.randn(1, 3, 32, 32), [[0, 1]])
    two = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="attention_images must be of 2 images, got 1"):
        MSCA(method, vit)(two, 1, attention_images=two[:1])
    with pytest.raises(ValueError, match="attention_images must be a tensor of 4 dimensions"):
        MSCA(method, vit)(two, 1, attention_images=two[0])


def deit(**options: object) -> TSCAM:
    torch.manual_seed(2)
    vit = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=(32, 48), **options)
    return TSCAM(vit, 3).eval()


@pytest.mark.parametrize("attention", ["mean", "rollout"])
def test_tscam_equals_the_formula(attention: str) -> None:
    model, images = deit(), torch.randn(2, 3, 32, 48)
    found = model.explain(images, [2, 0], attention=attention)
    tokens = model.vit.forward_features(images)[:, 1:]
    semantics = model.head(tokens.transpose(1, 2).reshape(2, -1, 2, 3))
    torch.testing.assert_close(found.logits, semantics.mean((2, 3)).detach())
    torch.testing.assert_close(model(images).detach(), found.logits)
    if attention == "mean":
        rows = [m.mean(1)[:, 0, 1:] for m in matrices(deit().vit, images)]
        weights = torch.stack(rows).mean(0).view(2, 2, 3)
    else:
        weights = attention_rollout(model.vit, images)
    expected = weights * semantics[[0, 1], [2, 0]].detach()
    torch.testing.assert_close(found.per_layer[0], expected, rtol=1e-5, atol=1e-7)
    up = F.interpolate(minmax(expected)[:, None], (32, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(found.cams, minmax(up), rtol=0, atol=1e-5)


def test_tscam_keeps_each_patch_in_its_place() -> None:
    found = deit().explain(torch.randn(2, 3, 47, 50), 1)
    maps = minmax(found.per_layer[0])
    assert maps.shape == (2, 2, 3)
    up = F.interpolate(maps[:, None], (32, 48), mode="bilinear")
    expected = minmax(F.pad(up, (0, 2, 0, 15), mode="replicate")[:, 0])
    torch.testing.assert_close(found.cams, expected, rtol=0, atol=1e-5)


def test_tscam_checks_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = deit(), torch.randn(2, 3, 32, 48)
    for wrong in (torch.zeros(2, 3, 32, 48, dtype=torch.uint8), "images"):
        with pytest.raises(TypeError, match=r"cam.TSCAM: images must be"):
            model.explain(wrong)
    with pytest.raises(ValueError, match=r"cam.TSCAM: images must be a tensor of 4 dimensions"):
        model.explain(images[0])
    # Class numbers on an accelerator are not looked at.
    monkeypatch.setattr("wsfast.cam.tscam.resolve_target", lambda *_: torch.tensor([2, 7]))
    found = model.explain(images)
    assert found.valid.tolist() == [True, False]
    assert not found.cams[1].any()
    images[0, 0, 0, 0] = math.nan
    for attention in ("mean", "rollout"):
        assert not model.explain(images, attention=attention).valid.any()


def test_tscam_trains_and_takes_other_sizes() -> None:
    model = deit().train()
    model(torch.randn(2, 3, 48, 64)).square().sum().backward()
    assert model.vit.patch_embed.proj.weight.grad.abs().sum() > 0
    assert model.training
    several = model.explain(torch.randn(2, 3, 50, 64), [[0, 1], [1, 2]])
    assert several.cams.shape == (2, 2, 50, 64)
    assert several.per_layer[0].shape == (2, 2, 3, 4)
    assert model.training
    with pytest.raises(ValueError, match="target must be class numbers"):
        model.explain(torch.randn(1, 3, 32, 48), lambda logits: logits[:, 0])
    with torch.inference_mode(), pytest.raises(ValueError, match="inference"):
        model.explain(torch.randn(1, 3, 32, 48))


def test_tscam_refuses_a_transformer_that_drops_patches() -> None:
    with pytest.raises(ValueError, match="vit must be a transformer that drops no patches"):
        TSCAM(small_vit(patch_drop_rate=0.25), 3)
