"""Vision transformers and channels-last models."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers import HybridEmbed
from timm.models.cait import Cait
from timm.models.efficientformer import EfficientFormer
from timm.models.hiera import Hiera
from timm.models.levit import Levit
from timm.models.mlp_mixer import MlpMixer
from timm.models.nest import Nest
from timm.models.vision_transformer import VisionTransformer
from timm.models.volo import VOLO
from timm.models.xcit import Xcit
from torch import Tensor, nn

from tests.cam.nets import fuse, passes
from wsfast.cam import METHODS, AblationCAM, GradCAM, LayerCAM, LTGradCAM
from wsfast.cam.stages import timm_stages

CNN_ONLY = ("cam", "fullgrad", "ltfullgrad", "racam")  # a mean, biases, ReLUs


def small_vit(name: str = "vit_tiny_patch16_224", **options: object) -> nn.Module:
    return timm.create_model(
        name, pretrained=False, num_classes=3, depth=2, img_size=(32, 48), **options
    ).eval()


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=3, img_size=(32, 64),
        window_size=2, depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 4, 8),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (small_vit, 1),
        (lambda: small_vit("deit_tiny_distilled_patch16_224"), 2),
        (lambda: small_vit(global_pool="avg", class_token=False), 0),
        (lambda: small_vit(reg_tokens=4), 5),
    ],
)
def test_tokens_equal_the_formula(make, prefix: int) -> None:
    model, images = make(), torch.randn(2, 3, 32, 48)
    result = GradCAM(model)(images, 1)
    assert GradCAM(model).layer_names == ("blocks.1.norm1",)
    (a,), (g,), _ = passes(model, images, ["blocks.1.norm1"], 1)
    a, g = (x[:, prefix:].reshape(2, 2, 3, -1).permute(0, 3, 1, 2) for x in (a, g))
    expected = fuse([(g.mean((2, 3), keepdim=True) * a).sum(1).relu()], images.shape[2:])
    torch.testing.assert_close(result.cams, expected, rtol=0, atol=5e-6)


def test_swin_equals_the_formula() -> None:
    model, images = swin(), torch.randn(2, 3, 32, 64)
    names = [f"layers.{i}" for i in range(4)]
    result = LTGradCAM(model, percentile=0)(images, 1)
    assert [m.shape[1:] for m in result.per_layer] == [(8, 16), (4, 8), (2, 4), (1, 2)]
    activations, grads, _ = passes(model, images, names, 1)
    maps = []
    for a, g in zip(activations, grads, strict=True):
        maps.append((g.relu().mean((1, 2), keepdim=True) * a).sum(3).relu())
    torch.testing.assert_close(result.cams, fuse(maps, images.shape[2:]), rtol=0, atol=5e-6)
    convolution = GradCAM(model, "patch_embed.proj")(images, 1)  # this one is (N, C, h, w)
    assert convolution.per_layer[0].shape == (2, 8, 16)


def test_channels_last_without_a_word_of_it() -> None:
    """VOLO does not say that its maps are (N, h, w, C); (2, 4, 8, 40) of 32 x 64 images does."""
    model = VOLO(
        layers=(1, 1, 1, 1), img_size=(32, 64), embed_dims=(40, 32, 32, 32), num_classes=3,
        num_heads=(2, 2, 2, 2), stem_hidden_dim=8,
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 32, 64)
    result = LTGradCAM(model, percentile=0)(images, 1)
    assert [m.shape[1:] for m in result.per_layer] == [(4, 8), (2, 4)]
    activations, grads, _ = passes(model, images, ["network.0", "network.4"], 1)
    maps = []
    for a, g in zip(activations, grads, strict=True):
        maps.append((g.relu().mean((1, 2), keepdim=True) * a).sum(3).relu())
    torch.testing.assert_close(result.cams, fuse(maps, images.shape[2:]), rtol=0, atol=5e-6)


def test_tokens_before_the_class_token_joins() -> None:
    """XCiT's blocks see patches alone, though the model has a prefix token."""
    model = Xcit(img_size=(32, 48), embed_dim=32, depth=1, num_heads=2, num_classes=3).eval()
    assert LayerCAM(model)(torch.randn(2, 3, 32, 48), 1).per_layer[0].shape == (2, 2, 3)


def raster(tokens: Tensor, grid: tuple[int, int], prefix: int = 0) -> Tensor:
    return tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)


def levit() -> nn.Module:
    return Levit(
        img_size=(64, 96), embed_dim=(16, 24, 32), key_dim=8, depth=(1, 1, 1),
        num_heads=(2, 3, 4), num_classes=3,
    )  # fmt: skip


