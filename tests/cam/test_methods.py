"""CAM methods against float64 formulas."""

import copy
import warnings
from unittest import mock

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.cam.formulas import FORMULAS, mean_weighted, oracle
from tests.cam.nets import GapNet, SmallNet, fuse, passes
from wsfast.cam import (
    CAM,
    METHODS,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    LTGradCAM,
    LTLayerCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
    gradient,
    smooth,
)
from wsfast.ops.truncation import reference as truncation

RESNET_STAGES = ["relu", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("layers", [["relu3"], ["relu1", "relu2", "relu3"]])
def test_equals_float64_formula(method: str, layers: list[str]) -> None:
    model, images = SmallNet().eval(), torch.randn(3, 3, 40, 56)
    expected = oracle(model, images, layers, FORMULAS[method])
    result = METHODS[method](model, layers)(images)
    torch.testing.assert_close(result.cams.double(), expected, rtol=0, atol=5e-6)
    assert result.cams.dtype == torch.float32
    assert result.valid.all()
    assert [m.shape for m in result.per_layer] == [
        {"relu1": (3, 40, 56), "relu2": (3, 20, 28), "relu3": (3, 10, 14)}[n] for n in layers
    ]


@pytest.mark.parametrize("method", FORMULAS)
def test_equals_float64_formula_on_resnet18(resnet18: nn.Module, method: str) -> None:
    images = torch.randn(2, 3, 64, 96)
    expected = oracle(resnet18, images, RESNET_STAGES, FORMULAS[method])
    cams = METHODS[method](resnet18, RESNET_STAGES)(images).cams
    torch.testing.assert_close(cams.double(), expected, rtol=0, atol=5e-6)


def test_gradcamplusplus_with_pytorch_grad_cams_epsilon() -> None:
    def formula(a: Tensor, g: Tensor) -> Tensor:
        alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6)
        return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu()

    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    expected = oracle(model, images, ["relu1", "relu3"], formula)
    cams = GradCAMPlusPlus(model, ["relu1", "relu3"], alpha_eps=1e-6)(images).cams
    torch.testing.assert_close(cams.double(), expected, rtol=0, atol=5e-6)


def test_gradcamplusplus_stays_stable_for_tiny_gradients() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    tiny = GradCAMPlusPlus(model, "relu3", norm=None, layer_norm=None)

    def score(factor: float) -> Tensor:
        return tiny(images, lambda logits: factor * logits[:, 1]).cams / factor

    # Far below 1 alpha is 1/2 everywhere, and the map proportional to the gradients.
    torch.testing.assert_close(score(1e-12), score(1e-9))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("alpha_eps", [None, 1e-6])
def test_gradcamplusplus_weights_do_not_depend_on_chunks(monkeypatch, alpha_eps, layout) -> None:
    cam = GradCAMPlusPlus(SmallNet().eval(), ["relu3"], alpha_eps=alpha_eps)
    activations = torch.randn(2, 7, 5, 6).relu().to(memory_format=layout)
    grads = torch.randn(2, 7, 5, 6).to(memory_format=layout)
    whole = cam.channel_weights(activations, grads)
    monkeypatch.setattr(gradient, "_CACHED", 3 * 2 * 5 * 6)  # three channels or two rows at a time
    with mock.patch.object(cam, "_weights", wraps=cam._weights) as weights:
        torch.testing.assert_close(cam.channel_weights(activations, grads), whole)
    along, lengths = (2, [2, 2, 1]) if layout == torch.channels_last else (1, [3, 3, 1])
    assert [call.args[1].shape[along] for call in weights.call_args_list] == lengths


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_do_not_depend_on_chunks(monkeypatch, dtype, layout) -> None:
    activations = torch.randn(2, 7, 5, 6).relu().to(dtype).to(memory_format=layout)
    grads = torch.randn(2, 7, 5, 6).to(dtype).to(memory_format=layout)
    a, g = activations.double(), grads.double()
    weights = (g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-7)
    expected = {HiResCAM: (g * a).sum(1), XGradCAM: (weights * a).sum(1),
                LayerCAM: (g.relu() * a).sum(1)}  # fmt: skip
    for cached in (10**6, 3 * 2 * 5 * 6, 1):  # at a time all, three channels or two rows, one
        monkeypatch.setattr(gradient, "_CACHED", cached)
        for method, maps in expected.items():
            found = method(SmallNet().eval(), ["relu3"]).layer_map(activations, grads)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), maps.relu(), rtol=1e-5, atol=1e-5)


