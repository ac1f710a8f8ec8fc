"""Score-CAM and Ablation-CAM against loops over channels in float64."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import GapNet, SmallNet, fuse, minmax, passes
from wsfast.cam import AblationCAM, ScoreCAM
from wsfast.cam.rerun import Rerun


def scorecam(model: nn.Module, images: Tensor, layer: str, target: int, corners: bool) -> Tensor:
    model.double()
    (a,), _, _ = passes(model, images.double(), [layer])
    scores = []
    for channel in a.unbind(1):
        large = F.interpolate(
            channel[:, None], images.shape[2:], mode="bilinear", align_corners=corners
        )
        masked = images.double() * minmax(large[:, 0])[:, None]
        scores.append(model(masked)[:, target].detach())
    model.float()
    weights = torch.stack(scores, dim=1).softmax(1)
    return (weights[:, :, None, None] * a).sum(1).relu()


def ablationcam(model: nn.Module, images: Tensor, layer: str, target: int) -> Tensor:
    model.double()
    (a,), _, logits = passes(model, images.double(), [layer])
    weights = []
    for k in range(a.shape[1]):
        without = a.clone()
        without[:, k] = 0
        handle = model.get_submodule(layer).register_forward_hook(lambda *_, w=without: w)
        weights.append((logits - model(images.double()).detach())[:, target])
        handle.remove()
    model.float()
    drops = torch.stack(weights, dim=1) / logits[:, target, None].abs()
    return (drops[:, :, None, None] * a).sum(1).relu()


@pytest.mark.parametrize("memory", [1, 100_000, 2**29])
@pytest.mark.parametrize("corners", [False, True])
def test_scorecam_equals_float64_formula(memory: int, corners: bool) -> None:
    model, images = SmallNet().eval(), torch.randn(3, 3, 20, 28)
    model.head.weight.data *= 50  # else the softmax is flat and any weights would do
    expected = scorecam(model, images, "relu3", 1, corners)
    method = ScoreCAM(model, "relu3", memory=memory, align_corners=corners)
    found = method(images, 1)
    torch.testing.assert_close(found.per_layer[0].double(), expected, rtol=2e-3, atol=1e-5)
    fused = fuse([expected], images.shape[2:])
    torch.testing.assert_close(found.cams.double(), fused, rtol=0, atol=5e-6)
    by_callable = method(images, lambda logits: logits[range(3), [1, 1, 1]])
    torch.testing.assert_close(by_callable.cams, found.cams, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", [1, 100_000, 2**29])
@pytest.mark.parametrize("layer", ["conv1", "act1", "conv2", "norm2", "act2", "conv3", "act3"])
def test_ablationcam_equals_float64_formula(memory: int, layer: str) -> None:
    model, images = GapNet().eval(), torch.randn(3, 3, 20, 28)
    expected = ablationcam(model, images, layer, 1)
    found = AblationCAM(model, layer, memory=memory)(images, 1)
    torch.testing.assert_close(found.per_layer[0].double(), expected, rtol=1e-3, atol=1e-5)
    fused = fuse([expected], images.shape[2:])  # of differences between nearly equal scores
    torch.testing.assert_close(found.cams.double(), fused, rtol=0, atol=1e-5)
    signed = AblationCAM(model, layer, signed=True)(images, 1)
    positive = found.logits[:, 1] > 0
    torch.testing.assert_close(signed.per_layer[0][positive], found.per_layer[0][positive])


class Shapes(nn.Module):
    """In-place ops, a layer inside a shortcut, a module that runs twice, a functional prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.conv3, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        self.runs = {"conv1": 0, "conv2": 0, "conv3": 0}
        for name in self.runs:
            getattr(self, name).register_forward_hook(lambda *_, n=name: self._count(n))

    def _count(self, name: str) -> None:
        self.runs[name] += 1

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        x = F.max_pool2d(x, 2)
        y = self.act(self.conv3(self.act(self.conv2(x))))
        return self.head((x + y).mean((2, 3)))


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "act"])
def test_models_that_are_hard_to_cut(layer: str) -> None:
    model, images = Shapes().eval(), torch.randn(2, 3, 12, 12)
    (features,), _, _ = passes(LikeShapes.of(model), images, [layer])
    rerun = Rerun("test", model, model.get_submodule(layer), images)
    torch.testing.assert_close(rerun.features, features)
    factors = torch.tensor([1.0, 0.5, 2.0]).repeat_interleave(2).view(-1, 1, 1, 1)
    found = rerun.logits(features.repeat(3, 1, 1, 1) * factors, 3)
    for part, factor in zip(found.chunk(3), (1.0, 0.5, 2.0), strict=True):
        calls = [0]

        def replace(module: nn.Module, inputs: object, output: Tensor, f=factor, n=calls) -> Tensor:
            n[0] += 1
            last = 2 if layer == "act" else 1
            return features * f if n[0] == last else output

        handle = model.get_submodule(layer).register_forward_hook(replace)
        torch.testing.assert_close(part, model(images))
        handle.remove()
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_patched_forward_stays() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 12, 12)
    expected = AblationCAM(model, "act3")(images, 1)
    patches = {}
    for name in ("conv1", "act3"):
        module = model.get_submodule(name)
        patches[name] = module.forward = lambda x, original=module.forward: original(x)
    found = AblationCAM(model, "act3")(images, 1)
    assert torch.equal(found.cams, expected.cams)
    assert all(vars(model.get_submodule(n))["forward"] is patch for n, patch in patches.items())


