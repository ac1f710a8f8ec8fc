"""Room `fusion`: the CUDA kernels of the gradient, emulated, against autograd."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.native.emulator import from_bits, to_bits
from tests.ops.test_fusion import LAYERS, accumulate_dtype, make_layers
from tests.ops.test_fusion_backward import (
    MODES,
    assert_gradients_close,
    by_autograd,
    by_kernel,
    smallest_range,
)
from wsfast.testing import FLOATING_DTYPES

EVERY_MODE = tuple(itertools.product(MODES, MODES))
SOME_MODES = (("minmax", "minmax"), ("max", "none"), ("none", "max"), ("none", "none"))


def emulate(emulator, grad, cams, weights, layer_norm: str, norm: str) -> list[torch.Tensor]:
    dtype = grad.dtype
    maps = [to_bits(layer) for layer in cams]
    found, of_weights = emulator.call(
        "fuse_cams_backward", to_bits(grad), maps, to_bits(weights), layer_norm, norm, 1e-7,
        dtype=dtype,
    )  # fmt: skip
    return [*(from_bits(part, dtype) for part in found), torch.from_numpy(of_weights)]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_matches_autograd(emulator, case: int, dtype: torch.dtype) -> None:
    """Layers smaller and larger than the output, of its size, and more than a launch takes."""
    sizes, size = LAYERS[case]
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, dtype.itemsize * 5e-3)
    torch.manual_seed(case)
    cams = make_layers(sizes, dtype)
    weights = torch.linspace(-0.5, 1.5, len(sizes), dtype=accumulate_dtype(dtype))
    grad = torch.randn(2, *size).to(dtype)
    for options in EVERY_MODE if dtype == torch.float64 else SOME_MODES:
        found = emulate(emulator, grad, cams, weights, *options)
        assert_gradients_close(found, by_autograd(grad, cams, weights, *options), tolerance)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 70)), min_size=1, max_size=4),
    st.tuples(st.integers(2, 60), st.integers(2, 60)),
    st.sampled_from(EVERY_MODE),
    st.integers(0, 2**31 - 1),
)
def test_any_sizes(emulator, sizes, size, options, seed: int) -> None:
    torch.manual_seed(seed)
    cams = make_layers(sizes, torch.float64, n=3)
    assume(smallest_range(cams) > 0.01)
    weights = torch.rand(len(sizes), dtype=torch.float64) + 0.5
    grad = torch.randn(3, *size, dtype=torch.float64)
    found = emulate(emulator, grad, cams, weights, *options)
    expected = by_autograd(grad, cams, weights, *options)
    assert_gradients_close(found, expected, 1e-10, least=grad.abs().max().item())


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(3, 5), (7, 1), (1, 1)], (70, 600)),  # tiles that read many output columns
        ([(4, 600), (5, 257)], (6, 512)),  # tiles side by side
        ([(2100, 20)], (40, 30)),  # more tiles than a block has threads
        ([(1, 1)], (1, 1)),
        ([(1, 300), (300, 1)], (300, 1)),
    ],
)
def test_extreme_sizes(emulator, sizes, size) -> None:
    cams, grad = make_layers(sizes, torch.float64), torch.randn(2, *size, dtype=torch.float64)
    weights = torch.rand(len(sizes), dtype=torch.float64) + 0.5
    for options in SOME_MODES[:2]:
        found = emulate(emulator, grad, cams, weights, *options)
        assert_gradients_close(found, by_autograd(grad, cams, weights, *options), 1e-8)


@pytest.mark.parametrize("options", EVERY_MODE)
def test_ties_share_evenly(emulator, options: tuple[str, str]) -> None:
    """Values in quarters, so that sums of layers tie, too."""
    cams = [(layer * 4).round() / 4 for layer in make_layers([(12, 10), (12, 10), (5, 40)])]
    cams = [layer.double() - 0.5 for layer in cams]
    weights, grad = torch.ones(3, dtype=torch.float64), torch.randn(2, 12, 10, dtype=torch.float64)
    for count in (2, 3) if options[0] != "none" else (2,):
        part = cams[:count], weights[:count]
        found = emulate(emulator, grad, *part, *options)
        assert_gradients_close(found, by_autograd(grad, *part, *options), 1e-12)


def test_every_order_and_an_image_that_is_not_finite(emulator) -> None:
    cams, weights = make_layers([(70, 40), (9, 300), (66, 70)], n=3), torch.rand(3) + 0.5
    grad = torch.randn(3, 66, 70)
    cams[1][1, 4, 7] = math.inf
    grad[1, 0, 0] = math.nan
    maps, others = [layer.numpy() for layer in cams], torch.tensor([0, 2])
    for options in SOME_MODES:
        found, of_weights = emulator.call_in_every_order(
            "fuse_cams_backward", grad.numpy(), maps, weights.numpy(), *options, 1e-7
        )
        found = [torch.from_numpy(part) for part in found]
        assert not any(part[1].any() for part in found)
        expected = by_autograd(grad[others], [x[others] for x in cams], weights, *options)
        ours = [*(part[others] for part in found), torch.from_numpy(of_weights)]
        assert_gradients_close(ours, expected, 2e-5)


@pytest.mark.parametrize("mode", ["minmax", "max"])
def test_flat_maps_have_no_gradient(emulator, mode: str) -> None:
    flat, other = torch.full((1, 4, 4), -2.0), torch.rand(1, 8, 8)
    grad, weights = torch.randn(1, 8, 8), torch.ones(2)
    found = emulate(emulator, grad, [flat, other], weights, mode, "none")
    assert not found[0].any()
    assert found[1].any()
    alone = emulate(emulator, grad, [flat], weights[:1], "none", mode)
    assert not alone[0].any()


def test_empty_batch(emulator) -> None:
    cams = [torch.rand(0, 4, 4), torch.rand(0, 2, 2)]
    for options in SOME_MODES:
        found = emulate(emulator, torch.rand(0, 8, 8), cams, torch.ones(2), *options)
        assert [part.shape for part in found[:2]] == [(0, 4, 4), (0, 2, 2)]


@pytest.mark.parametrize("options", SOME_MODES)
def test_close_to_the_kernel_of_the_device(
    emulator, device: torch.device, options: tuple[str, str]
) -> None:
    cams, weights = make_layers([(40, 42), (20, 21), (9, 11)], n=3), torch.rand(3) + 0.5
    grad = torch.randn(3, 40, 42)
    moved = [layer.to(device) for layer in cams]
    theirs = by_kernel(grad.to(device), moved, weights.to(device), *options)
    found = emulate(emulator, grad, cams, weights, *options)
    assert_gradients_close(found, [part.cpu() for part in theirs], 2e-5)
