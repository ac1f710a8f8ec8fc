"""Which layers are found for names, modules and stages."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast.cam import GradCAM, LTGradCAM
from wsfast.cam.stages import dry_run_stages, record_calls


def conv(width_in: int, width: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(width_in, width, 3, stride, 1)


class Body(nn.Module):
    """A head on any feature extractor."""

    def __init__(self, body: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class ReusedReLU(nn.Module):
    """One ReLU module for all stages: only its last call could be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = conv(3, 4), conv(4, 4, 2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = conv(3, 4, 2), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class EncoderDecoder(nn.Module):
    """A classifier whose decoder goes back up to full resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv(3, 4, 2), conv(4, 4, 2)
        self.fc, self.up = nn.Linear(4, 3), nn.ConvTranspose2d(4, 1, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.down2(self.down1(x))
        return self.fc(x.mean((2, 3))), self.up(x)


class ChannelsLastBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.turn = conv(4, 4), nn.LayerNorm(4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.turn(self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Table(nn.Module):
    """Has a table of parameters in the shape of a smaller map, as Swin V2's positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.fc = conv(3, 4), nn.Conv2d(1, 4, 1), nn.Linear(4, 3)
        self.positions = nn.Parameter(torch.randn(1, 1, 7, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)) + self.table(self.positions).mean((2, 3)))


class KeywordInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4), nn.MaxPool2d(2))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(input=x).mean((2, 3)))


def blocks_with_pools() -> nn.Module:
    return Body(
        nn.Sequential(
            nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(conv(4, 4), nn.ReLU(), nn.AvgPool2d(2)),
            nn.Sequential(conv(4, 4), nn.ReLU()),
        )
    )


def strided_blocks() -> nn.Module:
    block = [nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4, 2), nn.ReLU()) for _ in range(2)]
    return Body(nn.Sequential(conv(3, 4), *block))


def channels_last_blocks() -> nn.Module:
    return Body(
        nn.Sequential(conv(3, 4, 2), ChannelsLastBlock(), conv(4, 4, 2), ChannelsLastBlock())
    )


STAGES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "blocks that end with a pool": (blocks_with_pools, ["body.0.1", "body.1.1", "body.2"]),
    "blocks that begin with a stride": (strided_blocks, ["body.0", "body.1", "body.2"]),
    "one ReLU for all": (lambda: Body(ReusedReLU()), ["body.first", "body.act"]),
    "squeeze and excitation": (
        lambda: Body(nn.Sequential(SqueezeExcite(), conv(4, 4, 2))),
        ["body.0", "body.1"],
    ),
    "decoder": (EncoderDecoder, ["down1", "down2"]),
    "channels-last block": (channels_last_blocks, ["body.1", "body.3"]),
    "table of parameters": (Table, ["conv"]),
    "keyword input": (KeywordInput, ["body.0", "body.2"]),
    "one layer": (lambda: Body(conv(3, 4)), ["body"]),
}


@pytest.mark.parametrize("case", STAGES)
def test_dry_run_finds_stages(case: str) -> None:
    make, expected = STAGES[case]
    method = GradCAM(make().eval())
    assert method.layer_names is None
    assert method(torch.randn(2, 3, 33, 48)).valid.all()
    assert method.layer_names == tuple(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("mobilenet_v2", [f"features.{i}" for i in (1, 3, 6, 13, 18)]),
        ("squeezenet1_1", ["features.1", "features.4", "features.7", "classifier.2"]),
        ("vgg11", [f"features.{i}" for i in (1, 4, 9, 14, 19)]),
    ],
)
def test_dry_run_on_torchvision(name: str, expected: list[str]) -> None:
    with torch.device("meta"):  # shapes are all that a dry run needs
        model = torchvision.models.get_model(name, weights=None)
        found = dry_run_stages(record_calls(model, torch.empty(1, 3, 64, 80)))
    assert [stage.name for stage in found] == expected


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_dry_run_agrees_with_timm_on_resolutions(name: str) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    stages = GradCAM(model)(images).per_layer
    found = [stage.name for stage in dry_run_stages(record_calls(model, images))]
    dry = GradCAM(model, found)(images).per_layer
    assert [m.shape for m in stages] == [m.shape for m in dry]
    assert len(stages) == 5


