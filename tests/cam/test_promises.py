"""What every method promises: nothing left behind, invariances, clear errors."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.cam.formulas import MULTI_LAYER
from tests.cam.nets import Branches, GapNet, SmallNet
from tests.leaks import assert_no_growth, resident_bytes, tracked_objects
from wsfast.cam import (
    METHODS,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    LTGradCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
)


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


class Normalizing(nn.Module):
    """A model that normalises its input where it lies, or a copy of it."""

    def __init__(self, net: nn.Module, *, inplace: bool) -> None:
        super().__init__()
        self.net, self.inplace = net, inplace

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inplace else x.clone()
        return self.net(x.sub_(0.5).mul_(3.0))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "cam"])
def test_images_are_normalised_once(method: str, count: int) -> None:
    torch.manual_seed(0)
    net, images = SmallNet(inplace=True).eval(), torch.rand(count, 3, 16, 16)
    found = []
    for inplace in (False, True):
        torch.manual_seed(1)  # of the noise
        model, given = Normalizing(net, inplace=inplace), images.clone()
        layers = () if "full" in method else (["net.conv2", "net.conv3"],)
        cam = METHODS[method](model, *layers)
        for _ in range(2):
            result = cam(given, 1)
            found.append((result.logits, result.cams))
            assert torch.equal(given, images)
    for logits, cams in found[1:]:
        torch.testing.assert_close(logits, found[0][0])
        torch.testing.assert_close(cams, found[0][1], rtol=0, atol=1e-5)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


def test_scores_that_do_not_depend_on_the_layer() -> None:
    blind = nn.Sequential(SmallNet(), nn.Linear(5, 5), Detach())
    with pytest.raises(ValueError, match="depend on"):
        GradCAM(blind)(torch.randn(2, 3, 16, 16))


def test_scores_behind_a_layer_without_a_derivative() -> None:
    model, images = nn.Sequential(SmallNet(), Underived()), torch.randn(2, 3, 16, 16)
    for method in (GradCAM, LTGradCAM, SmoothGradCAMPlusPlus):
        with pytest.raises(ValueError, match="layers must be layers that the scores depend on"):
            method(model)(images)
    with pytest.raises(ValueError, match="model must be differentiable"):
        FullGrad(model)(images)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_scores_behind_a_reentrant_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"not through .* checkpoint\(use_reentrant=True\)"):
        GradCAM(Checkpointed(), "0")(torch.randn(2, 3, 16, 16))


class Checkpointed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = checkpoint(self[0], x, use_reentrant=True)
        scores: Tensor = self[1](maps.mean((2, 3)))
        return scores


class Underived(nn.Module):
    """Its output has a graph that passes no gradient on, as a dynamically quantised layer's."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = NoGradient.apply(x)
        return output


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> None:
        return None


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
    model.head.weight.data += 0.3  # maps of some size for every class
    layers = "biases" if method.endswith("fullgrad") else ["act3"]
    make = METHODS[method]
    cams = make(model, layers)(images, 1).cams
    assert cams.amax() > 0.9
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
    with pytest.warns(UserWarning, match=r"behind torch\.compile: the module inside runs, uncomp"):
        compiled = make(torch.compile(model))
    assert torch.equal(compiled(images).cams, expected)
    with pytest.warns(UserWarning, match="behind DataParallel: the module inside runs, on one dev"):
        parallel = make(nn.DataParallel(model))
    assert torch.equal(parallel(images).cams, expected)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_parts_run_uncompiled(method: str) -> None:
    """Code compiled before would not call hooks; compiling with them would take a minute."""

    def refuse(module: object, inputs: object) -> object:
        raise AssertionError("compiled")

    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    expected = METHODS[method](model)(images).cams
    model.compile(backend=refuse)
    assert torch.equal(METHODS[method](model)(images).cams, expected)
    with pytest.raises(Exception, match="compiled"):
        model(images)
    model._compiled_call_impl = None
    model.act1.compile(backend=refuse)
    assert torch.equal(METHODS[method](model)(images).cams, expected)


def test_memory_stays_flat() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    methods = [make(model) for make in METHODS.values()]

    def call() -> None:
        for method in methods:
            method(images)

    assert_no_growth(call)


@pytest.mark.parametrize("method", ["layercam", "fullgrad", "racam"])
def test_memory_stays_flat_over_a_thousand_calls(method: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    images = torch.randn(2, 3, 32, 32)
    explain = METHODS[method](model.eval(), *(() if method == "fullgrad" else ("1",)))
    for _ in range(200):
        explain(images, 1)
    objects, resident = tracked_objects(), resident_bytes()
    for _ in range(1000):
        explain(images, 1)
    assert tracked_objects() - objects < 100
    assert resident_bytes() - resident < 2**21  # one map per call would be 8 MB


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
    (
        lambda m: lambda x: SmoothGradCAMPlusPlus(m)(x, lambda logits: logits.sum()),
        ValueError,
        r"target must be a callable giving \(2,\), got \[\]",
    ),
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
