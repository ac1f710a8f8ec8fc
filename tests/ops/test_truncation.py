"""Room `truncation`: against a float64 sort-based oracle, the reference and the equations."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import wsfast
from tests.op_errors import check_error
from tests.processes import python
from wsfast.ops.truncation import reference
from wsfast.testing import FLOATING_DTYPES, tolerance

SCOPES = ("map", "sample")
PERCENTILES = (0.0, 1.0, 37.5, 50.0, 90.0, 100.0)
SHAPES = ((2, 3, 5, 7), (2, 4, 64, 64), (1, 2, 300, 401), (3, 1, 1, 1), (0, 3, 4, 4), (2, 0, 3, 3))
CAM_OPS = ("truncated_gradcam", "truncated_layercam")


def oracle_truncate(row: np.ndarray, percentile: float) -> np.ndarray:
    """Sort the positives in float64 and keep from rank ceil(q/100 (m-1)) on (LTGrad-CAM eq. 9)."""
    positives = np.sort(row[row > 0].astype(np.float64))
    if positives.size == 0:
        return np.zeros_like(row)
    position = percentile * (positives.size - 1) / 100
    whole = round(position)
    near = abs(position - whole) <= 4 * 2**-53 * position  # three roundings of a decimal percentile
    limit = positives[whole if near else math.ceil(position)]
    return np.where(row >= limit, row, 0)


def oracle_percentile(row: np.ndarray, percentile: float) -> float:
    positives = row[row > 0].astype(np.float64)
    return float(np.percentile(positives, percentile)) if positives.size else math.inf


def rows_of(tensor: torch.Tensor, scope: str) -> np.ndarray:
    rows = tensor.flatten(2).flatten(0, 1) if scope == "map" else tensor.flatten(1)
    return rows.double().cpu().numpy()


def special_gradients() -> dict[str, torch.Tensor]:
    g = torch.randn(2, 3, 24, 23)
    few = torch.randint(-2, 4, g.shape).float()
    tiny = torch.rand(g.shape) * 1e-42 - 3e-43
    infinite = g.clone()
    infinite[:, :, 0] = math.inf
    infinite[:, :, 1] = -math.inf
    mostly_zero = torch.where(torch.rand(g.shape) < 0.02, g, 0)
    return {
        "random": g,
        "tied": few,
        "constant": torch.full_like(g, 0.25),
        "all_negative": -g.abs() - 1,
        "zero": torch.zeros_like(g),
        "denormal": tiny,
        "infinite": infinite,
        "mostly_zero": mostly_zero,
    }


def test_known_values() -> None:
    grads = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]])
    activations = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert wsfast.positive_percentile(grads, 50).item() == 2
    assert wsfast.positive_percentile(grads, 75).item() == 2.5
    assert wsfast.truncate_gradients(grads, 75).flatten().tolist() == [0, 0, 0, 3]
    cam = wsfast.truncated_gradcam(activations, grads, 75)  # w = 3/4
    assert cam.flatten().tolist() == [0.75, 1.5, 2.25, 3.0]
    cam = wsfast.truncated_layercam(activations, grads, 50)
    assert cam.flatten().tolist() == [0, 0, 6, 12]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", special_gradients())
def test_equals_sorting_oracle(device: torch.device, kind: str, scope: str) -> None:
    for dtype in FLOATING_DTYPES:
        grads = special_gradients()[kind].to(device, dtype)
        for percentile in PERCENTILES:
            out = wsfast.truncate_gradients(grads, percentile, scope=scope)
            expected = [oracle_truncate(row, percentile) for row in rows_of(grads, scope)]
            np.testing.assert_array_equal(rows_of(out, scope), np.stack(expected))
            found = wsfast.positive_percentile(grads, percentile, scope=scope)
            found = found.flatten().double().cpu()
            delta = np.array([oracle_percentile(r, percentile) for r in rows_of(grads, scope)])
            if kind != "infinite":  # numpy interpolates inf - inf to NaN
                torch.testing.assert_close(found, torch.from_numpy(delta), **tolerance(dtype))


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_matches_reference(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    grads = torch.randn(shape, device=device).to(dtype)
    activations = torch.randn(shape, device=device).to(dtype)
    for scope in SCOPES:
        for q in PERCENTILES:
            out = wsfast.truncate_gradients(grads, q, scope=scope)
            assert torch.equal(out, reference.truncate_gradients(grads, q, scope=scope))
            torch.testing.assert_close(
                wsfast.positive_percentile(grads, q, scope=scope),
                reference.positive_percentile(grads, q, scope=scope),
            )
            for name in CAM_OPS:
                ours = getattr(wsfast, name)(activations, grads, q, scope=scope)
                theirs = getattr(reference, name)(activations, grads, q, scope=scope)
                torch.testing.assert_close(ours, theirs, **tolerance(dtype))
                assert ours.dtype == dtype
                assert ours.shape == (shape[0], *shape[2:])


@pytest.mark.parametrize("name", CAM_OPS)
def test_dtype_keeps_the_accumulator(device: torch.device, name: str) -> None:
    grads = torch.randn(2, 9, 11, 12, device=device).half()
    activations = torch.randn(2, 9, 11, 12, device=device).half()
    exact = getattr(reference, name)(activations.double(), grads.double(), 50)
    out = getattr(wsfast, name)(activations, grads, 50, dtype=torch.float32)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)


def strided_variants(x: torch.Tensor) -> list[torch.Tensor]:
    wide = torch.randn(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)
    wide[..., ::2] = x
    return [
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        wide[..., ::2],
        torch.nn.functional.pad(x, (3, 0))[..., 3:],
    ]


def test_any_strides() -> None:
    x = torch.randn(2, 5, 8, 9)
    for strided in strided_variants(x):
        assert torch.equal(wsfast.truncate_gradients(strided, 50), wsfast.truncate_gradients(x, 50))
        for name in CAM_OPS:
            op = getattr(wsfast, name)
            assert torch.equal(op(strided, strided, 50), op(x, x, 50))
    expanded = torch.randn(2, 1, 8, 9).expand(2, 5, 8, 9)
    assert torch.equal(
        wsfast.truncate_gradients(expanded, 50), reference.truncate_gradients(expanded, 50)
    )


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3000), st.floats(0, 100), st.integers(0, 2**31 - 1), st.sampled_from([3, 40, 0])
)
def test_kept_set_properties(n: int, percentile: float, seed: int, levels: int) -> None:
    row = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    if levels:
        row = np.round(row * levels) / np.float32(levels)
    grads = torch.from_numpy(row).reshape(1, 1, 1, n)
    out = wsfast.truncate_gradients(grads, percentile)[0, 0, 0]
    np.testing.assert_array_equal(out.numpy(), oracle_truncate(row, percentile))
    again = wsfast.truncate_gradients(2 * grads, percentile)[0, 0, 0]
    assert torch.equal(again, 2 * out)  # positive scaling keeps the same set


def decimal_gradients() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Map m of 400 holds 1 to m, then zeros; decimal percentiles; NumPy's for each map."""
    numbers = np.arange(1, 401)
    grads = np.where(numbers <= numbers[:, None], numbers, 0).astype(np.float32)
    percentiles = np.arange(0, 1001, 4) / 10
    expected = [np.percentile(numbers[:m].astype(np.float64), percentiles) for m in numbers]
    return torch.from_numpy(grads).view(1, 400, 20, 20), percentiles, np.float32(expected)