@pytest.mark.parametrize("name", ["efficientnet_b0", "poolformer_s12"])
def test_timm_models_need_no_dry_run(name: str) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=3).eval()
    method = LTGradCAM(model)
    assert method.layer_names is not None
    result = method(torch.randn(2, 3, 64, 64), 1)
    assert result.cams.shape == (2, 64, 64)
    assert [m.shape[1] for m in result.per_layer] == [32, 16, 8, 4, 2][-len(result.per_layer) :]


def test_dry_run_happens_once_and_leaves_no_trace() -> None:
    model, images = blocks_with_pools().train(), torch.randn(4, 3, 16, 16)
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _m, inputs: batches.append(len(inputs[0])))
    method = LTGradCAM(model)
    method(images)
    method(images)
    assert batches == [2, 4, 4]
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks for m in model.modules())
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 1


def test_hooks_go_when_a_dry_run_fails() -> None:
    model = blocks_with_pools()
    with pytest.raises(RuntimeError):
        GradCAM(model)(torch.randn(1, 5, 16, 16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_feature_info_of_missing_modules_is_not_believed() -> None:
    model = blocks_with_pools().eval()
    model.feature_info = [{"module": "body.0"}, {"module": "gone"}]
    assert GradCAM(model, "last").layer_names is None


def test_one_stage_per_resolution_of_feature_info() -> None:
    model = blocks_with_pools().eval()
    names = ("body.0", "body.1", "body.2")
    model.feature_info = [
        {"module": m, "reduction": r} for m, r in zip(names, (2, 4, 4), strict=True)
    ]
    assert GradCAM(model).layer_names == ("body.0", "body.2")


def test_last_is_the_last_stage() -> None:
    model, images = blocks_with_pools().eval(), torch.randn(2, 3, 16, 16)
    method = GradCAM(model, "last")
    assert torch.equal(method(images).cams, GradCAM(model, "body.2")(images).cams)
    assert method.layer_names == ("body.2",)


def test_names_modules_and_mixed_lists() -> None:
    model = blocks_with_pools().eval()
    first, second = model.body[0][1], model.body[1][1]
    for layers in (["body.0.1", "body.1.1"], [first, second], (first, "body.1.1")):
        assert GradCAM(model, layers).layer_names == ("body.0.1", "body.1.1")
    for layer in ("body.2", model.body[2]):
        assert GradCAM(model, layer).layer_names == ("body.2",)


def test_a_module_called_stages_is_reached_by_a_list() -> None:
    model = nn.Sequential()
    model.add_module("stages", nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4)))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("rest", nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    assert GradCAM(model, ["stages"]).layer_names == ("stages",)
    method = GradCAM(model, "stages")
    method(torch.randn(1, 3, 8, 8))
    assert method.layer_names == ("stages.0", "stages.2")


class NoMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(x).flatten(1))


def scripted() -> nn.Module:
    return torch.jit.trace(conv(3, 4), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("make", "layers", "kind", "message"),
    [
        (blocks_with_pools, "body.0.9", ValueError, r".* got 'body.0.9' \(close matches: body.0"),
        (blocks_with_pools, "", ValueError, "layers must be names of modules"),
        (blocks_with_pools, ["body.2", "body.2"], ValueError, "layers must be distinct, got 'body"),
        (blocks_with_pools, 3, TypeError, "layers must be module names or modules, got int"),
        (blocks_with_pools, ["body.2", 3], TypeError, "layers must be module names .*, got int"),
        (blocks_with_pools, [], ValueError, "layers must be at least one layer"),
        (NoMaps, "stages", ValueError, r"layers must be given by name .*no \(N, C, h, w\) feature"),
        (scripted, "stages", TypeError, "model must be an eager module"),
    ],
)
def test_errors(make: Callable[[], nn.Module], layers: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"wsfast.cam.GradCAM: {message}"):
        GradCAM(make(), layers)(torch.randn(1, 3, 8, 8))
