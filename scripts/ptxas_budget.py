"""Holds every CUDA kernel to its budget of registers, spills, stack and static shared memory.

Compiles csrc/core/*.cu and csrc/ops/*/*_cuda.cu with nvcc (no GPU needed), reads what ptxas says
of each kernel and compares it with scripts/ptxas_budget.json. A kernel that uses more than its
budget, or has none, fails the check: a spill or a jump in registers is often the first sign of a
slow kernel. After a change that is worth its cost, write the new numbers with --update and commit
the file.

Exit status: 0 within budget, 1 over budget (one line per offence on stdout), 2 nothing compiled.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGET = ROOT / "scripts" / "ptxas_budget.json"
ARCHITECTURES = ("80", "90")  # as setup.py builds
NVCC_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-DUSE_CUDA", "--expt-relaxed-constexpr"]

Usage = dict[str, int]  # registers, spill_bytes, stack_bytes, shared_bytes
Kernels = dict[str, dict[str, Usage]]  # kernel -> "sm_80" -> usage

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class BuildError(Exception):
    """The kernels could not be compiled; the message says why."""


def tool(name: str) -> str:
    """Path of a program, from the CUDA toolkit in CUDA_HOME or from PATH."""
    folders = [os.environ["PATH"]]
    if "CUDA_HOME" in os.environ:
        folders.insert(0, os.path.join(os.environ["CUDA_HOME"], "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise BuildError(f"{name} was not found (set CUDA_HOME or PATH)")
    return found


def nvcc_version() -> str:
    """Release of nvcc, such as 13.0.88."""
    text = subprocess.run([tool("nvcc"), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return found.group(1) if found else "unknown"


def sources(rooms: list[str]) -> list[Path]:
    """The CUDA files of these rooms, or all of them."""
    if not rooms:
        return [*sorted(ROOT.glob("csrc/core/*.cu")), *sorted(ROOT.glob("csrc/ops/*/*_cuda.cu"))]
    files = [ROOT / "csrc" / "ops" / room / f"{room}_cuda.cu" for room in rooms]
    for file in files:
        if not file.exists():
            raise BuildError(f"there is no {file.relative_to(ROOT)}")
    return files


def include_flags() -> list[str]:
    """Where torch's headers are."""
    try:
        from torch.utils.cpp_extension import include_paths
    except ImportError as error:
        raise BuildError("torch cannot be imported; its headers are needed") from error
    return [flag for path in include_paths("cuda") for flag in ("-isystem", path)]


def compile_source(source: Path, includes: list[str]) -> str:
    """What ptxas says about one file's kernels."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [tool("nvcc"), "--fatbin", *NVCC_FLAGS, *includes, *targets, "-Xptxas", "-v",
               str(source), "-o", os.devnull]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"nvcc cannot compile {source}\n{done.stderr}")
    return done.stdout + done.stderr


def parse(text: str) -> dict[tuple[str, str], Usage]:
    """Usage by (mangled kernel, architecture) from the output of `ptxas -v`."""
    usages: dict[tuple[str, str], Usage] = {}
    entry = described = ""
    usage: Usage = {}
    for line in text.splitlines():
        if found := ENTRY.search(line):
            entry = found.group(1)
            usage = usages.setdefault((entry, found.group(2)), {})
        elif found := PROPERTIES.search(line):
            described = found.group(1)  # may be a function that the kernel calls
        elif (found := STACK.search(line)) and described == entry:
            stack, stores, loads = map(int, found.groups())
            usage.update(spill_bytes=stores + loads, stack_bytes=stack)
        elif found := REGISTERS.search(line):
            shared = SHARED.search(line)
            usage.update(registers=int(found.group(1)))
            usage.update(shared_bytes=int(shared.group(1)) if shared else 0)
    return usages


def demangle(names: list[str]) -> dict[str, str]:
    """Readable kernel names, without parameter lists and wsfast's own namespace."""
    text = subprocess.run(
        [tool("c++filt"), "-p"], input="\n".join(names), capture_output=True, text=True
    ).stdout
    readable = [name.strip().replace("wsfast::", "") for name in text.splitlines()]
    return dict(zip(names, readable, strict=True))