def efficientformer() -> nn.Module:
    return EfficientFormer(
        depths=(1, 1, 1, 2), embed_dims=(8, 12, 16, 24), num_classes=3, num_vit=1
    )


def mixer() -> nn.Module:
    model = MlpMixer(img_size=(32, 48), patch_size=8, num_blocks=2, embed_dim=16, num_classes=3)
    nn.init.normal_(model.head.weight)  # zeros so far
    return model


def hybrid() -> nn.Module:
    """Patches of 2 x 2 pixels of a map of half the image's size, and a class token."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    return VisionTransformer(
        img_size=(32, 48), embed_dim=16, depth=2, num_heads=2, num_classes=3, patch_size=2,
        embed_layer=partial(HybridEmbed, backbone=network),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "size", "names", "grids", "prefix"),
    [
        (levit, (64, 96), ["stages.0", "stages.1", "stages.2"], [(4, 6), (2, 3), (1, 2)], 0),
        (mixer, (32, 48), ["blocks.1"], [(4, 6)], 0),
        (hybrid, (32, 48), ["blocks.1.norm1"], [(8, 12)], 1),
    ],
)
def test_rows_of_tokens_equal_the_formula(make, size, names, grids, prefix) -> None:
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 3, *size)
    method = LTGradCAM(model, percentile=0)
    result = method(images, 1)
    assert list(method.layer_names or ()) == names
    activations, grads, _ = passes(model, images, names, 1)
    maps = []
    for a, g, grid in zip(activations, grads, grids, strict=True):
        a, g = raster(a, grid, prefix), raster(g, grid, prefix)
        maps.append((g.relu().mean((2, 3), keepdim=True) * a).sum(1).relu())
    torch.testing.assert_close(result.cams, fuse(maps, size), rtol=0, atol=5e-6)
    assert result.cams.amax() > 0


def test_a_last_stage_of_tokens() -> None:
    torch.manual_seed(0)
    model, images = efficientformer().eval(), torch.randn(1, 3, 224, 224)
    shapes = [tuple(m.shape[1:]) for m in LayerCAM(model)(images, 1).per_layer]
    assert shapes == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_hieras_tokens_are_put_back_into_rows() -> None:
    torch.manual_seed(0)
    model = Hiera(
        img_size=(64, 96), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), num_classes=3
    ).eval()  # fmt: skip
    nn.init.normal_(model.head.fc.weight)  # zeros so far
    images = torch.randn(2, 3, 64, 96)
    names = [f"blocks.{i}" for i in range(4)]
    rows = model.forward_intermediates(images, intermediates_only=True)  # timm's own, in rows
    positive = [False] * 4
    for target in range(3):
        method = GradCAM(model, "stages")
        result = method(images, target)
        assert list(method.layer_names or ()) == names
        _, grads, _ = passes(model, images, names, target)
        for i, (a, g) in enumerate(zip(rows, grads, strict=True)):
            expected = (g.mean(1)[:, :, None, None] * a).sum(1).detach()
            atol = 1e-5 * float(expected.abs().amax())
            found = result.per_layer[i]
            torch.testing.assert_close(found, expected.relu(), rtol=0, atol=atol)
            positive[i] |= bool(expected.amax() > atol)
    assert all(positive)
    assert [m.shape[1:] for m in result.per_layer] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert AblationCAM(model, "last")(images, 1).valid.all()


def test_a_stem_without_a_name_is_no_stage() -> None:
    """TResNet's feature_info has one, which would be the model itself."""
    model = timm.create_model("tresnet_m", pretrained=False, num_classes=3).eval()
    names = timm_stages(model)
    assert len(names) == 4
    assert all(names)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in CNN_ONLY])
@pytest.mark.parametrize("make", [small_vit, swin])
def test_methods_run_on_transformers(method: str, make) -> None:
    model = make()
    size = (32, 64) if make is swin else (32, 48)
    result = METHODS[method](model, "last")(torch.randn(1, 3, *size), 1)
    assert result.cams.shape == (1, *size)
    assert result.valid.all()


def test_torchvision_and_own_reshape() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    images, layer = torch.randn(2, 3, 32, 32), "encoder.layers.encoder_layer_1.ln_1"
    found = LayerCAM(model, layer)(images, 1)
    assert found.per_layer[0].shape == (2, 4, 4)

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].unflatten(1, (4, 4)).movedim(3, 1)

    own = LayerCAM(model, layer, reshape=reshape)(images, 1)
    assert torch.equal(own.cams, found.cams)
    assert AblationCAM(model, layer)(images, 1).cams.shape == (2, 32, 32)


