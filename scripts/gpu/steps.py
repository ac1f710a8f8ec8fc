"""Runs the steps of the GPU pass: side by side or alone, each with a time limit, resumable.

Every step leaves a log and a JSON status in the output folder as soon as it ends, so that a run
that is cut short loses only what was under way: the next run with the same folder repeats what did
not pass. A status counts only for the sources it was made with.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc", "wsfast", "tests", "benchmarks", "scripts", "setup.py", "pyproject.toml")
SUFFIXES = (".py", ".sh", ".json", ".toml", ".h", ".cuh", ".cpp", ".cu")
SHORTEST = 5.0  # seconds; a step is not begun with less
CUT_OFF = "cut off by the end of the run"
POLL = 0.2
# Without a kernel its fallback would be tested and timed in its name.
_NATIVE = {"WSFAST_REQUIRE_NATIVE": "1"}
GRACE = 5.0  # seconds for a step that writes files to write what it has

State = Literal["passed", "failed", "timed out", "skipped", "not run"]


@dataclass(frozen=True)
class Step:
    """One step of the pass.

    Args:
        name: File name of its log and status.
        command: What to run, in the repository's root.
        seconds: Its own time limit.
        needs: Steps that must have passed.
        environment: Added to the environment.
        products: Files that must be there for an earlier pass to count.
        absent: Why it cannot run here; empty if it can.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    products: tuple[str, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Status:
    """How a step ended."""

    name: str
    state: State
    seconds: float
    reason: str
    sources: str
    command: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("passed", "skipped")

    @property
    def tried(self) -> bool:
        """Whether it did not pass, although it had all of its time."""
        cut_off = self.reason.startswith(CUT_OFF)
        return self.state == "failed" or (self.state == "timed out" and not cut_off)


def source_digest(root: Path = ROOT) -> str:
    """Hash of everything that the pass runs."""
    sha = hashlib.sha256()
    for name in SOURCES:
        path = root / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in SUFFIXES and file.is_file() and "results" not in file.parts:
                sha.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()[:16]


@dataclass
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    started: float
    limit: float


class Runner:
    """Runs groups of steps and keeps their statuses under ``out``.

    Args:
        out: Folder of logs, statuses and results.
        seconds: How long the whole run may take.
        sources: Hash of the sources; statuses of others do not count.
        after_each: Called whenever a step has ended.
    """

    def __init__(
        self, out: Path, seconds: float, sources: str, after_each: Callable[[], None]
    ) -> None:
        self._out = out
        self._end = time.monotonic() + seconds
        self._sources = sources
        self._after_each = after_each
        (out / "steps").mkdir(parents=True, exist_ok=True)

    def run(self, groups: Iterable[Sequence[Step]]) -> bool:
        """Run the groups in turn, the steps of one side by side; whether all is well.

        Steps that failed in an earlier run come after those never run, unless others need them or
        the end of that run cut them off.
        """
        planned = [list(group) for group in groups]
        needed = {name for group in planned for step in group for name in step.needs}
        again = {
            step.name for group in planned for step in group
            if self.status(step).tried and step.name not in needed
        }  # fmt: skip
        first = [[step for step in group if step.name not in again] for group in planned]
        last = [[step for step in group if step.name in again] for group in planned]
        known = True
        for group in (*first, *last):
            self._run_group(group)
            known = known and all(self.status(step).good for step in group)
        return known

    def status(self, step: Step) -> Status:
        """What is known of a step."""
        path = self._status_path(step)
        try:
            found = Status(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            found = None
        if found is None or found.sources != self._sources:
            return Status(step.name, "not run", 0.0, "", self._sources, step.command)
        if found.state == "passed" and not all((ROOT / file).exists() for file in step.products):
            return Status(step.name, "not run", 0.0, "its products are gone", self._sources)
        return found

    def _status_path(self, step: Step) -> Path:
        return self._out / "steps" / f"{step.name}.json"

    def _run_group(self, group: Sequence[Step]) -> None:
        running: list[_Running] = []
        for step in group:
            if self.status(step).state == "passed":
                print(f"   {step.name}: passed before", flush=True)
                continue
            obstacle = self._obstacle(step, group)
            if step.absent:
                self._record(step, "skipped", 0.0, step.absent)
            elif obstacle:
                self._record(step, "not run", 0.0, obstacle)
            else:
                running.append(self._start(step))
        try:
            while running:
                running = [entry for entry in running if not self._ended(entry)]
                time.sleep(POLL)
        finally:
            for entry in running:
                _kill(entry)

    def _obstacle(self, step: Step, group: Sequence[Step]) -> str:
        unmet = [name for name in step.needs if not self._passed(name)]
        if unmet:
            return f"needs {', '.join(unmet)}"
        if self._end - time.monotonic() < SHORTEST:
            return "no time left: run again with the same folder"
        return ""

    def _passed(self, name: str) -> bool:
        return self.status(Step(name, (), 0)).state == "passed"

    def _start(self, step: Step) -> _Running:
        if self.status(step).state == "not run":
            self._remove_earlier_results(step)
        limit = min(step.seconds, self._end - time.monotonic())
        with (self._out / f"{step.name}.log").open("wb") as log:
            process = subprocess.Popen(
                step.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **_NATIVE, **step.environment}, start_new_session=True,
                preexec_fn=_take_interrupts,
            )  # fmt: skip
        return _Running(step, process, time.monotonic(), limit)

    def _remove_earlier_results(self, step: Step) -> None:
        """Of other sources: they would stand in the step's name if it failed without writing."""
        for file in map(Path, step.products):
            if file.is_relative_to(self._out):
                file.unlink(missing_ok=True)

    def _ended(self, entry: _Running) -> bool:
        seconds = time.monotonic() - entry.started
        code = entry.process.poll()
        if code is None and seconds < entry.limit:
            return False
        if code is None:
            _kill(entry)
            cut = CUT_OFF if entry.limit < entry.step.seconds else "stopped"
            reason = f"{cut} after {entry.limit:.0f} s"
            self._record(entry.step, "timed out", seconds, reason)
        elif code == 0:
            log = self._out / f"{entry.step.name}.log"
            self._record(entry.step, "passed", seconds, _pytest_verdict(log))
        else:
            self._record(entry.step, "failed", seconds, f"exit status {code}")
        return True

    def _record(self, step: Step, state: State, seconds: float, reason: str) -> None:
        status = Status(step.name, state, round(seconds, 1), reason, self._sources, step.command)
        self._status_path(step).write_text(json.dumps(asdict(status), indent=1))
        print(f"   {step.name}: {state} ({seconds:.0f} s) {reason}".rstrip(), flush=True)
        if state in ("failed", "timed out"):
            print(_tail(self._out / f"{step.name}.log"), flush=True)
        self._after_each()


def _take_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and would hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _kill(entry: _Running) -> None:
    """End a step and what it started; each step leads a process group of its own.

    One that makes files is interrupted first: pytest-benchmark then writes what it has measured.
    """
    process = entry.process
    with contextlib.suppress(ProcessLookupError):
        if entry.step.products:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _pytest_verdict(log: Path) -> str:
    """Pytest's closing line without its rules, which tells skipped tests; empty for other logs."""
    found = re.findall(r"^=+ (.*\b(?:passed|skipped|deselected|collected)\b.*) =+$",
                       log.read_text(errors="replace"), re.MULTILINE)  # fmt: skip
    return str(found[-1]) if found else ""


def _tail(log: Path, lines: int = 12) -> str:
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"      | {line[:200]}" for line in text)
