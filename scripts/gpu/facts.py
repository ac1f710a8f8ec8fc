"""What this run was made on: device, driver, versions, peers, commit. Written as JSON."""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit
from scripts.gpu.sanitize import sanitizer
from scripts.gpu.steps import ROOT, source_digest

# What a GPU can be compared with, and what only some tests or benchmarks need: module, package.
PEERS = {
    "torchvision": "torchvision", "triton": "triton", "kornia": "kornia", "cupy": "cupy-cuda13x",
    "cc3d": "connected-components-3d", "pytorch_grad_cam": "grad-cam", "torchcam": "torchcam",
    "skimage": "scikit-image", "scipy": "scipy",
}  # fmt: skip


def said(*command: str) -> str:
    """First line that a program prints; empty where it cannot run."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def version(package: str) -> str:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown version"


def peers() -> dict[str, str]:
    """Versions of the peers; "missing" for those that are not installed."""
    return {
        module: version(package) if importlib.util.find_spec(module) else "missing"
        for module, package in PEERS.items()
    }


def gpu_facts() -> dict[str, Any]:
    """The device, its driver and clocks as they are."""
    known = torch.cuda.get_device_properties(0)
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    return {
        "device": known.name,
        "capability": f"{known.major}.{known.minor}",
        "multiprocessors": known.multi_processor_count,
        "memory_bytes": known.total_memory,
        "l2_bytes": known.L2_cache_size,
        "nvidia_smi": said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch_cuda": torch.version.cuda,
        "compute_sanitizer": sanitizer() or "missing",
    }


def main() -> int:
    """Write the facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    facts: dict[str, Any] = {
        "commit": commit("unknown (no .git: set WSFAST_COMMIT)"),
        "sources": source_digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "nvcc": said("nvcc", "--version").splitlines()[-2:],
        "peers": peers(),
    }
    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("torch sees no CUDA device here")
            return 2
        facts |= gpu_facts()
    else:
        facts |= {"device": "cpu (dry run)"}
    options.out.write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
