"""Show what is installed, which ops run natively here, and why the others do not."""

import argparse
import json
import sys

from ..native import info, loaded_libraries

NAME = "info"
SUMMARY = "show versions, libraries and which ops are native"
EXAMPLES = """examples:
  wsfast info --json
  wsfast info --libs   # the files that a C++ program opens before it loads an exported model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument(
        "--libs",
        action="store_true",
        help="print only the loaded libraries, a path a line",
    )


def run(options: argparse.Namespace) -> int:
    """Print what :func:`wsfast.info` reports, or where the libraries are."""
    if options.libs:
        return _print_libraries()
    facts = info()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name in ("wsfast", "torch", "python", "cpu_simd", "threads", "gpu"):
        print(f"{name:<10} {facts[name]}")
    for library, state in facts["libraries"].items():
        print(f"{library:<10} {state}")
    print(f"\n{'op':<32}{'cpu':<12}cuda")
    for op, backends in facts["ops"].items():
        print(f"{op:<32}{backends['cpu']:<12}{backends['cuda']}")
    return 0


def _print_libraries() -> int:
    files = loaded_libraries()
    if not files:
        print("wsfast info: no native library is loaded", file=sys.stderr)
        return 1
    print(*files, sep="\n")
    return 0