def test_gradcamplusplus_where_the_divisor_is_zero() -> None:
    cam = GradCAMPlusPlus(SmallNet().eval(), ["relu3"], alpha_eps=0.0)
    grads = torch.tensor([[[[1.0, 2.0, -1.0]]]], requires_grad=True)
    activations = torch.full((1, 1, 1, 3), -2 / 3)  # their sum times the gradient 1 is -2
    weights = cam.channel_weights(activations, grads)
    torch.testing.assert_close(weights, torch.tensor([[-1.0]]))  # 2 / (2 - 4) alone
    (slope,) = torch.autograd.grad(weights.sum(), grads)
    assert slope.isfinite().all()
    torch.testing.assert_close(cam.channel_weights(activations, grads.detach()), weights.detach())
    broken = torch.tensor([[[[1.0, torch.nan, -1.0]]]])
    assert cam.channel_weights(activations, broken).isnan().all()


def test_gradcamplusplus_of_layers_without_relu_has_no_pole() -> None:
    cam = GradCAMPlusPlus(SmallNet().eval(), ["relu3"])
    activations, grads = torch.randn(2, 9, 8, 8) - 0.3, 5 * torch.randn(2, 9, 8, 8)
    totals = activations.double().sum((2, 3), keepdim=True)
    assert (2 + totals * grads.relu()).abs().min() < 0.5  # where the plain formula explodes
    g = grads.double().relu()
    expected = (g / (2 + totals.relu() * g)).sum((2, 3))
    weights = cam.channel_weights(activations, grads)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    assert weights.le(grads.relu().sum((2, 3)) / 2 + 1e-5).all()


def test_layercam_of_channels_last_maps() -> None:
    cam = LayerCAM(SmallNet().eval(), ["relu3"])
    activations, grads = torch.randn(2, 7, 5, 6).relu(), torch.randn(2, 7, 5, 6)
    last = [t.to(memory_format=torch.channels_last) for t in (activations, grads)]
    expected = (grads.double().relu() * activations.double()).sum(1)
    for pair in (last, [last[0], grads], [activations, grads]):
        torch.testing.assert_close(cam.layer_map(*pair).double(), expected, rtol=1e-5, atol=1e-6)


def test_literal_equation_11() -> None:
    def formula(a: Tensor, g: Tensor) -> Tensor:
        kept = truncation.truncate_gradients(g, 30) > 0
        return (g.mean((2, 3), keepdim=True) * kept * a).sum(1).relu()

    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    expected = oracle(model, images, ["relu1", "relu2"], formula)
    method = LTGradCAM(model, ["relu1", "relu2"], percentile=30, variant="literal11")
    torch.testing.assert_close(method(images).cams.double(), expected, rtol=0, atol=5e-6)


