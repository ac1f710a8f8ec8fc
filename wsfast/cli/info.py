"""Show what is installed, which ops run natively here, and why the others do not."""

import argparse
import json

from ..native import info

NAME = "info"
SUMMARY = "show versions, libraries and which ops are native"
EXAMPLES = "example:\n  wsfast info --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Print what :func:`wsfast.info` reports."""
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
