"""pytorch-grad-cam's interface: against wsfast.cam always, against the package where installed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cam.nets import GapNet, minmax
from tests.leaks import assert_no_growth
from wsfast import cam as methods
from wsfast.compat import grad_cam as compat
from wsfast.compat.grad_cam.eigen import principal_maps
from wsfast.compat.grad_cam.targets import finer_score

EIGEN = ["EigenCAM", "EigenGradCAM", "SegEigenCAM"]
SUMS = [
    "GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM",
    "ScoreCAM", "AblationCAM", "RandomCAM", "ShapleyCAM",
]  # fmt: skip
NAMES = [*SUMS, *EIGEN, "FullGrad", "FEM"]


@pytest.fixture
def model() -> nn.Module:
    model = GapNet().eval()
    model.head.weight.data *= 20
    return model


def layers_of(model: nn.Module, name: str) -> list[nn.Module]:
    if name == "FullGrad":
        return []
    single = ("ScoreCAM", "AblationCAM", "ShapleyCAM")  # the peer's fails with two layers
    return [model.act3] if name in single else [model.act1, model.act3]


def both(name: str, model: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
    """The peer's maps and ours."""
    peer = pytest.importorskip("pytorch_grad_cam")
    found = []
    for module in (peer, compat):
        np.random.seed(7)  # noqa: NPY002  # RandomCAM draws from the global generator
        cam = getattr(module, name)(model=model, target_layers=layers_of(model, name))
        found.append(cam(IMAGES.clone(), *args, **options))
    return found[0], found[1]


IMAGES = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [None, "callables"])
def test_same_results(model: nn.Module, name: str, targets: str | None) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    chosen: Any = None
    if targets == "callables":
        chosen = [lambda row: row[0] - row[1], lambda row: row[2], lambda row: 2 * row[3]]
    layers = layers_of(model, name)
    np.random.seed(7)  # noqa: NPY002
    with getattr(peer, name)(model=model, target_layers=layers) as theirs:
        expected = theirs(input_tensor=IMAGES.clone(), targets=chosen)
    np.random.seed(7)  # noqa: NPY002
    with getattr(compat, name)(model=model, target_layers=layers) as ours:
        found = ours(input_tensor=IMAGES, targets=chosen)
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(ours.outputs, theirs.outputs.detach())


@pytest.mark.peers
def test_same_results_for_classes(model: nn.Module) -> None:
    for targets in ("ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget"):
        chosen = [getattr(compat, targets)(i) for i in (1, 0, 3)]
        expected, found = both("LayerCAM", model, chosen)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    utils = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    logits = torch.randn(3, 4)
    for name in ("ClassifierOutputSoftmaxTarget", "ClassifierOutputReST"):
        ours, theirs = getattr(compat, name)(2), getattr(utils, name)(2)
        torch.testing.assert_close(ours(logits), theirs(logits))
        torch.testing.assert_close(ours(logits[0]), theirs(logits[0]))


@pytest.mark.peers
def test_one_logit(model: nn.Module) -> None:
    model.head = nn.Linear(model.head.in_features, 1)
    chosen = [compat.BinaryClassifierOutputTarget(i) for i in (1, 0, 1)]
    expected, found = both("GradCAM", model, chosen)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.peers