def test_smooth_gradcamplusplus_equals_float64_formula() -> None:
    model, images = SmallNet().eval(), torch.randn(3, 3, 24, 20)
    samples, noise, layers = 5, 0.2, ["relu2", "relu3"]
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(images.shape[1:], generator=generator) for _ in range(samples)]
    spread = (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(-1, 1, 1, 1)
    best = model(images).argmax(1)
    model.double()
    clean, _, _ = passes(model, images.double(), layers)
    powers = [[torch.zeros_like(a) for _ in range(3)] for a in clean]
    for draw in draws:
        noisy = (images + noise * spread * draw).double()
        for i, grads in enumerate(gradients_of(model, noisy, layers, best)):
            for p in range(3):
                powers[i][p] += grads ** (p + 1) / samples
    maps = []
    for a, (d1, d2, d3) in zip(clean, powers, strict=True):
        alpha = (d2 / (2 * d2 + a.sum((2, 3), keepdim=True) * d3)).nan_to_num(0.0)
        maps.append(((alpha * d1.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu())
    expected = fuse(maps, images.shape[2:])
    model.float()
    for max_batch in (15, 6, 1):  # the generator draws the same numbers group by group
        method = SmoothGradCAMPlusPlus(
            model, layers, samples=samples, noise=noise, seed=7, max_batch=max_batch
        )
        found = method(images)
        torch.testing.assert_close(found.cams.double(), expected, rtol=0, atol=5e-6)
    assert torch.equal(found.target, best)
    assert torch.equal(method(images).cams, found.cams)
    alone = method(images[2:]).cams  # whatever its batch mates
    torch.testing.assert_close(alone, found.cams[2:], rtol=0, atol=5e-6)
    by_callable = method(images, lambda logits: logits[range(3), best])
    torch.testing.assert_close(by_callable.cams, found.cams)


def gradients_of(
    model: nn.Module, images: Tensor, layers: list[str], classes: Tensor
) -> tuple[Tensor, ...]:
    kept = []
    handles = [
        model.get_submodule(n).register_forward_hook(lambda _m, _i, out: kept.append(out))
        for n in layers
    ]
    score = model(images).gather(1, classes[:, None]).sum()
    for handle in handles:
        handle.remove()
    return torch.autograd.grad(score, kept)


def test_smooth_gradcamplusplus_has_no_pole_where_copies_disagree() -> None:
    activations = torch.rand(1, 200, 4, 4)
    grads = torch.tensor([1.0, 1.0, 1.0, -1.5]).view(4, 1, 1, 1).expand(4, 200, 4, 4)
    grads = grads * torch.linspace(0.5, 20, 200).view(
        200, 1, 1
    )  # from the paper's values to beyond
    first, second, third = (grads.double().pow(p).mean(0, keepdim=True) for p in (1, 2, 3))
    totals = activations.double().sum((2, 3), keepdim=True)
    plain = 2 + third * totals / second
    assert first.gt(0).all()
    assert plain.max() > 1.5
    assert plain.min() < -0.5
    alpha = torch.where(plain > 1, 1 / plain, 1.0)
    expected = ((alpha * first).sum((2, 3), keepdim=True) * activations).sum(1)
    moments = smooth.Moments(activations)
    moments.add(grads, 4)
    torch.testing.assert_close(moments.layer_map().double(), expected, rtol=1e-5, atol=0)


LAYER_NORM_NETWORKS = {
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 12, "depths": (1, 1, 1, 1), "img_size": 64, "window_size": 2
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYER_NORM_NETWORKS)
@pytest.mark.parametrize("method", [GradCAMPlusPlus, SmoothGradCAMPlusPlus])
def test_float32_is_float64_on_networks_without_relu(monkeypatch, method: type, name: str) -> None:
    draws = torch.randn(8, 2, 3, 64, 64)
    monkeypatch.setattr(
        SmoothGradCAMPlusPlus, "_noisy", lambda _s, x, _c, _g: (x + draws.to(x)).flatten(0, 1)
    )
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=5, **LAYER_NORM_NETWORKS[name]).eval()
    model.get_classifier().weight.data *= 1000  # gradients that the activations' sums count for
    images = torch.randn(2, 3, 64, 64)
    found = method(model)(images, 1).cams
    expected = method(copy.deepcopy(model).double())(images.double(), 1).cams
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class OutsideAutocast(nn.Sequential):
    """Runs in float32 whatever the caller's autocast says; so does its backward pass."""

    def __init__(self) -> None:
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU(), *pool, nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_made_in_float32_under_autocast(method: str) -> None:
    cam, images = METHODS[method](OutsideAutocast().eval()), torch.randn(2, 3, 16, 16)
    expected = cam(images, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cam(images, 1).cams, expected.cams)


def test_scaled_scores_keep_float16_gradients_from_zero() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 64, 64)
    model.head.weight.data *= 1e-4
    expected = GradCAM(model, "act3")(images, 1).cams
    half, images = model.half(), images.half()
    assert not GradCAM(half, "act3")(images, 1).cams.any()
    found = GradCAM(half, "act3")(images, lambda logits: 4096 * logits[:, 1]).cams
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


def test_cam_equals_gradcam_up_to_a_factor() -> None:
    model, images = GapNet().eval(), torch.randn(3, 3, 16, 22)
    cam = CAM(model, "act3")(images, [[0, 1], [3, 2], [1, 1]])
    grad = GradCAM(model, "act3")(images, [[0, 1], [3, 2], [1, 1]])
    area = cam.per_layer[0].shape[-2] * cam.per_layer[0].shape[-1]
    torch.testing.assert_close(cam.per_layer[0], area * grad.per_layer[0])
    torch.testing.assert_close(cam.cams, grad.cams, rtol=0, atol=2e-5)
    activations, _, _ = passes(model, images, ["act3"])
    signed = CAM(model, "act3", relu=False, head="head")(images, 2).per_layer[0]
    weights = model.head.weight[2].detach().double()
    expected = torch.einsum("c,nchw->nhw", weights, activations[0].double())
    torch.testing.assert_close(signed.double(), expected, rtol=1e-5, atol=1e-6)


def test_cam_says_when_it_cannot_be_right() -> None:
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="model must be one with a linear layer from 10 channels"):
        CAM(SmallNet().eval(), "relu3")(images)
    with pytest.raises(ValueError, match="head must be one with a linear layer"):
        CAM(GapNet().eval(), "act3", head="conv3")(images)
    with pytest.raises(ValueError, match="head must be the name of a module of the model, got 'h'"):
        CAM(GapNet().eval(), "act3", head="h")
    with pytest.raises(ValueError, match="target must be class numbers"):
        CAM(GapNet().eval(), "act3")(images, lambda logits: logits[:, 0])
    approximate = CAM(GapNet().eval(), "conv3")
    with pytest.warns(UserWarning, match="maps are an approximation"):
        approximate(images)