def measure(files: list[Path], jobs: int) -> Kernels:
    """Compile all files and collect their kernels' usage."""
    includes = include_flags()
    with ThreadPoolExecutor(jobs) as pool:
        texts = pool.map(lambda file: compile_source(file, includes), files)
        usages = {key: usage for text in texts for key, usage in parse(text).items()}
    names = demangle(sorted({name for name, _ in usages}))
    kernels: Kernels = {}
    for (name, architecture), usage in sorted(usages.items()):
        kernels.setdefault(names[name], {})[architecture] = usage
    return kernels


def offences(kernels: Kernels, budget: Kernels, slack: int) -> list[str]:
    """One line for everything that is over budget or has none."""
    lines = []
    for kernel, by_architecture in sorted(kernels.items()):
        for architecture, usage in sorted(by_architecture.items()):
            allowed = budget.get(kernel, {}).get(architecture)
            if allowed is None:
                lines.append(f"{kernel} [{architecture}]: no budget (run with --update)")
                continue
            for resource, used in sorted(usage.items()):
                limit = allowed[resource] + (slack if resource == "registers" else 0)
                if used > limit:
                    lines.append(f"{kernel} [{architecture}]: {resource} {used}, budget {limit}")
    return lines


def write_budget(kernels: Kernels, nvcc: str) -> None:
    """Write the file with one line per kernel and architecture, so that diffs read well."""
    blocks = []
    for kernel, by_architecture in sorted(kernels.items()):
        rows = [f"   {json.dumps(arch)}: {json.dumps(usage, sort_keys=True)}"
                for arch, usage in sorted(by_architecture.items())]  # fmt: skip
        blocks.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(rows) + "\n  }")
    text = f'{{\n "nvcc": {json.dumps(nvcc)},\n "kernels": {{\n' + ",\n".join(blocks) + "\n }\n}\n"
    BUDGET.write_text(text)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rooms", nargs="*", metavar="ROOM", help="check these rooms only, such as truncation (all)"
    )
    parser.add_argument(
        "--update", action="store_true", help="write the measured numbers as the new budget"
    )
    parser.add_argument(
        "--slack", type=int, default=0, metavar="N",
        help="registers allowed above the budget, for another nvcc than the budget's (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 4), metavar="N",
        help="files compiled at a time (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="print every kernel's usage")
    return parser.parse_args()


def check(kernels: Kernels, recorded: dict, nvcc: str, slack: int, whole: bool) -> int:
    """Print the offences; the exit status."""
    budget: Kernels = recorded.get("kernels", {})
    lines = offences(kernels, budget, slack)
    if whole:
        gone = sorted(set(budget) - set(kernels))
        lines += [f"{kernel}: has a budget but no longer exists (run --update)" for kernel in gone]
    print("\n".join(lines) if lines else f"{len(kernels)} kernels within budget")
    if lines and recorded.get("nvcc") not in (None, nvcc):
        print(f"note: the budget is from nvcc {recorded['nvcc']}, this is {nvcc} (see --slack)")
    return 1 if lines else 0


def main() -> int:
    """Measure, then compare or update."""
    arguments = parse_arguments()
    try:
        files = sources(arguments.rooms)
        kernels = measure(files, arguments.jobs)
        nvcc = nvcc_version()
    except BuildError as error:
        print(f"ptxas_budget: {error}", file=sys.stderr)
        return 2
    if not kernels:
        print("ptxas_budget: no kernels found under csrc/", file=sys.stderr)
        return 2
    if arguments.verbose:
        for kernel, by_architecture in sorted(kernels.items()):
            for architecture, usage in sorted(by_architecture.items()):
                print(f"{kernel} [{architecture}]: {json.dumps(usage, sort_keys=True)}")
    recorded = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if arguments.update:
        rooms = tuple(f"{room}::" for room in arguments.rooms)
        kept = {
            kernel: usage
            for kernel, usage in recorded.get("kernels", {}).items()
            if rooms and not kernel.startswith(rooms)
        }
        write_budget({**kept, **kernels}, nvcc)
        print(f"wrote {BUDGET.relative_to(ROOT)}: {len(kernels)} kernels measured")
        return 0
    return check(kernels, recorded, nvcc, arguments.slack, whole=not arguments.rooms)


if __name__ == "__main__":
    sys.exit(main())
