"""The ``wsfast`` command: localize, train, evaluate, harvest, export, bench, demo, info.

Bad input ends with exit code 2 and one plain line, never a traceback.
"""

import argparse
import contextlib
import os
import select
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .._version import __version__
from . import bench, demo, evaluate, export, harvest, info, localize, train
from .messages import Messages, one_line

_COMMANDS = (localize, train, evaluate, harvest, export, bench, demo, info)


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line; the usage is the help's."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` explains)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; a command module adds its own arguments."""
    parser = _Parser(
        prog="wsfast",
        description="From a classifier trained on image labels to heat maps, masks and boxes.",
        epilog="`wsfast COMMAND --help` explains a command with examples.",
    )
    parser.add_argument("--version", action="version", version=f"wsfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _output_is_read() -> bool:
    """Whether standard output is no pipe, or one that somebody reads."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
    except (AttributeError, OSError, ValueError):  # not on this system, or no file of the system's
        return True
    return not poll.poll(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for bad input, 130 after Ctrl-C.

    1 where the accelerator is out of memory.

    Standard error that cannot be written, such as a pipe whose reader is gone, ends no command.
    """
    options = build_parser().parse_args(arguments)
    messages: Any = Messages(sys.stderr)
    with contextlib.redirect_stderr(messages), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(
            f"wsfast {options.command}: warning: {message}", file=sys.stderr
        )
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code: int = options.run(options)
        return code
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, BrokenPipeError) and not _output_is_read():
            # The reader, such as `head`, has seen enough.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # Python flushes it at exit
            return 0
        print(f"wsfast {options.command}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; importing torch takes a while
            raise
        print(f"wsfast {options.command}: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"wsfast {options.command}: interrupted", file=sys.stderr)
        return 130
