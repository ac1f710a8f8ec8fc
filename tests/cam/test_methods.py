"""CAM methods against float64 formulas, pytorch-grad-cam where installed, and their promises."""

import gc
import math
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import GapNet, SmallNet, fuse, out_of_place, passes
from wsfast.cam import (
    CAM,
    METHODS,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    LTGradCAM,
    LTLayerCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
)
from wsfast.ops.truncation import reference as truncation

VGG16_STAGES = ["features.3", "features.8", "features.15", "features.22", "features.29"]
RESNET_STAGES = ["relu", "layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None, num_classes=5, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 5)
    return out_of_place(model).eval()


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    model = out_of_place(torchvision.models.resnet18(weights=None)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
    return model


def mean_weighted(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean((2, 3), keepdim=True) * a).sum(1).relu()


def gradcamplusplus(a: Tensor, g: Tensor) -> Tensor:
    alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3)
    weights = (alpha.nan_to_num(0.0) * g.relu()).sum((2, 3), keepdim=True)
    return (weights * a).sum(1).relu()


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    weights = (g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-7)
    return (weights * a).sum(1).relu()


# One layer's map from its activations and gradients, as the papers print it.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": mean_weighted,
    "gradcamplusplus": gradcamplusplus,
    "xgradcam": xgradcam,
    "hirescam": lambda a, g: (g * a).sum(1).relu(),
    "layercam": lambda a, g: (g.relu() * a).sum(1).relu(),
    "ltgradcam": lambda a, g: mean_weighted(a, truncation.truncate_gradients(g, 50)),
    "ltlayercam": lambda a, g: (truncation.truncate_gradients(g, 50) * a).sum(1).relu(),
}
# Methods that explain several layers at once by default.
MULTI_LAYER = [*FORMULAS, "smoothgradcamplusplus", "racam"]


def oracle(model: nn.Module, images: Tensor, layers: list[str], formula: Callable) -> Tensor:
    """The formula in float64 with plain hooks and autograd."""
    activations, grads, _ = passes(model.double(), images.double(), layers)
    model.float()
    maps = [formula(a, g) for a, g in zip(activations, grads, strict=True)]
    return fuse(maps, images.shape[2:])


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
    draws = torch.randn((samples, *images.shape), generator=generator)
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
    with pytest.raises(ValueError, match="target must be class numbers"):
        CAM(GapNet().eval(), "act3")(images, lambda logits: logits[:, 0])
    approximate = CAM(GapNet().eval(), "conv3")
    with pytest.warns(UserWarning, match="maps are an approximation"):
        approximate(images)


