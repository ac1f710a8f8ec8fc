"""Runs the suite in this process through pytest, and reports: what ``wsfast bench`` calls."""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from wsfast._check import value_error

from . import compare, machine, page, report, store
from .harness import Case
from .laboratory import LABORATORY
from .records import Rooms
from .tables import Section

FOLDER = Path(__file__).resolve().parent
Step = tuple[str, str, str]  # room, operation, and size or what else is measured


@dataclass(frozen=True)
class Wanted:
    """What one call of ``wsfast bench`` asks for."""

    rooms: Sequence[str] = ()
    device: str = "cpu"
    threads: int = 2
    flags: Sequence[str] = ()
    json: Path | None = None
    html: Path | None = None
    compare: Path | None = None
    fail_on_regression: bool = False


def bench_files() -> dict[Path, list[str]]:
    """Return every ``bench_*.py`` with the rooms of its cases."""
    found = {}
    for path in sorted(FOLDER.glob("bench_*.py")):
        cases: list[Case] = importlib.import_module(f".{path.stem}", __package__).CASES
        found[path] = [case.room for case in cases]
    return found


def bench(wanted: Wanted) -> int:
    """Measure, print the tables and write the files asked for.

    Returns:
        0, or 1 if a result of ours is wrong, a benchmark broke or, where asked for, a row became
        slower, or 130 after Ctrl-C; what was measured by then is reported.

    Raises:
        ValueError: An unknown room, or nothing to compare with.
        OSError: A file cannot be written.
    """
    files = _chosen_files(wanted.rooms)
    old_path = _old_run(wanted.compare, wanted) if wanted.compare else None
    old = store.load(old_path) if old_path else None
    for path in (wanted.json, wanted.html):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(wanted.json)
    interrupted = _run_pytest(files, wanted, recorder)
    failures = recorder.failures
    if recorder.rooms:
        comparison = compare.compare(old, recorder.rooms) if old else None
        section = compare.section(comparison, old_path) if comparison and old_path else None
        _publish(recorder, wanted.html, section)
        if comparison and wanted.fail_on_regression:
            failures += [change.text for change in comparison.regressions]
    else:
        failures.append("nothing was measured")
    for line in failures:
        print(f"wsfast bench: {line}", file=sys.stderr)
    if interrupted:
        return 130
    return 1 if failures else 0


def _publish(recorder: "Recorder", html: Path | None, comparison: Section | None) -> None:
    """Print the tables and write the files."""
    print(report.text(recorder.rooms))
    if comparison:
        print(f"\n\n{comparison.text()}")
    recorder.save()
    if html:
        page.write(recorder.rooms, html, comparison)
    written = [str(path) for path in (recorder.path, html) if path]
    if written:
        print(f"\nwritten: {', '.join(written)}")


def _chosen_files(rooms: Sequence[str]) -> list[Path]:
    files = bench_files()
    known = sorted({room for found in files.values() for room in found})
    unknown = [room for room in rooms if room not in known]
    if unknown:
        value_error("bench", "ROOM", f"one of {', '.join(known)}", unknown[0])
    return [path for path, found in files.items() if not rooms or {*found} & {*rooms}]


def _old_run(path: Path, wanted: Wanted) -> Path:
    """The file to compare with; in a folder, the one of this machine."""
    if not path.is_dir():
        return path
    known = machine.identity(torch.device(wanted.device), wanted.threads)
    own = path / f"{machine.slug(known)}.json"
    if not own.exists():
        value_error("bench", "--compare", f"a folder with this machine's {own.name}", str(path))
    return own


def _run_pytest(files: Sequence[Path], wanted: Wanted, recorder: "Recorder") -> bool:
    """Run the bench files and return whether Ctrl-C ended it.

    The user's pytest configuration is left out; pytest's output appears only if it fails to run.
    """
    arguments = ["-c", os.devnull, "--rootdir", str(FOLDER), "-p", "no:cacheprovider", "-q"]
    arguments += ["--continue-on-collection-errors"]
    arguments += ["--device", wanted.device, "--threads", str(wanted.threads), *wanted.flags]
    arguments += [part for room in wanted.rooms for part in ("--room", room)]
    os.environ.pop("PYTEST_ADDOPTS", None)
    log = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as storage,  # pytest-benchmark's, else made where one stands
        recorder,
        contextlib.redirect_stdout(log),
    ):
        arguments += [f"--benchmark-storage=file://{storage}", *(str(path) for path in files)]
        code = pytest.main(arguments, plugins=[recorder])
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
        print(log.getvalue(), file=sys.stderr)
        recorder.failures.append("pytest could not run the benchmarks")
    return code == pytest.ExitCode.INTERRUPTED


@dataclass
class Recorder:
    """A pytest plugin that shows progress and saves what was measured after every operation."""

    path: Path | None = None
    rooms: Rooms = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> "Recorder":
        self._bar = tqdm(unit="size", desc="starting", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the sizes."""
        steps = {step for item in session.items if (step := step_of(item))}
        self._bar.reset(total=len(steps))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[None]:
        """Show what is measured and save after the last size of an operation."""
        step, following = step_of(item), step_of(nextitem)
        if step:
            self._bar.set_description(" ".join(step))
        done = yield
        if step and step != following:
            self._bar.update()
            if following is None or step[:2] != following[:2]:
                self._take(item.config)
                self.save()
        return done

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Take what is left, also after Ctrl-C."""
        self._take(session.config)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a benchmark that broke or whose result is wrong."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a bench file that cannot be imported."""
        self._note(report)

    def save(self) -> None:
        """Write the results so far, if a file was named."""
        if self.path and self.rooms:
            store.save(self.rooms, self.path)

    def _take(self, config: pytest.Config) -> None:
        laboratory = config.stash.get(LABORATORY, None)
        if laboratory is not None:
            self.rooms = laboratory.results()

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
            said = dict.fromkeys((lines[0], lines[-1])) if lines else ("failed",)
            self.failures.append(f"{report.nodeid.rpartition('::')[2]}: {' ... '.join(said)}")


def step_of(item: pytest.Item | None) -> Step | None:
    """Return what a benchmark item measures; None for items that measure nothing."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    case = parameters.get("case")
    if not isinstance(case, Case):
        return None
    if "size" in parameters:
        return case.room, case.operation, parameters["size"].label
    return case.room, case.operation, f"memory of {parameters['contender']}"
