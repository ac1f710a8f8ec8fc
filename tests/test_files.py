"""Files are whole, whatever happens while they are written."""

import errno
import json
import os
from pathlib import Path

import pytest

from wsfast._files import AppendedFile, JSONLines, atomic_file, made_folder, write_atomically


class FullFile:
    """Takes some bytes, in pieces of up to three, and no more."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(3, len(data), self.room)
        self.room -= taken
        return self.file.write(data[:taken])

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def test_lines_are_on_the_disk_at_once_and_torn_ones_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with JSONLines(path) as lines:
        lines.write({"frame": 0})
        assert path.read_text() == '{"frame": 0}\n'  # not closed yet
        lines._file = FullFile(lines._file, 30)
        lines.write({"frame": 1})
        with pytest.raises(OSError, match=r"No space left on device: .*results\.jsonl"):
            lines.write({"a frame with": "a long record"})
        lines._file.room = 100
        lines.write({"frame": 2})
    records = [json.loads(line)["frame"] for line in path.read_text().splitlines()]
    assert records == [0, 1, 2]


def test_bytes_can_be_replaced_while_the_file_grows(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "file")
    file.append(b"length=?;")
    file.append(b"abc")
    file.overwrite(7, b"3")
    file.append(b"d")
    assert not file.closed
    file.close()
    assert file.closed
    assert (tmp_path / "file").read_bytes() == b"length=3;abcd"


def test_a_durable_file_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch) -> None:
    synced = []
    plain = os.fsync

    def noting(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, sorted(p.name for p in tmp_path.iterdir())))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    path = tmp_path / "model"
    write_atomically(path, b"weights")
    assert not synced
    write_atomically(path, b"weights", durable=True)
    assert [inode for inode, _ in synced] == [path.stat().st_ino, tmp_path.stat().st_ino]
    assert synced[1][1] == ["model"]  # under its name when the folder is synced


def test_a_file_that_cannot_be_replaced_stays_and_is_named(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*summary\.json"):
        write_atomically(path, b"new", durable=True)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    """As a device is, such as /dev/stdout."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for durable in (False, True):
            write_atomically(path, b"scores", durable=durable)
            assert os.read(reader, 100) == b"scores"
    finally:
        os.close(reader)
    assert path.is_fifo()
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "scores.json"
    link.symlink_to(target)
    for data in (b"new", b"newer"):  # at first it leads nowhere
        write_atomically(link, data)
        assert target.read_bytes() == data
        assert not target.is_symlink()
    assert link.is_symlink()


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + "x.png")
    path.write_bytes(b"")
    with atomic_file(path) as file:
        file.write(b"new")
        for name in os.listdir(tmp_path):
            name.encode()  # no character is cut in two, which NTFS and others refuse
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_made_in_vain_goes_again(tmp_path: Path) -> None:
    def stop(folder: Path, file: str) -> None:
        with made_folder(folder):
            if file:
                (folder / file).touch()
            raise KeyboardInterrupt

    def fail(folder: Path, file: str = "") -> None:
        with pytest.raises(KeyboardInterrupt):
            stop(folder, file)

    fail(tmp_path / "runs" / "first")
    assert not list(tmp_path.iterdir())
    fail(tmp_path / "runs" / "second", "log.jsonl")
    assert (tmp_path / "runs" / "second" / "log.jsonl").exists()
    (tmp_path / "there").mkdir()
    fail(tmp_path / "there")
    fail(tmp_path / "there" / "third")
    assert list((tmp_path / "there").iterdir()) == []
    with made_folder(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").is_dir()
