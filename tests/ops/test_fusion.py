"""Room `fusion`: values and gradients against the reference, OpenCV and known cases."""

import math
import warnings
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wsfast
from tests.native.emulator import from_bits, to_bits
from tests.op_errors import check_error
from wsfast.ops.fusion import reference
from wsfast.testing import FLOATING_DTYPES, tolerance

LAYERS = (
    ([(5, 7)], (9, 4)),
    ([(24, 24), (12, 12), (6, 6)], (24, 24)),
    ([(3, 50), (40, 2), (9, 9)], (33, 35)),
    ([(100, 90), (7, 7)], (20, 20)),
    ([(8, 8)] * 20, (16, 16)),
    ([(4, 1), (1, 5)], (3, 9)),
)
NORMS = ("minmax", "max", None)
REDUCES = ("mean", "sum", "max", "prod")


def make_layers(sizes, dtype=torch.float32, n: int = 2) -> list[torch.Tensor]:
    return [torch.rand(n, h, w).to(dtype) + 0.25 for h, w in sizes]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def close_enough(layers: int, dtype: torch.dtype) -> dict[str, float]:
    """Half types round once more per pass; products of 20 factors amplify rounding."""
    loose = layers == 20 or dtype.itemsize == 2
    return {"rtol": 0.02, "atol": 0.02} if loose else tolerance(dtype)


def emulate(emulator, cams, weights, size, layer_norm, reduce, norm) -> tuple[torch.Tensor, ...]:
    dtype = cams[0].dtype
    maps = [to_bits(layer) for layer in cams]
    options = (layer_norm, reduce, norm, 1e-7)
    out, finite = emulator.call("fuse_cams", maps, to_bits(weights), *size, *options, dtype=dtype)
    return from_bits(out, dtype), torch.from_numpy(finite)


def test_known_values() -> None:
    maps = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[2.0, 2.0], [2.0, 2.0]]])
    out = wsfast.normalize_cams(maps)
    torch.testing.assert_close(out[0], torch.tensor([[0.0, 0.5], [1.0, 1.0]]))
    assert not out[1].any()  # flat: zero, not NaN
    torch.testing.assert_close(wsfast.normalize_cams(maps, mode="max")[0], maps[0] / 5)
    assert not wsfast.normalize_cams(-maps, mode="max").any()
    assert not wsfast.fuse_cams([torch.rand(2, 1, 1)], (4, 4)).any()
    row = torch.tensor([[[0.0, 1.0]]])  # half-pixel: 0, 0.25, 0.75, 1
    up = wsfast.fuse_cams([row], (1, 4), layer_norm=None, norm=None)
    assert up.flatten().tolist() == [0, 0.25, 0.75, 1]
    both = wsfast.fuse_cams(
        [row, 1 - row], (1, 2), layer_norm=None, norm=None, reduce="sum", weights=[2.0, 1.0]
    )
    assert both.flatten().tolist() == [1, 2]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_forward_matches_reference(device: torch.device, case: int, dtype: torch.dtype) -> None:
    sizes, size = LAYERS[case]
    cams = [layer.to(device) for layer in make_layers(sizes, dtype)]
    for layer_norm in NORMS:
        for reduce in REDUCES:
            for norm in NORMS:
                options = {"layer_norm": layer_norm, "reduce": reduce, "norm": norm}
                ours = wsfast.fuse_cams(cams, size, **options)
                theirs = reference.fuse_cams(cams, size, **options)
                assert ours.dtype == dtype
                torch.testing.assert_close(ours, theirs, **close_enough(len(sizes), dtype))
    for mode in ("minmax", "max"):
        torch.testing.assert_close(
            wsfast.normalize_cams(cams[0], mode=mode),
            reference.normalize_cams(cams[0], mode=mode),
            **tolerance(dtype),
        )


def test_empty_batch_and_strides() -> None:
    assert wsfast.fuse_cams([torch.rand(0, 4, 4)], (8, 8)).shape == (0, 8, 8)
    cams = make_layers([(6, 8), (12, 5)])
    strided = [layer.transpose(1, 2).contiguous().transpose(1, 2) for layer in cams]
    assert torch.equal(wsfast.fuse_cams(strided, (9, 9)), wsfast.fuse_cams(cams, (9, 9)))
    expanded = [cams[0][:1].expand(3, -1, -1)]
    assert torch.equal(
        wsfast.fuse_cams(expanded, (9, 9))[2], wsfast.fuse_cams([cams[0]], (9, 9))[0]
    )


