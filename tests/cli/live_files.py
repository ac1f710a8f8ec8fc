"""Reads what `wsfast localize` has written."""

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