def test_the_layer_that_is_pooled_is_reached_through_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose own forward pass prepares the reduction of gradients."""
    model, calls = timm.create_model("test_efficientnet", num_classes=5).eval(), []
    reducer = nn.Sequential(model)
    reducer.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("wsfast.cam.base.reducer_of", lambda _: reducer)
    method = CAM(model)
    method(torch.randn(2, 3, 64, 64), 2, create_graph=True)
    assert method.layer_names == ("bn2",)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "last", "pooled"),
    [
        ("test_efficientnet", "blocks.4", "bn2"),
        ("test_resnet", "layer4", "layer4"),
        ("swin_tiny_patch4_window7_224", "layers.3", "norm"),  # channels-last
    ],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_cam_explains_the_layer_that_is_pooled(
    name: str, last: str, pooled: str, create_graph: bool
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **LAYER_NORM_NETWORKS.get(name, {})).eval()
    images = torch.randn(3, 3, 64, 64)
    images[0, 0, 0, 0] = torch.nan
    features = model.forward_features(images).detach()
    features = features.movedim(3, 1) if pooled == "norm" else features
    expected = torch.einsum("c,nchw->nhw", model.get_classifier().weight[2].detach(), features)
    method = CAM(model, relu=False)
    assert method.layer_names == (last,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = method(images, 2, create_graph=create_graph)
        again = method(images, 2)
    assert method.layer_names == (pooled,)
    assert found.valid.tolist() == [False, True, True]
    torch.testing.assert_close(found.per_layer[0][1:].detach(), expected[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.cams, found.cams.detach())
    assert not any(module._forward_hooks for module in model.modules())


def test_cam_of_heads_on_more_than_a_mean_says_so() -> None:
    images = torch.randn(2, 3, 64, 64)
    model = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    expected = (
        "one with a linear layer from 288 channels to 7 classes on the mean of 'blocks.5' "
        r"\(layers= names another; GradCAM takes any head\), got 'classifier' from 1024"
    )
    with pytest.raises(ValueError, match=f"wsfast.cam.CAM: model must be {expected}"):
        CAM(model)(images)
    model = timm.create_model("test_convnext", num_classes=7).eval()
    method = CAM(model)
    with pytest.warns(UserWarning, match="maps are an approximation"):
        assert method(images).valid.all()
    assert method.layer_names == ("stages.3",)


def test_zero_percentile_drops_only_negative_gradients() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    assert torch.equal(LTLayerCAM(model, percentile=0)(images).cams, LayerCAM(model)(images).cams)
    expected = oracle(
        model, images, ["relu1", "relu2", "relu3"], lambda a, g: mean_weighted(a, g.relu())
    )
    cams = LTGradCAM(model, ["relu1", "relu2", "relu3"], percentile=0)(images).cams
    torch.testing.assert_close(cams.double(), expected, rtol=0, atol=5e-6)
