"""What a benchmark says of the machine and the code that it ran on."""

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import machine


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the benchmarks take for the one they are in."""
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "benchmarks" / "machine.py"))
    monkeypatch.delenv("WSFAST_COMMIT", raising=False)
    return tmp_path


def test_commit_without_git_is_the_one_that_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.commit() == "an installed package"
    assert machine.commit("set WSFAST_COMMIT") == "set WSFAST_COMMIT"
    monkeypatch.setenv("WSFAST_COMMIT", "abc1234")
    assert machine.commit() == "abc1234"


def test_commit_where_git_cannot_tell(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / ".git").write_text("gitdir: gone")
    assert machine.commit() == "unknown"
    monkeypatch.setenv("WSFAST_COMMIT", "abc1234")
    assert machine.commit() == "abc1234"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert machine.commit() == "abc1234"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_of_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSFAST_COMMIT", "another")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", "-C", str(checkout), *words], check=True)
    head = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert head.stdout.startswith(machine.commit())
