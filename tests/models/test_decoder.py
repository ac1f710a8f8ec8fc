import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsfast.models import UNetDecoder, create_encoder


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(
    ("encoder", "published"), [("vgg16", 23.12), ("inception_v3", 5.70), ("resnet50", 9.01)]
)
def test_parameters_are_those_of_f_cams_table(encoder, published, parity):
    with torch.device("meta"):
        encoder = create_encoder(encoder)
        decoder = UNetDecoder.of(encoder, parity=parity)
        maps = decoder(encoder(torch.zeros(1, 3, 224, 224)), (224, 224))
    assert maps.shape == (1, 2, 224, 224)
    assert round(millions(decoder), 2) == published


def test_a_resnets_features_are_used_as_the_paper_has_them():
    with torch.device("meta"):
        decoder = UNetDecoder.of(create_encoder("resnet50"))
    widths = [(block.convs[0][0].in_channels, block.convs[1][0].out_channels)
              for block in decoder.blocks]  # fmt: skip
    assert widths == [
        (2048 + 1024, 256),
        (256 + 512, 128),
        (128 + 256, 64),
        (64 + 64, 32),
        (32, 16),
    ]


def features(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(1, *shape, generator=generator) for shape in shapes]


def upsampled(parity, coarse, fine):
    """What a block's convolutions get, seen through convolutions that change nothing."""
    decoder = UNetDecoder((1, 1), (2, 2), widths=(2,), parity=parity).eval()
    for conv in decoder.blocks[0].convs:
        nn.init.dirac_(conv[0].weight)
    result = decoder.blocks[0](coarse, fine) * (1 + 1e-5)  # batch normalisation's epsilon, twice
    assert torch.allclose(result[:, 1:], fine, atol=1e-6)
    return result[:, :1]


@pytest.mark.parametrize(("coarse_side", "fine_side"), [(29, 57), (57, 112), (7, 13), (3, 8)])
def test_parity_resizes_in_the_published_two_steps(coarse_side, fine_side):
    coarse, fine = features((1, coarse_side, coarse_side), (1, fine_side, fine_side))
    doubled = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.interpolate(doubled, (fine_side,) * 2, mode="bilinear", align_corners=True)
    assert torch.allclose(upsampled(True, coarse, fine), expected, atol=1e-5)
    direct = F.interpolate(coarse, (fine_side,) * 2, mode="bilinear", align_corners=False)
    assert torch.allclose(upsampled(False, coarse, fine), direct, atol=1e-5)
    assert (expected - direct).abs().max() > 0.05


@pytest.mark.parametrize("side", [2, 7, 28, 61])
def test_up_and_down_again_is_the_map_itself(side):
    """Pixel i of n comes from 2i + i/(n-1), between the two copies of itself."""
    coarse, fine = features((1, side, side), (1, side, side))
    assert torch.allclose(upsampled(True, coarse, fine), coarse, atol=1e-5)
    assert torch.allclose(upsampled(False, coarse, fine), coarse, atol=1e-5)


def test_where_every_block_doubles_parity_changes_nothing():
    maps = features((4, 16, 8), (8, 8, 4), (16, 4, 2))
    clean = UNetDecoder((4, 8, 16), (2, 4, 8), widths=(8, 4)).eval()
    parity = UNetDecoder((4, 8, 16), (2, 4, 8), widths=(8, 4), parity=True).eval()
    parity.load_state_dict(clean.state_dict())
    assert torch.equal(clean(maps, (32, 16)), parity(maps, (32, 16)))


@pytest.mark.parametrize(("input_skip", "blocks"), [(False, 3), (True, 3)])
def test_a_map_of_the_images_size_is_a_skip_only_on_request(input_skip, blocks):
    maps = features((4, 32, 16), (8, 16, 8), (16, 8, 4), (16, 4, 2))
    decoder = UNetDecoder((4, 8, 16, 16), (1, 2, 4, 8), widths=(8,), input_skip=input_skip).eval()
    assert len(decoder.blocks) == blocks
    changed = [torch.rand_like(maps[0]), *maps[1:]]
    same = torch.equal(decoder(maps, (32, 16)), decoder(changed, (32, 16)))
    assert same is not input_skip


@pytest.mark.parametrize(
    ("encoder", "reductions", "blocks"),
    [
        ("vgg16", [1, 2, 4, 8], 3),
        ("resnet50", [2, 4, 8, 8, 8], 5),
        ("inception_v3", [2, 4, 8, 8, 8], 5),
        ("convnext_atto", [4, 8, 16, 32], 5),
        ("vit_tiny_patch16_224", [16, 16, 16], 6),
    ],
)
def test_the_map_is_drawn_at_full_resolution(encoder, reductions, blocks):
    drawn = []
    with torch.device("meta"):
        source = create_encoder(encoder)
        assert [entry["reduction"] for entry in source.feature_info] == reductions
        decoder = UNetDecoder.of(source)
        decoder.head.register_forward_hook(lambda _, given, found: drawn.append(found.shape[2:]))
        decoder(source(torch.zeros(1, 3, 224, 224)), (224, 224))
    assert len(decoder.blocks) == blocks
    assert drawn == [(224, 224)]


@pytest.mark.parametrize("size", [(33, 21), (40, 64), (17, 16)])
@pytest.mark.parametrize("parity", [False, True])
def test_sizes_that_do_not_halve_evenly(size, parity):
    encoder = create_encoder("small_vgg", channels=(4, 6, 8))
    decoder = UNetDecoder.of(encoder, parity=parity)
    maps = decoder(encoder(torch.rand(2, 3, *size)), size)
    assert maps.shape == (2, 2, *size)


def test_a_single_feature_map_is_enough():
    decoder = UNetDecoder((8,), (4,), widths=(4,), num_classes=3)
    assert decoder(features((8, 4, 4)), (16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ()}, "reductions must be one per channel count"),
        ({"reductions": (1,)}, "reductions must be one per channel count"),
        ({"widths": ()}, "widths must be positive"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_bad_settings_give_one_clear_line(settings, message):
    arguments = {"channels": (4, 8), "reductions": (1, 2), **settings}
    with pytest.raises(ValueError, match=rf"^wsfast\.UNetDecoder: {message}"):
        UNetDecoder(**arguments)
