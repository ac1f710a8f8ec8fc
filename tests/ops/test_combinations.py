"""Every op with every option, under everything that PyTorch puts around a call.

One table of calls; each must give the plain call's values and gradients under autocast, compiled,
compiled inside autocast, of half maps under autocast, with any strides, with a gradient of each
input alone, for an empty batch and a batch of one, under inference mode, deterministic algorithms
and another default dtype; and leave its inputs and the random state as found.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map

import wsfast
from tests.op_cases import CASES, Case, N, optional_parameters
from wsfast import ops
from wsfast.testing import tolerance

EXACT = {"rtol": 0.0, "atol": 0.0}
ROUNDING = tolerance(torch.float32)  # where torch's own operators may sum in another order
every_case = pytest.mark.parametrize("case", CASES, ids=str)
OPS = sorted(set(ops.__all__) - {"Boxes", "ScoredBoxes", "Proposals"})


def flatten(result: Any) -> list[Tensor]:
    if isinstance(result, wsfast.Lattice):
        return [result.vertices, result.weights, result.neighbours, result.offsets]
    return tree_flatten(result)[0]


def tensors_of(value: Any) -> list[Tensor]:
    return [x for leaf in tree_flatten(value)[0] for x in flatten(leaf) if isinstance(x, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, value)


def asking_for_gradient(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def cotangent(value: Tensor) -> Tensor:
    """The same for the same leading images, whatever the batch."""
    if value.dim() == 0:
        return torch.ones_like(value)
    fixed = torch.Generator().manual_seed(value.dim())
    factors = torch.randn((N, *value.shape[1:]), generator=fixed, dtype=torch.float32)
    return factors[: len(value)].to(value.dtype)


@dataclass
class Outcome:
    """Results of each case, and the gradients of all tracked inputs."""

    values: list[list[Tensor]]
    gradients: list[Tensor]


Call = Callable[[list[dict[str, Any]]], list[Any]]


def call_each(cases: list[Case]) -> Call:
    return lambda inputs: [case.call(each) for case, each in zip(cases, inputs, strict=True)]


def run(
    cases: list[Case],
    inputs: list[dict[str, Any]],
    *,
    call: Call | None = None,
    around: AbstractContextManager[Any] | None = None,
    tracked: tuple[str, ...] | None = None,
) -> Outcome:
    """Call and backward, both inside ``around``; nothing else may have changed."""
    names = [case.tracked if tracked is None else tracked for case in cases]
    inputs = [
        {k: map_tensors(asking_for_gradient, v) if k in wanted else v for k, v in each.items()}
        for each, wanted in zip(inputs, names, strict=True)
    ]
    before = [x.detach().clone() for x in tensors_of(inputs)]
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    with around or nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Guards may run slower")  # of Python 3.13.0
        warnings.filterwarnings("ignore", message=".*not be instantiated")  # Dynamo's of torch 2.13
        values = [flatten(result) for result in (call or call_each(cases))(inputs)]
        for case, wanted, each in zip(cases, names, values, strict=True):
            expected = case.differentiable and bool(wanted) and torch.is_grad_enabled()
            assert any(x.requires_grad for x in each) == expected, case
        results = [x for each in values for x in each if x.requires_grad]
        gradients: tuple[Tensor, ...] = ()
        if results:
            leaves = [x for x in tensors_of(inputs) if x.requires_grad]
            gradients = torch.autograd.grad(results, leaves, [cotangent(x) for x in results])
    if not any(case.draws for case in cases):
        assert torch.equal(torch.get_rng_state(), random_state)
    for now, then in zip(tensors_of(inputs), before, strict=True):
        assert torch.equal(now.detach(), then)
    return Outcome(values, list(gradients))


def assert_same(found: Outcome, expected: Outcome, **rounding: Any) -> None:
    torch.testing.assert_close(found.values, expected.values, **(rounding or EXACT))
    torch.testing.assert_close(found.gradients, expected.gradients, **(rounding or EXACT))


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Which also fills what is not written with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@every_case
@pytest.mark.parametrize("around", [autocast, deterministic_algorithms, default_dtype])
def test_surroundings(case: Case, around: Callable[[], AbstractContextManager[Any]]) -> None:
    found = run([case], [case.take(N)], around=around())
    assert_same(found, run([case], [case.take(N)]))


@pytest.mark.parametrize("case", [case for case in CASES if case.tracked], ids=str)
def test_half_inputs_under_autocast(case: Case) -> None:
    """As a model under autocast gives them: nothing else is rounded, but a half result."""
    half, rounded = case.take(N), case.take(N)
    for name in case.tracked:
        half[name] = map_tensors(lambda x: x.bfloat16(), half[name])
        rounded[name] = map_tensors(lambda x: x.float(), half[name])
    found, expected = run([case], [half], around=autocast()), run([case], [rounded])
    ours, theirs = found.values[0] + found.gradients, expected.values[0] + expected.gradients
    for one, other in zip(ours, theirs, strict=True):
        exact = tolerance(one.dtype) if one.is_floating_point() else EXACT
        torch.testing.assert_close(one, other.to(one.dtype), **exact)


COMPILED = {
    "inside autocast": (N, autocast),
    "batch of one": (1, nullcontext),
    "empty, inference": (0, torch.inference_mode),
}


@pytest.mark.parametrize("situation", COMPILED)
@pytest.mark.parametrize("op", OPS)
def test_compile(op: str, situation: str) -> None:
    """All calls of an op in one graph with its backward; for other batches, its last call."""
    n, around = COMPILED[situation]
    cases = [case for case in CASES if case.op == op and case.compiles]
    cases = cases if n == N else cases[-1:]
    torch._dynamo.reset()
    compiled = torch.compile(call_each(cases), fullgraph=True, dynamic=False, backend="aot_eager")
    found = run(cases, [case.take(n) for case in cases], call=compiled, around=around())
    tracked = () if around is torch.inference_mode else None
    expected = run(cases, [case.take(n) for case in cases], tracked=tracked)
    assert_same(found, expected, **ROUNDING)


def spread(x: Tensor) -> Tensor:
    """Every second element of a larger tensor, its last two dimensions swapped."""
    if x.dim() < 2:
        return x.repeat_interleave(2)[::2]
    return x.mT.repeat_interleave(2, dim=-1)[..., ::2].mT


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@every_case
@pytest.mark.parametrize("layout", [spread, channels_last])
def test_any_strides(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    found = run([case], [map_tensors(layout, case.take(N))])
    assert_same(found, run([case], [case.take(N)]), **ROUNDING)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.tracked) > 1], ids=str)
def test_gradient_of_each_input_alone(case: Case) -> None:
    together = run([case], [case.take(N)])
    alone = [run([case], [case.take(N)], tracked=(name,)) for name in case.tracked]
    gradients = [gradient for one in alone for gradient in one.gradients]
    for one in alone:
        assert_same(Outcome(one.values, gradients), together)


@pytest.mark.parametrize("case", [c for c in CASES if c.tracked and c.differentiable], ids=str)
def test_forward_mode_loses_no_tangent(case: Case) -> None:
    """No op has a forward-mode formula: each says so, of each of its inputs."""
    for name in case.tracked:
        inputs = case.take(N)
        with forward_ad.dual_level():
            inputs[name] = map_tensors(lambda x: forward_ad.make_dual(x, x), inputs[name])
            with pytest.raises(ValueError, match="forward-mode tangent"):
                case.call(inputs)


@every_case
@pytest.mark.parametrize("n", [0, 1])
def test_batches(case: Case, n: int) -> None:
    """The images of a batch are as if they were alone."""
    found, whole_batch = run([case], [case.take(n)]), run([case], [case.take(N)])
    names = [k for k in case.inputs if k in case.tracked for _ in tensors_of(case.take(N)[k])]
    if case.per_image:
        rows = [[x[:n] for x in whole_batch.values[0]]]
        torch.testing.assert_close(found.values, rows, **ROUNDING)
        for name, ours, theirs in zip(names, found.gradients, whole_batch.gradients, strict=False):
            if not callable(case.inputs[name]):
                torch.testing.assert_close(ours, theirs[:n], **ROUNDING)
    assert all(x.isfinite().all() for x in found.gradients)


@every_case
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient(case: Case, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    inputs = case.take(N)
    values = run([case], [inputs], around=mode()).values
    expected = run([case], [case.take(N)])
    assert_same(Outcome(values, []), Outcome(expected.values, []))
    kept = {k: v for k, v in inputs.items() if isinstance(v, wsfast.Lattice)}
    assert_same(run([case], [{**case.take(N), **kept}]), expected)  # what it keeps serves both


@every_case
def test_results_share_no_memory_with_inputs(case: Case) -> None:
    inputs = case.take(N)
    given = {x.untyped_storage().data_ptr() for x in tensors_of(inputs)}
    results = [x.untyped_storage().data_ptr() for x in flatten(case.call(inputs))]
    assert given.isdisjoint(results)


def test_the_table_holds_every_op_and_option() -> None:
    missing = []
    for op in OPS:
        cases = [case for case in CASES if case.op == op]
        missing += [] if cases else [op]
        for name, default in optional_parameters(op).items():
            given = [case for case in cases if name in case.inputs]
            given += [case for case in cases if case.options.get(name, default) != default]
            missing += [] if given else [f"{op}({name}=)"]
    assert missing == []


def test_what_does_not_compile() -> None:
    exceptions = [f"{case.op}({', '.join(case.inputs)})" for case in CASES if not case.compiles]
    assert exceptions == ["sample_seeds(cams, generator)"]
