"""Command line of :mod:`benchmarks.training_quality`."""

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.quality.__main__ import DOCS, rounded
from benchmarks.quality.report import replace_between
from benchmarks.training_quality.measure import measure_seed
from benchmarks.training_quality.report import BEGIN, END, section
from benchmarks.training_quality.settings import SYNTHETIC, Source
from wsfast._files import write_atomically


def title(name: str) -> str:
    """Of a data set's section."""
    return "Generated surfaces" if name == SYNTHETIC else name.replace("_", " ").capitalize()


def main(arguments: list[str] | None = None) -> None:
    """Train and measure all seeds, keep the numbers, write the page."""
    options = parser().parse_args(arguments)
    numbers, page = options.out / "training.json", options.out / "results.md"
    runs = json.loads(numbers.read_text()) if numbers.exists() else {}
    if not options.tables_only:
        source = Source(options.data, options.images, options.epochs, options.map_epochs)
        name = SYNTHETIC if source.generated else Path(options.data).resolve().name
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            for found in measured(source, options, options.work or Path(temporary)):
                runs[name] = found
                write_atomically(numbers, (json.dumps(rounded(runs)) + "\n").encode())
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    body = "\n\n".join(section(title(name), of_set) for name, of_set in runs.items())
    replace_between(page, BEGIN, END, body)
    print(body)


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_quality",
        description="Train every method on image labels, localise held-out defects, and write "
        "training.json and the tables of results.md.",
    )
    parser.add_argument("--data", default=SYNTHETIC, help="folder of a data set; generated without")
    parser.add_argument("--seeds", type=int, default=3, help="data sets and networks (default 3)")
    parser.add_argument("--images", type=int, default=600, help="generated training images")
    parser.add_argument("--epochs", type=int, default=10, help="of the classifier (default 10)")
    parser.add_argument("--map-epochs", type=int, default=4, help="of other methods (default 4)")
    parser.add_argument("--jobs", type=int, default=3, help="seeds at once (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch per seed (default 1)")
    parser.add_argument(
        "--work", type=Path, help="folder to keep the runs in; the command continues what it finds "
        "there (default: a temporary one)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the page (default docs)")
    parser.add_argument(
        "--tables-only", action="store_true", help="draw the tables again from training.json"
    )
    return parser


def measured(source: Source, options: argparse.Namespace, work: Path) -> Any:
    """The seeds that are done, in order, whenever one more is."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        waiting = [
            pool.submit(measure_seed, source, seed, work / f"seed{seed}", options.threads)
            for seed in range(options.seeds)
        ]
        done: list[dict[str, Any]] = []
        for future in as_completed(waiting):
            done = sorted([*done, future.result()], key=lambda run: int(run["seed"]))
            yield done


if __name__ == "__main__":
    main()
