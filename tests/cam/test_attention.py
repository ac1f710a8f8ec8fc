"""Attention against the full matrices of timm's unfused attention."""

import pytest
import timm
import torch
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import minmax
from wsfast.cam import attention_map, attention_rollout, cls_attention, load_attention_model
from wsfast.cam.attention import on_images


def small_vit(name: str = "vit_small_patch8_224.dino", **options: object) -> nn.Module:
    options = {"img_size": 32, "depth": 3, "num_classes": 0, **options}
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, **options).eval()
    for block in model.blocks:
        block.attn.qkv.weight.data *= 4  # attention that differs from patch to patch
    return model


def matrices(model: nn.Module, images: Tensor) -> list[Tensor]:
    """(N, heads, tokens, tokens) of every block, by timm's own code."""
    kept: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, inputs, _o: kept.append(inputs[0]))
    with torch.no_grad():
        model.forward_features(images)
    return kept


VITS = {
    "dino": ({}, 1),
    "registers": ({"reg_tokens": 4}, 5),
    "norm": ({"qk_norm": True}, 1),
    "no bias": ({"qkv_bias": False}, 1),
}


@pytest.mark.parametrize("kind", VITS)
def test_class_row_equals_the_full_matrix(kind: str) -> None:
    options, prefix = VITS[kind]
    model, images = small_vit(**options), torch.randn(2, 3, 32, 32)
    found = cls_attention(model, images)
    expected = matrices(small_vit(**options), images)[-1][:, :, 0, prefix:].view(2, 6, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not found.requires_grad


@pytest.mark.parametrize("size", [(64, 64), (24, 56), (40, 33)])
def test_any_size_interpolates_the_position_embeddings(size: tuple[int, int]) -> None:
    model, images = small_vit(), torch.randn(1, 3, *size)
    state = {**vars(model.patch_embed), "dynamic": model.dynamic_img_size}
    found = cls_attention(model, images)
    assert {**vars(model.patch_embed), "dynamic": model.dynamic_img_size} == state
    dynamic = small_vit(dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    h, w = size[0] // 8, size[1] // 8
    whole = images[:, :, : h * 8, : w * 8]
    expected = matrices(dynamic, whole)[-1][:, :, 0, 1:].view(1, 6, h, w)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_rollout_equals_the_product_of_matrices() -> None:
    model, images = small_vit("deit_tiny_distilled_patch16_224"), torch.randn(2, 3, 32, 64)
    found = attention_rollout(model, images)
    dynamic = small_vit("deit_tiny_distilled_patch16_224", dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    product = torch.eye(10).expand(2, -1, -1)
    for attention in matrices(dynamic, images):
        product = (0.5 * attention.mean(1) + 0.5 * torch.eye(10)) @ product
    torch.testing.assert_close(found, product[:, 0, 2:].view(2, 2, 4), rtol=1e-5, atol=1e-7)


def test_map_options() -> None:
    model, images = small_vit(), torch.randn(2, 3, 32, 48)
    heads = cls_attention(model, images)
    raw = F.interpolate(heads.mean(1, keepdim=True), (32, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(attention_map(model, images), minmax(raw), rtol=0, atol=5e-5)
    torch.testing.assert_close(attention_map(model, images, norm=None), raw)
    each = minmax(heads.flatten(0, 1)).view_as(heads).mean(1)
    found = attention_map(model, images, head_norm="minmax", norm=None, size=(4, 6))
    torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-4)
    nearest = attention_map(model, images, mode="nearest", norm=None)
    assert torch.equal(nearest, heads.mean(1).repeat_interleave(8, 1).repeat_interleave(8, 2))


@pytest.mark.parametrize("size", [(39, 33), (32, 47), (40, 40)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_each_patch_keeps_its_place_whatever_is_cut_off(size: tuple[int, int], mode: str) -> None:
    model, images = small_vit(), torch.randn(2, 3, *size)
    height, width = (side // 8 * 8 for side in size)
    whole = attention_map(model, images[:, :, :height, :width], mode=mode, norm=None)
    expected = F.pad(whole, (0, size[1] - width, 0, size[0] - height), mode="replicate")
    found = attention_map(model, images, mode=mode, norm=None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [(39, 37), (100, 74), (20, 19)])
def test_a_patch_peaks_at_its_centre_at_any_size(size: tuple[int, int]) -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 3, 2] = 1
    found = on_images(small_vit(), maps, torch.empty(1, 3, 39, 37), size)[0]
    row, column = divmod(int(found.argmax()), size[1])
    assert found.shape == size
    assert abs(column + 0.5 - 20 * size[1] / 37) <= 1
    # Behind the last row of patches there is none to fade into.
    assert abs(row + 0.5 - 28 * size[0] / 39) <= 1
    assert torch.equal(found[-1], found[row])


def test_attention_that_is_not_finite_is_a_zero_map() -> None:
    model, images = small_vit(), torch.randn(2, 3, 32, 32)
    images[1, 0, 0, 0] = torch.nan
    assert cls_attention(model, images)[1].isnan().any()
    for head_norm in (None, "minmax"):
        found = attention_map(model, images, head_norm=head_norm)
        assert not found[1].any()
        torch.testing.assert_close(found[:1], attention_map(model, images[:1], head_norm=head_norm))


@pytest.mark.parametrize("function", [cls_attention, attention_rollout])
def test_model_is_left_as_found(function) -> None:
    model, images = small_vit(proj_drop_rate=0.5).train(), torch.randn(1, 3, 40, 40)
    rng = torch.get_rng_state()
    function(model, images)
    with pytest.raises(RuntimeError):
        function(model, images[:, :2])
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not model.dynamic_img_size
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_forward_pass_ends_at_the_last_block() -> None:
    model = small_vit()
    model.norm.register_forward_hook(lambda *_: pytest.fail("the model ran on"))
    model.blocks[-1].mlp.register_forward_hook(lambda *_: pytest.fail("the model ran on"))
    cls_attention(model, torch.randn(1, 3, 32, 32))


def test_loading_code() -> None:
    model = load_attention_model(pretrained=False)
    assert cls_attention(model, torch.randn(1, 3, 48, 64)).shape == (1, 6, 6, 8)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def one_other_block() -> nn.Module:
    model = small_vit()
    model.blocks[0].attn = RelPosAttention(384, 6)
    return model


REFUSED = {
    "convolutions": lambda: timm.create_model("resnet18", num_classes=2),
    "no class token": lambda: small_vit(class_token=False, global_pool="avg"),
    "rotary embeddings": lambda: timm.create_model("eva02_tiny_patch14_224", depth=1),
    "relative positions": lambda: timm.create_model(
        "vit_relpos_base_patch16_cls_224", depth=1, embed_dim=24, num_heads=2
    ),
    "relative positions of BEiT": lambda: timm.create_model(
        "beit_base_patch16_224", depth=1, embed_dim=24, num_heads=2
    ),
    "biases of q and v": lambda: timm.create_model(
        "eva_giant_patch14_224", depth=1, embed_dim=24, num_heads=2
    ),
    "one block of another kind": one_other_block,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="model must be a timm vision transformer with a class"):
        cls_attention(REFUSED[kind](), torch.randn(1, 3, 32, 32))


def test_errors() -> None:
    model = small_vit()
    with pytest.raises(ValueError, match="images must be of at least"):
        cls_attention(model, torch.randn(1, 3, 7, 32))
    with pytest.raises(TypeError, match="images must be float32"):
        cls_attention(model, torch.zeros(1, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="mode must be one of"):
        attention_map(model, torch.randn(1, 3, 32, 32), mode="cubic")
    for size in ((0, 8), (8,), 8):
        with pytest.raises(ValueError, match="attention_map: size must be"):
            attention_map(model, torch.randn(1, 3, 32, 32), size=size)


class Adapter(nn.Module):
    """As of LoRA: ``weight`` is that of the layer inside, not all that the module does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(F.dropout(x, 0.5, self.training)))


def test_adapters_take_part_in_attention() -> None:
    vit, images = small_vit(), torch.randn(2, 3, 32, 32)
    before = attention_map(vit, images)
    for block in vit.blocks:
        block.attn.qkv = Adapter(block.attn.qkv).eval()
    expected = matrices(vit, images)[-1][:, :, 0, 1:]
    found = cls_attention(vit, images)
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(attention_map(vit, images), before, atol=0.01)
    state = torch.get_rng_state()
    assert torch.equal(cls_attention(vit.train(), images), found)
    assert torch.equal(torch.get_rng_state(), state)
    assert vit.blocks[0].attn.qkv.training
