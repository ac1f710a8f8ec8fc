"""Show what is installed, which ops run natively here, and why the others do not."""

import argparse
import json
import sys
from typing import Any

from .._selfcheck import check_ops
from ..native import info, loaded_libraries

EXAMPLES = """examples:
  wsfast info
  wsfast info --check  # also runs every op once against its reference; exit code 1 if one fails
  wsfast info --libs   # the files that a C++ program opens before it loads an exported model
"""

_SIMD = {
    "scalar": "baseline instructions",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "none": "no native kernels",
}

_KINDS = {
    "host": "the CPU kernel runs on copies",
    "torch": "torch's own operators run on the device",
    "reference": "no native kernel, the slower PyTorch code runs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument(
        "--libs",
        action="store_true",
        help="print only the paths of the loaded libraries",
    )
    parser.add_argument(
        "--check", action="store_true", help="run every op on small inputs against its reference"
    )


def run(options: argparse.Namespace) -> int:
    """Print what :func:`wsfast.info` reports, or where the libraries are.

    Returns:
        0; 1 if there is no library to name, or if an op fails its check.
    """
    if options.libs:
        return _print_libraries()
    facts = info()
    checks = check_ops() if options.check else {}
    failed = any(said.startswith("failed") for row in checks.values() for said in row.values())
    if options.json:
        print(json.dumps({**facts, "checks": checks} if checks else facts, indent=2))
    else:
        _print_facts(facts)
        _print_ops(facts["ops"], checks)
    return int(failed)


def _print_libraries() -> int:
    files = loaded_libraries()
    if not files:
        print("wsfast info: no native library is loaded", file=sys.stderr)
        return 1
    print(*files, sep="\n")
    return 0


def _library_line(state: str, build: dict[str, str]) -> str:
    if not build:
        return state
    kernels = f"CUDA {build['cuda']} for {build['architectures']}, " if "cuda" in build else ""
    return f"{state}; built with {kernels}torch {build['torch']}, {build['compiler']}"


def _print_facts(facts: dict[str, Any]) -> None:
    package = facts["distribution"]
    origin = f"{package['kind']} {package['tag']}".strip()
    lines = {
        "wsfast": f"{package['version']}, {origin}",
        "folder": package["folder"],
        "python": facts["python"],
        "torch": f"{facts['torch']} (CUDA: {facts['torch_cuda']})",
        "cpu": f"{_SIMD[facts['cpu_simd']]}, threads: {facts['threads']}",
        "gpu": facts["gpu"],
    }
    for library, state in facts["libraries"].items():
        lines[library] = _library_line(state, facts["builds"].get(library, {}))
    for name, text in lines.items():
        print(f"{name:<10}{text}")
    for problem in facts["problems"]:
        print(f"problem:  {problem}")


def _print_ops(ops: dict[str, dict[str, str]], checks: dict[str, dict[str, str]]) -> None:
    print(f"\n{'op':<28}{'cpu':<12}{'cuda':<12}{'check' if checks else ''}".rstrip())
    for op, kinds in ops.items():
        said = ", ".join(f"{device} {word}" for device, word in checks.get(op, {}).items())
        print(f"{op:<28}{kinds['cpu']:<12}{kinds['cuda']:<12}{said}".rstrip())
    words = {word for kinds in ops.values() for word in kinds.values()}
    print(*(f"\n{word}: {meaning}" for word, meaning in _KINDS.items() if word in words), sep="")
