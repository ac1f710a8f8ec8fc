"""Filtering-guided backpropagation against ReLUs written by hand."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import GapNet, SmallNet, fuse
from tests.cam.test_fullgrad import oracle as fullgrad
from wsfast.cam import RACAM, FullGrad, GradCAM, LayerCAM, LTLayerCAM, filtered_backprop


class HandMade(torch.autograd.Function):
    """Identity whose backward pass filters (RA-CAM eq. 5) by NumPy's percentile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, percentile: float, strict: bool) -> Tensor:
        ctx.options = (percentile, strict)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        percentile, strict = ctx.options
        kept = torch.zeros_like(grad)
        for out, g in zip(kept.flatten(0, 1), grad.flatten(0, 1), strict=True):
            positive = g[g > 0]
            if len(positive):
                delta = float(np.percentile(positive.numpy(), percentile))
                out += g * ((g > delta) if strict else (g >= delta)) * (g > 0)
        return kept, None, None


class FilteredReLU(nn.Module):
    def __init__(self, percentile: float, strict: bool, slope: float, hard: bool) -> None:
        super().__init__()
        self.percentile, self.strict, self.slope, self.hard = percentile, strict, slope, hard
        self.output: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.hard:  # eq. 5's first factor in place of the leaky derivative
            values = F.leaky_relu(x, self.slope).detach()
            self.output = x * (x > 0) + values - (x * (x > 0)).detach()
        else:
            self.output = F.leaky_relu(x, self.slope)
        return HandMade.apply(self.output, self.percentile, self.strict)


LAYERS = ["act1", "act2", "act3"]


def by_hand(
    images: Tensor, model: nn.Module, percentile: float, *, strict=False, slope=0.0, hard=False
) -> tuple[list[Tensor], list[Tensor]]:
    """Activations and filtered gradients at the ReLUs of a GapNet, class 1, float64."""
    copy = GapNet().double().eval()
    copy.load_state_dict(model.state_dict())
    for name in LAYERS:
        setattr(copy, name, FilteredReLU(percentile, strict, slope, hard))
    score = copy(images.double().requires_grad_())[:, 1].sum()
    outputs = [getattr(copy, name).output for name in LAYERS]
    grads = torch.autograd.grad(score, outputs)
    return [o.detach() for o in outputs], list(grads)


@pytest.mark.parametrize("percentile", [0.0, 40.0, 90.0])
@pytest.mark.parametrize("options", [{}, {"strict": True}])
@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("layers", [LAYERS, ["act2"], ["act3", "act2"]])
def test_racam_equals_float64_formula(
    percentile: float, options: dict[str, Any], slope: float, layers: list[str]
) -> None:
    model = GapNet(lambda: nn.LeakyReLU(slope) if slope else nn.ReLU()).eval()
    images = torch.randn(2, 3, 20, 26)
    a, r = by_hand(images, model, percentile, slope=slope, **options)
    chosen = [LAYERS.index(layer) for layer in layers]
    maps = [(r[i].mean((2, 3), keepdim=True) * a[i]).sum(1).relu() for i in chosen]
    found = RACAM(model, layers, percentile=percentile, **options)(images, 1)
    torch.testing.assert_close(found.cams.double(), fuse(maps, images.shape[2:]), rtol=0, atol=5e-6)


