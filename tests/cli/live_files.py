"""Reads what `wsfast localize` has written, and stops reading."""

import io
import json
from pathlib import Path
from typing import Any


def lines(out: Path) -> list[dict[str, Any]]:
    """The records of a run; every line is whole."""
    text = (out / "results.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


class DeadPipe(io.StringIO):
    """A stream whose reader is gone."""

    attempts = 0

    def write(self, text: str) -> int:
        self.attempts += 1
        raise BrokenPipeError(32, "Broken pipe")