class Wrapper(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def torchvision_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)  # zeros so far
    return model


def torchvision_swin() -> nn.Module:
    """Of 64 pixels: stages of (N, 16, 16, 16) and (N, 8, 8, 32)."""
    return torchvision.models.SwinTransformer(
        [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3,
        block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
    ).eval()  # fmt: skip


def hiera() -> nn.Module:
    return Hiera(img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), num_classes=3)


def convnet() -> nn.Module:
    return timm.create_model("test_efficientnet", num_classes=3)


@pytest.mark.parametrize(
    "make", [small_vit, swin, torchvision_vit, torchvision_swin, levit, hiera, convnet]
)
def test_a_wrapper_changes_nothing(make) -> None:
    torch.manual_seed(0)
    model = make().eval()
    sizes = {swin: (32, 64), small_vit: (32, 48), torchvision_vit: (32, 32), levit: (64, 96)}
    size = sizes.get(make, (64, 64))
    images, plain = torch.randn(2, 3, *size), GradCAM(model)
    expected, wrapped = plain(images, 1), GradCAM(Wrapper(model))
    assert torch.equal(wrapped(images, 1).cams, expected.cams)
    assert wrapped.layer_names == tuple(f"backbone.{name}" for name in plain.layer_names or ())
    if make is torchvision_vit:
        assert plain.layer_names == ("encoder.layers.encoder_layer_1.ln_1",)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (224, 224)])
