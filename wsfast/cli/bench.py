"""Measure wsfast beside its reference and the best peers, and compare with an earlier run.

All contenders of a size run in one process with the same threads, in interleaved rounds; every
result is checked against a float64 oracle, and losses are shown like wins. Peers that are not
installed are left out and named. Ctrl-C ends the run and keeps what was measured.

With --compare, a row counts as slower only if our time over the time of what ran beside it in the
same run grew by 10 % or more, beyond the noise of both runs: a slow day of the machine is none.
"""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from .._check import check_choice, check_range, value_error
from .._device import parse_device
from .outputs import check_file

EXAMPLES = """examples:
  wsfast bench --quick                          headline sizes of every room, a few minutes
  wsfast bench crf seeds --json new.json --html new.html
  wsfast bench --compare old.json --fail-on-regression
needs: pip install "wsfast[bench]", and for the peers "wsfast[bench,peers]"
"""
# Known before the benchmarks are imported, which takes long and needs the extra.
ROOMS = ("boxes", "cam", "cam_grid", "cam_others", "crf", "deploy", "fusion", "levels", "seeds",
         "train", "truncation")  # fmt: skip
_NEEDED = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "rooms", nargs="*", metavar="ROOM", help=f"{', '.join(ROOMS)} (default: all)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="headline sizes, few rounds, no memory or torch.compile",
    )
    parser.add_argument("--threads", type=int, default=2, help="of every contender (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with charts")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD",
        help="results of an earlier run, or a folder of results that has some of this machine",
    )
    parser.add_argument(
        "--fail-on-regression", action="store_true", help="exit 1 if a row became slower or wrong"
    )
    parser.add_argument(
        "--grid",
        choices=("headlines", "axes", "full"),
        help="of the grids of models, batches and sizes: their headlines (default), all along "
        "their axes, some hours on two cores, or all, many hours",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--allocator",
        choices=("keep", "system"),
        help="keep freed memory in the process as tuned allocators do (default), or the system's",
    )


def suite() -> str:
    """The import name of the benchmarks: inside an installed package, or beside it in a checkout.

    Raises:
        ValueError: this copy of wsfast came without them.
    """
    package = Path(__file__).resolve().parent.parent
    if (package / "benchmarks" / "runner.py").exists():
        return "wsfast.benchmarks"
    if not (package.parent / "benchmarks" / "runner.py").exists():
        value_error("bench", "wsfast", "installed from a wheel or a checkout", str(package))
    sys.path.insert(0, str(package.parent))
    return "benchmarks"


def _check_extra() -> None:
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f'{" and ".join(missing)} missing: pip install "wsfast[bench]"')


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    check_range("bench", "--threads", options.threads, 1, 1024)
    device = parse_device("bench", "--device", options.device).type
    check_choice("bench", "--device", device, ["cpu", "cuda"])
    if options.fail_on_regression and options.compare is None:
        value_error("bench", "--fail-on-regression", "used with --compare", "no --compare")
    if options.quick and options.grid not in (None, "headlines"):
        value_error("bench", "--grid", "headlines or left out with --quick", options.grid)
    if options.json and options.html and options.json.resolve() == options.html.resolve():
        value_error("bench", "--html", "another file than --json", str(options.html))
    for name in ("json", "html"):
        check_file("bench", f"--{name}", getattr(options, name), made=True)
    _check_extra()
    flags = ["--quick"] if options.quick else []
    flags += ["--no-compile"] if options.no_compile else []
    for name in ("grid", "allocator"):
        value = getattr(options, name)
        flags += [f"--{name}", value] if value else []
    runner: Any = importlib.import_module(f"{suite()}.runner")
    wanted = runner.Wanted(
        rooms=options.rooms, device=device, threads=options.threads, flags=flags,
        json=options.json, html=options.html, compare=options.compare,
        fail_on_regression=options.fail_on_regression,
    )  # fmt: skip
    code: int = runner.bench(wanted)
    return code
