"""Standard error while a command runs: bars, messages, errors, which nobody may read any more."""

import re
from collections.abc import Callable
from typing import Any, TextIO

_RAISED = re.compile(r"[\w.]+(Error|Exception): ")  # a traceback's last line, or its first of some
_OF_BAD_INPUT = re.compile(r"(wsfast\.[\w.]+|ValueError|TypeError|OSError): ")


class Messages:
    """A text file that falls silent at its first error, such as of a pipe without a reader.

    What a command tells on its way must not end it.

    Args:
        file: what is written to; None, as Python has it for a closed one, tells nothing.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._silent = file is None

    def write(self, text: str) -> int:
        """Write, where it still can be."""
        self._attempt(lambda file: file.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written, where it still can be."""
        self._attempt(lambda file: file.flush())

    def _attempt(self, act: Callable[[TextIO], object]) -> None:
        if self._silent or self._file is None:
            return
        try:
            act(self._file)
        except OSError:
            self._silent = True

    def __getattr__(self, name: str) -> Any:
        """All else is the file's: whether it is a terminal, its width, its encoding."""
        return getattr(self._file, name)


def one_line(error: Exception) -> str:
    """What an error says, the system's without its number, one of the program with its kind."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).strip().splitlines()
    kind = type(error).__name__
    if not text:
        return kind
    if text[0].startswith("Caught ") and "worker process" in text[0]:  # torch's, with a traceback
        said = [line for line in text if _RAISED.match(line)]
        return _OF_BAD_INPUT.sub("", said[-1] if said else text[-1], count=1)
    return text[0] if isinstance(error, (ValueError, TypeError, OSError)) else f"{kind}: {text[0]}"


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the accelerator or the machine has not the memory asked for."""
    # Torch's own kind is known by its name: importing torch takes a while.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "DefaultCPUAllocator: can't allocate memory" in str(error)