@pytest.mark.parametrize("percentile", [0.0, 60.0])
def test_filtered_fullgrad_equals_float64_formula(percentile: float) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 20, 26)
    plain = copy.deepcopy(model)
    for name in LAYERS:
        setattr(plain, name, FilteredReLU(percentile, strict=False, slope=0.0, hard=False))
    with filtered_backprop(model, percentile):
        found = FullGrad(model)(images, 1).cams
    torch.testing.assert_close(found.double(), fullgrad(plain, images, 1), rtol=0, atol=5e-6)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_filter_stays_where_the_layer_is_written_to(inplace: bool) -> None:
    """A differentiable call after a plain one, which has seen that the ReLU's output changes."""

    class Gated(GapNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.act1(self.norm1(self.conv1(x)))
            x *= torch.linspace(-1, 2, x.shape[3])
            return self.head(self.act3(self.conv3(x)).mean((2, 3)))

    model = Gated(lambda: nn.ReLU(inplace)).eval()
    images, method = torch.randn(2, 3, 16, 16), RACAM(model, "act1", percentile=60)
    expected = method(images, 1).per_layer[0]
    for _ in range(2):
        found = method(images, 1, create_graph=True).per_layer[0]
        torch.testing.assert_close(found.detach(), expected)


def test_options_of_racam() -> None:
    model, images = GapNet(lambda: nn.LeakyReLU(0.2)).eval(), torch.randn(2, 3, 20, 26)
    a, r = by_hand(images, model, 50, slope=0.2)
    region = [x.sum((2, 3), keepdim=True) / (x > 0).sum((2, 3), keepdim=True).clamp(1) for x in r]
    expected = {
        "region_mean": [(w * x).sum(1).relu() for w, x in zip(region, a, strict=True)],
        "hadamard": [(x * y).sum(1).relu() for x, y in zip(r, a, strict=True)],
    }
    for option, maps in expected.items():
        found = RACAM(model, LAYERS, **{option: True})(images, 1)
        for ours, theirs in zip(found.per_layer, maps, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
    a, r = by_hand(images, model, 50, slope=0.2, hard=True)
    found = RACAM(model, LAYERS, hard_mask=True)(images, 1)
    maps = [(y.mean((2, 3), keepdim=True) * x).sum(1).relu() for x, y in zip(a, r, strict=True)]
    for ours, theirs in zip(found.per_layer, maps, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def test_percentile_0_is_guided_backpropagation() -> None:
    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clamp_min(0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * (grad > 0) * (x > 0)

    class GuidedReLU(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Guided.apply(x)

    def net(act: type[nn.Module]) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), act(), nn.Conv2d(4, 5, 3), act(), nn.Flatten(),
            nn.Linear(180, 16), act(), nn.Linear(16, 3),
        )  # fmt: skip

    guided, model = net(GuidedReLU), net(nn.ReLU)
    model.load_state_dict(guided.state_dict())
    images = torch.randn(2, 3, 10, 10, requires_grad=True)
    expected = torch.autograd.grad(guided(images)[:, 1].sum(), images)[0]
    with filtered_backprop(model, 0.0, fc="guided"):
        found = torch.autograd.grad(model(images)[:, 1].sum(), images)[0]
    torch.testing.assert_close(found, expected)
    with filtered_backprop(model, 0.0):
        plain = torch.autograd.grad(model(images)[:, 1].sum(), images)[0]
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("layers", [["0", "3"], ["1"], ["2"], ["5"], ["1", "4"]])
def test_in_place_and_containers(kind: type, layers: list[str]) -> None:
    def net(inplace: bool) -> nn.Module:
        block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), kind(inplace=inplace))
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), kind(inplace=inplace), nn.Sequential(block), nn.Conv2d(4, 4, 3),
            kind(inplace=inplace), nn.Sequential(nn.Conv2d(4, 4, 3), kind(inplace=inplace)),
            nn.Flatten(), nn.Linear(144, 3),
        )  # fmt: skip

    plain, in_place = net(False), net(True)
    in_place.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 12, 12)
    expected = RACAM(plain, layers, percentile=30)(images, 1)
    found = RACAM(in_place, layers, percentile=30)(images, 1)
    torch.testing.assert_close(found.cams, expected.cams)
    # What is cut off before the first layer makes no difference to the layers.
    whole = RACAM(plain, ["0", *(n for n in layers if n != "0")], percentile=30)(images, 1)
    for layer, name in zip(expected.per_layer, layers, strict=True):
        at = 0 if name == "0" else 1 + [n for n in layers if n != "0"].index(name)
        torch.testing.assert_close(layer, whole.per_layer[at])


def test_any_gradient_method_inside_the_context() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    expected = RACAM(model, LAYERS, hadamard=True)(images)
    with filtered_backprop(model, 50):
        inside = LayerCAM(model, LAYERS)(images)
        no_grad_inside = LTLayerCAM(model, LAYERS, percentile=0)(images)
        compiled = LayerCAM(torch.compile(model), LAYERS)(images)
    for found in (inside, no_grad_inside, compiled):
        torch.testing.assert_close(found.cams, expected.cams)
    assert not torch.equal(LayerCAM(model, LAYERS)(images).cams, expected.cams)


