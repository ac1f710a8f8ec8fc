"""Builds scripts/cpp_inference once per torch and keeps it in the user's cache folder.

A second run with unchanged sources compiles nothing. `python -m tests.deploy.cpp.program` builds it
and prints its path.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.native.build import cache_folder, digest, locked

SOURCE = Path(__file__).resolve().parents[3] / "scripts" / "cpp_inference"
NAME = "wsfast_infer"


class Unavailable(Exception):
    """This machine cannot build the program; the message says why."""


def build_program() -> Path:
    """Path of the program for the sources as they are now, or Unavailable."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{NAME} needs {tool}, which was not found")
    place = digest(torch.__file__, torch.__version__, str(SOURCE))
    folder = cache_folder() / f"cpp-inference-{place}"
    folder.mkdir(exist_ok=True)
    with locked(folder):
        _configure(folder)
        _run(["cmake", "--build", str(folder), "--parallel", "2"])
    return folder / NAME


def _configure(folder: Path) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    command = ["cmake", "-S", str(SOURCE), "-B", str(folder), *generator]
    try:
        _run([*command, f"-DPython3_EXECUTABLE={sys.executable}"])
    except RuntimeError as error:
        missing = [line for line in str(error).splitlines() if "was not found" in line]
        if not missing:
            raise
        raise Unavailable(missing[0].strip()) from None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    print(build_program())
