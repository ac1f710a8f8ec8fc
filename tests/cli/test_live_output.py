"""The files of a live run while one thread writes and another closes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.live_files import lines
from tests.data.videos import read_clip
from wsfast._files import AppendedFile
from wsfast.cli import live_output
from wsfast.deploy import LiveFrame, LocalizedFrame


class Belt:
    """What an output knows of its source, model and options."""

    name, live, fps, class_names, input_size = "belt", False, 10.0, (), (8, 8)
    model = method = folder = checkpoint = "any"
    display = no_video = False

    def __init__(self, out: Path) -> None:
        self.out = out


def localized(index: int) -> LocalizedFrame:
    frame = LiveFrame(index, index / 10, np.zeros((16, 24, 3), np.uint8))
    boxes, mask = torch.zeros(0, 4, dtype=torch.int32), torch.zeros(16, 24, dtype=torch.bool)
    return LocalizedFrame(
        frame, torch.zeros(2), torch.zeros(16, 24), mask, boxes, torch.zeros(0), 0, 1.0
    )


@pytest.fixture
def held(tmp_path: Path, monkeypatch) -> Iterator[tuple[live_output.Output, Any, Any]]:
    """An output with a frame, and a thread that hangs while it writes the next one."""
    belt = Belt(tmp_path)
    output = live_output.Output(belt, belt, belt)
    output.write(localized(0))
    entered, release = threading.Event(), threading.Event()
    append = AppendedFile.append

    def slow(file: AppendedFile, data: bytes) -> None:
        entered.set()
        assert release.wait(30)
        append(file, data)

    monkeypatch.setattr(AppendedFile, "append", slow)
    writer = threading.Thread(target=output.write, args=(localized(1),))
    writer.start()
    assert entered.wait(30)
    yield output, writer, release
    release.set()
    writer.join(30)


def frames_of(out: Path) -> tuple[int, int]:
    return len(read_clip(out / "annotated.mkv")), len(lines(out))


def test_an_output_closes_after_the_frame_in_progress(tmp_path: Path, held: Any) -> None:
    output, writer, release = held
    closer = threading.Thread(target=output.close)
    closer.start()
    closer.join(0.2)
    release.set()
    closer.join(30)
    writer.join(30)
    output.write(localized(2))  # too late
    assert frames_of(tmp_path) == (2, 2)


def test_an_output_does_not_wait_for_a_write_that_hangs(
    tmp_path: Path, monkeypatch, held: Any
) -> None:
    monkeypatch.setattr(live_output, "_CLOSE_SECONDS", 0.1)
    output, writer, release = held
    output.close()
    assert frames_of(tmp_path) == (1, 1)
    release.set()
    writer.join(30)
    output.write(localized(2))
    assert frames_of(tmp_path) == (2, 2)
