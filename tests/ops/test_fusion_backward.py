"""Room `fusion`: gradients against autograd through the reference, by kernel and by formula."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import wsfast
from tests.ops.test_fusion import LAYERS, NORMS, REDUCES, make_layers
from tests.processes import python
from wsfast.ops.fusion import gradient, reference
from wsfast.testing import FLOATING_DTYPES

MODES = ("none", "minmax", "max")


def by_autograd(grad, cams, weights, layer_norm: str, norm: str) -> list[torch.Tensor]:
    """Gradients in float64 by autograd through the reference."""
    leaves = [x.double().requires_grad_() for x in (*cams, weights)]
    size = grad.shape[1:]
    fused = reference.fuse_weighted(leaves[:-1], leaves[-1], size, layer_norm, "sum", norm, 1e-7)
    return list(torch.autograd.grad(fused, leaves, grad.double()))


def by_kernel(grad, cams, weights, layer_norm: str, norm: str) -> list[torch.Tensor]:
    found, of_weights = torch.ops.wsfast.fuse_cams_backward(
        grad, cams, weights, layer_norm, norm, 1e-7
    )
    return [*found, of_weights]


def assert_gradients_close(found, expected, tolerance: float, least: float = 0.0) -> None:
    """Relative to the largest gradient of all, or `least`: a layer's own may cancel to nothing."""
    largest = max(least, *(part.abs().max().item() for part in expected))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max().item() <= tolerance * largest


