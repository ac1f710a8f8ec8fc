"""The GPU pass: build, tests, sanitizers, benchmarks and roofline, in one resumable run.

Called by scripts/gpu_check.sh. Results are the folder's summary.json and summary.md, written again
after every step; a second run with the same folder repeats what did not pass. In a copy without
.git, set WSFAST_COMMIT to the commit that the summary is to name. Exit status: 0 if every step
passed or was skipped for a stated reason, 1 if not, 2 without a CUDA device.
"""

import argparse
import os
import shutil
import signal
import sys
import tarfile
import time
import traceback
from pathlib import Path

from scripts.gpu.plan import Setting, plan
from scripts.gpu.steps import Runner, Step, source_digest
from scripts.gpu.summary import write_summary

SUMMARY = ("summary.json", "summary.md")


def write_bundle(out: Path, bundle: Path) -> None:
    """The results as three files: both summaries, and everything packed."""
    bundle.mkdir(parents=True, exist_ok=True)
    for name in SUMMARY:
        if (out / name).exists():
            shutil.copy(out / name, bundle / name)
    packed = bundle / "results.tar.gz"
    with tarfile.open(packed.with_suffix(".part"), "w:gz") as archive:
        archive.add(out, arcname=out.name)
    packed.with_suffix(".part").replace(packed)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("build/gpu_check"),
                        help="folder of results (default: %(default)s)")  # fmt: skip
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true",
                        help="with --device cpu: go through all steps on small inputs")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.3,
                        help="begin nothing and stop everything then (default: 9.3)")  # fmt: skip
    parser.add_argument("--bundle", type=Path, metavar="DIR",
                        help="also put the results there, as three files")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    options = parser.parse_args()
    if (options.device == "cpu") != options.dry_run:
        parser.error("--device cpu and --dry-run belong together")
    return options


def chosen(groups: list[list[Step]], only: list[str] | None) -> list[list[Step]]:
    """The groups with these steps alone, or all."""
    if not only:
        return groups
    unknown = set(only) - {step.name for group in groups for step in group}
    if unknown:
        sys.exit(f"gpu_check: there is no step {', '.join(sorted(unknown))}")
    return [[step for step in group if step.name in only] for group in groups]


def no_device() -> bool:
    """Whether torch sees no CUDA device."""
    import torch

    return not torch.cuda.is_available()


def main() -> int:
    """Run the plan."""
    options = parse_arguments()
    if options.device == "cuda" and no_device():
        print("gpu_check: torch sees no CUDA device here")
        return 2
    out = options.out.resolve()
    groups = plan(Setting(options.device, out))
    steps = [step for group in groups for step in group]

    def after_each() -> None:
        try:
            write_summary(out, [runner.status(step) for step in steps])
            if options.bundle:
                write_bundle(out, options.bundle)
        except Exception:  # must not end what is under way
            traceback.print_exc()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what is under way
    gone = time.time() - float(os.environ.get("WSFAST_GPU_STARTED", time.time()))
    runner = Runner(out, options.minutes * 60 - gone, source_digest(), after_each)
    well = runner.run(chosen(groups, options.only))
    after_each()
    print((out / "summary.md").read_text())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
