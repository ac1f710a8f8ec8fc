"""What the two interfaces to CAM libraries share."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from .._check import value_error

OutputTarget = Callable[[Tensor], Tensor]
"""From an image's (classes,) logits to one number, to be explained."""


class Managed:
    """``with`` around an extractor; what it holds, if anything, is released at the end."""

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release what is held; no exception is swallowed."""
        self._leave()

    def _leave(self) -> None:
        """Release what is held."""


def class_name(package: str, value: object) -> str:
    """Name of a value's class; empty for a class from outside the package, which may do others."""
    kind = type(value)
    return kind.__name__ if kind.__module__.partition(".")[0] == package else ""


def per_image_scores(where: str, targets: Sequence[OutputTarget], logits: Tensor) -> Tensor:
    """(N,) scores from one callable per image, each given its image's (classes,) logits.

    Raises:
        ValueError: a callable that gives more than one number.
    """
    scores = [target(row) for target, row in zip(targets, logits, strict=True)]
    for score in scores:
        if score.numel() != 1:
            shape = f"shape {list(score.shape)}"
            value_error(where, "targets", "callables giving one number per image", shape)
    return torch.stack([score.reshape(()) for score in scores])


def not_offered(module: str, name: str, alternatives: Mapping[str, str]) -> None:
    """Raise for an attribute that a package does not have, naming what serves instead.

    Call it from the package's ``__getattr__`` alone: the frame above that one is looked at.

    Raises:
        ImportError: ``from ... import`` of one of ``alternatives``; it would replace the words of
            an AttributeError by its own.
        AttributeError: otherwise, as ``hasattr`` and ``getattr`` with a default expect.
    """
    importing = sys._getframe(2).f_code.co_name == "_handle_fromlist"  # importlib's, of packages
    if importing and name in alternatives:
        raise ImportError(f"{module} has no {name}: {alternatives[name]}")
    instead = f": {alternatives[name]}" if name in alternatives else ""
    raise AttributeError(f"module '{module}' has no attribute '{name}'{instead}")
