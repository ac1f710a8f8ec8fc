"""The CUDA kernels of room `truncation` under the emulator, beside NumPy and the CPU."""

import math

import numpy as np
import pytest
import torch

from tests.native.emulator import from_bits, to_bits
from tests.ops.test_truncation import CAM_OPS
from wsfast.ops.truncation import reference
from wsfast.testing import FLOATING_DTYPES, tolerance

GROUPS = (1, 16)  # threads that share a pixel of a CAM
SIZES = {
    "warp 256": (1, 31, 33, 49, 196, 256),
    "warp 1024": (257, 784, 1023, 1024),
    "block 128": (1, 513, 1225),
    "block 256": (2100,),
    "block most": (7500,),
    "uncached": (1700,),
    "tiles": (5, 17000),
}


def mean_of_a_block(kept: np.ndarray) -> np.ndarray:
    """The mean as 512 threads add: strided sums, lanes i and i ^ 16 and so on, warps in order."""
    sums = np.zeros(512, kept.dtype)
    for begin in range(0, kept.size, 512):
        sums[: kept.size - begin] += kept[begin : begin + 512]
    warps = sums.reshape(16, 32)
    while warps.shape[1] > 1:
        half = warps.shape[1] // 2
        warps = warps[:, :half] + warps[:, half:]
    total = warps[0, 0]
    for warp in warps[1:, 0]:
        total += warp
    return total / kept.dtype.type(kept.size)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("selector", ["warp 256", "block most", "uncached", "tiles", "wide tiles"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_emulated_kernel(emulator, dtype: torch.dtype, selector: str, per_sample: bool) -> None:
    a, g = torch.randn(2, 3, 7, 12).to(dtype), torch.randn(2, 3, 7, 12).to(dtype)
    g[0, 1] = -1
    g[1, 2] = g[1, 2].round()
    scope = "sample" if per_sample else "map"
    found = emulator.call(
        "truncation", to_bits(a), to_bits(g), 40.0, per_sample, selector, GROUPS[per_sample],
        dtype=dtype,
    )  # fmt: skip
    truncated, delta, gradcam, layercam = (from_bits(x, dtype) for x in found[:4])
    assert torch.equal(truncated, reference.truncate_gradients(g, 40, scope=scope))
    expected = reference.positive_percentile(g, 40, scope=scope)
    torch.testing.assert_close(delta, expected.flatten(), **tolerance(dtype))
    for ours, name in ((gradcam, CAM_OPS[0]), (layercam, CAM_OPS[1])):
        expected = getattr(reference, name)(a, g, 40, scope=scope)
        torch.testing.assert_close(ours, expected, **tolerance(dtype))


def hostile_rows(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Maps (1, 10, 1, n): ties, neighbours, subnormals, inf, NaN, one positive and none."""
    limits, places = torch.finfo(dtype), torch.arange(n).double()
    noise, zeros = torch.randn(n).double(), torch.zeros(n).double()
    rows = [
        noise.round(),
        1 + places * limits.eps,
        1 + places / (16 * n),
        (places - 3) * limits.tiny * limits.eps,
        torch.where(places % 3 == 0, math.inf, noise),
        torch.where(places % 3 == 0, math.nan, noise).copysign(noise),
        torch.where(places % 4 == 0, zeros + limits.max, -math.inf),
        torch.where(places == n - 1, zeros + limits.tiny, -0.0),
        -noise.abs() - 1,
        zeros + 0.25,
    ]
    return torch.stack(rows).to(dtype).view(1, 10, 1, n)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize(
    ("selector", "n"), [("warp 256", 67), ("block 128", 256), ("block 128", 600), ("tiles", 67)]
)
def test_emulated_hostile_rows(emulator, dtype: torch.dtype, selector: str, n: int) -> None:
    """Also rows of which as many values share their digits as a block of 128 lists, and more."""
    g = hostile_rows(n, dtype)
    for percentile in (0.0, 62.5, 100.0):
        found = emulator.call(
            "truncation", to_bits(g), to_bits(g), percentile, False, selector, 1, dtype=dtype
        )
        kept = reference.truncate_gradients(g, percentile)
        assert torch.equal(from_bits(found[0], dtype), kept), percentile
        delta = reference.positive_percentile(g, percentile)
        torch.testing.assert_close(from_bits(found[1], dtype), delta[0], rtol=0, atol=0)


@pytest.mark.parametrize("selector", SIZES)
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_emulated_sizes(emulator, dtype: torch.dtype, selector: str) -> None:
    """The kept sets are exact and the weights have the same bits, whatever kernel adds them."""
    if (selector, dtype) == ("warp 1024", torch.float64):
        selector = "block 128"  # no warp holds as many
    for n in SIZES[selector]:
        rows = 5 if n < 2000 else 2  # more than a block of warps takes
        g = torch.randn(1, rows, 1, n).to(dtype)
        found = emulator.call(
            "truncation", to_bits(g), to_bits(g), 35.0, False, selector, 16, dtype=dtype
        )
        kept = reference.truncate_gradients(g, 35)
        assert torch.equal(from_bits(found[0], dtype), kept), n
        delta = reference.positive_percentile(g, 35)
        torch.testing.assert_close(from_bits(found[1], dtype), delta[0], rtol=0, atol=0)
        means = [mean_of_a_block(row.numpy()) for row in reference.accumulate(kept)[0, :, 0]]
        np.testing.assert_array_equal(found[4][0], np.array(means))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 1, 1, 1), (2, 16, 1, 33), (3, 17, 3, 9), (1, 140, 1, 2), (2, 3, 11, 29)]
)
def test_emulated_cams(emulator, shape: tuple[int, ...], per_sample: bool, groups: int) -> None:
    """Fewer and more channels than are loaded at once, several images in a warp's pixels."""
    scope = "sample" if per_sample else "map"
    for dtype in (torch.float64, torch.float16):
        a, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        g[:, 1::5] = -1  # their weights are 0, so that Grad-CAM skips what LayerCAM reads
        a[:, 1::10, :, 0] = math.inf
        a[:, 6::10, 0] = math.nan
        found = emulator.call(
            "truncation", to_bits(a), to_bits(g), 30.0, per_sample, "block 128", groups, dtype=dtype
        )
        for ours, name in zip(found[2:4], CAM_OPS, strict=True):
            expected = getattr(reference, name)(a, g, 30, scope=scope)
            torch.testing.assert_close(
                from_bits(ours, dtype), expected, equal_nan=True, **tolerance(dtype)
            )


@pytest.mark.parametrize("selector", ["warp 256", "block 128", "tiles"])
def test_emulated_kernels_in_every_order(emulator, selector: str) -> None:
    a, g = torch.randn(2, 18, 1, 37).numpy(), torch.randn(2, 18, 1, 37).numpy()
    emulator.call_in_every_order("truncation", a, g, 50.0, selector == "tiles", selector, 16)


@pytest.mark.parametrize("selector", ["warp 256", "block 128", "tiles"])
def test_emulated_decimal_percentile(emulator, selector: str) -> None:
    """64.4 % of 250 places is rank 161."""
    g = torch.arange(1.0, 252).view(1, 1, 1, 251)
    found = emulator.call(
        "truncation", to_bits(g), to_bits(g), 64.4, False, selector, 1, dtype=torch.float32
    )
    assert torch.equal(from_bits(found[0], torch.float32), torch.where(g >= 162, g, 0))
    assert from_bits(found[1], torch.float32).item() == 162


@pytest.mark.parametrize(("item_bytes", "longest_cached"), [(2, 111_615), (4, 53_760), (8, 25_856)])
def test_emulated_selectors(emulator, item_bytes: int, longest_cached: int) -> None:
    """Every length up to the last of a selector, with Hopper's 227 KiB of shared memory."""
    last = {"warp 256": 256, "warp 1024": 1024, "block 128": 4096, "block 256": 16384}
    last |= {"block most": longest_cached, "uncached": 2**17, "tiles": 2**32 - 1}
    if item_bytes == 8:
        del last["warp 1024"]
    following = [*list(last)[1:], "wide tiles"]
    for (selector, length), after in zip(last.items(), following, strict=True):
        for n, expected in ((length, selector), (length + 1, after)):
            found = emulator.call(f"selector_for_{item_bytes}_bytes", n, 227 * 1024)
            assert found == expected, n


def test_emulated_selectors_of_little_shared_memory(emulator) -> None:
    """A row that does not fit is read again, however short."""
    assert emulator.call("selector_for_4_bytes", 4000, 48 * 1024) == "block 128"
    assert emulator.call("selector_for_4_bytes", 8000, 48 * 1024) == "uncached"


@pytest.mark.parametrize("percentile", [-1.0, 100.5, math.nan, math.inf])
def test_ops_refuse_percentiles_outside(device: torch.device, percentile: float) -> None:
    """The front door raises first; the kernels would search for a rank that no value has."""
    grads = torch.rand(1, 2, 3, 4, device=device)
    calls = (
        lambda op: op.positive_percentile(grads, percentile, False),
        lambda op: op.truncate_gradients(grads, percentile, True),
        lambda op: op.truncated_gradcam(grads, grads, percentile, False, False),
        lambda op: op.truncated_layercam(grads, grads, percentile, False, False),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="percentile must be between 0 and 100"):
            call(torch.ops.wsfast)
