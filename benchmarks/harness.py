"""Declares benchmark cases and times their contenders side by side.

A :class:`Case` names an operation, its seeded inputs, its sizes and its contenders. All contenders
of one size run in one process with the same threads, in interleaved rounds, so that drift of the
machine hits all alike. The result of each contender is compared with a float64 oracle first; a
result outside its tolerance is reported as wrong and its time is not shown.
"""

import copy
import dataclasses
import gc
import importlib.util
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .clocks import Clock, Run, cuda_clock, wall_clock
from .machine import free_memory
from .records import FAILED, Grid, Row, Size, Target

WARM_UP = Size(batch=1, side=16)


def _as_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Args:
        name: Name in tables; ``wsfast`` is ours.
        build: Takes the inputs and returns the call to time. Whatever it does itself (compiling,
            NumPy views, registering hooks) is not timed.
        requires: Modules that must be importable, else the row reads "not installed".
        same_work: False for a yardstick that does only part of the work; it is not checked.
        note: What a reader must know to compare it.
        sweep: False to run it on headline sizes only.
        compiles: True when ``build`` compiles, which ``--no-compile`` and ``--quick`` leave out.
        devices: Device types it runs on.
        collect: Turns its result into the form of the oracle's, outside the timed region.
        tolerance: Its own tolerance where the case's does not fit; say why in ``note``.
        oracle: Its own expected result where it rightly computes something else; ``note`` says so.
        needs: Bytes that it takes, about, for a size; without as many free it is left out.
    """

    name: str
    build: Callable[[Any], Run]
    requires: tuple[str, ...] = ()
    same_work: bool = True
    note: str = ""
    sweep: bool = True
    compiles: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    collect: Callable[[Any], Any] = _as_is
    tolerance: float | None = None
    oracle: Callable[[Any], Any] | None = None
    needs: Callable[[Size], int] | None = None


@dataclass(frozen=True)
class Budget:
    """How long a contender may be timed.

    Rounds fill ``seconds`` but number at least ``min_rounds``. A contender whose first call, the
    one that is checked, takes longer than ``one_round_above`` has one more; above
    ``one_call_above``, where what is done once at first is little of it, that call is the only one.
    Calls shorter than ``round_seconds`` are repeated within a round until they fill it. A round of
    calls shorter than ``warm_up_below``, or of a contender whose long first call compiled, begins
    with one that is not timed: threads that slept while another contender ran would cost them up to
    half a millisecond.
    """

    seconds: float = 1.0
    min_rounds: int = 5
    max_rounds: int = 200
    one_round_above: float = 5.0
    one_call_above: float = 60.0
    round_seconds: float = 2e-3
    warm_up_below: float = 10e-3

    def quick(self) -> "Budget":
        """Return the budget of a ``--quick`` run."""
        return dataclasses.replace(self, seconds=min(self.seconds, 0.3), one_round_above=1.0)


@dataclass(frozen=True)
class MemoryLimit:
    """Peak extra memory beyond inputs and outputs, measured and bounded.

    Args:
        size: Size to measure at.
        unit: What the extra bytes are compared with, in words.
        unit_bytes: The bytes of that unit, from the inputs.
        at_most: Highest allowed ratio of extra bytes to unit bytes; None sets no bound.
        contenders: Names of the contenders to measure.
        warm_up: A small size that every contender takes, to run first.
    """

    size: Size
    unit: str
    unit_bytes: Callable[[Any], int]
    at_most: float | None
    contenders: tuple[str, ...] = ("wsfast", "reference")
    warm_up: Size = WARM_UP


@dataclass(frozen=True)
class Case:
    """One operation to benchmark.

    Args:
        room: Room (or package) it belongs to.
        operation: Title of the operation, unique within the room.
        inputs: Makes the inputs of a size on the CPU from a seeded generator.
        sizes: At least three along one axis, for the fitted exponent.
        contenders: All ways to do the work.
        oracle: The expected result from the inputs, in float64. NaN marks entries that are not
            compared because float32 rounding of the inputs' statistics decides them.
        tolerance: Largest relative error (see :func:`relative_error`) of a correct result.
        targets: Speeds to reach.
        traffic: Bytes that any implementation has to read and write, for the bandwidth column.
        memory: Bound on extra memory, measured in processes of its own.
        budget: Time per contender and size.
        figures: More about a result, in columns of their own, from the inputs and the result.
        needs: Bytes that every contender takes, about, for a size; without as many free the size
            is left out.
        grid: One of many: ``--grid`` chooses among its sizes, if any is chosen.
    """

    room: str
    operation: str
    inputs: Callable[[Size, torch.Generator], Any]
    sizes: tuple[Size, ...]
    contenders: tuple[Contender, ...]
    oracle: Callable[[Any], Any]
    tolerance: float
    targets: tuple[Target, ...] = ()
    traffic: Callable[[Any], int] | None = None
    memory: MemoryLimit | None = None
    budget: Budget = field(default_factory=Budget)
    figures: Callable[[Any, Any], dict[str, float]] | None = None
    needs: Callable[[Size], int] | None = None
    grid: bool = False

    def contender(self, name: str) -> Contender:
        """Return the contender called ``name``."""
        return next(contender for contender in self.contenders if contender.name == name)

    def chosen_sizes(self, grid: Grid) -> list[Size]:
        """Return its headline sizes, those and the ones along the axes of a grid, or all."""
        along = grid == "axes"
        return [s for s in self.sizes if s.headline or (s.axis and along) or grid == "full"]

    def entries(self, size: Size) -> list[Contender]:
        """Return the contenders that run on ``size``."""
        return [entry for entry in self.contenders if entry.sweep or size.headline]

    def make_inputs(self, size: Size, device: torch.device) -> Any:
        """Return the inputs of ``size``, the same on every machine and run."""
        seed = zlib.crc32(f"{self.room} {self.operation} {size.label}".encode())
        return to_device(self.inputs(size, torch.Generator().manual_seed(seed)), device)


@dataclass(frozen=True)
class Settings:
    """How a run measures: the device, and what ``--no-compile`` and ``--quick`` leave out."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compile: bool = True
    quick: bool = False


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor and module in nested tuples and lists to ``device``."""
    movable = (Tensor, nn.Module)
    return _mapped(lambda part: part.to(device) if isinstance(part, movable) else part, value)


def with_own_modules(value: Any) -> Any:
    """Copy every module in nested tuples and lists: hooks of one contender stay off the others."""
    return _mapped(lambda part: copy.deepcopy(part) if isinstance(part, nn.Module) else part, value)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change what nested tuples and lists hold."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(change, part) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(change, part) for part in value)
    return change(value)


def compiled(function: Callable[..., Any]) -> Callable[[Any], Run]:
    """Return a ``build`` that compiles ``function`` of the inputs and warms it up."""

    def build(inputs: Any) -> Run:
        torch.compiler.reset()
        fast = torch.compile(function, dynamic=False)
        fast(inputs)
        return lambda: fast(inputs)

    return build


def eager(function: Callable[..., Any]) -> Callable[[Any], Run]:
    """Return a ``build`` that calls ``function`` on the inputs as they are."""
    return lambda inputs: lambda: function(inputs)


def over_threads(function: Callable[[Any], Any], images: Sequence[Any]) -> Run:
    """Return a call of ``function`` on every image, shared out to as many threads as torch has.

    For peers that take one image at a time and let go of the interpreter's lock meanwhile.
    """
    threads = torch.get_num_threads()
    parts = [images[first::threads] for first in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def run() -> list[Any]:
        done = list(pool.map(lambda part: [function(image) for image in part], parts))
        return [done[i % threads][i // threads] for i in range(len(images))]

    return run


def relative_error(result: Any, expected: Any) -> float:
    """Return the largest error of ``result`` over the largest finite value of ``expected``.

    Both may be nested; each pair of tensors is taken by itself and the worst one counts. Entries
    where ``expected`` is NaN are left out. A NaN elsewhere, another shape or another number of
    tensors is an infinite error.
    """
    got, wanted = list(_leaves(result)), list(_leaves(expected))
    if len(got) != len(wanted):
        return math.inf
    return max((_leaf_error(g, w) for g, w in zip(got, wanted, strict=True)), default=0.0)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(np.ascontiguousarray(value)).double()
    else:
        yield torch.as_tensor(value).detach().cpu().double()


def _leaf_error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return math.inf
    compared = ~wanted.isnan()
    got, wanted = got[compared], wanted[compared]
    if got.numel() == 0:
        return 0.0
    # Equal infinities differ by NaN, so equality is asked first.
    difference = torch.where(got == wanted, 0.0, (got - wanted).abs())
    finite = wanted[wanted.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 0.0
    return math.inf if difference.isnan().any() else difference.max().item() / (scale or 1.0)


@dataclass
class _Lane:
    """A contender under way: its call, how often to time it and what came out."""

    contender: Contender
    run: Run
    error: float | None
    figures: dict[str, float]
    rounds: int = 0
    iterations: int = 1
    warm_up: bool = False
    seconds: list[float] = field(default_factory=list)
    round_numbers: list[int] = field(default_factory=list)


def measure(case: Case, size: Size, settings: Settings, clock: Clock | None = None) -> list[Row]:
    """Time all contenders of ``case`` on ``size`` side by side.

    Returns:
        One row per contender in the declared order; those that could not run are ``absent`` with
        the reason.
    """
    clock = clock or (cuda_clock if settings.device.type == "cuda" else wall_clock)
    budget = case.budget.quick() if settings.quick else case.budget
    too_large = why_too_large(case.needs, size, settings.device)
    if too_large:
        return [_blank(case, size, contender, too_large) for contender in case.entries(size)]
    inputs = case.make_inputs(size, settings.device)
    expected = case.oracle(inputs)
    traffic = case.traffic(inputs) if case.traffic else None
    rows: dict[str, Row] = {}
    lanes: list[_Lane] = []
    for contender in case.entries(size):
        reason = why_absent(contender, settings)
        reason = reason or why_too_large(contender.needs, size, settings.device)
        if not reason:
            try:
                lanes.append(_prepare(case, contender, inputs, expected, budget, clock))
            except Exception as error:  # one that breaks must not hide the others
                said = next(iter(str(error).splitlines()), "")[:120]
                reason = f"{FAILED}{type(error).__name__}: {said}"
        rows[contender.name] = _blank(case, size, contender, reason, traffic)
    del expected
    run_interleaved(lanes, clock)
    for lane in lanes:
        rows[lane.contender.name] = _finished(rows[lane.contender.name], lane, case.tolerance)
    return list(rows.values())


def _blank(
    case: Case, size: Size, contender: Contender, reason: str, traffic: int | None = None
) -> Row:
    return Row(
        room=case.room,
        operation=case.operation,
        size=size,
        contender=contender.name,
        state="absent",
        reason=reason,
        same_work=contender.same_work,
        note=contender.note,
        traffic=traffic,
    )


def why_too_large(needs: Callable[[Size], int] | None, size: Size, device: torch.device) -> str:
    """Return why ``size`` does not fit in the device's memory, or an empty string."""
    free = free_memory(device) if needs else None
    if not needs or free is None or (needed := needs(size)) <= free:
        return ""
    return f"needs about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"


