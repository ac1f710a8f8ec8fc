"""Keyword-only public functions that TorchScript can still compile."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def scripted_as(implementation: Callable[..., Any]) -> Callable[[F], F]:
    """Let TorchScript compile ``implementation`` where scripted code calls the public function.

    TorchScript refuses keyword-only parameters with defaults, which the public functions have. It
    follows the marks below, those of ``torch.jit.script_if_tracing``, to a function with the same
    parameters that are not keyword-only, and wants both to have one name. It asks whether there is
    a mark, Dynamo whether it is true: what is False keeps compiled code on the public function.
    """

    def mark(public: F) -> F:
        implementation.__name__ = public.__name__
        vars(public)["__original_fn"] = implementation
        vars(public)["__script_if_tracing_wrapper"] = False
        return public

    return mark
