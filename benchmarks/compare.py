"""Compares two runs: what became slower or faster beyond noise, and what else changed.

A machine has slow days, so times of two runs are never compared with each other. What is compared
is our time over the time of a contender that ran beside it in the same rounds: a machine that is
slower as a whole leaves these ratios alone.

For a row of ours and one such contender:

1. The rounds are cut into blocks, as neighbours resemble each other: ``BLOCKS`` of them, or as many
   as the contender with fewer rounds has. Each block gives one ``log(ours / theirs)`` of medians.
2. The *shift* is the median of all differences new - old (Hodges and Lehmann's estimate), and its
   interval is the one of the Mann-Whitney test at 95 %: no distribution is assumed. With too
   few blocks (two against two, say) the interval has no end.

A contender can have a slow day of its own, so the shift of a row is the median over all contenders
that were timed in both runs with ours (of two in the middle, the one nearer to no change), and its
interval is that contender's. Contenders with few rounds, whose interval reaches 10 % or more, count
only where there is no better one; other versions of ours never count.

What repeats within a run is not all the noise there is: memory lies elsewhere in the next run, a
library starts other threads. The contenders tell how much that is, as their code did not change:
each is compared with its neighbours as ours is, and the *unrest* of the two runs is three robust
standard deviations of these shifts (left out with fewer than ``ENOUGH_SHIFTS`` of them).

The verdict of a row:

- ``slower`` or ``faster``: the interval leaves out no change, and the shift is at least 10 % and at
  least the unrest;
- ``same``: the shift is below 10 % and the interval reaches less than 10 % to either side of it;
- ``too noisy to say``: all else, also without a contender to compare with;
- ``WRONG`` and ``right again``: the result is out of its tolerance, or was.

Rooms that one run did not measure are left out. Of the others every row that only one run has is
named, as is a change of machine, of software, of extra memory (beyond 10 %) and of errors (beyond
2 times), and a machine that was busy when a run began: other programs take a core from contenders
that use all of them and none from the others, which no ratio makes good.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .figures import median
from .records import OURS, RoomResults, Rooms, Row
from .tables import Section, Table, bytes_text, ratio_text, seconds_text

ChangeKind = Literal["slower", "faster", "same", "too noisy to say", "WRONG", "right again"]
SMALLEST_EFFECT = math.log(1.10)
BLOCKS = 20
CONFIDENCE = 0.95
Z = 1.96  # two-sided, of that confidence
ENOUGH_SHIFTS = 12
UNREST_DEVIATIONS = 3.0
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
OTHER_ERROR = 2.0  # an error this many times another is worth a word
NO_ERROR = 1e-9
OTHER_MEMORY = 1.10
MEMORY_STEP = 2e6  # bytes; the kernel counts to about one
REGRESSIONS: tuple[ChangeKind, ...] = ("slower", "WRONG")
MACHINE_FACTS = ("cpu", "gpu", "cuda", "cores", "threads", "simd", "allocator", "system", "device")


@dataclass(frozen=True)
class Shift:
    """By how much a log-ratio of times moved, with its interval, and against whom."""

    value: float
    low: float
    high: float
    against: str = ""

    @property
    def half_width(self) -> float:
        """How far the interval reaches from the value."""
        return max(self.high - self.value, self.value - self.low)


@dataclass(frozen=True)
class Change:
    """What became of one row of ours."""

    room: str
    old: Row
    new: Row
    kind: ChangeKind
    shift: Shift | None

    @property
    def text(self) -> str:
        """The row and what became of it."""
        return f"{self.new.operation}, {self.new.size.label}: {self.kind}"


@dataclass(frozen=True)
class Comparison:
    """All that differs between two runs."""

    changes: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unrest: float | None = None

    @property
    def regressions(self) -> list[Change]:
        """The rows that became slower or wrong."""
        return [change for change in self.changes if change.kind in REGRESSIONS]


# Shifts -----------------------------------------------------------------------------------------


def shift_between(old: Sequence[float], new: Sequence[float], against: str = "") -> Shift:
    """Return the Hodges-Lehmann shift from ``old`` to ``new`` with its Mann-Whitney interval.

    Example:
        >>> found = shift_between([0.0, 0.1, 0.2, 0.3, 0.4], [1.0, 1.1, 1.2, 1.3, 1.4])
        >>> round(found.value, 6), round(found.low, 6), round(found.high, 6)
        (1.0, 0.8, 1.2)
    """
    differences = sorted(b - a for a in old for b in new)
    pairs = len(differences)
    spread = Z * math.sqrt(pairs * (len(old) + len(new) + 1) / 12)
    rank = math.floor(pairs / 2 - spread)
    # Of three rounds against three, the whole range is a 90 % interval, whatever the normal
    # approximation says.
    known = rank >= 0 and 2 / math.comb(len(old) + len(new), len(old)) <= 1 - CONFIDENCE
    ends = (differences[rank], differences[pairs - 1 - rank]) if known else (-math.inf, math.inf)
    return Shift(statistics.median(differences), *ends, against)


def log_ratios(ours: Row, theirs: Row) -> list[float]:
    """Return the logarithms of the ratios of times, block by block."""
    count = min(BLOCKS, len(ours.seconds), len(theirs.seconds))
    rounds = 1 + max((*ours.rounds, *theirs.rounds), default=0)
    above, below = (_block_medians(row, count, rounds) for row in (ours, theirs))
    return [math.log(above[block] / below[block]) for block in above if block in below]


def _block_medians(row: Row, count: int, rounds: int) -> dict[int, float]:
    blocks: dict[int, list[float]] = {}
    for number, seconds in zip(row.rounds, row.seconds, strict=True):
        blocks.setdefault(number * count // rounds, []).append(seconds)
    return {block: statistics.median(seconds) for block, seconds in blocks.items()}


Contenders = dict[str, Row]


def shift_of(name: str, old: Contenders, new: Contenders) -> Shift | None:
    """Return the shift of one contender of a size: the median of those against the others.

    Others against which it is known to 10 % count before those against which it is known at all.
    """
    shifts = []
    for peer in old:
        if peer == name or peer not in new or peer.startswith(OURS):
            continue
        before, after = log_ratios(old[name], old[peer]), log_ratios(new[name], new[peer])
        if before and after:
            shifts.append(shift_between(before, after, peer))
    precise = [shift for shift in shifts if shift.half_width < SMALLEST_EFFECT]
    finite = [shift for shift in shifts if math.isfinite(shift.half_width)]
    return _middle(precise or finite or shifts)


def _middle(shifts: Sequence[Shift]) -> Shift | None:
    """The median; of two in the middle, the one nearer to no change."""
    if not shifts:
        return None
    ordered = sorted(shifts, key=lambda shift: shift.value)
    middle = (ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2])
    return min(middle, key=lambda shift: abs(shift.value))


def unrest_of(shifts: Sequence[Shift]) -> float | None:
    """Return the shift that unchanged code reaches at most from run to run, None if unknown."""
    if len(shifts) < ENOUGH_SHIFTS:
        return None
    deviation = MAD_TO_DEVIATION * statistics.median(abs(shift.value) for shift in shifts)
    return UNREST_DEVIATIONS * deviation


def verdict(shift: Shift | None, unrest: float | None) -> ChangeKind:
    """Judge the shift of a row that was right in both runs."""
    if shift is None:
        return "too noisy to say"
    size = abs(shift.value)
    if size >= max(SMALLEST_EFFECT, unrest or 0.0) and not shift.low <= 0 <= shift.high:
        return "slower" if shift.value > 0 else "faster"
    if size < SMALLEST_EFFECT and shift.half_width < SMALLEST_EFFECT:
        return "same"
    return "too noisy to say"


# Runs -------------------------------------------------------------------------------------------

Key = tuple[str, str]  # operation and size


def compare(old: Rooms, new: Rooms) -> Comparison:
    """Compare the rooms that both runs measured."""
    common = [room for room in new if room in old]
    shifts: list[tuple[str, Row, Row, Shift | None]] = []
    of_peers: list[Shift] = []
    said: dict[str, list[str]] = {}
    for room in common:
        before, after = _by_size(old[room].rows), _by_size(new[room].rows)
        for key in (key for key in after if key in before):
            sides = before[key], after[key]
            shifts.append((room, *(side[OURS] for side in sides), _shift_of_ours(*sides)))
            of_peers += _shifts_of_peers(*sides)
        for warning in (
            *_machine_warnings(old[room].machine, new[room].machine),
            *_only_in("old", before, after),
            *_only_in("new", after, before),
            *_memory_warnings(old[room], new[room]),
        ):
            said.setdefault(warning, []).append(room)
    unrest = unrest_of(of_peers)
    changes = [
        Change(room, before, after, _kind(before, after, shift, unrest), shift)
        for room, before, after, shift in shifts
    ]
    warnings = [f"{', '.join(rooms)}: {warning}" for warning, rooms in said.items()]
    nothing = [] if common else ["no room was measured in both runs"]
    return Comparison(changes, [*nothing, *warnings], unrest)


def _by_size(rows: Iterable[Row]) -> dict[Key, Contenders]:
    found: dict[Key, Contenders] = {}
    for row in rows:
        if row.state != "absent":
            found.setdefault((row.operation, row.size.label), {})[row.contender] = row
    return {key: contenders for key, contenders in found.items() if OURS in contenders}


def _shift_of_ours(old: Contenders, new: Contenders) -> Shift | None:
    before, after = _timed(old), _timed(new)
    return shift_of(OURS, before, after) if OURS in before and OURS in after else None


def _shifts_of_peers(old: Contenders, new: Contenders) -> list[Shift]:
    """How contenders whose code is not ours moved against one another."""
    before, after = (_timed(_foreign(side)) for side in (old, new))
    found = [shift_of(name, before, after) for name in before if name in after]
    known = [shift for shift in found if shift and math.isfinite(shift.half_width)]
    return known[:-1]  # the last one follows from the others


def _foreign(contenders: Contenders) -> Contenders:
    """Those that run no code of this project."""
    return {name: row for name, row in contenders.items() if not row.ours}


def _timed(contenders: Contenders) -> Contenders:
    return {name: row for name, row in contenders.items() if row.state == "timed"}


def _kind(old: Row, new: Row, shift: Shift | None, unrest: float | None) -> ChangeKind:
    if new.state == "wrong":
        return "WRONG"
    if old.state == "wrong":
        return "right again"
    return verdict(shift, unrest)


# Warnings ---------------------------------------------------------------------------------------


def _machine_warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name what differs, as ratios hold within one machine and its software, and busy machines."""
    found = [
        f"{name} was {_plain(old.get(name))}, is {_plain(new.get(name))}"
        for name in MACHINE_FACTS
        if old.get(name) != new.get(name)
    ]
    before, after = old["packages"], new["packages"]
    found += [
        f"{name} was {before.get(name, 'unknown')}, is {after.get(name, 'unknown')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    said = [f"another machine or other software: {'; '.join(found)}"] if found else []
    return said + [
        f"the machine was busy before the {which} run (load {facts['load_before']})"
        for which, facts in (("old", old), ("new", new))
        if facts["load_before"] >= facts["cores"]
    ]


def _plain(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _only_in(which: str, here: Iterable[Key], there: Iterable[Key]) -> list[str]:
    """Name the rows that only one of the runs has, by operation."""
    alone: dict[str, list[str]] = {}
    for operation, size in here:
        if (operation, size) not in there:
            alone.setdefault(operation, []).append(size)
    where = f"only in the {which} run"
    return [f"{where}: {operation} ({', '.join(sizes)})" for operation, sizes in alone.items()]


def _memory_warnings(old: RoomResults, new: RoomResults) -> list[str]:
    before = {(r.operation, r.size): r.extra_bytes for r in old.memory if r.contender == OURS}
    found = []
    for row in new.memory:
        was, now = before.get((row.operation, row.size)), row.extra_bytes
        if row.contender != OURS or was is None or now is None or abs(now - was) < MEMORY_STEP:
            continue
        if max(was, now) > OTHER_MEMORY * min(was, now):
            amounts = f"{bytes_text(was)}, is {bytes_text(now)}"
            found.append(f"extra memory of {row.operation}, {row.size} was {amounts}")
    return found


# Layout -----------------------------------------------------------------------------------------

ORDER: tuple[ChangeKind, ...] = (
    *("WRONG", "slower", "faster", "right again", "too noisy to say", "same"),
)


def section(found: Comparison, old: Path) -> Section:
    """Lay out a comparison: what changed first, what stayed last."""
    counts = {kind: sum(change.kind == kind for change in found.changes) for kind in ORDER}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none"
    lines = [f"rows of ours in both runs: {said}"]
    if found.unrest is not None:
        moved = 100 * math.expm1(found.unrest)
        lines.append(f"unrest: unchanged contenders moved by up to {moved:.0f} % between the runs")
    ordered = sorted(found.changes, key=lambda change: ORDER.index(change.kind))
    header = ["operation", "size", "verdict", "against", "change", "95 % interval", "was", "now"]
    table = Table("Row by row", [*header, "error"], [_line(c) for c in ordered], left=4)
    title = f"compared with {old.name}"
    return Section(title, [*lines, *(f"NOTE {warning}" for warning in found.warnings)], [table])


def _line(change: Change) -> list[str]:
    moved = ["", "", ""]
    if change.shift is not None:
        shift = change.shift
        ends = f"{_times(shift.low)} – {_times(shift.high)}"
        unknown = not math.isfinite(shift.half_width)
        moved = [shift.against, _percent(shift.value), "too few rounds" if unknown else ends]
    medians = [seconds_text(median(row)) for row in (change.old, change.new)]
    where = [change.new.operation, change.new.size.label, change.kind]
    return [*where, *moved, *medians, _error_text(change.old.error, change.new.error)]


def _times(log_ratio: float) -> str:
    return ratio_text(math.exp(log_ratio))


def _percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.0f} % time"


def _error_text(old: float | None, new: float | None) -> str:
    """The errors if they differ by more than rounding would."""
    if old is None or new is None:
        return ""
    low, high = sorted((max(old, NO_ERROR), max(new, NO_ERROR)))
    return f"{old:.1e} → {new:.1e}" if high > OTHER_ERROR * low else ""
