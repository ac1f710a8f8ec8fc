"""Results that exported programs can be saved with."""

from typing import TypeVar

from torch.utils._pytree import _register_namedtuple

T = TypeVar("T", bound=tuple[object, ...])


def kept_in_exports(result: type[T]) -> type[T]:
    """Let ``torch.export.save`` and AOTInductor name a class of results in the files they write.

    They take any named tuple while a module is captured, but save those alone that have a name.
    """
    _register_namedtuple(result, serialized_type_name=f"wsfast.{result.__name__}")
    return result
