"""FullGrad against its formula in float64 and the completeness identity behind it."""

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

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


def torchvision_frozen(model: nn.Module) -> nn.Module:
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(model, name, frozen)
    return model


@pytest.mark.parametrize(
    "converted",
    [
        nn.SyncBatchNorm.convert_sync_batchnorm,
        timm.layers.freeze_batch_norm_2d,
        torchvision_frozen,
    ],
)
def test_synchronised_and_frozen_norms_count_alike(converted: Callable) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 20, 28)
    copied = converted(copy.deepcopy(model)).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    for method in (FullGrad, LTFullGrad):
        expected, found = method(model)(images, 1), method(copied)(images, 1)
        torch.testing.assert_close(found.per_layer, expected.per_layer)
    one = FullGrad(copied, ["norm2"])(images, 1)
    torch.testing.assert_close(one.per_layer[1], FullGrad(model, ["norm2"])(images, 1).per_layer[1])
    assert FullGrad(copied).completeness(images, 1).abs().max() < 1e-5


def test_frozen_norms_that_hold_their_activation() -> None:
    model, images = piecewise_linear("test_byobnet").eval(), torch.randn(2, 3, 64, 64)
    expected = FullGrad(model)(images, 0)
    frozen = timm.layers.freeze_batch_norm_2d(model).eval()
    torch.testing.assert_close(FullGrad(frozen)(images, 0).per_layer, expected.per_layer)
    score = frozen(images)[:, 0].detach()
    assert (FullGrad(frozen).completeness(images, 0).abs() <= 1e-4 * score.abs()).all()


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.LayerNorm(6), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_norms_without_a_constant_share_are_told(norm: nn.Module) -> None:
    rest = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)]
    with pytest.warns(UserWarning, match=r"biases of 1 normalisations .*\('1' and such\)"):
        FullGrad(nn.Sequential(rest[0], norm, *rest[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FullGrad(nn.Sequential(*rest))


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


class Between(nn.Module):
    """A layer between a convolution and the head that works on another layout than the maps."""

    def __init__(self, layer: nn.Module, to: Callable, back: Callable) -> None:
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Linear(8, 3)
        self.to, self.back = to, back
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.back(self.layer(self.to(self.conv(x).relu())))
        return self.head(x.relu().flatten(2).mean(2))


def rows(x: Tensor) -> Tensor:
    return x.flatten(2)


def slices(x: Tensor) -> Tensor:
    return x[:, :, None]


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("layer", "to", "back"),
    [
        (nn.Linear(8, 8), lambda x: x.movedim(1, 3), lambda x: x.movedim(3, 1)),
        (nn.Conv1d(8, 8, 3), rows, same),
        (nn.BatchNorm1d(8), rows, same),
        (nn.ConvTranspose1d(8, 8, 3), rows, same),
        (nn.ConvTranspose2d(8, 8, 2, 2), same, same),
        (nn.Conv3d(8, 8, 1), slices, same),
        (nn.ConvTranspose3d(8, 8, 2, 2), slices, same),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
@pytest.mark.parametrize("size", [8, 6])  # of 8 channels: a wrong axis may fit
def test_completeness_of_other_layouts(
    layer: nn.Module, to: Callable, back: Callable, size: int
) -> None:
    model, images = Between(layer, to, back).eval(), torch.randn(2, 3, size, size)
    assert FullGrad(model).completeness(images, 1).abs().max() < 1e-5
    transposed = isinstance(layer, nn.ConvTranspose2d)
    assert len(FullGrad(model)(images, 1).per_layer) == 2 + transposed


def test_completeness_sees_what_is_no_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2))
    assert FullGrad(model).completeness(torch.randn(2, 3, 8, 8), 1).abs().min() > 1e-3


def test_completeness_is_of_one_class_per_image() -> None:
    with pytest.raises(ValueError, match=r"target must be of shape \(2,\), got shape \[2, 3\]"):
        FullGrad(GapNet().eval()).completeness(torch.randn(2, 3, 16, 16), [[0, 1, 2]] * 2)


def test_scores_without_a_graph_are_refused() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 16, 16)
    for call in (FullGrad(model), FullGrad(model).completeness):
        with pytest.raises(ValueError, match="target must be scores that depend on the images"):
            call(images, lambda logits: logits.detach()[:, 0])


def test_biases_that_are_in_memory_while_their_block_runs_only() -> None:
    model, images = nn.Sequential(GapNet(), nn.Linear(4, 3)).eval(), torch.randn(2, 3, 16, 16)
    expected = FullGrad(model)(images, 1).cams
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        sharded = FullGrad(model)
        assert torch.equal(sharded(images, 1).cams, expected)
        assert sharded.completeness(images, 1).abs().max() < 1e-5
    finally:
        distributed.destroy_process_group()


def test_a_model_whose_biases_are_out_of_sight_is_told_of() -> None:
    exported = torch.export.export(GapNet().eval(), (torch.randn(2, 3, 16, 16),)).module()
    with pytest.warns(UserWarning, match="the map is that of the input alone"):
        FullGrad(exported)


def test_images_are_not_written_to() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    images = torch.randn(1, 3, 4, 4)
    before = images.clone()
    FullGrad(model)(images)
    assert torch.equal(images, before)
    assert images._version == 0
