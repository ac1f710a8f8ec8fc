"""What a command tells, and on which streams."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tests.cli.live_files import DeadPipe
from tests.processes import python
from wsfast.cli import info, main
from wsfast.cli.messages import Messages, one_line
from wsfast.data import read_image


def test_messages_reach_their_file(capsys) -> None:
    messages = Messages(sys.stderr)
    print("one", file=messages, flush=True)
    assert capsys.readouterr().err == "one\n"
    assert messages.encoding == sys.stderr.encoding
    assert messages.isatty() is False


def test_messages_fall_silent_after_the_first_error() -> None:
    pipe = DeadPipe()
    messages = Messages(pipe)
    for _ in range(3):
        assert messages.write("one") == 3
        messages.flush()
    assert pipe.attempts == 1


def test_messages_of_a_closed_standard_error() -> None:
    messages = Messages(None)
    messages.write("one")
    messages.flush()
    assert not hasattr(messages, "fileno")


def broken_pipe(options: object) -> int:
    print("one", flush=True)
    raise BrokenPipeError(32, "Broken pipe")


def test_a_broken_pipe_is_no_error_where_nobody_reads_the_output(monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(info, "run", broken_pipe)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["info"]) == 0
    assert sys.stdout.name == os.devnull
    with pytest.raises(BrokenPipeError):  # what was not written; Python would tell of it at exit
        stream.close()


@pytest.mark.parametrize("kind", ["captured", "pipe"])
def test_any_other_broken_pipe_is_an_error(monkeypatch, capsys, kind: str) -> None:
    monkeypatch.setattr(info, "run", broken_pipe)
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        if kind == "pipe":
            monkeypatch.setattr(sys, "stdout", stream)
        assert main(["info"]) == 2
    assert capsys.readouterr().err == "wsfast info: error: Broken pipe\n"


def read_first(files: list[Path]) -> NDArray[np.uint8]:  # Python 3.14 pickles it
    return read_image(files[0])


def test_an_error_of_a_worker_process_is_told_by_what_it_says() -> None:
    loader = DataLoader([Path("a.png")], num_workers=1, collate_fn=read_first)
    with pytest.raises(RuntimeError, match="Caught") as caught:
        next(iter(loader))
    assert one_line(caught.value) == (
        "wsfast.read_image: path must be a readable image, got a.png (No such file or directory)"
    )


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_output_escapes_what_its_encoding_lacks(monkeypatch, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(info, "run", lambda options: print("\udce9"))  # of a name in Latin-1
    assert not main(["info"])
    stream.flush()
    assert stream.buffer.getvalue() == b"\\udce9\n"
    assert stream.errors == "strict"


def test_help_is_written_in_any_encoding() -> None:
    said = python("-m", "wsfast", "train", "fcam", "--help", PYTHONIOENCODING="ascii")
    assert (said.returncode, said.stderr) == (0, "")


def raised(error: BaseException) -> Callable[..., NoReturn]:
    def run(*arguments: object) -> NoReturn:
        raise error

    return run


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys) -> None:
    monkeypatch.setattr("wsfast.cli.build_parser", raised(KeyboardInterrupt()))
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "wsfast info: interrupted\n"


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 55)])
def test_memory_that_does_not_suffice_is_told_in_one_line(monkeypatch, capsys, ask) -> None:
    monkeypatch.setattr(info, "run", lambda options: ask())
    assert main(["info"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("wsfast info: error: ")
    assert "allocate" in said
    assert said.count("\n") == 1


def test_any_other_error_of_the_program_is_raised(monkeypatch) -> None:
    monkeypatch.setattr(info, "run", raised(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info"])
