"""Runs the live loop for minutes and checks that nothing leaks and nothing is lost.

Synthetic defects come as a camera (30 frames per second, whether or not the localizer keeps up) and
as a file (as fast as it goes), through `wsfast localize --live` with all its output. Every few
seconds the resident memory is read. At the end
  - the memory must not grow: the slope of a line through the samples after the warm-up,
  - every frame that was accepted must have exactly one line in results.jsonl, in order, of a file
    every frame there is, and
  - every line must have its picture in annotated.mkv.

Exit status: 0 when all of it holds, 1 otherwise.
"""

import argparse
import itertools
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from wsfast.cli import build_parser, live
from wsfast.cli.arguments import BOX_DEFAULTS, fill_in, parse_size
from wsfast.cli.opening import open_localizer
from wsfast.data import SyntheticDefects
from wsfast.deploy import LiveFrame

FPS = 30
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


class Loop:
    """A few frames over and over, for some minutes."""

    unreadable = missing = count = 0
    fps = float(FPS)

    def __init__(self, name: str, frames: list[np.ndarray], seconds: float) -> None:
        self.name, self.live = name, name == "camera"
        self._frames, self._seconds = frames, seconds
        self.index = 0
        self._begun = time.monotonic()

    def read(self) -> LiveFrame | None:
        """The next frame; a camera waits for its time, and is switched off by a signal."""
        elapsed = time.monotonic() - self._begun
        if self.live:
            due = (self.index + 1) / FPS
            time.sleep(max(0.0, due - elapsed))
            if due > self._seconds:
                os.kill(os.getpid(), signal.SIGTERM)
        elif elapsed > self._seconds:
            return None
        frame = LiveFrame(
            self.index, self.index / FPS, self._frames[self.index % len(self._frames)]
        )
        self.index += 1
        return frame

    def reopen(self) -> None:
        """Never needed."""

    def close(self) -> None:
        """Nothing to give back."""


class Memory:
    """Resident memory of this process, sampled in a thread of its own."""

    def __init__(self, every: float) -> None:
        self.seconds: list[float] = []
        self.mib: list[float] = []
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Memory":
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(self._every):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seconds.append(time.monotonic() - self._begun)
            self.mib.append(pages * PAGE / MIB)

    def figures(self, warm_up: float) -> dict[str, Any]:
        """Slope in MiB per minute and extremes after the warm-up."""
        kept = [(s, m) for s, m in zip(self.seconds, self.mib, strict=True) if s >= warm_up]
        seconds, mib = np.array(kept).T
        slope = 60 * median_slope(seconds, mib)
        return {
            "samples": len(kept),
            "slope_mib_per_minute": round(slope, 4),
            "lowest_mib": round(float(mib.min()), 2),
            "highest_mib": round(float(mib.max()), 2),
            "mib": [round(value, 2) for value in self.mib],
        }


def median_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Theil and Sen's line: the median slope over all pairs, which single peaks do not tilt."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def frames(size: int) -> list[np.ndarray]:
    """Two seconds of synthetic surfaces, RGB."""
    data = SyntheticDefects(2 * FPS, size=(size, size), channels=3)
    return [np.ascontiguousarray(s.image.permute(1, 2, 0).numpy()) for s in data]


def lost_frames(kind: str, out: Path, accepted: int, read: int) -> list[str]:
    """What is wrong with the results, if anything."""
    numbers = [json.loads(line)["frame"] for line in (out / live.RESULTS).open()]
    faults = []
    if len(numbers) != accepted:
        faults.append(f"{accepted} frames accepted, {len(numbers)} results")
    if any(b <= a for a, b in itertools.pairwise(numbers)):
        faults.append("results out of order or repeated")
    if kind == "file" and numbers != list(range(read)):
        faults.append(f"{read} frames read, not all of them have a result")
    video = cv2.VideoCapture(str(out / live.VIDEO))
    pictures = 0
    while video.grab():
        pictures += 1
    if pictures != len(numbers):
        faults.append(f"{len(numbers)} results, {pictures} pictures")
    return faults


def soak(kind: str, pictures: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Run one source to its end and judge it."""
    seconds = options.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        arguments = ["localize", kind, "--live", "--model", options.model, "--num-classes", "2"]
        arguments += ["--method", options.method, "--size", str(options.size), "--out", folder]
        settings = build_parser().parse_args(arguments)
        fill_in(settings, BOX_DEFAULTS)
        size = parse_size(settings.size, "localize")
        localizer = open_localizer(settings, "otsu", size, torch.device("cpu"))
        with Memory(options.every) as memory:
            source = Loop(kind, pictures, seconds)
            code = live.run(source, localizer, settings)
        summary = json.loads((out / live.SUMMARY).read_text())
        counts = summary["frames"]
        faults = lost_frames(kind, out, counts["accepted"], counts["read"])
    if counts["read"] != counts["accepted"] + counts["skipped"]:
        faults.append("frames are neither skipped nor accepted")
    if code != (143 if kind == "camera" else 0):
        faults.append(f"exit code {code}")
    figures = memory.figures(options.warm_up * seconds)
    if figures["slope_mib_per_minute"] > options.limit:
        faults.append(f"memory grows by {figures['slope_mib_per_minute']} MiB a minute")
    return {"source": kind, "faults": faults, "memory": figures, **summary}


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of each source (default: 10)")
    parser.add_argument("--sources", default="camera,file", help="default: camera,file")
    parser.add_argument("--model", default="resnet18", help="timm model (default: resnet18)")
    parser.add_argument("--method", default="cam", help="default: cam")
    parser.add_argument("--size", type=int, default=224, help="side of frames (default: 224)")
    parser.add_argument("--every", type=float, default=2, help="seconds between two samples")
    parser.add_argument(
        "--warm-up", type=float, default=0.2, help="share of the time that does not count (0.2)"
    )
    parser.add_argument(
        "--limit", type=float, default=1.0, help="MiB a minute that memory may grow (default: 1)"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    return parser.parse_args()


def main() -> int:
    """Soak every source and print the verdict."""
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pictures = frames(options.size)
    runs = [soak(kind, pictures, options) for kind in options.sources.split(",")]
    for run in runs:
        memory = run["memory"]
        print(
            f"{run['source']}: {run['frames']['accepted']} frames accepted, "
            f"{run['frames']['written']} results, {run['frames']['skipped']} skipped; memory "
            f"{memory['lowest_mib']}-{memory['highest_mib']} MiB, "
            f"{memory['slope_mib_per_minute']:+.3f} MiB/min: "
            + ("; ".join(run["faults"]) or "passed")
        )
    if options.json:
        facts = {
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        report = {**facts, "options": settings, "runs": runs}
        options.json.write_text(json.dumps(report, indent=1))
    return int(any(run["faults"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