class LikeShapes(Shapes):
    """The same without in-place ops."""

    @classmethod
    def of(cls, model: Shapes) -> "LikeShapes":
        copy = cls().eval()
        copy.load_state_dict(model.state_dict())
        copy.act.inplace = False
        return copy

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        y = self.act(self.conv3(self.act(self.conv2(x))))
        return self.head((x + y).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "layer", "skipped", "after"),
    [
        ("vgg11", "features.19", 19, 0),
        ("resnet18", "layer3.0.conv2", 8, 8),
        ("resnet18", "layer4", 7, 0),
    ],
)
def test_only_what_follows_the_layer_runs(name: str, layer: str, skipped: int, after: int) -> None:
    model = torchvision.models.get_model(name, weights=None, num_classes=5)
    if name == "vgg11":
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 5)
    model.eval().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    rerun = Rerun("test", model, model.get_submodule(layer), images)
    assert rerun.skipped == skipped
    # Of the modules before the layer, only the ReLU that runs again after it is left.
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    calls: list[int] = []
    for module in convolutions:
        module._conv_forward = lambda *a, c=module._conv_forward: (calls.append(1), c(*a))[1]
    rerun.logits(rerun.features.repeat(2, 1, 1, 1), 2)
    assert len(calls) == after


def test_tokens_and_channels_last() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    found = AblationCAM(vit)(images, 1)
    assert found.per_layer[0].shape == (2, 2, 2)
    kept: list[Tensor] = []
    handle = vit.blocks[1].norm1.register_forward_hook(lambda *a: kept.append(a[2]))
    score = vit(images)[:, 1]
    handle.remove()
    without = kept[0].clone()
    without[..., 5] = 0
    handle = vit.blocks[1].norm1.register_forward_hook(lambda *_: without)
    drop = (score - vit(images)[:, 1]).detach() / score.detach().abs()
    handle.remove()
    method = AblationCAM(vit)
    captured = method._capture.run(images, graph="none")
    weights = method.channel_weights(captured, "blocks.1.norm1", images, 1, torch.tensor([1, 1]))
    torch.testing.assert_close(weights[:, 0, 5], drop, rtol=1e-3, atol=1e-5)


def test_dead_score_gives_a_flat_map() -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 12, 12)
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    result = AblationCAM(model, "act3")(images, 1)
    assert result.valid.all()
    assert not result.cams.any()


@pytest.mark.parametrize("layer", ["conv2", "act3"])  # with and without a shortcut around it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ablationcam_under_autocast(layer: str, dtype: torch.dtype) -> None:
    model, images = GapNet().eval(), torch.randn(2, 3, 20, 28).to(dtype)
    nn.init.constant_(model.head.bias, 100.0)  # half a bfloat16 step of this is a logit's range
    classes = [[0, 1, 2, 3]] * 2
    expected = AblationCAM(model, layer)(images.float(), classes)
    with torch.autocast("cpu", torch.bfloat16):
        found = AblationCAM(model, layer)(images, classes)
        by_callable = AblationCAM(model, layer)(images, lambda logits: logits[:, 3])
    torch.testing.assert_close(found.cams, expected.cams, rtol=0, atol=0.03)
    torch.testing.assert_close(by_callable.cams, found.cams[:, 3])
    assert found.logits.dtype == torch.bfloat16


def test_ablationcam_of_a_model_that_needs_autocast() -> None:
    model, images = GapNet().eval().bfloat16(), torch.randn(2, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert AblationCAM(model, "act3")(images).valid.all()