def why_absent(contender: Contender, settings: Settings) -> str:
    """Return why ``contender`` cannot run here, or an empty string."""
    missing = [name for name in contender.requires if importlib.util.find_spec(name) is None]
    if missing:
        return "not installed"
    if settings.device.type not in contender.devices:
        return f"does not run on {settings.device.type}"
    if contender.compiles and not settings.compile:
        return f"left out ({'--quick' if settings.quick else '--no-compile'})"
    return ""


def why_memory_absent(case: Case, name: str, settings: Settings) -> str:
    """Return why the memory of a contender cannot be measured here, or an empty string."""
    assert case.memory is not None
    contender, size, device = case.contender(name), case.memory.size, settings.device
    too_large = (why_too_large(needs, size, device) for needs in (case.needs, contender.needs))
    return why_absent(contender, settings) or next(filter(None, too_large), "")


def _prepare(
    case: Case, contender: Contender, inputs: Any, expected: Any, budget: Budget, clock: Clock
) -> _Lane:
    """Build and warm up a contender, check its result and plan its rounds."""
    run = contender.build(with_own_modules(inputs))
    kept: list[Any] = []
    once = clock(lambda: kept.append(run()), 1)
    error, figures = None, {}
    if contender.same_work:
        result = contender.collect(kept[0])
        error = relative_error(result, contender.oracle(inputs) if contender.oracle else expected)
        figures = case.figures(inputs, result) if case.figures else {}
    kept.clear()
    lane = _Lane(contender, run, error, figures)
    if once > budget.one_call_above:
        lane.seconds, lane.round_numbers = [once], [0]
        return lane
    if once > budget.one_round_above:
        lane.rounds, lane.warm_up = 1, contender.compiles
        return lane
    once = max(clock(run, 1), 1e-9)
    lane.iterations = max(1, math.ceil(budget.round_seconds / once))
    lane.warm_up = once < budget.warm_up_below
    affordable = int(budget.seconds / (once * (lane.iterations + lane.warm_up)))
    lane.rounds = min(max(affordable, budget.min_rounds), budget.max_rounds)
    return lane


def run_interleaved(lanes: Sequence[_Lane], clock: Clock) -> None:
    """Time the lanes round by round.

    The lane with the most rounds runs in every round, the others in evenly spread ones. The order
    turns by one lane per round, so that nobody always follows the same neighbour.
    """
    total = max((lane.rounds for lane in lanes), default=0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(total):
            turn = number % len(lanes)
            for lane in (*lanes[turn:], *lanes[:turn]):
                due = (number + 1) * lane.rounds // total > number * lane.rounds // total
                if due:
                    if lane.warm_up:
                        lane.run()
                    lane.seconds.append(clock(lane.run, lane.iterations) / lane.iterations)
                    lane.round_numbers.append(number)
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()


def _finished(row: Row, lane: _Lane, case_tolerance: float) -> Row:
    own = lane.contender.tolerance
    tolerance = case_tolerance if own is None else own
    wrong = lane.error is not None and not lane.error <= tolerance
    return dataclasses.replace(
        row,
        state="wrong" if wrong else "timed",
        seconds=lane.seconds,
        rounds=lane.round_numbers,
        iterations=lane.iterations,
        error=lane.error,
        figures=lane.figures,
        tolerance=tolerance,
    )
