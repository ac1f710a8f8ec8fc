"""The CUDA kernels of room `fusion` under the emulator, beside the reference."""

import math

import numpy as np
import pytest
import torch

from tests.native.emulator import from_bits, to_bits
from tests.ops.test_fusion import LAYERS, accumulate_dtype, close_enough, emulate, make_layers
from wsfast.ops.fusion import reference
from wsfast.testing import FLOATING_DTYPES

EMULATED_OPTIONS = (
    ("minmax", "sum", "minmax"),
    ("max", "max", "none"),
    ("none", "prod", "max"),
    ("none", "sum", "none"),
)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_emulated_kernel(emulator, case: int, dtype: torch.dtype) -> None:
    sizes, size = LAYERS[case]
    cams = make_layers(sizes, dtype)
    weights = torch.linspace(0.5, 1.5, len(cams), dtype=accumulate_dtype(dtype))
    for layer_norm, reduce, norm in EMULATED_OPTIONS:
        ours, finite = emulate(emulator, cams, weights, size, layer_norm, reduce, norm)
        theirs = reference.fuse_weighted(cams, weights, size, layer_norm, reduce, norm, 1e-7)
        torch.testing.assert_close(ours, theirs, **close_enough(len(cams), dtype))
        assert finite.all()


def test_emulated_kernel_in_every_order(emulator) -> None:
    cams, weights = make_layers([(70, 40), (9, 50)], n=3), torch.ones(2)
    cams[1][1, 4, 7] = math.inf
    arguments = ([x.numpy() for x in cams], weights.numpy(), 66, 70, "minmax", "sum", "max", 1e-7)
    out, finite = emulator.call_in_every_order("fuse_cams", *arguments)
    assert finite.tolist() == [True, False, True]
    assert not out[1].any()
    theirs = reference.fuse_weighted(cams, weights, (66, 70), "minmax", "sum", "max", 1e-7)
    torch.testing.assert_close(torch.from_numpy(out)[[0, 2]], theirs[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_emulated_statistics_see_every_value(emulator, dtype: torch.dtype) -> None:
    """Images of an odd number of pixels: the loads' alignment differs, and parts are not whole."""
    height, width = 95, 97
    places = [0, 1, 2, 7, 4095, 8191, 8192, 8199, 9200, height * width - 2, height * width - 1]
    places += torch.randint(height * width, (14,)).tolist()
    maps = torch.rand(len(places), height * width)
    for image, place in enumerate(places):
        maps[image, place], maps[image, place - 1] = 2.0, -1.0
    cams = maps.view(-1, height, width).to(dtype)
    one = torch.ones(1, dtype=accumulate_dtype(dtype))
    for layer_norm, norm in (("minmax", "none"), ("none", "minmax")):
        out, _ = emulate(emulator, [cams], one, (height, width), layer_norm, "sum", norm)
        expected = reference.fuse_weighted(
            [cams], one, (height, width), layer_norm, "sum", norm, 1e-7
        )
        torch.testing.assert_close(out, expected, **close_enough(1, dtype))


@pytest.mark.parametrize("size", [(610, 905), (612, 905)])
def test_emulated_kernel_on_large_maps(emulator, size: tuple[int, int]) -> None:
    """More parts of a layer than a warp has lanes, more tiles than a block has threads."""
    cams, one = torch.rand(1, 520, 530), torch.ones(1)
    cams[0, -1, -1], cams[0, -2, 0] = 3.0, -2.0
    for layer_norm, norm in (("minmax", "none"), ("none", "minmax")):
        out, _ = emulate(emulator, [cams], one, size, layer_norm, "sum", norm)
        expected = reference.fuse_weighted([cams], one, size, layer_norm, "sum", norm, 1e-7)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height", [1, 2, 60, 64, 66, 69, 71, 72, 73, 80, 142])
def test_emulated_rows_of_a_tile(emulator, height: int) -> None:
    """Around the number of source rows that a tile of 64 rows shares."""
    cams, size = make_layers([(height, 5), (height, 41), (9, 7)]), (71, 41)
    weights = torch.tensor([0.5, 1.5, -1.0])
    for reduce in ("sum", "prod"):
        out, _ = emulate(emulator, cams, weights, size, "none", reduce, "none")
        expected = reference.fuse_weighted(cams, weights, size, "none", reduce, "none", 1e-7)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("norm", ["minmax", "max"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 9), (2, 33, 5), (3, 24, 20), (2, 70, 70)])
def test_emulated_normalization_of_one_layer(
    emulator, shape: tuple[int, ...], norm: str, dtype: torch.dtype
) -> None:
    """Without a reduction in between, wherever the maps begin; beside the kernel that reduces."""
    cams = (torch.randn(shape) * 3).to(dtype)
    cams[-1, -1, -1] = math.nan if shape[0] > 1 else 1.0
    for weight in (1.0, 0.3, -0.7, 0.0):
        weights = torch.tensor([weight, 0.0], dtype=accumulate_dtype(dtype))
        rest = (*shape[1:], "none", "sum", norm, 1e-7)
        maps, one = to_bits(cams), weights[:1].numpy()
        found = emulator.call("fuse_cams_at", 0, [maps], one, *rest, dtype=dtype)
        moved = emulator.call("fuse_cams_at", 1, [maps], one, *rest, dtype=dtype)
        np.testing.assert_equal(moved, found)
        two = emulator.call("fuse_cams", [maps] * 2, weights.numpy(), *rest, dtype=dtype)
        np.testing.assert_array_equal(found[1], two[1])
        assert torch.equal(from_bits(found[0], dtype), from_bits(two[0], dtype))
        expected = reference.fuse_weighted([cams], weights[:1], shape[1:], *rest[2:])
        torch.testing.assert_close(from_bits(found[0], dtype), expected, **close_enough(1, dtype))


@pytest.mark.parametrize("norm", ["minmax", "max"])
@pytest.mark.parametrize("weight", [math.nan, math.inf, 3e38, -3e38])
def test_emulated_normalization_with_weights_that_overflow(
    emulator, weight: float, norm: str
) -> None:
    cams = torch.tensor([[[1.0, 2.0], [-3.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    weights = torch.tensor([weight, 0.0])
    found, finite = emulate(emulator, [cams], weights[:1], (2, 2), "none", "sum", norm)
    expected, _ = emulate(emulator, [cams, cams], weights, (2, 2), "none", "sum", norm)
    assert finite.all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_emulated_normalization_in_every_order(emulator) -> None:
    cams = torch.rand(3, 40, 60)
    cams[1, 4, 7] = math.inf
    arguments = ([cams.numpy()], np.ones(1, np.float32), 40, 60, "none", "sum", "minmax", 1e-7)
    out, finite = emulator.call_in_every_order("fuse_cams", *arguments)
    assert finite.tolist() == [True, False, True]
    assert not out[1].any()
    np.testing.assert_allclose(out[::2], reference.normalize_cams(cams)[::2], rtol=0, atol=1e-6)


def test_emulated_normalization_of_a_large_map(emulator) -> None:
    """More than one batch of loads per thread."""
    cams = torch.rand(1, 2100, 2048)
    cams[0, 0, 0], cams[0, -1, -1] = -1.0, 3.0
    out, _ = emulate(emulator, [cams], torch.ones(1), (2100, 2048), "none", "sum", "minmax")
    torch.testing.assert_close(out, (cams + 1) / 4, rtol=0, atol=1e-6)


def test_emulated_kernel_on_an_empty_batch(emulator) -> None:
    cams = [torch.rand(0, 4, 4), torch.rand(0, 2, 2)]
    out, finite = emulate(emulator, cams, torch.ones(2), (8, 8), "minmax", "sum", "minmax")
    assert out.shape == (0, 8, 8)
    assert finite.shape == (0,)
