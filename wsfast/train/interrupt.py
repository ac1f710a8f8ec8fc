"""SIGTERM and Ctrl-C end a run after the step in progress, with everything saved."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(Exception):  # no error: the run is saved and can be resumed
    """A run was asked to stop and has saved itself.

    Attributes:
        code: the process' exit code, 128 plus the signal's number: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with --resume")
        self.code = 128 + number


class StopRequest:
    """Which signal has asked for a stop, if any."""

    def __init__(self) -> None:
        self.number = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second Ctrl-C interrupts at once."""
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT inside the block; in other threads than the main one, nothing."""
    request = StopRequest()
    with _handled(request.handle, signal.SIGTERM, signal.SIGINT):
        yield request


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM inside the block raise SystemExit, so that what is half written is removed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    with _handled(leave, signal.SIGTERM):
        yield


@contextmanager
def _handled(
    handle: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals inside the block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