def test_nothing_stays_behind() -> None:
    model, images = GapNet(), torch.randn(2, 3, 16, 16)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    with pytest.raises(ZeroDivisionError), filtered_backprop(model, 30, hard_mask=True):
        assert 1 // (hooks() - 7) == 0  # fails as the hooks are there
    assert hooks() == 0
    expected = torch.autograd.grad(model.eval()(images).sum(), model.conv1.weight)[0]
    with filtered_backprop(model, 50):
        model(images)
    assert torch.equal(torch.autograd.grad(model(images).sum(), model.conv1.weight)[0], expected)


class Functional(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(F.relu(self.conv1(x)))
        return self.head(F.adaptive_avg_pool2d(self.relu3(self.conv3(self.conv2(x))), 2).flatten(1))


def test_functional_relus_are_counted() -> None:
    images = torch.randn(2, 3, 16, 16)
    with pytest.warns(UserWarning, match="2 ReLUs are calls of F.relu, clamp or the like"):
        RACAM(Functional().eval(), "conv1")(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RACAM(SmallNet(inplace=True).eval())(images)
        RACAM(GapNet(nn.LeakyReLU).eval())(images)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(784, 2))
    with pytest.warns(UserWarning, match="has no ReLU modules"):
        found = RACAM(model, "1")(images)
    torch.testing.assert_close(found.cams, GradCAM(model, "1")(images).cams)


class Acts(nn.Module):
    """A function on feature maps and another one in the head."""

    def __init__(self, on_maps: Callable[[Tensor], Tensor], in_head=torch.clone) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5)
        self.on_maps, self.in_head = on_maps, in_head

    def forward(self, x: Tensor) -> Tensor:
        return self.in_head(self.head(self.on_maps(self.act(self.conv(x))).mean((2, 3))))


@pytest.mark.parametrize(
    ("relu", "counted"),
    [
        (lambda x: x.clamp(min=0), True),
        (lambda x: x.clamp_min(0), True),
        (lambda x: (x * 1).clip_(0.0), True),
        (lambda x: F.threshold(x, 0, 0), True),
        (nn.Threshold(0, 0), True),
        (F.rrelu, True),
        (F.relu6, True),
        (nn.RReLU().eval(), False),  # filtered
        (lambda x: x.clamp(0, 1), False),
        (lambda x: x.clamp(max=6), False),
        (lambda x: x.clamp_min(1e-6), False),
        (lambda x: F.threshold(x, 0.1, 0), False),
        (F.hardtanh, False),
    ],
)
def test_other_functions_that_are_relus_are_counted(relu: Any, counted: bool) -> None:
    images = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RACAM(Acts(relu).eval(), "conv")(images)
    assert [str(w.message)[:39] for w in caught] == counted * [
        "wsfast.cam.filtered_backprop: 1 ReLUs a"
    ]


@pytest.mark.parametrize(
    ("fc", "relu", "counted"),
    [
        ("plain", F.relu, 0),
        ("guided", F.relu, 1),
        ("guided", lambda x: x.square().sum(1, keepdim=True).clamp_min(0).sqrt() * x, 0),
    ],
)
def test_functions_in_the_head_are_counted_where_modules_filter(
    fc: str, relu: Any, counted: int
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RACAM(Acts(nn.Identity(), relu).eval(), "conv", fc=fc)(torch.randn(2, 3, 8, 8))
    assert len(caught) == counted


def test_random_leaky_relus_are_filtered_as_leaky_ones() -> None:
    images = torch.randn(2, 3, 16, 16)
    leaky = GapNet(lambda: nn.LeakyReLU((1 / 8 + 1 / 3) / 2)).eval()
    random = GapNet(nn.RReLU).eval()
    random.load_state_dict(leaky.state_dict())
    torch.testing.assert_close(RACAM(random)(images).cams, RACAM(leaky)(images).cams)


def test_errors() -> None:
    with pytest.raises(ValueError, match="filtered_backprop: percentile must be between"):
        filtered_backprop(SmallNet(), 101).__enter__()
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        filtered_backprop("net").__enter__()
    with pytest.raises(ValueError, match="fc must be one of"):
        RACAM(SmallNet(), fc="both")