def test_matches_opencv() -> None:
    """pytorch-grad-cam's loop: min-max, cv2.resize, mean, min-max."""
    cams, (height, width) = make_layers([(7, 7), (14, 28), (60, 40)], n=3), (60, 40)

    def scale(cam: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        cam = cam - cam.min()
        cam = np.float32(cam / (1e-7 + cam.max()))
        return cam if size is None else cv2.resize(cam, size)

    expected = []
    for image in range(3):
        resized = [scale(layer[image].numpy(), (width, height)) for layer in cams]
        expected.append(scale(np.mean(resized, axis=0)))
    found = wsfast.fuse_cams(cams, (height, width)).numpy()
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=5e-6)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: torch.device, requires_grad: bool) -> None:
    cams = [torch.rand(2, s, s + 1, device=device, requires_grad=requires_grad) for s in (3, 6)]
    weights = torch.tensor([0.5, 0.5], device=device)
    for reduce in ("sum", "max", "prod"):
        opcheck(
            torch.ops.wsfast.fuse_cams.default,
            (cams, weights, 6, 7, "minmax", reduce, "minmax", 1e-7),
        )


def every_op(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    return [
        wsfast.normalize_cams(a, mode="max"),
        wsfast.fuse_cams([a, b], (8, 9)),
        wsfast.fuse_cams([a, b], (8, 9), layer_norm=None, reduce="max", norm=None),
    ]


def test_compile_with_a_list_of_weights(device: torch.device) -> None:
    cams = [torch.rand(2, 4, 5, device=device), torch.rand(2, 8, 9, device=device)]
    fuse = lambda layers: wsfast.fuse_cams(layers, (8, 9), weights=[1.0, 2.0])  # noqa: E731
    compiled = torch.compile(fuse, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(cams), fuse(cams))
    weigh = lambda w: wsfast.fuse_cams(cams, (8, 9), weights=[1.0, w])  # noqa: E731
    compiled = torch.compile(weigh, fullgraph=True, dynamic=True, backend="aot_eager")
    for weight in (2.0, 2.5, 3.25):
        torch.testing.assert_close(compiled(weight), weigh(weight))


class Devices(TorchDispatchMode):
    """Notes the device of everything that torch's operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


def test_a_list_of_weights_is_not_copied_from_the_host() -> None:
    """On a GPU that would be a wait, and an error where a graph is captured."""
    cams = [torch.rand(2, 4, 5, device="meta"), torch.rand(2, 8, 9, device="meta")]
    for reduce in ("mean", "sum", "max"):
        with Devices() as devices:
            wsfast.fuse_cams(cams, (8, 9), reduce=reduce, weights=[1, 2.0])
        assert devices.seen == {"meta"}


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_listed_weights_are_those_of_a_tensor(dtype: torch.dtype) -> None:
    cams = [layer.to(dtype) for layer in make_layers([(4, 5), (8, 9), (3, 3)])]
    listed = [Fraction(1, 3), np.float32(0.7), 10**20]
    weights = torch.tensor([float(x) for x in listed], dtype=torch.float64)
    for reduce in ("mean", "sum", "max"):
        ours = wsfast.fuse_cams(cams, (8, 9), reduce=reduce, weights=listed)
        assert torch.equal(ours, wsfast.fuse_cams(cams, (8, 9), reduce=reduce, weights=weights))
    with pytest.raises(ValueError, match="weights must be of shape"):
        wsfast.fuse_cams(cams, (8, 9), weights=[])


def test_the_reference_takes_listed_weights_as_doubles() -> None:
    cams, listed = [layer.double() for layer in make_layers([(4, 5), (3, 3)])], [0.1, 0.7]
    ours = reference.fuse_cams(cams, (8, 9), weights=listed)
    weights = torch.tensor(listed, dtype=torch.float64)
    assert torch.equal(ours, reference.fuse_cams(cams, (8, 9), weights=weights))


def test_compile_fullgraph(device: torch.device) -> None:
    compiled = torch.compile(every_op, fullgraph=True, dynamic=True)
    for n in (2, 3):
        a = torch.rand(n, 4, 5, device=device, requires_grad=True)
        b = torch.rand(n, 8, 9, device=device, requires_grad=True)
        expected, found = every_op(a, b), compiled(a, b)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        ours = torch.autograd.grad(sum(x.sum() for x in found), (a, b))
        theirs = torch.autograd.grad(sum(x.sum() for x in expected), (a, b))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class EveryOp(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return every_op(a, b)


def test_export(device: torch.device) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        EveryOp().eval(),
        (torch.rand(2, 4, 5, device=device), torch.rand(2, 8, 9, device=device)),
        dynamic_shapes={"a": {0: batch}, "b": {0: batch}},
    )
    a, b = torch.rand(5, 4, 5, device=device), torch.rand(5, 8, 9, device=device)
    torch.testing.assert_close(program.module()(a, b), every_op(a, b))


def test_script_and_trace(device: torch.device) -> None:
    a, b = torch.rand(2, 4, 5, device=device), torch.rand(2, 8, 9, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(every_op)
        traced = torch.jit.trace(every_op, (a, b))
    for found in (scripted(a, b), traced(a, b)):
        torch.testing.assert_close(found, every_op(a, b))


@pytest.mark.filterwarnings("ignore")
def test_traces_of_other_sizes(device: torch.device) -> None:
    """What is fused at the size of a traced tensor, itself or an image, follows its size."""

    def maps(cams: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        fused = wsfast.fuse_cams([cams], (image.shape[1], 11), weights=[1.5])
        return [
            wsfast.normalize_cams(cams, eps=0),
            wsfast.fuse_cams([cams], image.shape[1:]),
            fused,
        ]

    first = torch.rand(2, 6, 6, device=device), torch.rand(1, 12, 12, device=device)
    other = torch.rand(3, 7, 9, device=device), torch.rand(1, 14, 18, device=device)
    traced = torch.jit.trace(maps, first)
    torch.testing.assert_close(traced(*other), maps(*other), rtol=0, atol=0)


def test_autocast(device: torch.device) -> None:
    cams = [torch.rand(2, 6, 6, device=device).bfloat16().requires_grad_()]
    with torch.autocast(device.type, torch.bfloat16):
        out = wsfast.fuse_cams(cams, (12, 12))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference.fuse_cams([cams[0].float()], (12, 12)))
    out.sum().backward()
    assert cams[0].grad is not None


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_deterministic(dtype: torch.dtype, reduce: str) -> None:
    """Three images on two threads go by rows, on one or three threads by images."""
    cams = make_layers([(180, 170), (90, 95), (45, 40), (7, 7)], n=3)
    cams = [layer.to(dtype) for layer in cams]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(wsfast.fuse_cams(cams, (180, 170), reduce=reduce))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("width", [1, 15, 16, 31, 32, 33, 64, 127, 128, 129, 200])
def test_layers_of_the_output_s_width(width: int) -> None:
    """They are read where they lie, with one row or two; some vectors at a time or by a loop."""
    cams = make_layers([(6, width), (9, 5), (18, width), (30, width)], n=2)
    weights = [0.5, 2.0, 1.0, 3.0]
    fused = wsfast.fuse_cams(cams, (18, width), weights=weights)
    double = [layer.double() for layer in cams]
    expected = reference.fuse_cams(double, (18, width), weights=torch.tensor(weights).double())
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(wsfast.fuse_cams(double, (18, width), weights=weights), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_one_large_map(threads: int) -> None:
    """Its extremes lie in the first and the last of the blocks that threads share."""
    torch.set_num_threads(threads)
    cams = torch.rand(1, 611, 613)
    cams[0, 0, 0], cams[0, -1, -1] = -1.0, 3.0
    fused = wsfast.fuse_cams([cams], (611, 613), layer_norm="minmax", norm=None)
    torch.testing.assert_close(fused, (cams + 1) / 4)
    cams[0, -1, -2] = math.inf
    assert not torch.ops.wsfast.fuse_cams(
        [cams], torch.ones(1), 611, 613, "minmax", "sum", "none", 1e-7
    )[1].item()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(2, 20)), min_size=1, max_size=4),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.integers(0, 2**31 - 1),
)
def test_properties(sizes, size, seed: int) -> None:
    torch.manual_seed(seed)
    cams = make_layers(sizes)
    smallest = min((layer.amax((1, 2)) - layer.amin((1, 2))).min().item() for layer in cams)
    assume(smallest > 1e-3)
    out = wsfast.fuse_cams(cams, size)
    assert out.min() >= 0
    assert out.max() <= 1
    raw = wsfast.fuse_cams(cams, size, norm=None)
    moved = [4 * layer + 2 for layer in cams]  # min-max forgets scale and offset
    # All but eps, which is added to 4 times the range, and the rounding of the sum with 2.
    forgotten = (0.75e-7 + 2 * 2**-23) / smallest + 1e-6
    again = wsfast.fuse_cams(moved, size, norm=None)
    torch.testing.assert_close(again, raw, rtol=0, atol=forgotten)
    backwards = wsfast.fuse_cams(cams[::-1], size, norm=None)
    torch.testing.assert_close(backwards, raw, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_an_error_on_the_cpu(bad: float) -> None:
    cams = make_layers([(4, 4), (8, 8)])
    cams[1][1, 2, 3] = bad
    with pytest.raises(ValueError, match="cams must be finite, got NaN or inf in image 1"):
        wsfast.fuse_cams(cams, (8, 8))
    out, finite = torch.ops.wsfast.fuse_cams(
        cams, torch.ones(2), 8, 8, "minmax", "sum", "minmax", 1e-7
    )
    assert finite.tolist() == [True, False]
    assert not out[1].any()
    assert out[0].isfinite().all()


@pytest.mark.parametrize("largest", [1e-37, 1e-30, 1.0, 1e37, 1.6e38])
def test_a_finite_range_gives_no_nan(largest: float) -> None:
    maps = largest * torch.tensor([[[-1.0, 0.0, 1.0]]])
    eps = 1e-7 if largest >= 1 else 0.0
    out = wsfast.normalize_cams(maps, eps=eps)
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.5, 1.0]]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["minmax", "max"])
@pytest.mark.parametrize("eps", [0.0, 1e-50])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-3.0, -3.0), (0.0, 1e-45), (0.0, 1e-40)])
def test_a_divisor_near_zero_counts_as_flat(
    emulator, low: float, high: float, eps: float, mode: str
) -> None:
    """Its reciprocal overflows float32."""
    maps = torch.tensor([[[low, low], [low, high]]])
    size, options = (2, 3), {"layer_norm": mode, "norm": mode, "eps": eps}
    torch_calls = (
        lambda x: wsfast.normalize_cams(x, mode=mode, eps=eps),
        lambda x: reference.normalize_cams(x, mode=mode, eps=eps),
        lambda x: wsfast.fuse_cams([x, x], size, **options),
        lambda x: reference.fuse_cams([x, x], size, **options),
    )
    for call in torch_calls:
        leaf = maps.clone().requires_grad_()
        out = call(leaf)
        assert out.eq(0).all()
        out.sum().backward()
        assert leaf.grad.eq(0).all()
    for layer_norm, norm in ((mode, "none"), ("none", mode)):
        emulated, _ = emulator.call(
            "fuse_cams",
            [to_bits(maps)],
            to_bits(torch.ones(1)),
            *size,
            layer_norm,
            "sum",
            norm,
            eps,
            dtype=torch.float32,
        )
        assert (emulated == 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from(REDUCES),
    st.integers(0, 2**31 - 1),
)
def test_rounding_leaves_flat_layers_flat(emulator, sizes, size, reduce: str, seed: int) -> None:
    """Rows of other weights are rounded in other ways, by a unit in the last place or two."""
    random = torch.Generator().manual_seed(seed)
    values = torch.empty(len(sizes)).uniform_(0.25, 4, generator=random)
    cams = [value.expand(1, *shape) for value, shape in zip(values, sizes, strict=True)]
    options = {"layer_norm": None, "reduce": reduce}
    assert wsfast.fuse_cams(cams, size, **options).eq(0).all()
    assert reference.fuse_cams(cams, size, **options).eq(0).all()
    weights = torch.full((len(cams),), 1 / len(cams) if reduce == "mean" else 1.0)
    reduced = "sum" if reduce == "mean" else reduce
    fused, _ = emulate(emulator, cams, weights, size, "none", reduced, "minmax")
    assert fused.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilons", [1, 16, 17, 1000])
def test_where_flat_ends(dtype: torch.dtype, epsilons: int) -> None:
    high = 1 + epsilons * torch.finfo(dtype).eps
    maps = torch.tensor([[[1.0, high, 1.0]], [[-1.0, -high, -1.0]]], dtype=dtype)
    expected = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]], dtype=dtype) * (epsilons > 16)
    for normalize in (wsfast.normalize_cams, reference.normalize_cams):
        leaf = maps.clone().requires_grad_()
        out = normalize(leaf, eps=0.0)
        assert out.equal(expected)
        out[:, 0, 0].sum().backward()
        assert leaf.grad.any() == (epsilons > 16)


def test_a_sum_that_overflows_is_not_flat() -> None:
    layer = torch.tensor([[[1.0, 2.0], [3e38, 4.0]]])
    expected = torch.tensor([[[0.0, 0.0], [math.nan, 0.0]]])
    for fuse in (wsfast.fuse_cams, reference.fuse_cams):
        fused = fuse([layer, layer], (2, 2), layer_norm=None, reduce="sum")
        torch.testing.assert_close(fused, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_a_norm_an_overflow_stays_where_it_is(
    dtype: torch.dtype, device: torch.device
) -> None:
    layer = torch.ones(1, 3, 4, dtype=dtype, device=device)
    layer[0, 1, 2] = torch.finfo(dtype).max
    expected = torch.full_like(layer, 2.0)
    expected[0, 1, 2] = math.inf
    for fuse in (wsfast.fuse_cams, reference.fuse_cams):
        fused = fuse([layer, layer], (3, 4), layer_norm=None, reduce="sum", norm=None)
        assert torch.equal(fused, expected)


GOOD = [torch.rand(2, 4, 4), torch.rand(2, 8, 8)]
ERRORS = [
    (lambda: wsfast.fuse_cams([], (8, 8)), ValueError, "cams must be a list of at least one"),
    (lambda: wsfast.fuse_cams(GOOD[0], (8, 8)), TypeError, "cams must be a list of tensors"),
    (lambda: wsfast.fuse_cams([GOOD[0][0]], (8, 8)), ValueError, "cams must be a tensor of 3"),
    (lambda: wsfast.fuse_cams([GOOD[0].int()], (8, 8)), TypeError, "cams must be float32"),
    (lambda: wsfast.fuse_cams([GOOD[0], GOOD[1].half()], (8, 8)), TypeError, "of one dtype"),
    (lambda: wsfast.fuse_cams([GOOD[0], GOOD[1][:1]], (8, 8)), ValueError, "one batch size"),
    (lambda: wsfast.fuse_cams([GOOD[0], GOOD[1].to("meta")], (8, 8)), ValueError, "on the device"),
    (lambda: wsfast.fuse_cams([GOOD[0][:, :0]], (8, 8)), ValueError, "maps with H, W >= 1"),
    (lambda: wsfast.fuse_cams(GOOD, (0, 8)), ValueError, "size must be (height, width)"),
    (lambda: wsfast.fuse_cams(GOOD, (8.0, 8)), TypeError, "size must be a whole number, got float"),
    (lambda: wsfast.fuse_cams(GOOD, (8, True)), TypeError, "size must be a whole number, got bool"),
    (lambda: wsfast.fuse_cams(GOOD, 8), ValueError, "size must be (height, width)"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), reduce="median"), ValueError, "reduce must be one"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), norm="l2"), ValueError, "norm must be one of"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), layer_norm="l2"), ValueError, "layer_norm must be"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), weights=[1.0]), ValueError, "weights must be of shape"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), reduce="prod", weights=[1, 1]), ValueError, "weights"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), weights=[1, -1]), ValueError, "of a finite sum other"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), weights=[1, math.nan]), ValueError, "of a finite sum"),
    (
        lambda: wsfast.fuse_cams(GOOD, (8, 8), weights=[1, math.inf], reduce="max"),
        ValueError,
        "weights must be finite, got [1.0, inf]",
    ),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), weights=[1, "2"]), TypeError, "weights must be a numb"),
    (lambda: wsfast.fuse_cams(GOOD, (8, 8), eps=-1), ValueError, "eps must be between"),
    (lambda: wsfast.normalize_cams(GOOD[0], mode="l2"), ValueError, "mode must be one of"),
    (lambda: wsfast.normalize_cams([1.0]), TypeError, "cams must be a torch.Tensor"),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])
