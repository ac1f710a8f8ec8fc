"""Runs one tool of compute-sanitizer over every kernel of kernels.py.

Only wsfast's kernels are instrumented, but for initcheck, which must see torch's write what ours
read. That the tool sees kernels is tried first on a planted bug. torch allocates without its cache,
so that memcheck sees the end of every tensor.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CLEAN = re.compile(r"(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)")
OPTIONS = {"memcheck": ["--leak-check", "no"], "racecheck": ["--racecheck-report", "all"]}
PLANTED = Path(__file__).with_name("planted.cu")


def cuda_program(name: str) -> str | None:
    """Path of a program of the CUDA toolkit, beside nvcc if it is not on PATH."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ["PATH"], *(os.path.join(home, "bin") for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(folders))


def sanitizer() -> str | None:
    """Path of compute-sanitizer."""
    return cuda_program("compute-sanitizer")


def kernel_filter(program: str) -> list[str]:
    """The option that limits checks to our kernels, as this version spells it."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    for name in ("--kernel-name", "--kernel-regex", "--filter"):
        if re.search(rf"{name}\b(?!-)", text):
            return [name, "kns=wsfast"]
    return []


def clean(command: list[str]) -> bool:
    """Whether a run under the sanitizer succeeds and its summary is clean; prints what it says."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    print(" ".join(command), flush=True)
    found = False
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:  # at once: a step that runs out of time keeps what was found
            print(line, end="", flush=True)
            found = found or CLEAN.search(line) is not None
    return process.returncode == 0 and found


def finds_planted_bug(prefix: list[str], tool: str) -> bool:
    """Whether the tool, with its filter, finds the bug that was planted for it."""
    nvcc = cuda_program("nvcc")
    if nvcc is None:
        print("nvcc was not found: the tool is not tried on a planted bug")
        return True
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/planted"
        subprocess.run([nvcc, "-arch=native", "-o", program, str(PLANTED)], check=True)
        return not clean([*prefix, program, tool])


def main() -> int:
    """Try the tool, run it and judge its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="of kernels.py (all)")
    options = parser.parse_args()
    program = sanitizer()
    if program is None:
        print("compute-sanitizer was not found")
        return 2
    prefix = [program, "--tool", options.tool, "--error-exitcode", "9", "--print-limit", "20"]
    prefix += ["--launch-timeout", "0"]  # torch is long imported before the first kernel
    prefix += OPTIONS.get(options.tool, [])
    proven, limit = False, []
    for limit in ([],) if options.tool == "initcheck" else (kernel_filter(program), []):
        proven = finds_planted_bug([*prefix, *limit], options.tool)
        if proven:
            break
        print(f"the planted bug was not found with {limit or 'no filter'}", flush=True)
    checks = [sys.executable, "-m", "scripts.gpu.kernels", *options.checks]
    if not clean([*prefix, *limit, *checks]):
        return 1
    print("clean" if proven else "CLEAN BUT UNPROVEN: the tool does not see planted bugs here")
    return 0 if proven else 3


if __name__ == "__main__":
    sys.exit(main())
