"""Products that autocast does not round."""

import pytest
import torch

from wsfast._autocast import plain_matmul

SHAPES = [((3, 4), (4, 5)), ((3, 4), (2, 2, 4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 2))]


@pytest.mark.parametrize("shapes", SHAPES)
def test_gradients_of_both_orders(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.equal(plain_matmul(a, b), a @ b)
    torch.autograd.gradcheck(plain_matmul, (a, b))
    torch.autograd.gradgradcheck(plain_matmul, (a, b))


@pytest.mark.parametrize("compiled", [False, True])
def test_backward_inside_autocast(compiled: bool) -> None:
    a, b = torch.randn(5, 6, requires_grad=True), torch.randn(2, 6, 7, requires_grad=True)
    expected = torch.autograd.grad((a @ b).square().sum(), (a, b))
    product = plain_matmul
    if compiled:
        product = torch.compile(plain_matmul, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(product(a, b).square().sum(), (a, b))
    torch.testing.assert_close(found, expected)


def test_under_function_transforms() -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4, 2)
    product = torch.func.vmap(plain_matmul, in_dims=(None, 0))(a, b)
    torch.testing.assert_close(product, a @ b)
    gradient = torch.func.grad(lambda b: plain_matmul(a, b).square().sum())(b)
    torch.testing.assert_close(gradient, 2 * a.mT @ (a @ b))


def test_keeps_no_more_than_its_backward_needs() -> None:
    constant, maps = torch.randn(3, 4), torch.randn(2, 4, 5, requires_grad=True)
    kept, nothing = plain_matmul(constant, maps).grad_fn.saved_tensors
    assert kept.data_ptr() == constant.data_ptr()
    assert nothing is None
