"""CAM methods against float64 formulas, pytorch-grad-cam where installed, and their promises."""

import gc
import math

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast.cam import METHODS, GradCAM, LayerCAM, LTGradCAM, LTLayerCAM
from wsfast.ops.truncation import reference as truncation

VGG16_STAGES = ["features.3", "features.8", "features.15", "features.22", "features.29"]
RESNET_STAGES = ["relu", "layer1", "layer2", "layer3", "layer4"]


def out_of_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


class SmallNet(nn.Module):
    """Three stages; `inplace` as torchvision's VGG has it."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace)
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace)
        self.conv3, self.relu3 = nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(inplace)
        self.head = nn.Linear(10 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu1(self.conv1(x)), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        x = self.relu3(self.conv3(x))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    torch.manual_seed(0)
    return out_of_place(torchvision.models.vgg16(weights=None)).eval()


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    model = out_of_place(torchvision.models.resnet18(weights=None)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
    return model


def minmax(x: Tensor) -> Tensor:
    x = x - x.amin((1, 2), keepdim=True)
    return x / (x.amax((1, 2), keepdim=True) + 1e-7)


def oracle(
    model: nn.Module, images: Tensor, layers: list[str], method: str, percentile: float = 50
) -> Tensor:
    """The formula in float64 with plain hooks and autograd."""
    model = model.double()
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, out, n=name: kept.__setitem__(n, out))
        for name in layers
    ]
    logits = model(images.double().requires_grad_())
    for handle in handles:
        handle.remove()
    score = logits.max(dim=1).values.sum()
    fused = torch.zeros(len(images), *images.shape[2:], dtype=torch.float64)
    for name in layers:
        a = kept[name]
        (g,) = torch.autograd.grad(score, a, retain_graph=True)
        if method.startswith("lt"):
            g = truncation.truncate_gradients(g, percentile)
        if method.endswith("gradcam"):
            layer = (g.mean((2, 3), keepdim=True) * a).sum(1).relu()
        else:
            layer = (g.relu() * a).sum(1).relu()
        size = images.shape[2:]
        fused += F.interpolate(minmax(layer)[:, None], size, mode="bilinear")[:, 0]
    model.float()
    return minmax(fused / len(layers)).detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layers", [["relu3"], ["relu1", "relu2", "relu3"]])
def test_equals_float64_formula(method: str, layers: list[str]) -> None:
    model, images = SmallNet().eval(), torch.randn(3, 3, 40, 56)
    expected = oracle(model, images, layers, method)
    result = METHODS[method](model, layers)(images)
    torch.testing.assert_close(result.cams.double(), expected, rtol=0, atol=5e-6)
    assert result.cams.dtype == torch.float32
    assert result.valid.all()
    assert [m.shape for m in result.per_layer] == [
        {"relu1": (3, 40, 56), "relu2": (3, 20, 28), "relu3": (3, 10, 14)}[n] for n in layers
    ]


@pytest.mark.parametrize("method", METHODS)
def test_equals_float64_formula_on_resnet18(resnet18: nn.Module, method: str) -> None:
    images = torch.randn(2, 3, 64, 96)
    expected = oracle(resnet18, images, RESNET_STAGES, method)
    cams = METHODS[method](resnet18, RESNET_STAGES)(images).cams
    torch.testing.assert_close(cams.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.peers
@pytest.mark.parametrize(("name", "stages"), [("vgg16", VGG16_STAGES), ("resnet18", RESNET_STAGES)])
@pytest.mark.parametrize("five", [False, True])
def test_matches_pytorch_grad_cam(
    request: pytest.FixtureRequest, name: str, stages: list[str], five: bool
) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    model = request.getfixturevalue(name)
    layers = stages[1:] if five and name == "resnet18" else stages if five else stages[-1:]
    images = torch.randn(2, 3, 64, 96)
    modules = [model.get_submodule(layer) for layer in layers]
    for ours, theirs in ((GradCAM, peer.GradCAM), (LayerCAM, peer.LayerCAM)):
        with theirs(model=model, target_layers=modules) as cam:
            expected = torch.from_numpy(cam(images, targets=None))
        found = ours(model, layers)(images).cams
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    model.zero_grad(set_to_none=True)


def test_stages_are_found(vgg16: nn.Module, resnet18: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64)
    timm_vgg = timm.create_model("vgg16", pretrained=False, num_classes=3).eval()
    assert len(LTGradCAM(timm_vgg)(images).per_layer) == 5
    del timm_vgg
    assert [m.shape[1] for m in LTGradCAM(vgg16)(images).per_layer] == [64, 32, 16, 8, 4]
    assert [m.shape[1] for m in LTGradCAM(resnet18)(images).per_layer] == [32, 16, 8, 4, 2]
    last = LTGradCAM(resnet18, "last")(images)
    layer4 = LTGradCAM(resnet18, resnet18.layer4)(images)
    assert torch.equal(last.cams, layer4.cams)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vgg11_bn"])
def test_timm_models(name: str) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    result = LTGradCAM(model)(torch.randn(2, 3, 64, 64), 1)
    assert result.cams.shape == (2, 64, 64)
    assert result.valid.all()
    assert len(result.per_layer) >= 4


@pytest.mark.parametrize("method", METHODS)
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
        sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("training", [False, True])
def test_model_is_left_as_found(training: bool) -> None:
    model, images = SmallNet().train(training), torch.randn(2, 3, 16, 16)
    model.conv2.requires_grad_(False)
    blind = nn.Sequential(model, nn.Linear(5, 5), Detach()).train(training)
    before = state_of(model)
    LTGradCAM(model)(images)
    assert state_of(model) == before
    with pytest.raises(ValueError, match="depend on"):
        GradCAM(blind)(images)
    with pytest.raises(RuntimeError):
        LTGradCAM(model)(images[:, :2])  # fails inside forward
    assert state_of(model)[3:] == before[3:]


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
    model, images = SmallNet().eval(), torch.randn(4, 3, 24, 24)
    make = METHODS[method]
    cams = make(model)(images, 1).cams
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(make(model)(images[order], 1).cams, cams[order])
    layers = ["relu1", "relu2", "relu3"]
    backwards = make(model, layers[::-1])(images, 1).cams
    torch.testing.assert_close(backwards, make(model, layers)(images, 1).cams)
    raw = make(model, norm=None, layer_norm=None, reduce="sum")
    scaled = raw(images, lambda logits: 3 * logits[:, 1]).cams
    torch.testing.assert_close(scaled, 3 * raw(images, 1).cams)


def test_zero_percentile_drops_only_negative_gradients() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 24, 24)
    assert torch.equal(LTLayerCAM(model, percentile=0)(images).cams, LayerCAM(model)(images).cams)
    expected = oracle(model, images, ["relu1", "relu2", "relu3"], "ltgradcam", 0)
    cams = LTGradCAM(model, ["relu1", "relu2", "relu3"], percentile=0)(images).cams
    torch.testing.assert_close(cams.double(), expected, rtol=0, atol=5e-6)


def test_nan_image_is_invalid_alone() -> None:
    model, images = SmallNet().eval(), torch.randn(3, 3, 16, 16)
    clean = LTGradCAM(model)(images, 1)
    images[1, 0, 3, 3] = math.nan
    result = LTGradCAM(model)(images, 1)
    assert result.valid.tolist() == [True, False, True]
    assert not result.cams[1].any()
    torch.testing.assert_close(result.cams[[0, 2]], clean.cams[[0, 2]])


def test_autocast_gives_float32_maps() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        result = LTGradCAM(model)(images, 1)
    assert result.cams.dtype == torch.float32
    torch.testing.assert_close(result.cams, LTGradCAM(model)(images, 1).cams, rtol=0, atol=0.1)


def test_wrapped_models_are_looked_through() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 16, 16)
    expected = GradCAM(model)(images).cams
    assert torch.equal(GradCAM(torch.compile(model))(images).cams, expected)
    assert torch.equal(GradCAM(nn.DataParallel(model))(images).cams, expected)


def test_memory_stays_flat() -> None:
    model, images = SmallNet().eval(), torch.randn(2, 3, 16, 16)
    method = LTGradCAM(model)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    method(images)
    before = tensors()
    for _ in range(50):
        method(images)
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


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="inference"):
        GradCAM(SmallNet())(IMAGES)
