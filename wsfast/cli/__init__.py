"""The ``wsfast`` command: localize, train, evaluate, harvest, export, bench, demo, info.

Bad input ends with exit code 2 and one plain line, never a traceback.
"""

import argparse
import contextlib
import importlib
import io
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .._version import __version__
from .messages import Messages, one_line, out_of_memory

_COMMANDS = {
    "localize": "heat maps, masks and boxes for images, folders and videos",
    "train": "train a classifier, then F-CAM, DiPS or a segmenter on pseudo-labels",
    "evaluate": "score a run on a split, or saved heat maps by MaxBoxAcc and PxAP",
    "harvest": "maps, pseudo-labels and boxes of a large folder, on any number of processes",
    "export": "write a localizer as TorchScript, AOTInductor package or ONNX",
    "bench": "measure speed, memory and errors side by side with the reference and peers",
    "demo": "train a small classifier and localise defects, from nothing to pictures",
    "info": "show versions, libraries and which ops are native",
}


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line; the usage is the help's."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` explains)\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of every command; a command's module adds its own arguments.

    Of one ``command`` alone the other modules stay unread: what they import takes seconds.
    """
    parser = _Parser(
        prog="wsfast",
        description="From a classifier trained on image labels to heat maps, masks and boxes.",
        epilog="`wsfast COMMAND --help` explains a command with examples.",
    )
    parser.add_argument("--version", action="version", version=f"wsfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        one = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if command in (None, name):
            module = importlib.import_module(f".{name}", __name__)
            one.description, one.epilog = module.__doc__, module.EXAMPLES
            module.add_arguments(one)
            one.set_defaults(run=module.run)
    return parser


def _output_is_read() -> bool:
    """Whether standard output is no pipe, or one that somebody reads."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
    except (AttributeError, OSError, ValueError):  # not on this system, or no file of the system's
        return True
    return not poll.poll(0)


@contextlib.contextmanager
def _escaping(stream: Any) -> Iterator[None]:
    """Let a stream escape what its encoding lacks, such as file names, as standard error does."""
    strict = isinstance(stream, io.TextIOWrapper) and stream.errors == "strict"
    if strict:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if strict:
            with contextlib.suppress(OSError):  # it is flushed, and the reader may be gone
                stream.reconfigure(errors="strict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for bad input, 130 after Ctrl-C.

    1 where memory, the accelerator's or the machine's, does not suffice.

    Standard error that cannot be written, such as a pipe whose reader is gone, ends no command.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in given if word in _COMMANDS), "")  # behind "--", too
    messages: Any = Messages(sys.stderr)
    with contextlib.redirect_stderr(messages), _escaping(sys.stdout):
        try:  # what a command imports takes seconds, too
            options = build_parser(command).parse_args(given)
            return _run(options)
        except KeyboardInterrupt:
            print(f"wsfast {command}".rstrip() + ": interrupted", file=sys.stderr)
            return 130


def _run(options: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(
                f"wsfast {options.command}: warning: {message}", file=sys.stderr
            )
            code: int = options.run(options)
        return code
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, BrokenPipeError) and not _output_is_read():
            # The reader, such as `head`, has seen enough.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # Python flushes it at exit
            return 0
        print(f"wsfast {options.command}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(f"wsfast {options.command}: error: {one_line(error)}", file=sys.stderr)
        return 1