def test_kept_set_of_decimal_percentiles() -> None:
    """8.8 and its like are no exact numbers: 8.8 % of 375 places is rank 33, not just above it."""
    grads, percentiles, expected = decimal_gradients()
    for i, q in enumerate(percentiles.tolist()):
        delta = torch.from_numpy(expected[:, i].copy()).view(1, 400, 1, 1)
        kept = torch.where(grads >= delta, grads, 0)
        assert torch.equal(wsfast.truncate_gradients(grads, q), kept)
        if i % 8 == 6:
            found = wsfast.positive_percentile(grads, q)
            torch.testing.assert_close(found, delta.view(1, 400), rtol=1e-6, atol=0)
            assert torch.equal(reference.truncate_gradients(grads, q), kept)
            assert torch.equal(reference.positive_percentile(grads, q), found)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_kept_set_is_what_reaches_the_percentile(device: torch.device, dtype: torch.dtype) -> None:
    """Also between neighbouring numbers, where the nearest to the percentile is the lower one."""
    steps = torch.arange(12).double().view(1, 1, 3, 4) * torch.finfo(dtype).eps
    for grads in ((1 + steps).to(device, dtype), torch.randn(2, 30, 20, 20).to(device, dtype)):
        for q in (0.0, 1e-7, 8.8, 20.0, 33.333333, 50.0, 64.4, 99.99999, 100.0):
            for scope in SCOPES:
                for ops in (wsfast, reference):
                    delta = ops.positive_percentile(grads, q, scope=scope)
                    kept = grads >= reference.expand_threshold(delta)
                    out = ops.truncate_gradients(grads, q, scope=scope)
                    assert torch.equal(out, torch.where(kept, grads, 0)), (q, scope)


