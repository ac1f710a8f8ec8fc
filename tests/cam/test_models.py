"""Which layers are found, and models that do what plain hooks stumble over."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.formulas import MULTI_LAYER
from tests.cam.nets import Branches, SmallNet
from wsfast.cam import (
    METHODS,
    GradCAM,
    LTGradCAM,
)

VGG16_STAGES = ["features.3", "features.8", "features.15", "features.22", "features.29"]
RESNET_STAGES = ["relu", "layer1", "layer2", "layer3", "layer4"]


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


@pytest.mark.parametrize("create_graph", [False, True])
def test_checkpointing_of_timm_passes_over_no_stage(create_graph: bool) -> None:
    model = timm.create_model("resnet10t", pretrained=False, num_classes=4).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = GradCAM(model)(images, 1).cams
    model.set_grad_checkpointing(True)
    found = GradCAM(model)(images, 1, create_graph=create_graph).cams
    assert torch.equal(found.detach(), expected)
    assert model.grad_checkpointing


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