def smallest_range(cams) -> float:
    """Of the maps that are more than one pixel."""
    wide = [layer for layer in cams if layer[0].numel() > 1]
    return min([(x.amax((1, 2)) - x.amin((1, 2))).min().item() for x in wide], default=1.0)


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_kernel_matches_autograd(device: torch.device, case: int, dtype: torch.dtype) -> None:
    sizes, size = LAYERS[case]
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, dtype.itemsize * 5e-3)
    torch.manual_seed(case)
    cams = [layer.to(device) for layer in make_layers(sizes, dtype)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = torch.linspace(0.5, 1.5, len(sizes), dtype=wide, device=device)
    grad = torch.randn(2, *size, device=device).to(dtype)
    for options in itertools.product(MODES, MODES):
        found = by_kernel(grad, cams, weights, *options)
        assert [part.dtype for part in found] == [*[dtype] * len(sizes), wide]
        assert_gradients_close(found, by_autograd(grad, cams, weights, *options), tolerance)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 70)), min_size=1, max_size=4),
    st.tuples(st.integers(2, 60), st.integers(2, 60)),
    st.sampled_from(MODES),
    st.sampled_from(MODES),
    st.integers(0, 2**31 - 1),
)
def test_any_sizes(sizes, size, layer_norm: str, norm: str, seed: int) -> None:
    torch.manual_seed(seed)
    cams = make_layers(sizes, torch.float64, n=3)
    assume(smallest_range(cams) > 0.01)  # rounding grows with the square of the scale
    weights = torch.rand(len(sizes), dtype=torch.float64) + 0.5
    grad = torch.randn(3, *size, dtype=torch.float64)
    found = by_kernel(grad, cams, weights, layer_norm, norm)
    expected = by_autograd(grad, cams, weights, layer_norm, norm)
    # Of maps of one or two pixels eps alone has a gradient: all else cancels.
    assert_gradients_close(found, expected, 1e-10, least=grad.abs().max().item())


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("norm", NORMS)
def test_backward_matches_reference(device: torch.device, reduce: str, norm: str | None) -> None:
    sizes, size = [(6, 5), (12, 10), (3, 4)], (12, 10)
    for quantised in (False, True):  # ties in minima, maxima and between layers
        for layer_norm in NORMS:
            results = []
            for ops in (wsfast, reference):
                torch.manual_seed(1)
                cams = [layer.double().to(device) for layer in make_layers(sizes)]
                if quantised:
                    cams = [(layer * 3).round() / 3 for layer in cams]
                cams = [layer.requires_grad_() for layer in cams]
                out = ops.fuse_cams(cams, size, layer_norm=layer_norm, reduce=reduce, norm=norm)
                upstream = torch.randn(out.shape, dtype=out.dtype, device=device)
                results.append(torch.autograd.grad(out, cams, upstream))
            for ours, theirs in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_gradcheck(device: torch.device) -> None:
    a = torch.rand(2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    b = torch.rand(2, 5, 2, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.tensor([0.7, 1.4], dtype=torch.float64, device=device, requires_grad=True)
    for reduce in ("mean", "sum", "max"):
        fuse = lambda x, y, z, r=reduce: wsfast.fuse_cams([x, y], (4, 4), reduce=r, weights=z)  # noqa: E731
        assert torch.autograd.gradcheck(fuse, (a, b, w))
    assert torch.autograd.gradgradcheck(fuse, (a, b, w))
    product = lambda x, y: wsfast.fuse_cams([x, y], (4, 4), reduce="prod")  # noqa: E731
    assert torch.autograd.gradcheck(product, (a, b))
    for mode in ("minmax", "max"):
        normalize = lambda x, m=mode: wsfast.normalize_cams(x, mode=m)  # noqa: E731
        assert torch.autograd.gradcheck(normalize, (a,))
        assert torch.autograd.gradgradcheck(normalize, (a,))


def test_formula_is_the_derivative_of_the_reference(device: torch.device) -> None:
    """It serves reductions without a kernel and backends without ours."""
    cams = [layer.to(device) for layer in make_layers([(6, 5), (12, 10)], torch.float64)]
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64, device=device)
    grad = torch.randn(2, 12, 10, dtype=torch.float64, device=device)
    for options in itertools.product(MODES, MODES):
        found, of_weights = gradient.fuse_backward(
            grad, cams, weights, options[0], "sum", options[1], 1e-7
        )
        expected = by_autograd(grad, cams, weights, *options)
        assert_gradients_close([*found, of_weights], expected, 1e-12)


class Called(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduce", REDUCES)
def test_which_gradients_have_a_kernel(device: torch.device, reduce: str) -> None:
    cams = [layer.to(device).requires_grad_() for layer in make_layers([(6, 5), (12, 10)])]
    fused = wsfast.fuse_cams(cams, (12, 10), reduce=reduce)
    for again in (True, False):
        with Called() as called:
            grads = torch.autograd.grad(
                fused.sum(), cams, create_graph=again, retain_graph=True, allow_unused=True
            )
        assert grads[0].requires_grad == again
        kernel = "wsfast::fuse_cams_backward" in called.names
        assert kernel == (reduce in ("mean", "sum") and not again)


def test_opcheck(device: torch.device) -> None:
    cams = [torch.rand(2, s, s + 1, device=device) for s in (3, 6)]
    weights = torch.tensor([0.5, 0.5], device=device)
    grad = torch.rand(2, 6, 7, device=device)
    opcheck(
        torch.ops.wsfast.fuse_cams_backward.default,
        (grad, cams, weights, "minmax", "minmax", 1e-7),
    )


def test_compiled_gradient(device: torch.device) -> None:
    cams = [layer.to(device).requires_grad_() for layer in make_layers([(6, 5), (12, 10)])]

    def loss(layers: list[torch.Tensor]) -> torch.Tensor:
        return (wsfast.fuse_cams(layers, (12, 10)) ** 2).sum()

    expected = torch.autograd.grad(loss(cams), cams)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(torch.autograd.grad(compiled(cams), cams), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_strides_and_empty_batch(device: torch.device) -> None:
    """Sums have an expanded gradient, transposed losses a strided one."""
    cams = [layer.to(device) for layer in make_layers([(6, 5), (12, 10)])]
    weights = torch.ones(2, device=device)
    strided = torch.randn(2, 10, 12, device=device).mT
    for grad in (torch.ones(1, 1, 1, device=device).expand(2, 12, 10), strided):
        for ours, same in zip(
            by_kernel(grad, [c.mT.contiguous().mT for c in cams], weights, "minmax", "minmax"),
            by_kernel(grad.contiguous(), cams, weights, "minmax", "minmax"),
            strict=True,
        ):
            assert torch.equal(ours, same)
    none = by_kernel(strided[:0], [layer[:0] for layer in cams], weights, "minmax", "minmax")
    assert [part.shape[0] for part in none[:2]] == [0, 0]
    assert torch.equal(none[2], torch.zeros(2, device=device))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_image_that_is_not_finite_has_no_gradient(device: torch.device, bad: float) -> None:
    cams = [layer.to(device) for layer in make_layers([(6, 5), (12, 10)], n=3)]
    weights = torch.tensor([0.5, 2.0], device=device)
    grad = torch.randn(3, 12, 10, device=device)
    others = torch.tensor([0, 2], device=device)
    for options in itertools.product(MODES, MODES):
        alone = by_kernel(grad[others], [layer[others] for layer in cams], weights, *options)
        broken = [cams[0].clone(), cams[1]]
        broken[0][1, 2, 3] = bad
        found = by_kernel(grad, broken, weights, *options)
        for ours, theirs in zip(found[:2], alone[:2], strict=True):
            torch.testing.assert_close(ours[others], theirs)
            assert not ours[1].any()
        torch.testing.assert_close(found[2], alone[2])


@pytest.mark.parametrize("mode", ["minmax", "max"])
def test_flat_maps_have_no_gradient(device: torch.device, mode: str) -> None:
    flat, other = torch.full((1, 4, 4), -2.0, device=device), torch.rand(1, 8, 8, device=device)
    grad, weights = torch.randn(1, 8, 8, device=device), torch.ones(2, device=device)
    found = by_kernel(grad, [flat, other], weights, mode, "none")
    assert not found[0].any()
    assert found[1].any()
    alone = by_kernel(grad, [flat], weights[:1], "none", mode)
    assert not alone[0].any()


@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_gradient_of_a_small_range(device: torch.device, eps: float) -> None:
    """Its square underflows in float32."""
    maps = 1e-30 * torch.tensor([[[0.0, 1.0, 3.0, 4.0]]], device=device)
    factors = torch.tensor([[[1.0, 2.0, 3.0, 5.0]]], device=device)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = maps.to(dtype, copy=True).requires_grad_()
        (wsfast.normalize_cams(leaf, eps=eps) * factors.to(dtype)).sum().backward()
        grads.append(leaf.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_gradient_is_in_float32_under_autocast(device: torch.device, reduce: str) -> None:
    """Autocast is on in the backward formula where backward is called inside it, or compiled."""
    cams = torch.rand(2, 6, 6, device=device, requires_grad=True)
    factors = torch.rand(2, 13, 12, device=device)
    loss = lambda x: (wsfast.fuse_cams([x], (13, 12), reduce=reduce) * factors).sum()  # noqa: E731
    (expected,) = torch.autograd.grad(loss(cams), cams)
    with torch.autocast(device.type, torch.bfloat16):
        (inside,) = torch.autograd.grad(loss(cams), cams)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(cams)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, cams)[0], expected)


def test_deterministic() -> None:
    torch.manual_seed(3)
    cams = make_layers([(180, 170), (90, 95), (45, 40), (7, 7)], n=3)
    weights, grad = torch.rand(4), torch.randn(3, 180, 170)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(by_kernel(grad, cams, weights, "minmax", "minmax"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


LEVEL = """
import torch, wsfast
from wsfast.ops.fusion import gradient
torch.manual_seed(5)
cams = [torch.rand(2, s, s + 3) for s in (61, 30, 9)]
weights, grad = torch.rand(3), torch.randn(2, 61, 64)
for modes in (("none", "none"), ("max", "max"), ("minmax", "minmax")):
    found, of_weights = torch.ops.wsfast.fuse_cams_backward(grad, cams, weights, *modes, 1e-7)
    wide = [layer.double() for layer in cams]
    expected = gradient.fuse_backward(grad, wide, weights.double(), modes[0], "sum", modes[1], 1e-7)
    for ours, theirs in zip([*found, of_weights], [*expected[0], expected[1]], strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), modes
"""


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(level: str) -> None:
    done = python("-c", LEVEL, timeout=60, WSFAST_SIMD=level)
    assert done.returncode == 0, done.stderr
