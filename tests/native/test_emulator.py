"""The emulator itself: right kernels are right, planted bugs are caught, half types convert."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from .emulator import ORDERS, SUFFIX, SanitizerError, from_bits, to_bits

RNG = np.random.default_rng(7)
HALF_TYPES = list(SUFFIX)


# ---- correct kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize(("n", "threads"), [(1, 32), (100, 32), (1000, 96), (5000, 1024)])
def test_block_reductions(emulator, dtype, n, threads):
    x = RNG.integers(-1000, 1000, n).astype(dtype)
    sums, minima, maxima = emulator.call_in_every_order("toy_summary", x, threads)
    blocks = np.zeros((-(-n // threads), threads), dtype)
    blocks.reshape(-1)[:n] = x  # the kernel counts threads past the end as 0
    np.testing.assert_array_equal(sums, blocks.sum(1))
    np.testing.assert_array_equal(minima, blocks.min(1))
    np.testing.assert_array_equal(maxima, blocks.max(1))


def test_float_sums_follow_one_tree(emulator):
    x = RNG.standard_normal(640).astype(np.float32)
    lane_order = x.reshape(2, 10, 32)
    while lane_order.shape[-1] > 1:  # lanes i and i ^ 16, then ^ 8, ...
        half = lane_order.shape[-1] // 2
        lane_order = lane_order[..., :half] + lane_order[..., half:]
    expected = np.zeros(2, np.float32)
    for warp in range(10):
        expected = expected + lane_order[:, warp, 0]
    sums, _, _ = emulator.call_in_every_order("toy_summary", x, 320)
    np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_nan_wins_min_and_max(emulator, at):
    x = RNG.standard_normal(64).astype(np.float32)
    x[at] = np.nan
    for result in emulator.call("toy_summary", x, 64):
        assert np.isnan(result).all()


@pytest.mark.parametrize(
    ("lane", "delta", "rows"), [(0, 1, 1), (5, 3, 2), (31, 31, 4), (17, 16, 1)]
)
def test_shuffles_and_ballot(emulator, lane, delta, rows):
    x = RNG.integers(-9, 9, 128).astype(np.int32)
    out = emulator.call_in_every_order("toy_shuffles", x, rows, lane, delta)
    warps = x.reshape(-1, 32)
    lanes = np.arange(32)
    up = np.where(lanes >= delta, lanes - delta, lanes)
    down = np.where(lanes + delta < 32, lanes + delta, lanes)
    ballots = ((warps > 0).astype(np.uint32) << lanes.astype(np.uint32)).sum(1).astype(np.uint32)
    expected = [
        np.repeat(warps[:, lane], 32),
        warps[:, up].reshape(-1),
        warps[:, down].reshape(-1),
        warps[:, lanes ^ lane].reshape(-1),
        np.repeat(ballots.view(np.int32), 32),
    ]
    np.testing.assert_array_equal(out, np.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF_TYPES])
@pytest.mark.parametrize("shape", [(1, 1), (7, 19), (32, 16)])
def test_dynamic_shared_memory_and_two_dimensions(emulator, dtype, shape):
    x = torch.from_numpy(RNG.standard_normal(shape)).to(dtype)
    out = emulator.call_in_every_order("toy_transpose", to_bits(x), 8, dtype=dtype)
    assert torch.equal(from_bits(out, dtype), x.T)


@pytest.mark.parametrize(("name", "first"), [("int32", -40), ("int64", -(2**40)), ("uint32", 3),
                                             ("uint64", 2**40)])  # fmt: skip
def test_integer_atomics(emulator, name, first):
    blocks, threads = 3, 64
    numbers = range(first, first + blocks * threads)
    bits = 0
    for number in numbers:
        bits |= number
    expected = (sum(numbers), min(0, *numbers), max(0, *numbers), bits, len(numbers))
    result = emulator.call_in_every_order(f"toy_atomics_{name}", first, blocks, threads)
    assert result == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_atomics(emulator, dtype):
    x = RNG.integers(-50, 50, 700).astype(dtype)  # whole numbers: no rounding in any order
    assert emulator.call_in_every_order("toy_float_sum", x, 2, 96) == x.sum()


def test_threads_that_wait_for_a_lock_let_others_run(emulator):
    assert emulator.call_in_every_order("toy_locked_sum", 256) == 255 * 256 // 2


# ---- planted bugs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments", "finding", "kernel"),
    [
        ("toy_read_past_end", (np.zeros(63, np.float32), 64), "heap-buffer-overflow",
         "read_past_end_kernel"),
        ("toy_shared_past_end", (), "heap-buffer-overflow", "shared_past_end_kernel"),
        ("toy_static_past_end", (), "out of bounds|global-buffer-overflow", "static_past_end"),
        ("toy_overflow", (70000, 70000), "signed integer overflow", "overflow_kernel"),
    ],
)  # fmt: skip
def test_sanitizers_report_the_line(emulator, function, arguments, finding, kernel):
    with pytest.raises(SanitizerError, match=finding) as caught:
        emulator.call(function, *arguments)
    assert kernel in str(caught.value)
    assert "toy_kernels.cuh:" in str(caught.value)
    assert emulator.call("toy_overflow", 3, 4) == 12  # a new worker answers


def test_read_inside_is_fine(emulator):
    emulator.call("toy_read_past_end", np.zeros(64, np.float32), 64)


EXIT_BEFORE, HALF_SKIPS, TWO_PLACES, PARTIAL_WARP, MIXED_WARP, SPIN, NONE = range(7)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("how", "threads", "message"),
    [
        (EXIT_BEFORE, 64, "__syncthreads at .*toy_kernels.cuh:.* of the block: .* has exited"),
        (HALF_SKIPS, 64, "__syncthreads at .* of the block: .* waits in .*__syncthreads at"),
        (TWO_PLACES, 64, "__syncthreads at .* of the block: .* waits in .*__syncthreads at"),
        (PARTIAL_WARP, 64, "__shfl_sync at .* of the warp: .* waits in .*__syncthreads at"),
        (MIXED_WARP, 64, "__shfl_(up_)?sync at .* of the warp: .* waits in .*__shfl_(up_)?sync"),
        (PARTIAL_WARP, 40, "last warp is incomplete|of the warp"),
        (SPIN, 32, "wait for each other forever"),
    ],
)
def test_divergence_is_an_error(emulator, order, how, threads, message):
    with emulator.order(order), pytest.raises(RuntimeError, match=message):
        emulator.call("toy_divergent", how, threads)
    np.testing.assert_array_equal(emulator.call("toy_divergent", NONE, threads), range(threads))


@pytest.mark.parametrize(("blocks", "threads", "shared", "message"), [
    (0, 32, 0, "invalid grid"), (1, 0, 0, "invalid block"), (1, 1025, 0, "invalid block"),
    (1, 32, 1 << 20, "shared memory"),
])  # fmt: skip
def test_impossible_launches_are_errors(emulator, blocks, threads, shared, message):
    with pytest.raises(RuntimeError, match=message):
        emulator.call("toy_launch", blocks, threads, shared)


def test_unwritten_shared_memory_is_garbage(emulator):
    assert np.isnan(emulator.call("toy_unwritten_shared")).all()


def test_order_exposes_a_race_between_threads(emulator):
    x = np.arange(1, 129, dtype=np.int32)
    with pytest.raises(AssertionError, match="another result"):
        emulator.call_in_every_order("toy_race", x)


def test_order_exposes_a_race_between_blocks(emulator):
    last = []
    for order in ORDERS:
        with emulator.order(order):
            last.append(emulator.call("toy_block_race", 50))
    assert last[:2] == [49, 0]
    with pytest.raises(AssertionError, match="another result"):
        emulator.call_in_every_order("toy_block_race", 50)


def test_random_order_depends_on_the_seed(emulator):
    last = set()
    for seed in range(5):
        with emulator.order("random", seed):
            last.add(emulator.call("toy_block_race", 50))
    assert len(last) > 1


def test_a_kernel_that_takes_too_long_is_an_error(emulator, monkeypatch):
    emulator.call("toy_block_race", 1)
    with monkeypatch.context() as patch:
        patch.setattr(emulator, "_timeout", 0.01)
        with pytest.raises(TimeoutError, match="toy_divergent"):
            emulator.call("toy_divergent", SPIN, 1024)
    assert emulator.call("toy_block_race", 1) == 0


def test_bits_are_not_taken_for_numbers(emulator):
    with pytest.raises(TypeError, match="incompatible"):
        emulator.call("toy_transpose", to_bits(torch.ones(2, 2, dtype=torch.float16)), 8)


def test_bad_arguments_are_errors(emulator):
    with pytest.raises(ValueError, match="order must be"), emulator.order("sideways"):
        pass
    with pytest.raises(AttributeError):
        emulator.call("toy_no_such_function")
    with pytest.raises(TypeError):
        emulator.call("toy_summary", "text", 32)


# ---- half types ----------------------------------------------------------------------------------

EVERY_BIT_PATTERN = np.arange(65536, dtype=np.uint16)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_every_half_widens_exactly(emulator, dtype):
    wide = torch.from_numpy(emulator.call("toy_widen", EVERY_BIT_PATTERN, dtype=dtype))
    expected = from_bits(EVERY_BIT_PATTERN.copy(), dtype).float()
    number = ~torch.isnan(expected)
    assert torch.equal(torch.isnan(wide), ~number)
    assert torch.equal(wide[number].view(torch.int32), expected[number].view(torch.int32))


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_every_half_survives_the_way_back(emulator, dtype):
    wide = from_bits(EVERY_BIT_PATTERN.copy(), dtype).float()
    back = emulator.call("toy_narrow", wide.numpy(), dtype=dtype)
    number = ~torch.isnan(wide).numpy()
    np.testing.assert_array_equal(back[number], EVERY_BIT_PATTERN[number])
    assert torch.isnan(from_bits(back, dtype))[~number].all()


def assert_rounds_like_torch(emulator, values, dtype):
    narrow = from_bits(emulator.call("toy_narrow", values, dtype=dtype), dtype)
    expected = torch.from_numpy(values).to(dtype)
    number = ~torch.isnan(expected)
    assert torch.equal(torch.isnan(narrow), ~number)
    assert torch.equal(narrow.view(torch.int16)[number], expected.view(torch.int16)[number])


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_rounding_to_nearest_even(emulator, dtype):
    """Random bits, and the halfway points between neighbours with their float neighbours."""
    random = RNG.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    narrow = from_bits(EVERY_BIT_PATTERN.copy(), dtype).double()
    narrow = narrow[torch.isfinite(narrow)].sort().values
    halfway = ((narrow[1:] + narrow[:-1]) / 2).numpy().astype(np.float32)
    around = [np.nextafter(halfway, np.float32(side)) for side in (-np.inf, np.inf)]
    largest = np.float32(narrow[-1].item())
    edge = largest + (largest - np.float32(narrow[-2].item())) / 2  # from here on: infinity
    edges = np.array([edge, np.nextafter(edge, np.float32(0)), -edge], np.float32)
    assert_rounds_like_torch(emulator, np.concatenate([random, halfway, *around, edges]), dtype)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_rounding_of_any_float(emulator, dtype):
    @settings(max_examples=50, deadline=None)
    @given(arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32)))
    def check(values):
        assert_rounds_like_torch(emulator, values, dtype)

    check()
