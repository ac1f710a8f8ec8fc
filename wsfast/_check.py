"""Argument checks with one message format, usable from eager, scripted and compiled code.

Every message reads ``wsfast.<function>: <argument> must be <expected>, got <actual>``.
Values, shapes and device mixes raise ``ValueError``; types and dtypes raise ``TypeError``.
"""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def value_error(where: str, argument: str, expected: str, actual: str) -> None:
    """Raise the ``ValueError`` of the common message format."""
    raise ValueError(f"wsfast.{where}: {argument} must be {expected}, got {actual}")


def type_error(where: str, argument: str, expected: str, actual: str) -> None:
    """Raise the ``TypeError`` of the common message format."""
    raise TypeError(f"wsfast.{where}: {argument} must be {expected}, got {actual}")


@torch.jit.unused
def _tensor_or_type_error(where: str, argument: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        type_error(where, argument, "a torch.Tensor", type(value).__name__)
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested one" if value.is_nested else str(value.layout)
        type_error(where, argument, "a dense torch.Tensor", kind)
    if value.is_complex():
        type_error(where, argument, "a torch.Tensor of real numbers", f"{value.dtype}")


@torch.jit.unused
def _number_or_type_error(where: str, argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (Real, torch.SymInt, torch.SymFloat)):
        type_error(where, argument, "a number", type(value).__name__)


@torch.jit.unused
def _whole_or_type_error(where: str, argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        type_error(where, argument, "a whole number", type(value).__name__)
    if not -(2**63) <= value < 2**63:
        value_error(where, argument, "between -2^63 and 2^63 - 1", f"{value}")


@torch.jit.unused
def _no_tangent_or_error(where: str, argument: str, tensor: Tensor) -> None:
    if not torch.compiler.is_compiling() and unpack_dual(tensor).tangent is not None:
        value_error(where, argument, "differentiated in reverse mode", "a forward-mode tangent")


def check_tensor(where: str, argument: str, value: Tensor) -> None:
    """Raise TypeError unless ``value`` is a dense real tensor (scripted code knows already)."""
    if not torch.jit.is_scripting():
        _tensor_or_type_error(where, argument, value)


def check_reverse_mode(where: str, argument: str, tensor: Tensor) -> None:
    """Raise ValueError where forward-mode differentiation would lose its tangent in silence."""
    if not torch.jit.is_scripting():
        _no_tangent_or_error(where, argument, tensor)


def check_floating(where: str, argument: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is float32, float64, float16 or bfloat16."""
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        type_error(where, argument, "float32, float64, float16 or bfloat16", f"{tensor.dtype}")


def check_rank(where: str, argument: str, tensor: Tensor, rank: int) -> None:
    """Raise ValueError unless ``tensor`` has ``rank`` dimensions."""
    if tensor.dim() != rank:
        value_error(
            where, argument, f"a tensor of {rank} dimensions", f"shape {list(tensor.shape)}"
        )


def check_same_device(
    where: str, first_name: str, first: Tensor, second_name: str, second: Tensor
) -> None:
    """Raise ValueError unless both tensors live on one device."""
    if first.device != second.device:
        value_error(
            where,
            second_name,
            f"on the device of {first_name} ({first.device})",
            f"{second.device}",
        )


def check_number(where: str, argument: str, value: float) -> None:
    """Raise TypeError unless ``value`` is a number; NumPy's are (scripted code knows already)."""
    if not torch.jit.is_scripting():
        _number_or_type_error(where, argument, value)


def check_range(where: str, argument: str, value: float, low: float, high: float) -> None:
    """Raise unless ``value`` is a number with ``low <= value <= high`` (NaN is outside)."""
    check_number(where, argument, value)
    if not (value >= low and value <= high):
        value_error(where, argument, f"between {low} and {high}", f"{value}")


def check_whole(where: str, argument: str, value: int) -> None:
    """Raise unless ``value`` is a whole number of 64 bits; NumPy's are, traced shapes too."""
    if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
        _whole_or_type_error(where, argument, value)


def check_count(where: str, argument: str, value: int, low: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``low``."""
    check_whole(where, argument, value)
    if value < low:
        value_error(where, argument, f"at least {low}", f"{value}")


def check_connectivity(where: str, connectivity: int) -> None:
    """Raise unless ``connectivity`` is one of the two neighbourhoods of a pixel."""
    check_whole(where, "connectivity", connectivity)
    if connectivity != 4 and connectivity != 8:
        value_error(where, "connectivity", "4 or 8", f"{connectivity}")


def check_choice(where: str, argument: str, value: str, choices: list[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        value_error(where, argument, "one of " + ", ".join(choices), f"{value}")


def out_of_sight(tensor: Tensor) -> bool:
    """Whether values stay unseen.

    They do off the CPU, where looking costs a device sync, and where a graph is captured.
    """
    if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return True
    return tensor.device.type != "cpu" or type(tensor) is not Tensor


def check_free_of_nan(where: str, argument: str, valid: Tensor) -> None:
    """Raise ValueError where an op's (N,) ``valid`` says, in sight, that an image holds NaN."""
    if torch.jit.is_scripting() or out_of_sight(valid) or bool(valid.all()):
        return
    value_error(where, argument, "free of NaN", f"NaN in image {int((~valid).nonzero()[0])}")


def check_truncation(where: str, percentile: float, scope: str) -> None:
    """Raise unless the options of a gradient truncation are a percentile and a known scope."""
    check_range(where, "percentile", percentile, 0.0, 100.0)
    check_choice(where, "scope", scope, ["map", "sample"])
