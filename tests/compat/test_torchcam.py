"""torchcam's interface: against wsfast.cam always, against the package where installed."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cam.nets import GapNet, minmax
from wsfast import cam as methods
from wsfast.compat import torchcam as compat

NAMES = [
    "CAM", "GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM", "ScoreCAM", "SmoothGradCAMpp", "SSCAM",
    "ISCAM",
]  # fmt: skip
OPTIONS = {"SSCAM": {"num_samples": 3, "std": 0.5}, "ISCAM": {"num_samples": 4}}
IMAGES = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model() -> nn.Module:
    model = GapNet().eval()
    model.head.weight.data *= 20
    return model


def layers_of(name: str) -> list[str]:
    return ["act3"] if name in ("CAM", "ScoreCAM", "ISCAM") else ["act1", "act3"]


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("class_idx", [1, [0, 3, 2]])
@pytest.mark.parametrize("normalized", [True, False])
def test_same_results(
    model: nn.Module, name: str, class_idx: int | list[int], normalized: bool
) -> None:
    peer = pytest.importorskip("torchcam.methods")
    results = []
    for module in (peer, compat):
        options = OPTIONS.get(name, {})
        with getattr(module, name)(model, target_layer=layers_of(name), **options) as extractor:
            scores = model(IMAGES)
            torch.manual_seed(11)  # of SSCAM's and SmoothGradCAMpp's noise
            maps = extractor(class_idx, scores, normalized=normalized)
            results.append((maps, extractor.fuse_cams(maps), extractor.target_names))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    (expected, fused, names), (found, ours, own) = results
    assert own == names
    for a, b in zip([*found, ours], [*expected, fused], strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_before_an_in_place_relu_gives_its_changed_output(name: str) -> None:
    model = GapNet(partial(nn.ReLU, inplace=True)).eval()
    maps = []
    for layer in ("conv3", "act3"):
        with getattr(compat, name)(model, layer, **OPTIONS.get(name, {})) as extractor:
            scores = model(IMAGES)
            torch.manual_seed(11)
            maps.append(extractor(1, scores, normalized=False)[0])
    torch.testing.assert_close(maps[0], maps[1])


class OfBytes(GapNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() / 255)


@pytest.mark.peers
def test_noise_on_images_of_bytes_for_a_frozen_model() -> None:
    images = (IMAGES * 50 + 128).clamp(0, 255).byte()
    model = OfBytes().eval().requires_grad_(False)
    maps = []
    for module in (pytest.importorskip("torchcam.methods"), compat):
        with module.SmoothGradCAMpp(model, "act3") as extractor:
            scores = model(images)
            torch.manual_seed(11)
            maps.append(extractor(1, scores)[0])
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "RefineCAM"])
@pytest.mark.parametrize("metric", ["ClassificationMetric", "DeletionInsertionMetric"])
def test_metrics_of_torchcam(model: nn.Module, name: str, metric: str) -> None:
    peer = pytest.importorskip("torchcam.methods")
    kind = getattr(pytest.importorskip("torchcam.metrics"), metric)
    summaries = []
    for module in (peer, compat):
        with getattr(module, name)(model, ["act1", "act3"]) as extractor:
            measured = kind(extractor, partial(torch.softmax, dim=-1))
            measured.update(IMAGES)
            summaries.append(measured.summary())
    assert summaries[1] == pytest.approx(summaries[0], abs=1e-3)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "ScoreCAM", "SmoothGradCAMpp"])
def test_targets(model: nn.Module, name: str) -> None:
    peer = pytest.importorskip("torchcam.methods")
    targets: list[Any] = [lambda row: row[0] - row[1], lambda row: row[2], lambda row: row[1]]
    maps = []
    for module in (peer, compat):
        with getattr(module, name)(model, target_layer=layers_of(name)) as extractor:
            scores = model(IMAGES)
            torch.manual_seed(11)
            maps.append(extractor(scores=scores, targets=targets))
    for a, b in zip(*maps, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("class_idx", [4, [0, 3, 4]])
def test_a_class_that_there_is_not(model: nn.Module, name: str, class_idx: Any) -> None:
    message = r"compat\.torchcam\.\w+: class_idx must be class numbers from 0 to 3, got "
    for kind in (IndexError, RuntimeError):  # one of which torchcam raises
        extractor = getattr(compat, name)(model, layers_of(name), **OPTIONS.get(name, {}))
        with extractor, pytest.raises(kind, match=message):
            extractor(class_idx, model(IMAGES))


@pytest.mark.peers
@pytest.mark.parametrize("class_idx", [4, [0, 3, 4]])
def test_torchcams_users_catch_it_as_before(model: nn.Module, class_idx: Any) -> None:
    peer = pytest.importorskip("torchcam.methods")
    for name in ("CAM", "GradCAM"):
        with getattr(peer, name)(model, layers_of(name)) as extractor:
            scores = model(IMAGES)
            with pytest.raises((IndexError, RuntimeError)) as caught:
                extractor(class_idx, scores)
        with getattr(compat, name)(model, layers_of(name)) as extractor:
            scores = model(IMAGES)
            with pytest.raises(caught.type):
                extractor(class_idx, scores)


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_accelerate(model: nn.Module, name: str) -> None:
    peer = pytest.importorskip("torchcam.methods")
    theirs = getattr(peer, name)(model, target_layer=layers_of(name), **OPTIONS.get(name, {}))
    scores = model(IMAGES)
    torch.manual_seed(11)
    expected = theirs(1, scores)
    fast = compat.accelerate(theirs)
    scores = model(IMAGES)
    torch.manual_seed(11)
    for a, b in zip(fast(1, scores), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)
    fast.remove_hooks()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.peers
def test_accelerate_takes_torchcams_own_classes_alone(model: nn.Module) -> None:
    peer = pytest.importorskip("torchcam.methods")
    own = type("GradCAM", (peer.GradCAM,), {"__module__": "of.a.user"})
    with pytest.raises(TypeError, match=r"got of\.a\.user\.GradCAM"):
        compat.accelerate(own(model, "act3"))


@pytest.mark.peers
def test_the_same_names() -> None:
    peer = pytest.importorskip("torchcam.methods")
    names = {name for part in (peer.activation, peer.gradient) for name in part.__all__}
    assert names - {"LeGrad"} == set(compat.__all__) - {"OutputTarget", "accelerate"}
    assert peer.OutputTarget.__origin__ is compat.OutputTarget.__origin__


def test_a_list_of_scores(model: nn.Module) -> None:
    targets: list[Any] = [lambda row: row[0]] * 3
    with compat.GradCAM(model, "act3") as extractor:
        (expected,) = extractor(0, model(IMAGES))
        (found,) = extractor(scores=list(model(IMAGES)), targets=targets)
    torch.testing.assert_close(found, expected)


@pytest.mark.peers
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("shape", [None, (20, 30)])
def test_refined(model: nn.Module, normalized: bool, shape: tuple[int, int] | None) -> None:
    peer = pytest.importorskip("torchcam.methods")
    with peer.RefineCAM(model, ["act1", "act3"], base_method=peer.LayerCAM) as theirs:
        (expected,) = theirs(1, model(IMAGES), normalized, shape)
    for ours in (
        compat.RefineCAM(model, ["act1", "act3"], base_method=compat.LayerCAM),
        compat.accelerate(peer.RefineCAM(model, ["act1", "act3"], base_method=peer.LayerCAM)),
    ):
        with ours:
            (found,) = ours(1, model(IMAGES), normalized, shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.peers
@pytest.mark.parametrize("comparison", [None, 3, [0, 3], [[0], [1], [3]]])
def test_finer(model: nn.Module, comparison: Any) -> None:
    peer = pytest.importorskip("torchcam.methods")
    theirs = peer.FinerCAM(model, ["act1", "act3"], base_method=peer.LayerCAM, gamma=0.7)
    with theirs:
        expected = theirs([2, 2, 1], model(IMAGES), comparison, normalized=False)
    accelerated = compat.accelerate(peer.FinerCAM(model, "act3", num_references=2))
    assert (accelerated.num_references, accelerated.gamma) == (2, 0.6)
    accelerated.remove_hooks()
    ours = compat.FinerCAM(model, ["act1", "act3"], base_method=compat.LayerCAM, gamma=0.7)
    with ours:
        found = ours([2, 2, 1], model(IMAGES), comparison, normalized=False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)
    assert not any(m._forward_hooks for m in model.modules())


def test_noise_follows_the_global_generator(model: nn.Module) -> None:
    with compat.SmoothGradCAMpp(model, "act3", num_samples=40) as extractor:
        model(IMAGES)
        torch.manual_seed(1)
        first = extractor(1)[0]
        assert not torch.equal(extractor(1)[0], first)
        torch.manual_seed(1)
        torch.testing.assert_close(extractor(1)[0], first)
    assert extractor.hook_handles == []
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.peers
def test_the_same_layer_is_found(model: nn.Module, caplog) -> None:
    peer = pytest.importorskip("torchcam.methods")
    with caplog.at_level(logging.WARNING):
        ours = compat.LayerCAM(model, input_shape=(3, 24, 32)).target_names
    assert "thus set to 'act3'" in caplog.text
    assert ours == peer.LayerCAM(model, input_shape=(3, 24, 32)).target_names


@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM"])
def test_is_the_method_of_that_name(model: nn.Module, name: str) -> None:
    with getattr(compat, name)(model, ["act1", "act3"]) as extractor:
        found = extractor([1, 0, 3], model(IMAGES), normalized=False)
        expected = getattr(methods, name)(model, ["act1", "act3"])(IMAGES, [1, 0, 3]).per_layer
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        again = extractor(2, model(IMAGES), retain_graph=True)
        raw = extractor(2, model(IMAGES), normalized=False)
        torch.testing.assert_close(again[0], minmaxed(raw[0]))


def minmaxed(maps: Tensor) -> Tensor:
    low = maps.amin((1, 2), keepdim=True)
    shifted = maps - low
    return shifted / (shifted.amax((1, 2), keepdim=True) + 1e-8)


def test_hooks_can_be_switched_off(model: nn.Module) -> None:
    extractor = compat.GradCAM(model, "act3", enable_hooks=False)
    model(IMAGES)
    with pytest.raises(AssertionError, match="has to be called first"):
        extractor(0, model(IMAGES))
    extractor.enable_hooks()
    scores = model(IMAGES)
    extractor.disable_hooks()
    model(IMAGES[:1])
    assert extractor(0, scores)[0].shape == (3, 12, 16)
    extractor.reset_hooks()
    with pytest.raises(AssertionError, match="has to be called first"):
        extractor(0, scores)


def test_fusing() -> None:
    small, large = torch.rand(2, 3, 4), torch.rand(2, 6, 8)
    up = nn.functional.interpolate(small[:, None], (6, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(compat.GradCAM.fuse_cams([small, large]), torch.maximum(up, large))
    scaled = compat.LayerCAM.fuse_cams([small, large], (6, 8))
    up = nn.functional.interpolate((2 * small).tanh()[:, None], (6, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(scaled, torch.maximum(up, (2 * large).tanh()))
    assert compat.GradCAM.fuse_cams([small]) is small


def test_flat_maps_are_zero_and_no_gradient_is_touched(model: nn.Module) -> None:
    nn.init.zeros_(model.head.weight)
    with compat.GradCAM(model, "act3") as extractor:
        maps = extractor(0, model(IMAGES))
    assert not maps[0].any()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert minmax(maps[0]).isfinite().all()


def finer(model: nn.Module, class_idx: Any, scores: Any = "its own", **options: Any) -> Any:
    with compat.FinerCAM(model, "act3") as cam:
        found = model(IMAGES)
        return cam(class_idx, found if scores == "its own" else scores, **options)


def of_rows(model: nn.Module) -> Any:
    with compat.GradCAM(model, "head") as extractor:
        return extractor(0, model(IMAGES))


@torch.inference_mode()
def in_inference_mode(model: nn.Module) -> Any:
    with compat.SmoothGradCAMpp(model, "act3") as extractor:
        return extractor(0, model(IMAGES))


ERRORS = [
    (lambda m, s: compat.GradCAM(m, "act9"), ValueError, "target_layer must be names of modules"),
    (lambda m, s: compat.GradCAM(m, 3), TypeError, "target_layer must be names or modules"),
    (lambda m, s: compat.GradCAM(m, nn.ReLU()), ValueError, "must be modules of the model"),
    (lambda m, s: compat.CAM(m, ["act1", "act3"]), ValueError, "target_layer must be one layer"),
    (lambda m, s: compat.CAM(nn.Sequential(m, nn.Linear(4, 4)), "0.act3"), ValueError, "fc_layer"),
    (lambda m, s: s(m)(None, m(IMAGES)), ValueError, "class_idx must be given"),
    (lambda m, s: s(m)(-1, m(IMAGES)), ValueError, "class_idx must be class numbers"),
    (lambda m, s: s(m)(torch.tensor(1), m(IMAGES)), ValueError, r"an int or .* got tensor\(1\)"),
    (lambda m, s: of_rows(m), ValueError, r"of \(N, C, h, w\) .* got shape \[3, 4\] from 'head'"),
    (lambda m, s: in_inference_mode(m), ValueError, "model must be called outside torch.inference"),
    (lambda m, s: s(m)([0, 1], m(IMAGES)), ValueError, "class_idx must be one per image"),
    (lambda m, s: s(m)(0), ValueError, "scores must be the model's output"),
    (lambda m, s: s(m)(0, m(IMAGES).detach()), RuntimeError, "no graph to every target layer"),
    (lambda m, s: compat.GradCAM.fuse_cams([]), ValueError, "at least one tensor"),
    (lambda m, s: compat.GradCAM.fuse_cams("maps"), TypeError, "a list of tensors"),
    (lambda m, s: compat.RefineCAM(m, ["act3"]), ValueError, "a list of two layers or more"),
    (
        lambda m, s: compat.RefineCAM(m, ["act1", "act3"], base_method=int),
        TypeError,
        "an extractor",
    ),
    (lambda m, s: compat.FinerCAM(m, "act3", base_method=compat.CAM), TypeError, "GradCAM, GradC"),
    (lambda m, s: compat.FinerCAM(m, "act3", gamma=-1), ValueError, "gamma must be between"),
    (lambda m, s: finer(m, 0, None), ValueError, "scores must be the model's"),
    (lambda m, s: finer(m, 9), ValueError, "class_idx must be class numbers from 0 to 3"),
    (lambda m, s: finer(m, [0, 1]), ValueError, r"class_idx must be one per image \(3\)"),
    (lambda m, s: finer(m, 0, comparison_idx=[1, 0]), ValueError, "other classes than the"),
    (lambda m, s: finer(m, 0, comparison_idx=[[1], [2, 3], [1]]), ValueError, "rows of one length"),
    (
        lambda m, s: __import__("wsfast.compat.torchcam", fromlist=["LeGrad"]).LeGrad,
        ImportError,
        "attention_rollout",
    ),
    (lambda m, s: compat.LeGrad, AttributeError, "attention_rollout"),
    (lambda m, s: compat.accelerate(object()), TypeError, "extractor must be a torchcam extractor"),
    (
        lambda m, s: compat.accelerate(s(m)),
        TypeError,
        r"got wsfast\.compat\.torchcam\.gradient\.Gr",
    ),
    (lambda m, s: s(m)(0, (m(IMAGES),)), TypeError, "scores must be a tensor, got tuple"),
    (
        lambda m, s: s(m)(scores=(m(IMAGES),), targets=[lambda row: row[0]] * 3),
        TypeError,
        "scores must be a tensor or a list with an item per image, got tuple",
    ),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(model: nn.Module, case: int) -> None:
    act, kind, message = ERRORS[case]

    def watching(model: nn.Module) -> compat.GradCAM:
        extractor = compat.GradCAM(model, "act3")
        model(IMAGES)
        return extractor

    with pytest.raises(kind, match=message):
        act(model, watching)


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "SSCAM", "ISCAM", "SmoothGradCAMpp"])
def test_layers_of_a_wrapped_model(model: nn.Module, name: str) -> None:
    kind, options = getattr(compat, name), OPTIONS.get(name, {})
    maps = []
    for called, layer in ((model, "act3"), (nn.DataParallel(model), model.act3)):
        torch.manual_seed(3)
        with kind(called, layer, **options) as extractor:
            maps.append(extractor(1, called(IMAGES))[0])
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize("name", ["ScoreCAM", "SmoothGradCAMpp"])
def test_the_images_are_those_of_the_call(model: nn.Module, name: str) -> None:
    """Whatever is written to their buffer before maps are asked for."""
    maps = []
    for value in (None, 0.0):
        images = IMAGES.clone()
        torch.manual_seed(3)
        with getattr(compat, name)(model, "act3") as extractor:
            scores = model(images)
            if value is not None:
                images.fill_(value)
            maps.append(extractor(1, scores)[0])
    torch.testing.assert_close(maps[0], maps[1])
