"""How every op refuses bad input: the exception's type, and a message that begins with the op."""

from collections.abc import Callable

import pytest

Case = tuple[Callable[[], object], type[Exception], str]


def check_error(case: Case, function: str = r"\w+") -> None:
    """``case`` is a call, what it raises and a part of the message; ``function`` a pattern."""
    call, kind, message = case
    with pytest.raises(kind, match=rf"^wsfast\.{function}: ") as error:
        call()
    assert message in str(error.value)
