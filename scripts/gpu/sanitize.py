"""Runs one tool of compute-sanitizer over every kernel of kernels.py.

Only wsfast's kernels are instrumented, but for initcheck, which must see torch's write what ours
read: its reports count that name a kernel of ours. That the tool sees kernels is tried first on a
planted bug. torch allocates without its cache, so that memcheck sees the end of every tensor.
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
ENDED = re.compile(r"ERROR SUMMARY: \d+ error")
CUT = "errors were not printed"
# Where on the device; a frame of the host may be ours although torch's kernel is at fault.
OURS = re.compile(r"^=+\s+(?:at|Device Frame)\b.*wsfast::", re.MULTILINE)
FOUND_ERRORS = 9  # the exit status then, where the program itself succeeds
FEW = ["--print-limit", "20"]
OPTIONS = {
    "memcheck": [*FEW, "--leak-check", "no"],
    "racecheck": [*FEW, "--racecheck-report", "all"],
    "initcheck": ["--print-limit", "2000"],  # ours may come after torch's
    "synccheck": FEW,
}
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


def judged(tool: str, status: int, text: str) -> bool:
    """Whether a run that ended with this exit status, having said this, is clean."""
    if tool != "initcheck":
        return status == 0 and CLEAN.search(text) is not None
    if status not in (0, FOUND_ERRORS) or not ENDED.search(text) or OURS.search(text):
        return False
    if CUT in text:
        print("not all reports were printed: the others may name kernels of wsfast")
        return False
    if status == FOUND_ERRORS:
        print("no report names a kernel of wsfast: they are for information")
    return True


def run(command: list[str], tool: str) -> tuple[bool, str]:
    """Whether a run under the sanitizer is clean, and what it said, which is printed."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    print(" ".join(command), flush=True)
    said = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:  # at once: a step that runs out of time keeps what was found
            print(line, end="", flush=True)
            said.append(line)
    text = "".join(said)
    return judged(tool, process.returncode, text), text


def finds_planted_bug(prefix: list[str], tool: str) -> bool:
    """Whether the tool, with its filter, finds the bug that was planted for it, and names it."""
    nvcc = cuda_program("nvcc")
    if nvcc is None:
        print("nvcc was not found: the tool is not tried on a planted bug")
        return True
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/planted"
        subprocess.run([nvcc, "-arch=native", "-o", program, str(PLANTED)], check=True)
        clean, text = run([*prefix, program, tool], tool)
        return not clean and f"{tool}_bug" in text  # else the program could not run, say


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
    prefix = [program, "--tool", options.tool, "--error-exitcode", str(FOUND_ERRORS)]
    prefix += ["--launch-timeout", "0"]  # torch is long imported before the first kernel
    prefix += OPTIONS[options.tool]
    proven, limit = False, []
    for limit in ([],) if options.tool == "initcheck" else (kernel_filter(program), []):
        proven = finds_planted_bug([*prefix, *limit], options.tool)
        if proven:
            break
        print(f"the planted bug was not found with {limit or 'no filter'}", flush=True)
    checks = [sys.executable, "-m", "scripts.gpu.kernels", *options.checks]
    clean, _ = run([*prefix, *limit, *checks], options.tool)
    if not clean:
        return 1
    print("clean" if proven else "CLEAN BUT UNPROVEN: the tool does not see planted bugs here")
    return 0 if proven else 3


if __name__ == "__main__":
    sys.exit(main())
