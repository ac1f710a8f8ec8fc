"""Runs one tool of compute-sanitizer over every kernel of kernels.py.

Only wsfast's kernels are instrumented. torch allocates without its cache, so that memcheck sees the
end of every tensor.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CLEAN = re.compile(r"(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)")
OPTIONS = {"memcheck": ["--leak-check", "no"], "racecheck": ["--racecheck-report", "all"]}


def sanitizer() -> str | None:
    """Path of compute-sanitizer, beside nvcc if it is not on PATH."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ["PATH"], *(os.path.join(home, "bin") for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def kernel_filter(program: str) -> list[str]:
    """The option that limits checks to our kernels, as this version spells it."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    for name in ("--kernel-name", "--kernel-regex", "--filter"):
        if re.search(rf"{name}\b(?!-)", text):
            return [name, "kns=wsfast"]
    return []


def main() -> int:
    """Run the tool and judge its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="of kernels.py (all)")
    options = parser.parse_args()
    program = sanitizer()
    if program is None:
        print("compute-sanitizer was not found")
        return 2
    command = [program, "--tool", options.tool, "--error-exitcode", "9", "--print-limit", "20"]
    command += [*OPTIONS.get(options.tool, []), *kernel_filter(program)]
    command += [sys.executable, "-m", "scripts.gpu.kernels", *options.checks]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    print(" ".join(command), flush=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode == 0 and CLEAN.search(done.stdout + done.stderr):
        return 0
    return done.returncode or 1


if __name__ == "__main__":
    sys.exit(main())