def test_stages_of_torchvisions_swin(size: tuple[int, int]) -> None:
    """The last block of each resolution is channels-last; what is pooled is not."""
    model = torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1, 2], [1, 2, 4], [4, 4], num_classes=3
    ).eval()
    images, cam = torch.randn(2, 3, *size), GradCAM(model)
    result = cam(images, 1)
    assert cam.layer_names == ("features.1", "features.3", "permute")
    expected = [(size[0] // step, size[1] // step) for step in (4, 8, 16)]
    assert [tuple(maps.shape[1:]) for maps in result.per_layer] == expected


@pytest.mark.parametrize("layer", ["features.1", "features.1.0.mlp.1", "features.1.0.attn"])
def test_as_many_channels_as_rows_in_channels_last(layer: str) -> None:
    model, images = torchvision_swin(), torch.randn(2, 3, 64, 64)
    result = GradCAM(model, layer, norm=None)(images, 1)
    (a,), (g,), _ = passes(model, images, [layer], 1)
    assert a.shape[1:3] == (16, 16)
    expected = (g.mean((1, 2), keepdim=True) * a).sum(3).relu()
    torch.testing.assert_close(result.per_layer[0], expected)


def test_as_many_channels_as_rows_in_convnext() -> None:
    block = torchvision.models.convnext.CNBlockConfig
    model = torchvision.models.ConvNeXt([block(16, 32, 1), block(32, None, 1)], num_classes=3)
    model, images = model.eval(), torch.randn(2, 3, 64, 64)
    result = GradCAM(model, "features.1")(images, 1)
    (a,), (g,), _ = passes(model, images, ["features.1"], 1)
    assert a.shape[1:] == (16, 16, 16)
    expected = (g.mean((2, 3), keepdim=True) * a).sum(1).relu()
    torch.testing.assert_close(result.per_layer[0], expected)


class OneSize(nn.Module):
    """Both a convolution and a layer norm of as many channels as rows, for 32 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)
        self.block = nn.Identity()
        self.position = nn.Parameter(torch.randn(8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.norm(self.conv(x) + self.position)).mean((1, 2)))


def test_what_could_be_either_is_refused() -> None:
    model, images = OneSize().eval(), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"layers must be of a layout that can be told.*reshape="):
        GradCAM(model, "block")(images)
    assert GradCAM(model, "block", reshape=lambda x: x.movedim(3, 1))(images).valid.all()
    assert GradCAM(model, "conv")(images).valid.all()


def test_windows_of_tokens_are_no_maps() -> None:
    model = Nest(
        img_size=64, num_levels=2, embed_dims=(24, 24), num_heads=(1, 2), depths=(1, 1),
        num_classes=3,
    ).eval()  # fmt: skip
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"layout that can be told.*reshape=.*\[1, 4, 64, 24\]"):
        GradCAM(model, "levels.0.transformer_encoder.0")(images)
    assert GradCAM(model)(images).valid.all()


class OwnTransformer(nn.Module):
    """Patches, a class token, and blocks that no library has."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return self.head(self.mix(x, x, x)[0][:, 0])


def test_the_patch_convolution_alone_is_no_stage() -> None:
    model, images = OwnTransformer().eval(), torch.randn(2, 3, 32, 48)
    with pytest.raises(ValueError, match=r"layers must be given by name.*norm.*, got the conv"):
        GradCAM(model)(images)
    message = r"lambda x: x\[:, 1:\].unflatten\(1, \(4, 6\)\).movedim\(3, 1\).*'patches'.*'norm'"
    with pytest.raises(ValueError, match=message):
        GradCAM(model, "last")(images)
    own = GradCAM(model, "norm", reshape=lambda x: raster(x, (4, 6), 1))(images)
    assert own.valid.all()


class Stemmed(nn.Module):
    """A stem of convolutions before a transformer's patches; tokens come first."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.patches, self.norm, self.mix = nn.Conv2d(4, 8, 8, 8), norm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.stem(x)).flatten(2).permute(2, 0, 1)
        x = self.norm(x)
        return self.head((x + self.mix(x).relu()).mean(0))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_patches_behind_a_stem_are_no_stage(norm: Callable[[int], nn.Module]) -> None:
    model, images = Stemmed(norm).eval(), torch.randn(3, 3, 32, 48)
    message = r"reshape= from \(tokens, N, C\) to \(N, C, h, w\), got the convolution 'patches'"
    for layers in ("stages", "last"):
        with pytest.raises(ValueError, match=message):
            GradCAM(model, layers)(images)
    own = GradCAM(model, "norm", reshape=lambda x: x.permute(1, 2, 0).unflatten(2, (4, 6)))
    assert own(images).valid.all()


class OwnTokens(nn.Module):
    """As many channels as tokens, in an order that no known model tells."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix, self.head = nn.Conv2d(3, 9, 4, 4), nn.LayerNorm(9), nn.Linear(9, 3)
        self.turn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.turn(self.mix(self.body(x).flatten(2).transpose(1, 2)))
        return self.head((tokens.relu() * tokens.std(1, keepdim=True)).mean(1))


def test_ablation_drops_the_channels_that_reshape_names() -> None:
    torch.manual_seed(0)
    model, images = OwnTokens().eval(), torch.randn(2, 3, 12, 12)
    method = AblationCAM(model, "turn", reshape=lambda x: raster(x, (3, 3)))
    found = method(images, 1).per_layer[0]
    tokens = model.mix(model.body(images).flatten(2).transpose(1, 2)).detach()
    score, drops = model(images)[:, 1].detach(), []
    for channel in range(9):
        without = tokens.clone()
        without[:, :, channel] = 0
        handle = model.turn.register_forward_hook(lambda *_, w=without: w)
        drops.append((score - model(images)[:, 1].detach()) / score.abs())
        handle.remove()
    expected = (torch.stack(drops, dim=1)[:, :, None, None] * raster(tokens, (3, 3))).sum(1).relu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.any()
    for other in (
        lambda x: raster(x, (3, 3)).softmax(1),
        lambda x: raster(x, (3, 3))[:, :4],
        lambda x: x.reshape(len(x), 3, 3, 9),
    ):
        with pytest.raises(ValueError, match="reshape must be a rearrangement that keeps a dim"):
            AblationCAM(model, "turn", reshape=other)(images, 1)


@pytest.mark.parametrize("layers", ["stages", "last"])
@pytest.mark.parametrize("name", ["mvitv2_tiny", "twins_pcpvt_small"])
def test_convolutions_among_tokens_are_no_stages(name: str, layers: str) -> None:
    """They pool queries, reduce keys or encode positions; one of the first block is no stage."""
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=3).eval(), torch.randn(1, 3, 224, 224)
    with pytest.raises(ValueError, match=r"layers must be given by name .*, got the convolution '"):
        GradCAM(model, layers)(images, 1)
    found = GradCAM(model, "norm", reshape=lambda x: raster(x, (7, 7)))(images, 1)
    assert found.valid.all()
    assert found.per_layer[0].shape == (1, 7, 7)


def test_tokens_behind_a_network_are_told_of() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
            self.mix = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.body(x).flatten(2).mT).mean(1))

    torch.manual_seed(0)
    model, images = Head().eval(), torch.randn(1, 3, 32, 32)
    with pytest.warns(UserWarning, match=r"layers ends with 'body', behind which rows of tokens"):
        found = GradCAM(model)(images, 1)
    assert found.valid.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(model, "body")(images, 1)