@pytest.mark.parametrize("scope", SCOPES)
def test_zero_percentile_is_relu(device: torch.device, scope: str) -> None:
    grads = torch.randn(2, 3, 65, 67, device=device)
    assert torch.equal(wsfast.truncate_gradients(grads, 0, scope=scope), grads.relu())


@pytest.mark.parametrize("percentile", [0, 50])
def test_nan_is_never_kept(device: torch.device, percentile: int) -> None:
    grads = torch.randn(1, 2, 50, 60, device=device)
    grads[0, 1, 7, 7] = -math.inf
    clean = grads.clone()
    clean[0, 0, ::3] = -1
    grads[0, 0, ::3] = math.nan
    for op in (wsfast.truncate_gradients, wsfast.positive_percentile):
        assert torch.equal(op(grads, percentile), op(clean, percentile))
    assert wsfast.positive_percentile(clean, 0)[0, 0] == clean[0, 0].relu().unique()[1]


def test_long_rows() -> None:
    """Beyond 2^24 elements in one row, where torch.quantile gives up; split across threads."""
    grads = torch.randn(1, 5, 1900, 1800)
    out = wsfast.truncate_gradients(grads, 70, scope="sample").flatten()
    positives = grads[grads > 0]
    rank = math.ceil(70 * (positives.numel() - 1) / 100)
    limit = positives.kthvalue(rank + 1).values
    assert torch.equal(out, torch.where(grads >= limit, grads, 0).flatten())


FLUSHING = """
import torch, wsfast
from wsfast.ops.truncation import reference
torch.set_num_threads(2)

def check(g, q):
    out = wsfast.truncate_gradients(g, q)
    assert torch.equal(out, reference.truncate_gradients(g, q)), (g.dtype, g.shape, q)
    delta, expected = (ops.positive_percentile(g, q) for ops in (wsfast, reference))
    assert torch.equal(delta, expected)
    cams = wsfast.truncated_layercam(g, g, q)
    torch.testing.assert_close(cams, reference.truncated_layercam(g, g, q))

torch.manual_seed(0)
tiny = torch.rand(1, 1, 520, 520) * 1e-42
tiny[torch.rand(tiny.shape) < 0.7] = 0
for q in (0, 50, 100):
    check(tiny[..., :99], q)
assert torch.set_flush_denormal(True)
for size, density in ((7, 0.5), (112, 0.002), (224, 0.5), (224, 0.002), (520, 0.002)):
    g = torch.randn(1, 1, size, size) * (torch.rand(1, 1, size, size) < density)
    for q in (0, 50, 100):  # rows copied whole, from a sample, and by two threads
        check(g, q)
for dtype in (torch.float64, torch.float16, torch.bfloat16):
    g = torch.randn(1, 1, 112, 112).relu().to(dtype)
    for q in (0, 50, 100):
        check(g, q)
assert not wsfast.truncate_gradients(tiny[..., :99], 0).view(torch.int32).any()
assert not wsfast.truncate_gradients(tiny, 50).view(torch.int32).any()  # on two threads
"""


HALVES = """
import torch, wsfast
patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
for dtype in (torch.float16, torch.bfloat16):
    for copies in (1, 64):  # within the caches, and written past them
        g = patterns.view(dtype).reshape(1, 1, 256, 256).expand(copies, 4, -1, -1)
        kept = wsfast.truncate_gradients(g, 0)
        expected = torch.where(g > 0, g, 0)
        assert torch.equal(kept.view(torch.int16), expected.view(torch.int16)), (dtype, copies)
"""


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_ends_where_subnormals_are_flushed(level: str) -> None:
    """Subnormals count as before without the flush, and as 0 with it."""
    done = python("-c", FLUSHING, timeout=60, WSFAST_SIMD=level)
    if "assert torch.set_flush_denormal(True)" in done.stderr:
        pytest.skip("this CPU cannot flush subnormals")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_every_half_value_is_kept_as_it_is(level: str) -> None:
    done = python("-c", HALVES, timeout=60, WSFAST_SIMD=level)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CAM_OPS)
