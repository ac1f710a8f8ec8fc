"""Builds the native libraries in place: for the device that is here, on all cores."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def environment(device: str) -> dict[str, str]:
    """What setup.py reads: CUDA or not, the device's architecture, the number of jobs."""
    chosen = {"WSFAST_CUDA": "0", "MAX_JOBS": str(os.cpu_count() or 1)}
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        chosen |= {"WSFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    return chosen


def build(chosen: dict[str, str]) -> int:
    """Exit status of setup.py."""
    print(chosen, flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **chosen}).returncode


def main() -> int:
    """Build, and load what was built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args().device
    if device == "cpu" and (ROOT / "wsfast" / "_C.so").exists():
        print("dry run: the library that is there")
    elif code := build(environment(device)):
        return code
    wanted = ["_C", "_C_cuda"] if device == "cuda" else ["_C"]
    show = (
        "import json, sys, wsfast; facts = wsfast.info()\n"
        "print(json.dumps(facts, indent=1, default=str))\n"
        f"sys.exit(any(facts['libraries'][name] != 'loaded' for name in {wanted}))"
    )
    strict = {**os.environ, "WSFAST_REQUIRE_NATIVE": "1"}
    return subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=strict).returncode


if __name__ == "__main__":
    sys.exit(main())