def test_stages_are_found(vgg16: nn.Module, resnet18: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.device("meta"):
        timm_vgg = timm.create_model("vgg16", pretrained=False, num_classes=3)
    assert len(LTGradCAM(timm_vgg).layer_names) == 5
    assert LTGradCAM(timm_vgg).layer_names == tuple(VGG16_STAGES)
    assert [m.shape[1] for m in LTGradCAM(vgg16)(images).per_layer] == [64, 32, 16, 8, 4]
    assert [m.shape[1] for m in LTGradCAM(resnet18)(images).per_layer] == [32, 16, 8, 4, 2]
    last = LTGradCAM(resnet18, "last")(images)
    layer4 = LTGradCAM(resnet18, resnet18.layer4)(images)
    assert torch.equal(last.cams, layer4.cams)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_timm_models(name: str) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    result = LTGradCAM(model)(torch.randn(2, 3, 64, 64), 1)
    assert result.cams.shape == (2, 64, 64)
    assert result.valid.all()
    assert len(result.per_layer) >= 4


@pytest.mark.parametrize("method", [*MULTI_LAYER, "ablationcam", "scorecam"])
def test_in_place_relu_changes_nothing(method: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    plain, in_place = SmallNet(False).eval(), SmallNet(True).eval()
    in_place.load_state_dict(plain.state_dict())
    for layers in (["conv1", "conv3"], ["relu1", "relu3"]):
        expected = METHODS[method](plain, layers)(images)
        found = METHODS[method](in_place, layers)(images)
        assert torch.equal(found.cams, expected.cams)
        assert torch.equal(found.logits, expected.logits)


class FunctionalInPlace(SmallNet):
    """An in-place op that no module announces."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.relu_(self.conv2(F.relu_(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu_(self.conv3(x)), 2).flatten(1))


class FunctionalOutOfPlace(FunctionalInPlace):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.conv3(F.relu(x))), 2).flatten(1))


def test_functional_in_place_is_noticed() -> None:
    images, layers = torch.randn(2, 3, 16, 16), ["conv1", "conv2", "conv3"]
    in_place, plain = FunctionalInPlace().eval(), FunctionalOutOfPlace().eval()
    plain.load_state_dict(in_place.state_dict())
    expected = LTGradCAM(plain, layers)(images)
    assert torch.equal(LTGradCAM(in_place, layers)(images).cams, expected.cams)


class Branches(nn.Module):
    """Two parallel branches and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5, padding=1)
        self.act = nn.ReLU()
        self.unused = nn.Conv2d(3, 4, 1)
        self.side = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.side(x)
        x = self.act(self.left(x)) + self.act(self.right(x))
        return {"logits": self.head(x.mean((2, 3)))}


def test_parallel_branches_and_reused_modules() -> None:
    model, images = Branches().eval(), torch.randn(2, 3, 12, 12)
    both = GradCAM(model, ["left", "right"], norm=None)(images)
    for i, layer in enumerate(("left", "right")):
        alone = GradCAM(model, layer, norm=None)(images)
        torch.testing.assert_close(both.per_layer[i], alone.per_layer[0])
    reused = GradCAM(model, ["act"])(images)  # the last call is the right branch's
    kept: list[Tensor] = []
    handle = model.act.register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = model(images)["logits"]
    handle.remove()
    (g,) = torch.autograd.grad(logits.max(1).values.sum(), kept[-1])
    expected = (g.mean((2, 3), keepdim=True) * kept[-1]).sum(1).relu()
    torch.testing.assert_close(reused.per_layer[0], expected)


def state_of(model: nn.Module) -> tuple:
    return (
        model.training,
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
        [m.training for m in model.modules()],
        [sorted(m.__dict__) for m in model.modules()],
        sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [False, True])
def test_model_is_left_as_found(method: str, training: bool) -> None:
    model, images = GapNet().train(training), torch.randn(2, 3, 16, 16, requires_grad=True)
    model.conv2.requires_grad_(False)
    broken = nn.Sequential(model, Broken()).train(training)
    before = state_of(model)
    buffers = [buffer.clone() for buffer in model.buffers()]
    METHODS[method](model)(images)
    assert state_of(model) == before
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            METHODS[method](broken, *(() if "full" in method else ("0.act3",)))(images)
    assert state_of(model) == before
    with pytest.raises(ZeroDivisionError):
        METHODS["gradcam" if method == "cam" else method](model)(images, lambda logits: 1 // 0)
    assert state_of(model) == before
    assert images.grad is None
    assert images._version == 0
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


def test_scores_that_do_not_depend_on_the_layer() -> None:
    blind = nn.Sequential(SmallNet(), nn.Linear(5, 5), Detach())
    with pytest.raises(ValueError, match="depend on"):
        GradCAM(blind)(torch.randn(2, 3, 16, 16))


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_no_grad_and_frozen_models() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 16, 16)
    expected = LTGradCAM(model)(images).cams
    with torch.no_grad():
        assert torch.equal(LTGradCAM(model)(images).cams, expected)
    model.requires_grad_(False)
    result = LTGradCAM(model)(images)
    assert torch.equal(result.cams, expected)
    assert not result.logits.requires_grad
    assert not result.cams.requires_grad


def test_targets_agree() -> None:
    model, images = SmallNet().eval(), torch.randn(3, 3, 16, 16)
    method = LTGradCAM(model)
    predicted = model(images).argmax(1)
    best = method(images)
    assert torch.equal(best.target, predicted)
    several = method(images, [[0, 4], [1, 2], [3, 3]])
    assert several.cams.shape == (3, 2, 16, 16)
    assert several.per_layer[0].shape[:2] == (3, 2)
    for k, column in enumerate(([0, 1, 3], torch.tensor([4, 2, 3]))):
        torch.testing.assert_close(several.cams[:, k], method(images, column).cams)
    callable_target = method(images, lambda logits: logits[:, 2])
    assert torch.equal(callable_target.cams, method(images, 2).cams)
    assert callable_target.target is None
    assert torch.equal(method(images, predicted).cams, best.cams)


@pytest.mark.parametrize("method", METHODS)
def test_invariances(method: str) -> None:
    model, images = GapNet().eval(), torch.randn(4, 3, 24, 24)
    if method == "smoothgradcamplusplus":
        images[1:] = images[0]  # the noise goes by the place in the batch
    model.head.weight.data += 0.3  # maps of some size for every class
    layers = "biases" if method.endswith("fullgrad") else ["act3"]
    make = METHODS[method]
    cams = make(model, layers)(images, 1).cams
    assert cams.amax() > 0.9
    if method != "smoothgradcamplusplus":
        order = torch.tensor([2, 0, 3, 1])
        permuted = make(model, layers)(images[order], 1).cams
        torch.testing.assert_close(permuted, cams[order], rtol=0, atol=2e-5)
    several = make(model, layers)(images, [[1, 0]] * 4)
    torch.testing.assert_close(several.cams[:, 0], cams, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        several.cams[:, 1], make(model, layers)(images, 0).cams, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("method", MULTI_LAYER)
def test_order_of_layers_does_not_matter(method: str) -> None:
    model, images, layers = SmallNet().eval(), torch.randn(2, 3, 24, 24), ["relu1", "relu2"]
    make = METHODS[method]
    backwards = make(model, layers[::-1])(images, 1)
    forwards = make(model, layers)(images, 1)
    torch.testing.assert_close(backwards.cams, forwards.cams)
    torch.testing.assert_close(backwards.per_layer[0], forwards.per_layer[1])


# The others' weights are not linear in the score.
@pytest.mark.parametrize("method", [m for m in MULTI_LAYER if "plus" not in m])
def test_scaling_the_score_scales_the_raw_maps(method: str) -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    raw = METHODS[method](model, norm=None, layer_norm=None, reduce="sum")
    scaled = raw(images, lambda logits: 3 * logits[:, 1]).cams
    torch.testing.assert_close(scaled, 3 * raw(images, 1).cams)


def test_zero_percentile_drops_only_negative_gradients() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    assert torch.equal(LTLayerCAM(model, percentile=0)(images).cams, LayerCAM(model)(images).cams)
    expected = oracle(
        model, images, ["relu1", "relu2", "relu3"], lambda a, g: mean_weighted(a, g.relu())
    )
    cams = LTGradCAM(model, ["relu1", "relu2", "relu3"], percentile=0)(images).cams
    torch.testing.assert_close(cams.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nan_image_is_invalid_alone(method: str) -> None:
    model, images = GapNet().eval(), torch.randn(3, 3, 16, 16)
    make = METHODS[method]
    clean = make(model)(images, 1)
    images[1, 0, 3, 3] = math.nan
    result = make(model)(images, 1)
    assert result.valid.tolist() == [True, False, True]
    assert not result.cams[1].any()
    torch.testing.assert_close(result.cams[[0, 2]], clean.cams[[0, 2]], rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_gives_float32_maps(method: str) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 32, 32)
    model.head.weight.data *= 10
    layers = () if "full" in method else ("act3",)
    with torch.autocast("cpu", torch.bfloat16):
        result = METHODS[method](model, *layers)(images, 1)
    assert result.cams.dtype == torch.float32
    expected = METHODS[method](model, *layers)(images, 1).cams
    assert float((result.cams - expected).abs().mean()) < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_wrapped_models_are_looked_through(method: str) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    make = METHODS[method]
    expected = make(model)(images).cams
    assert torch.equal(make(torch.compile(model))(images).cams, expected)
    assert torch.equal(make(nn.DataParallel(model))(images).cams, expected)


def test_memory_stays_flat() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    methods = [make(model) for make in METHODS.values()]

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    def call() -> None:
        for method in methods:
            method(images)

    call()
    before = tensors()
    for _ in range(10):
        call()
    assert tensors() == before


IMAGES = torch.randn(2, 3, 16, 16)
ERRORS = [
    (lambda m: GradCAM(m, "relu9"), ValueError, r"layers must be .* got 'relu9' \(close matches"),
    (lambda m: GradCAM(m, [])(IMAGES), ValueError, "layers must be at least one layer"),
    (lambda m: GradCAM(m, nn.ReLU()), ValueError, "layers must be modules of the model"),
    (
        lambda m: GradCAM(m, "head"),
        ValueError,
        r"layers must be .*\(N, C, h, w\) outputs .* from 'head'",
    ),
    (
        lambda m: FullGrad(m, "relu1"),
        ValueError,
        r"layers must be layers with a bias, got \['relu1",
    ),
    (lambda m: FullGrad(m, "stages"), ValueError, 'layers must be "biases", names or modules'),
    (lambda m: FullGrad(m, psi_norm="max"), ValueError, "psi_norm must be one of"),
    (lambda m: GradCAMPlusPlus(m, alpha_eps=-1.0), ValueError, "alpha_eps must be between"),
    (lambda m: LTGradCAM(m, variant="both"), ValueError, "variant must be one of"),
    (lambda m: SmoothGradCAMPlusPlus(m, samples=0), ValueError, "samples must be at least 1"),
    (lambda m: ScoreCAM(m, memory=0), ValueError, "memory must be at least 1"),
    (
        lambda m: lambda x: ScoreCAM(m)(x, create_graph=True),
        ValueError,
        "create_graph must be False for this method",
    ),
    (lambda m: GradCAM(m, reduce="median"), ValueError, "reduce must be one of"),
    (lambda m: GradCAM(m, norm="l2"), ValueError, "norm must be one of"),
    (lambda m: LTGradCAM(m, percentile=120), ValueError, "percentile must be between"),
    (lambda m: LTGradCAM(m, scope="batch"), ValueError, "scope must be one of"),
    (lambda m: GradCAM("resnet"), TypeError, "model must be a torch.nn.Module"),
    (lambda m: lambda x: GradCAM(m)(x[0]), ValueError, "images must be a tensor of 4"),
    (lambda m: lambda x: GradCAM(m)(x.int()), TypeError, "images must be float32"),
    (lambda m: lambda x: GradCAM(m)(x[:0]), ValueError, "images must be a batch"),
    (lambda m: lambda x: GradCAM(m)(x, 7), ValueError, "target must be between 0 and 4, got 7"),
    (lambda m: lambda x: GradCAM(m)(x, [0, -1]), ValueError, "target must be between 0 and 4"),
    (lambda m: lambda x: GradCAM(m)(x, [0, 1, 2]), ValueError, r"target must be of shape \(2,\)"),
    (lambda m: lambda x: GradCAM(m)(x, "dog"), TypeError, "target must be class numbers"),
    (lambda m: lambda x: GradCAM(m)(x, torch.rand(2)), TypeError, "target must be integer"),
    (lambda m: GradCAM(m.conv1, "")(IMAGES), ValueError, "layers must be"),
    (lambda m: GradCAM(nn.Sequential(m.conv1), "0"), ValueError, "model must be a classifier"),
    (lambda m: GradCAM(Branches(), "unused"), ValueError, "layers must be layers that run"),
    (lambda m: GradCAM(Branches(), "side"), ValueError, "layers must be layers that the scores"),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    make, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message) as error:
        make(SmallNet().eval())(IMAGES)
    assert str(error.value).startswith("wsfast.cam.")


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_is_refused(method: str) -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="inference"):
        METHODS[method](GapNet())(IMAGES)