@pytest.mark.parametrize("scope", SCOPES)
def test_backward_matches_reference(device: torch.device, name: str, scope: str) -> None:
    for dtype in FLOATING_DTYPES:
        results = []
        for ops in (wsfast, reference):
            torch.manual_seed(3)
            a = torch.randn(2, 4, 9, 8, device=device).to(dtype).requires_grad_()
            g = torch.randn(2, 4, 9, 8, device=device).to(dtype).requires_grad_()
            cams = getattr(ops, name)(a, g, 40, scope=scope)
            upstream = torch.randn(cams.shape, device=device).to(dtype)
            results.append(torch.autograd.grad(cams, (a, g), upstream))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_backward_multiplies_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    """300 * 300 is beyond float16, its mean over 49 pixels is not; and one rounding only."""
    activations = torch.rand(1, 2, 7, 7, device=device).to(dtype)
    activations[0, 0, 3, 3] = 300
    grads = torch.rand(1, 2, 7, 7, device=device).to(dtype).requires_grad_()
    cams = wsfast.truncated_gradcam(activations, grads, 0)
    (found,) = torch.autograd.grad(cams, grads, torch.full_like(cams, 300))
    mean = (activations.double() * 300).mean(dim=(2, 3), keepdim=True)
    expected = torch.where(grads > 0, mean, 0).to(dtype)
    tight = {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(found, expected, rtol=tight, atol=0)


def test_gradcheck(device: torch.device) -> None:
    a = torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    g = torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    for scope in SCOPES:
        truncate = lambda x, s=scope: wsfast.truncate_gradients(x, 40, scope=s)  # noqa: E731
        assert torch.autograd.gradcheck(truncate, (g,))
        assert torch.autograd.gradgradcheck(truncate, (g,))
        for name in CAM_OPS:
            op = lambda x, y, n=name, s=scope: getattr(wsfast, n)(x, y, 40, scope=s)  # noqa: E731
            assert torch.autograd.gradcheck(op, (a, g))
            assert torch.autograd.gradgradcheck(op, (a, g))


def test_percentile_is_not_differentiable(device: torch.device) -> None:
    grads = torch.randn(1, 2, 3, 4, device=device, requires_grad=True)
    assert not wsfast.positive_percentile(grads, 50).requires_grad


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: torch.device, requires_grad: bool) -> None:
    ops = torch.ops.wsfast
    for dtype in (torch.float32, torch.float16):
        a = torch.randn(2, 3, 6, 5, device=device).to(dtype).requires_grad_(requires_grad)
        g = torch.randn(2, 3, 6, 5, device=device).to(dtype).requires_grad_(requires_grad)
        for per_sample in (False, True):
            opcheck(ops.positive_percentile.default, (g.detach(), 50.0, per_sample))
            opcheck(ops.truncate_gradients.default, (g, 50.0, per_sample))
            for name in CAM_OPS:
                for full in (False, True):
                    opcheck(getattr(ops, name).default, (a, g, 50.0, per_sample, full))