@pytest.mark.parametrize("name", [*SUMS, *EIGEN, "FEM"])
def test_eigen_smooth(model: nn.Module, name: str) -> None:
    expected, found = both(name, model, None, eigen_smooth=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_principal_maps() -> None:
    weighted = torch.randn(4, 6, 5, 7)
    pixels = weighted.flatten(2).mT - weighted.flatten(2).mean(2)[:, None]
    vectors = torch.linalg.eigh((pixels.mT @ pixels).double())[1][:, :, -1]
    expected = (pixels.double() @ vectors[:, :, None])[..., 0].unflatten(1, (5, 7))
    found = principal_maps(weighted)
    torch.testing.assert_close(found.abs(), expected.abs().float(), rtol=1e-3, atol=1e-4)


@pytest.mark.peers
def test_curvature() -> None:
    """Behind a GELU the score bends, and ShapleyCAM differs from Grad-CAM."""
    peer = pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 5, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    ).eval()  # fmt: skip
    expected = peer.ShapleyCAM(model, [model[1]])(5 * IMAGES, None)
    found = compat.ShapleyCAM(model, [model[1]])(5 * IMAGES, None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    assert np.abs(found - compat.GradCAM(model, [model[1]])(5 * IMAGES, None)).max() > 1e-4


class TokenNet(nn.Module):
    """Patches and a class token behind one attention with nothing but its formula."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 6, 8, 8), nn.LayerNorm(6)
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).mT
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=2)
        return self.head((tokens + (q @ k.mT).softmax(-1) @ v)[:, 0])


def patches_of(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].unflatten(1, (3, 4)).movedim(3, 1)


@pytest.fixture
def token_model() -> TokenNet:
    torch.manual_seed(3)
    model = TokenNet().eval()
    model.qkv.weight.data *= 4
    return model


def test_curvature_of_tokens(token_model: TokenNet) -> None:
    """The Hessian is that at the layer's output, not at the patches cut out of it."""

    def score(tokens: Tensor) -> Tensor:
        handle = token_model.norm.register_forward_hook(lambda *_: tokens)
        logits = token_model(IMAGES[:1])
        handle.remove()
        return logits[0, 2]

    tokens = []
    handle = token_model.norm.register_forward_hook(lambda *args: tokens.append(args[2].detach()))
    token_model(IMAGES[:1])
    handle.remove()
    grad = torch.autograd.functional.jacobian(score, tokens[0])
    curved = torch.autograd.functional.hvp(score, tokens[0], tokens[0])[1]
    weights = patches_of(grad - 0.5 * curved).mean((2, 3), keepdim=True)
    expected = (weights * patches_of(tokens[0])).sum(1).relu()
    cam = compat.ShapleyCAM(token_model, [token_model.norm], patches_of)
    result = cam.explain(IMAGES[:1], [compat.ClassifierOutputTarget(2)], False)
    torch.testing.assert_close(result.per_layer[0], expected)
    assert curved.abs().max() > 0.1 * grad.abs().max()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the peer's end
def test_same_results_on_tokens(token_model: TokenNet) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")

    class Reshaped(peer.ShapleyCAM):  # whose own sum takes the tokens as they are, and fails
        def get_cam_image(self, images, layer, targets, activations, grads, smooth=False):
            weights = self.get_cam_weights(images, layer, targets, activations, grads)
            return (weights[:, :, None, None] * patches_of(activations).detach().numpy()).sum(1)

    layers = [token_model.norm]
    expected = Reshaped(token_model, layers, patches_of)(IMAGES.clone(), None)
    found = compat.ShapleyCAM(token_model, layers, patches_of)(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


class Pooled(nn.Linear):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean((2, 3)))


class Derived(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: no plain BatchNorm2d."""


def test_biases_of_plain_layers_alone(model: nn.Module) -> None:
    plain = [model.conv1, model.conv2, model.norm2, model.conv3]
    expected = methods.FullGrad(model, plain)(IMAGES, 1).cams
    model.norm1.__class__ = Derived
    found = compat.FullGrad(model)(IMAGES, [compat.ClassifierOutputTarget(1)] * 3)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)
    assert np.abs(found - methods.FullGrad(model)(IMAGES, 1).cams.numpy()).max() > 1e-3


@pytest.mark.peers
def test_biases_of_a_timm_model() -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(3)
    model = pytest.importorskip("timm").create_model("efficientnet_b0", num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
    images = IMAGES[:1, :, :, :24]
    expected = peer.FullGrad(model, [])(images.clone(), None)
    np.testing.assert_allclose(compat.FullGrad(model)(images), expected, rtol=0, atol=5e-6)


def test_no_biases_of_plain_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), Derived(4), nn.ReLU(), Pooled(4)).eval()
    nn.init.ones_(model[1].bias)
    x = IMAGES.clone().requires_grad_()
    (grads,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    shares = (grads * IMAGES).abs()
    shares = shares - shares.amin((2, 3), keepdim=True)
    expected = minmax((shares / (shares.amax((2, 3), keepdim=True) + 1e-7)).sum(1))
    found = compat.FullGrad(model)(IMAGES, [compat.ClassifierOutputTarget(0)] * 3)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def mean_gradients(self, input_tensor, target_layer, targets, activations, grads):
    """Grad-CAM's weights, as a method of a class."""
    assert type(activations) is np.ndarray
    assert activations.dtype == grads.dtype == np.float32
    return grads.mean(axis=(2, 3))


class OwnGradCAM(compat.BaseCAM):
    get_cam_weights = mean_gradients


@pytest.mark.parametrize("smooth", [{}, {"eigen_smooth": True}, {"aug_smooth": True}])
def test_own_weights(model: nn.Module, smooth: dict[str, bool]) -> None:
    layers = [model.act1, model.act3]
    targets = [compat.ClassifierOutputTarget(i) for i in (1, 0, 2)]
    for chosen in (None, targets):
        expected = compat.GradCAM(model, layers)(IMAGES, chosen, **smooth)
        found = OwnGradCAM(model, layers)(IMAGES, chosen, **smooth)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_what_own_weights_are_given(model: nn.Module) -> None:
    class Ones(compat.GradCAM):
        def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
            rows = zip(targets, self.outputs, strict=True)
            calls.append((input_tensor, target_layer, [float(t(row)) for t, row in rows], grads))
            return np.ones((1, activations.shape[1]))

    calls: list[Any] = []
    layers = [model.act3, model.act1]
    ones = Ones(model, layers)
    found = ones(IMAGES)
    activations = model.act1(model.norm1(model.conv1(IMAGES)))
    result = ones.explain(IMAGES, None, False)
    torch.testing.assert_close(result.per_layer[1], activations.sum(1).detach())
    assert [layer for _, layer, _, _ in calls[:2]] == layers
    assert calls[0][0] is IMAGES
    best = model(IMAGES).amax(1).tolist()
    assert calls[0][2] == pytest.approx(best)
    assert calls[0][3].shape == (3, 8, 12, 16)
    np.testing.assert_array_equal(found, result.cams.numpy())
    ones(IMAGES, (lambda row: row[2] for _ in range(3)))  # an iterator
    assert calls[-1][2] == pytest.approx(model(IMAGES)[:, 2].tolist())


def test_own_weights_without_gradients(model: nn.Module) -> None:
    class Activity(compat.BaseCAM):
        def __init__(self, model: nn.Module, target_layers: list[nn.Module]) -> None:
            super().__init__(model, target_layers, uses_gradients=False)

        def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
            assert grads is None
            return activations.mean(axis=(2, 3))

    found = Activity(model, [model.act1]).explain(IMAGES, None, False).per_layer[0]
    a = model.act1(model.norm1(model.conv1(IMAGES))).detach()
    torch.testing.assert_close(found, (a.mean((2, 3), keepdim=True) * a).sum(1))


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus", "XGradCAM"])
def test_own_weights_from_the_methods(model: nn.Module, name: str) -> None:
    kind: Any = getattr(compat, name)

    class Same(kind):
        def get_cam_weights(self, *args: Any) -> Any:
            return super().get_cam_weights(*args)

    layers = [model.act2, model.act3]
    expected = kind(model, layers)(IMAGES)
    np.testing.assert_allclose(Same(model, layers)(IMAGES), expected, rtol=0, atol=5e-6)
    for wrapper in (compat.FinerCAM, compat.RefineCAM):
        expected = wrapper(model, layers, base_method=kind)(IMAGES)
        found = wrapper(model, layers, base_method=Same)(IMAGES)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.peers
@pytest.mark.parametrize("base", ["BaseCAM", "GradCAM", "XGradCAM"])
@pytest.mark.parametrize("smooth", [{}, {"eigen_smooth": True}, {"aug_smooth": True}])
def test_own_weights_as_there(model: nn.Module, base: str, smooth: dict[str, bool]) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    found = []
    for parent in (
        getattr(peer.base_cam if base == "BaseCAM" else peer, base),
        getattr(compat, base),
    ):

        class Own(parent):
            def get_cam_weights(self, images, layer, targets, activations, grads):
                if base == "BaseCAM":
                    return np.maximum(grads, 0).max(axis=(2, 3)).astype(np.float64) ** 2
                weights = super().get_cam_weights(images, layer, targets, activations, grads)
                return np.abs(weights)

        cam = Own(model, [model.act1, model.act3])
        found.append(cam(IMAGES.clone(), [lambda row: row[1] - row[0]] * 3, **smooth))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "forward", "get_cam_image", "compute_cam_per_layer", "aggregate_multi_layers",
        "forward_augmentation_smoothing", "get_target_width_height",
    ],
)  # fmt: skip
def test_other_methods_are_not_overridden(name: str) -> None:
    message = f"compat.grad_cam.My: the overridden method must be get_cam_weights, got {name}"
    with pytest.raises(TypeError, match=message):
        type("My", (compat.GradCAM,), {name: lambda self: None})
    mixin = type("Mixin", (), {name: lambda self: None})
    with pytest.raises(TypeError, match=message):
        type("My", (mixin, compat.BaseCAM), {})