def test_a_model_that_says_channels_last_is_not_believed_of_its_stem() -> None:
    model = timm.create_model("mambaout_femto", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    assert GradCAM(model)(images, 1).valid.all()
    with pytest.raises(ValueError, match="layout that can be told"):
        GradCAM(model, "stem.act")(images, 1)


def test_other_token_outputs_are_refused() -> None:
    model = small_vit()
    with pytest.raises(ValueError, match=r"reshape= .*, got shape \[1, 3\] .* from 'head'"):
        GradCAM(model, "head")(torch.randn(1, 3, 32, 48))


class MeanOfPatches(Wrapper):
    """A head of its own on what the transformer's final norm gives out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.forward_features(x)[:, 1:].unflatten(2, (3, 64)).square().mean((1, 3))


@pytest.mark.parametrize(
    ("make", "layer", "instead"),
    [
        (small_vit, "blocks.1", "blocks.1.norm1"),
        (small_vit, "blocks", "blocks.1.norm1"),
        (small_vit, "blocks.1.mlp", "blocks.1.norm1"),
        (small_vit, "norm", "blocks.1.norm1"),
        (lambda: Wrapper(small_vit()), "backbone.norm", "backbone.blocks.1.norm1"),
        (lambda: small_vit("vit_base_patch16_18x2_224", embed_dim=24), "blocks.1", "blocks.0"),
        (torchvision_vit, "encoder.ln", "encoder.layers.encoder_layer_1.ln_1"),
        (torchvision_vit, "encoder", "encoder.layers.encoder_layer_1.ln_1"),
    ],
)
def test_layers_of_which_the_class_token_alone_counts(make, layer: str, instead: str) -> None:
    model, images = make(), torch.randn(1, 3, 32, 32 if make is torchvision_vit else 48)
    method = GradCAM(model, layer)
    with pytest.warns(UserWarning, match=f"patches of '{layer}' and maps .*take '{instead}'"):
        assert not method(images).cams.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(images)  # once is enough
        assert LayerCAM(model, instead, norm=None)(images).cams.any()


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: small_vit(global_pool="avg", class_token=False), "norm"),
        (lambda: MeanOfPatches(small_vit()), "backbone.norm"),
        (lambda: Xcit(img_size=(32, 48), embed_dim=32, depth=1, num_heads=2), "blocks.0"),
    ],
)
def test_layers_whose_patches_count_give_no_warning(make, layer: str) -> None:
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LayerCAM(model, layer, norm=None)(torch.randn(1, 3, 32, 48), 1).cams.any()


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("vit_base_patch16_rpn_224", {"class_token": True, "global_pool": "token"}, "blocks.0"),
        ("vit_base_patch16_xp_224", {}, "blocks.1.in_norm"),
        ("vit_base_patch16_18x2_224", {}, "blocks.0"),
    ],
)
def test_the_default_layer_of_other_blocks_has_gradients(name, options, layer: str) -> None:
    """Norms behind the attention, one norm for all, several attentions side by side."""
    method = LayerCAM(small_vit(name, embed_dim=24, num_heads=2, **options), norm=None)
    assert method(torch.randn(1, 3, 32, 48), 1).cams.any()
    assert method.layer_names == (layer,)


def test_padded_images_have_a_padded_grid() -> None:
    model = small_vit(dynamic_img_size=True, dynamic_img_pad=True)
    images = torch.randn(2, 3, 40, 55)
    result = GradCAM(model)(images, 1)
    (a,), (g,), _ = passes(model, images, ["blocks.1.norm1"], 1)
    a, g = raster(a, (3, 4), 1), raster(g, (3, 4), 1)
    expected = (g.mean((2, 3), keepdim=True) * a).sum(1).relu()
    torch.testing.assert_close(result.per_layer[0], expected)


def cait() -> nn.Module:
    return Cait(img_size=(32, 48), embed_dim=24, depth=1, num_heads=3, num_classes=3).eval()


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (small_vit, "blocks.1.attn.q_norm"),
        (small_vit, "blocks.1.attn.attn_drop"),
        (lambda: small_vit(qk_norm=True), "blocks.1.attn.k_norm"),
        (lambda: small_vit("vit_base_patch16_xp_224"), "blocks.1.q_norm"),
        (swin, "layers.3.blocks.0.attn.attn_drop"),
        (cait, "blocks.0.attn.proj_l"),
    ],
)
def test_matrices_of_attention_are_no_maps(make, layer: str) -> None:
    model = make()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    size = (32, 64) if make is swin else (32, 48)
    with pytest.raises(ValueError, match=r"reshape= .*per head of attention"):
        GradCAM(model, layer)(torch.randn(1, 3, *size), 1)
