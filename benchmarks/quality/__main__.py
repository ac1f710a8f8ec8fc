"""Command line of :mod:`benchmarks.quality`."""

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.data import folder_splits, read_pairs, synthetic_splits
from benchmarks.quality.measure import CURVES, measure
from benchmarks.quality.report import Runs, write_figure, write_page
from wsfast._files import write_atomically

DOCS = Path(__file__).resolve().parents[2] / "docs"
TITLES = {"synthetic": "Generated surfaces", "folder": "Magnetic tiles"}


def rounded(value: Any) -> Any:
    """The same with five decimals, which is more than the tables show."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def parse_arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Train on image labels, localise held-out defects with every CAM method, and "
        "write results.json, results.png and the tables of results.md.",
    )
    parser.add_argument("--data", type=Path, help="folder of NAME.jpg with masks NAME.png")
    parser.add_argument("--seeds", type=int, default=3, help="classifiers per data set (default 3)")
    parser.add_argument("--images", type=int, default=600, help="generated training images")
    parser.add_argument("--epochs", type=int, default=20, help="of every training (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the page (default docs)")
    parser.add_argument(
        "--missing", action="store_true", help="measure only the seeds that results.json lacks"
    )
    parser.add_argument(
        "--tables-only", action="store_true", help="draw the tables again from results.json"
    )
    options = parser.parse_args()
    if importlib.util.find_spec("skimage") is None:  # known now, and not after the training
        parser.error("superpixels need scikit-image: pip install wsfast[refine]")
    return options


def measure_all(options: argparse.Namespace, runs: Runs, numbers: Path) -> None:
    """Measure data set by data set and seed by seed, and keep the numbers after each."""
    sources = {"synthetic": lambda seed: synthetic_splits(seed, options.images)}
    if options.data is not None:
        samples = read_pairs(options.data)
        sources["folder"] = lambda seed: folder_splits(samples, seed)
    for name, source in sources.items():
        found = runs.get(name, []) if options.missing else []
        runs[name] = found
        for seed in sorted(set(range(options.seeds)) - {run["seed"] for run in found}):
            start = time.perf_counter()
            found.append(measure(source(seed), seed, options.epochs))
            print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
            write_atomically(numbers, (json.dumps(rounded(runs)) + "\n").encode())


def complete(runs: list[dict[str, Any]]) -> bool:
    """Whether the runs hold all that the tables show; those of an earlier version may not."""
    return all("training" in run["curves"].get(name, [{}])[0] for run in runs for name in CURVES)


def main() -> None:
    """Measure, keep the numbers, write the page and the figure."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    numbers = options.out / "results.json"
    known = json.loads(numbers.read_text()) if numbers.exists() else {}
    runs = {name: found for name in TITLES if (found := known.get(name)) and complete(found)}
    for name in sorted(known.keys() - runs.keys()):
        print(f"{name}: what {numbers} holds is of an earlier version and left out", flush=True)
    if options.tables_only and not runs:
        raise SystemExit(f"{numbers} holds no run with all of {', '.join(CURVES)}: measure first")
    if not options.tables_only:
        measure_all(options, runs, numbers)
    write_page(options.out / "results.md", runs, TITLES)
    write_figure(options.out / "results.png", runs, TITLES)


if __name__ == "__main__":
    main()