def every_op(a: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    return [
        wsfast.positive_percentile(g, 50.0),
        wsfast.truncate_gradients(g, 50.0, scope="sample"),
        wsfast.truncated_gradcam(a, g, 50.0),
        wsfast.truncated_layercam(a, g, 50.0),
    ]


def test_compile_fullgraph(device: torch.device) -> None:
    compiled = torch.compile(every_op, fullgraph=True, dynamic=True)
    for n in (2, 3):
        a = torch.randn(n, 3, 6, 5, device=device, requires_grad=True)
        g = torch.randn(n, 3, 6, 5, device=device, requires_grad=True)
        expected, found = every_op(a, g), compiled(a, g)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        for grad, same in zip(
            torch.autograd.grad(sum(x.sum() for x in found[1:]), (a, g)),
            torch.autograd.grad(sum(x.sum() for x in expected[1:]), (a, g)),
            strict=True,
        ):
            torch.testing.assert_close(grad, same)


class EveryOp(torch.nn.Module):
    def forward(self, a: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        return every_op(a, g)


def test_export(device: torch.device) -> None:
    a, g = torch.randn(2, 3, 6, 5, device=device), torch.randn(2, 3, 6, 5, device=device)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        EveryOp().eval(), (a, g), dynamic_shapes={"a": {0: batch}, "g": {0: batch}}
    )
    a, g = torch.randn(5, 3, 6, 5, device=device), torch.randn(5, 3, 6, 5, device=device)
    for ours, theirs in zip(program.module()(a, g), every_op(a, g), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_script_and_trace(device: torch.device) -> None:
    a, g = torch.randn(2, 3, 6, 5, device=device), torch.randn(2, 3, 6, 5, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(every_op)
        traced = torch.jit.trace(every_op, (a, g))
    for found in (scripted(a, g), traced(a, g)):
        for ours, theirs in zip(found, every_op(a, g), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CAM_OPS)
def test_autocast(device: torch.device, name: str) -> None:
    a = torch.randn(2, 8, 6, 5, device=device).bfloat16().requires_grad_()
    g = torch.randn(2, 8, 6, 5, device=device).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        cams = getattr(wsfast, name)(a, g, 50)
    assert cams.dtype == torch.float32
    torch.testing.assert_close(cams, getattr(reference, name)(a.float(), g.float(), 50))
    cams.sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16


def test_deterministic() -> None:
    a, g = torch.randn(3, 20, 130, 129), torch.randn(3, 20, 130, 129)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        per_sample = wsfast.truncated_gradcam(a, g, 30, scope="sample")
        large = wsfast.truncated_gradcam(*(x.view(1, 1, 780, -1) for x in (a, g)), 30)
        results.append([*every_op(a, g), per_sample, large])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.equal(ours, theirs)


GOOD = torch.randn(2, 3, 4, 5)
ERRORS = [
    (lambda: wsfast.truncate_gradients(GOOD[0], 50), ValueError, "grads must be a tensor of 4"),
    (lambda: wsfast.truncate_gradients(GOOD, 101), ValueError, "percentile must be between"),
    (lambda: wsfast.truncate_gradients(GOOD, -1), ValueError, "percentile must be between"),
    (lambda: wsfast.truncate_gradients(GOOD, math.nan), ValueError, "percentile must be between"),
    (lambda: wsfast.truncate_gradients(GOOD, "50"), TypeError, "percentile must be a number"),
    (lambda: wsfast.truncate_gradients(GOOD.int(), 50), TypeError, "grads must be float32"),
    (lambda: wsfast.truncate_gradients([1.0], 50), TypeError, "grads must be a torch.Tensor"),
    (lambda: wsfast.truncate_gradients(GOOD, 50, scope="batch"), ValueError, "scope must be one"),
    (lambda: wsfast.truncate_gradients(GOOD[..., :0], 50), ValueError, "grads must be a tensor wi"),
    (lambda: wsfast.positive_percentile(GOOD[0, 0], 50), ValueError, "grads must be a tensor of 4"),
    (lambda: wsfast.truncated_gradcam(GOOD[:1], GOOD, 50), ValueError, "grads must be of the acti"),
    (lambda: wsfast.truncated_gradcam(GOOD[0, 0], GOOD, 50), ValueError, "activations must be a t"),
    (
        lambda: wsfast.truncated_layercam(GOOD[0], GOOD, 50),
        ValueError,
        "activations must be a tens",
    ),
    (
        lambda: wsfast.truncated_gradcam(GOOD, GOOD, 50, dtype=torch.int32),
        TypeError,
        "dtype must be float32, float64, float16 or bfloat16, got torch.int32",
    ),
    (
        lambda: wsfast.truncated_layercam(GOOD, GOOD, 50, dtype=torch.complex64),
        TypeError,
        "dtype must be float32",
    ),
    (lambda: wsfast.truncated_gradcam(GOOD.half(), GOOD, 50), TypeError, "grads must be of the a"),
    (lambda: wsfast.truncated_layercam(GOOD.to("meta"), GOOD, 50), ValueError, "grads must be on"),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])
