"""Python in a process of its own, from the project's root."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(
    *arguments: str | Path, timeout: float = 120, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the interpreter with these arguments; the environment is this process's and more."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