@pytest.mark.parametrize("name", ["LayerCAM", "ScoreCAM", "ShapleyCAM", "FullGrad", "EigenCAM"])
def test_weights_where_there_are_none(model: nn.Module, name: str) -> None:
    message = rf"compat\.grad_cam\.My: the overridden get_cam_weights must be of .*, got {name}"
    with pytest.raises(TypeError, match=message):
        type("My", (getattr(compat, name),), {"get_cam_weights": mean_gradients})
    with pytest.raises(NotImplementedError, match="get_cam_weights is to be defined"):
        compat.BaseCAM(model, [model.act3])(IMAGES)


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_accelerate(model: nn.Module, name: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    theirs = getattr(peer, name)(model=model, target_layers=layers_of(model, name))
    np.random.seed(7)  # noqa: NPY002
    expected = theirs(IMAGES.clone(), None)
    fast = compat.accelerate(theirs)
    np.random.seed(7)  # noqa: NPY002
    np.testing.assert_allclose(fast(IMAGES, None), expected, rtol=0, atol=5e-6)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.peers
def test_accelerate_keeps_options_or_says_so(model: nn.Module) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    layers = [model.act2, model.act3]
    theirs = peer.RefineCAM(model, layers, base_method=peer.FEM, k=1)
    expected = theirs(IMAGES.clone(), None)
    np.testing.assert_allclose(compat.accelerate(theirs)(IMAGES), expected, rtol=0, atol=5e-6)
    assert compat.accelerate(peer.FEM(model, layers, k=3)).k == 3
    some = peer.AblationCAM(model, [model.act3], ratio_channels_to_ablate=0.3)
    with pytest.raises(ValueError, match=r"ratio_channels_to_ablate must be 1\.0, got 0\.3"):
        compat.accelerate(some)
    assert some(IMAGES.clone(), None).shape == (3, 24, 32)  # its hooks are still there


@pytest.mark.peers
def test_accelerate_takes_the_package_s_own_classes_alone(model: nn.Module) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    own = type("GradCAM", (peer.GradCAM,), {"get_cam_weights": mean_gradients})
    own.__module__ = "of.a.user"
    with pytest.raises(TypeError, match=r"got of\.a\.user\.GradCAM"):
        compat.accelerate(own(model, [model.act3]))


def test_targets_of_that_name_are_called(model: nn.Module) -> None:
    class ClassifierOutputTarget:
        category = 0

        def __call__(self, row: Tensor) -> Tensor:
            return row[3] - row[1]

    cam = compat.GradCAM(model, [model.act3])
    expected = cam(IMAGES, [lambda row: row[3] - row[1]] * 3)
    np.testing.assert_array_equal(cam(IMAGES, [ClassifierOutputTarget()] * 3), expected)


FINER = [{}, {"alpha": 0.6}, {"comparison_categories": [1, 2]}, {"target_idx": 2}]


@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_finer_compares_the_same_classes_in_all_passes(model: nn.Module, name: str) -> None:
    """Masks change which class has the highest score."""
    logits = model(IMAGES).detach()
    order = (logits - logits.amax(1, keepdim=True)).abs().argsort(dim=1, stable=True)
    targets = [
        lambda row, o=o: finer_score(row[None], o[None, :1], o[None, 1:], 1.0)[0] for o in order
    ]
    expected = getattr(compat, name)(model, [model.act3])(IMAGES, targets)
    found = compat.FinerCAM(model, [model.act3], base_method=getattr(compat, name))(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("base", ["LayerCAM", "ScoreCAM"])
@pytest.mark.parametrize("options", FINER)
def test_finer(model: nn.Module, options: dict[str, Any], base: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    layers = [model.act2, model.act3] if base == "LayerCAM" else [model.act3]
    theirs = peer.FinerCAM(model, layers, base_method=getattr(peer, base))
    expected = theirs(IMAGES.clone(), None, **options)
    ours = compat.FinerCAM(model, layers, base_method=getattr(compat, base))
    for cam in (ours, compat.accelerate(theirs)):
        np.testing.assert_allclose(cam(IMAGES, None, **options), expected, rtol=0, atol=5e-6)


@pytest.mark.peers
def test_refined(model: nn.Module) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    layers = [model.act2, model.act3]
    theirs = peer.RefineCAM(model, layers)
    expected = theirs(IMAGES.clone(), None)
    with compat.RefineCAM(model, layers) as ours:
        for cam in (ours, compat.accelerate(theirs)):
            np.testing.assert_allclose(cam(IMAGES, None), expected, rtol=0, atol=5e-6)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.peers
@pytest.mark.parametrize("category", [None, 2])
def test_guided_backpropagation(model: nn.Module, category: int | None) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    ours = compat.accelerate(peer.GuidedBackpropReLUModel(model, "cpu"))
    found = ours(IMAGES, category)
    kinds = [type(module) for module in model.modules()]
    expected = peer.GuidedBackpropReLUModel(model, "cpu")(IMAGES[:1].clone(), category)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert found.shape == (24, 32, 3)
    assert nn.ReLU in kinds


@pytest.mark.peers
def test_augmented_smoothing(model: nn.Module) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    theirs = peer.LayerCAM(model=model, target_layers=[model.act2])
    expected = theirs(IMAGES.clone(), None, aug_smooth=True)
    found = compat.LayerCAM(model, [model.act2])(IMAGES, None, aug_smooth=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    given = compat.LayerCAM(model, [model.act2], tta_transforms=theirs.tta_transforms)
    np.testing.assert_allclose(given(IMAGES, None, aug_smooth=True), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM", "XGradCAM", "LayerCAM"])
def test_is_the_method_of_that_name(model: nn.Module, name: str) -> None:
    layers = [model.act1, model.act3]
    targets = [compat.ClassifierOutputTarget(2)] * 3
    found = getattr(compat, name)(model, layers)(IMAGES, targets)
    expected = getattr(methods, name)(model, layers)(IMAGES, 2).cams
    np.testing.assert_array_equal(found, expected.numpy())


def test_reshape_transform() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), Transpose(), nn.LayerNorm(6), Mean(), nn.Linear(6, 3)
    ).eval()

    def reshape(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (6, 8)).permute(0, 3, 1, 2)

    found = compat.GradCAM(model, [model[3]], reshape_transform=reshape)(IMAGES, None)
    assert found.shape == (3, 24, 32)
    assert found.max() > 0.9


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_leaves_gradients_and_memory_alone(model: nn.Module) -> None:
    extractor = compat.LayerCAM(model, [model.act1, model.act3])
    assert_no_growth(lambda: extractor(IMAGES))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors(model: nn.Module) -> None:
    extractor = compat.GradCAM(model, [model.act3])
    with pytest.raises(ValueError, match=r"targets must be one per image \(3\), got 1"):
        extractor(IMAGES, [compat.ClassifierOutputTarget(0)])
    with pytest.raises(TypeError, match="targets must be None or callables"):
        extractor(IMAGES, [0, 1, 2])
    with pytest.raises(ValueError, match="eigen_smooth must be False for this method"):
        compat.FullGrad(model)(IMAGES, None, eigen_smooth=True)
    with pytest.raises(ValueError, match="targets must be callables giving one number per image"):
        extractor(IMAGES, [lambda row: row] * 3)
    with pytest.raises(TypeError, match="base_method must be a class of wsfast"):
        compat.RefineCAM(model, [model.act3], base_method=methods.GradCAM)
    with pytest.raises(ImportError, match=r"has no SESS: wsfast\.cam\.multiscale"):
        from wsfast.compat.grad_cam import SESS  # noqa: F401
    with pytest.raises(ImportError, match="has no AblationLayer: wsfast's AblationCAM needs none"):
        exec("from wsfast.compat.grad_cam import GradCAM, AblationLayer")
    with pytest.raises(ImportError, match="has no SemanticSegmentationTarget: wsfast explains"):
        from wsfast.compat.grad_cam import SemanticSegmentationTarget  # noqa: F401
    for name in ("activations_and_grads", "compute_cam_per_layer", "get_cam_image"):
        assert not hasattr(extractor, name)
    assert not hasattr(compat, "AblationLayer")
    assert getattr(compat, "KPCA_CAM", None) is None
    with pytest.raises(AttributeError, match=r"no attribute 'SESS': wsfast\.cam\.multi"):
        _ = compat.SESS
    with pytest.raises(AttributeError, match="has no attribute 'Grad'"):
        _ = compat.Grad
    with pytest.raises(ValueError, match="detach must be True"):
        compat.GradCAM(model, [model.act3], detach=False)
    with pytest.raises(ValueError, match=r"ratio_channels_to_ablate must be 1\.0"):
        compat.AblationCAM(model, [model.act3], ratio_channels_to_ablate=0.5)
    with pytest.raises(TypeError, match="cam must be a pytorch-grad-cam object of GradCAM"):
        compat.accelerate(object())
    with pytest.raises(TypeError, match=r"got wsfast\.compat\.grad_cam\.methods\.GradCAM"):
        compat.accelerate(extractor)  # of that name, from elsewhere
    flat = type("Flat", (compat.GradCAM,), {"get_cam_weights": lambda *_: np.ones(8)})
    with pytest.raises(ValueError, match=r"gives must be of shape \[3, 8\], got shape \[8\]"):
        flat(model, [model.act3])(IMAGES)
    with pytest.raises(IndexError), extractor:
        [][0]
