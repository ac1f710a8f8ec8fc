"""Streams of a command whose readers are gone."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tests.cli.live_files import DeadPipe
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
