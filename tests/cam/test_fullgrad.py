"""FullGrad against its formula in float64 and the completeness identity behind it."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import GapNet, SmallNet, minmax
from wsfast.cam import FullGrad, LTFullGrad
from wsfast.ops.truncation import reference as truncation


def bias_of(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return module.bias
    scale = module.weight / (module.running_var + module.eps).sqrt()
    return module.bias - scale * module.running_mean


def oracle(
    model: nn.Module,
    images: Tensor,
    target: int,
    *,
    norm: str = "channel",
    percentile: float | None = None,
    psi_input: bool = True,
) -> Tensor:
    """Eq. 6-7 in float64: every channel normalised and resized on its own."""
    model = model.double()
    kept: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _i, out: kept.append((m, out)))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    ]
    x = images.double().requires_grad_()
    score = model(x)[:, target].sum()
    for handle in handles:
        handle.remove()
    input_grad, *grads = torch.autograd.grad(score, [x, *(out for _, out in kept)])

    def psi(shares: Tensor) -> Tensor:
        shares = shares.abs()
        if norm == "channel":
            shares = minmax(shares.flatten(0, 1)).view_as(shares)
        elif norm == "layer":
            shares = minmax(shares.flatten(2)).view_as(shares)
        return F.interpolate(shares, x.shape[2:], mode="bilinear").sum(1)

    total = psi(input_grad * x) if psi_input else (input_grad * x).sum(1)
    for (module, _), g in zip(kept, grads, strict=True):
        g = g if percentile is None else truncation.truncate_gradients(g, percentile)
        total = total + psi(g * bias_of(module).view(1, -1, 1, 1))
    model.float()
    return minmax(total).detach()


@pytest.mark.parametrize("make", [SmallNet, GapNet])
@pytest.mark.parametrize("norm", ["channel", "layer", None])
@pytest.mark.parametrize("psi_input", [True, False])
def test_equals_float64_formula(make: type, norm: str | None, psi_input: bool) -> None:
    model, images = make().eval(), torch.randn(2, 3, 20, 28)
    expected = oracle(model, images, 1, norm=norm, psi_input=psi_input)
    found = FullGrad(model, psi_norm=norm, psi_input=psi_input)(images, 1)
    torch.testing.assert_close(found.cams.double(), expected, rtol=0, atol=5e-6)
    biases = sum(isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) for m in model.modules())
    assert len(found.per_layer) == 1 + biases


@pytest.mark.parametrize("percentile", [0.0, 60.0])
def test_truncated_equals_float64_formula(percentile: float) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 20, 28)
    expected = oracle(model, images, 2, percentile=percentile)
    found = LTFullGrad(model, percentile=percentile)(images, 2).cams
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    truncated_too = LTFullGrad(model, percentile=percentile, truncate_input=True)(images, 2)
    assert not torch.equal(truncated_too.per_layer[0], LTFullGrad(model)(images, 2).per_layer[0])


def test_chosen_layers_and_frozen_models() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    every = FullGrad(model)(images)
    model.requires_grad_(False)
    two = FullGrad(model, ["norm2", model.conv1])(images)
    for ours, expected in zip(two.per_layer, [every.per_layer[i] for i in (0, 1, 4)], strict=True):
        torch.testing.assert_close(ours, expected)


class Twice(nn.Module):
    """A convolution that runs twice: both calls add its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(self.act(self.conv(x)))).flatten(1))


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
    return model


def random_resnet() -> nn.Module:
    return randomised(torchvision.models.resnet18(weights=None, num_classes=5))


def piecewise_linear(name: str) -> nn.Module:
    """A timm model whose norms hold their activations, with ReLUs and without gates."""
    model = timm.create_model(name, num_classes=3)
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if type(child).__name__ in ("SqueezeExcite", "SEModule"):
                setattr(parent, key, nn.Identity())
            elif isinstance(child, nn.SiLU):
                setattr(parent, key, nn.ReLU(inplace=True))
    return randomised(model)


def with_separate_activations(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if hasattr(child, "act") and isinstance(child, nn.BatchNorm2d):
                norm = nn.BatchNorm2d(child.num_features, eps=child.eps)
                norm.load_state_dict(child.state_dict())
                setattr(parent, key, nn.Sequential(norm, child.act))
    return model


@pytest.mark.parametrize("name", ["regnetx_002", "test_efficientnet", "test_byobnet"])
def test_norms_that_hold_their_activation(name: str) -> None:
    torch.manual_seed(0)
    model, images = piecewise_linear(name).eval(), torch.randn(2, 3, 64, 64)
    rest = FullGrad(model).completeness(images, 0)
    score = model(images)[:, 0].detach()
    assert (rest.abs() <= 1e-4 * score.abs()).all()
    layer = next(n for n, m in model.named_modules() if hasattr(m, "drop") and hasattr(m, "act"))
    found = [LTFullGrad(model, layers)(images, 0).cams for layers in ("biases", layer)]
    with_separate_activations(model)
    expected = [LTFullGrad(model, n)(images, 0).cams for n in ("biases", f"{layer}.0")]
    torch.testing.assert_close(found, expected)


def leaky() -> nn.Module:
    return GapNet(nn.LeakyReLU)


@pytest.mark.parametrize("make", [SmallNet, GapNet, leaky, Twice, random_resnet])
def test_completeness(make: type) -> None:
    size = 4 if make is Twice else 64
    model, images = make().train(), torch.randn(2, 3, size, size)
    before = [buffer.clone() for buffer in model.buffers()]
    rest = FullGrad(model).completeness(images, torch.tensor([0, 2]))
    scores = model.eval()(images)[[0, 1], [0, 2]].detach()
    assert (rest.abs() <= 1e-4 * scores.abs().clamp_min(1)).all()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_completeness_sees_what_is_no_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2))
    assert FullGrad(model).completeness(torch.randn(2, 3, 8, 8), 1).abs().min() > 1e-3


def test_scores_without_a_graph_are_refused() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    for call in (FullGrad(model), FullGrad(model).completeness):
        with pytest.raises(ValueError, match="target must be scores that depend on the images"):
            call(images, lambda logits: logits.detach()[:, 0])


def test_images_are_not_written_to() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    images = torch.randn(1, 3, 4, 4)
    before = images.clone()
    FullGrad(model)(images)
    assert torch.equal(images, before)
    assert images._version == 0
