"""What calls change on a model for a while and put back, in several threads at once.

A change is undone when the last call that asked for it leaves; so no call puts back what another
one still needs, or takes another one's change for the model's own state. No lock is held while a
model runs.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Replacement = Callable[[Forward], Forward]  # from a module's own forward to another

_LOCK = threading.Lock()


class _Borrowed:
    """An attribute's own value and how many calls have it changed."""

    def __init__(self, own: Any) -> None:
        self.own = own
        self.calls = 0


_BORROWED: dict[tuple[nn.Module, str], _Borrowed] = {}


@contextmanager
def changed_attributes(changes: Iterable[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    """Modules' attributes with other values: of each (module, name, value).

    All calls have to ask for the same value of an attribute.
    """
    asked: list[tuple[nn.Module, str]] = []
    try:
        with _LOCK:
            for module, name, value in changes:
                key = (module, name)
                if key not in _BORROWED:
                    own = getattr(module, name)
                    if own == value:
                        continue
                    setattr(module, name, value)
                    _BORROWED[key] = _Borrowed(own)
                _BORROWED[key].calls += 1
                asked.append(key)
        yield
    finally:
        with _LOCK:
            for key in asked:
                borrowed = _BORROWED[key]
                borrowed.calls -= 1
                if borrowed.calls == 0:
                    setattr(*key, borrowed.own)
                    del _BORROWED[key]


class _Answering:
    """A module's ``forward`` that some threads see replaced."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = module.forward
        self.patch = module.__dict__.get("forward")  # somebody's, of this instance
        self.answers: dict[int, Forward] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.answers.get(threading.get_ident(), self.forward)
        return answer(*args, **kwargs)


@contextmanager
def replaced_forwards(replacements: Iterable[tuple[nn.Module, Replacement]]) -> Iterator[None]:
    """Modules whose ``forward`` is another one in this thread."""
    thread = threading.get_ident()
    replaced: list[nn.Module] = []
    try:
        with _LOCK:
            for module, replacement in replacements:
                answering = module.__dict__.get("forward")
                if not isinstance(answering, _Answering):
                    answering = _Answering(module)
                    module.__dict__["forward"] = answering
                answering.answers[thread] = replacement(answering.forward)
                replaced.append(module)
        yield
    finally:
        with _LOCK:
            for module in replaced:
                answering = module.__dict__["forward"]
                del answering.answers[thread]
                if answering.answers:
                    continue
                if answering.patch is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = answering.patch
