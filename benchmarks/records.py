"""What a benchmark run writes and the report reads: sizes, targets, rows and their JSON form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Measure = Literal["speedup", "slowdown", "copy_bandwidth", "milliseconds"]
State = Literal["timed", "wrong", "absent"]
Grid = Literal["headlines", "axes", "full"]
GRIDS: tuple[Grid, ...] = ("headlines", "axes", "full")
OURS = "wsfast"
FAILED = "failed: "  # begins the reason of a contender that broke


@dataclass(frozen=True)
class Size:
    """One input size of a case.

    Args:
        batch: Images (or maps) per call.
        side: Height of one image in pixels, and its width where that is not given.
        variant: Kind of content when a case has several, such as "noisy".
        headline: The size people quote: all contenders run on it, also under ``--quick``.
        width: Of one image in pixels; None for square ones.
        axis: Of a grid: along an axis of it, where only one thing grows.
    """

    batch: int
    side: int
    variant: str = ""
    headline: bool = False
    width: int | None = None
    axis: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of one image."""
        return self.side, self.width or self.side

    @property
    def label(self) -> str:
        """Name of the size in tables, such as ``8x224x224 noisy``."""
        height, width = self.shape
        return f"{self.batch}x{height}x{width} {self.variant}".rstrip()

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        height, width = self.shape
        return height * width


@dataclass(frozen=True)
class Target:
    """A speed to reach.

    Args:
        size: Label of the size it holds for.
        at_least: Bound that has to be kept.
        aim: Bound worth having.
        against: Contenders to compare with; the fastest of them counts.
        measure: ``speedup`` (their time over ours, to exceed), ``slowdown`` (our time over
            theirs, not to exceed), ``copy_bandwidth`` (fraction of the measured copy bandwidth,
            to exceed) or ``milliseconds`` (our time, not to exceed).
        device: Device type on which the target is meant.
    """

    size: str
    at_least: float
    aim: float
    against: tuple[str, ...] = ()
    measure: Measure = "speedup"
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """Times of one contender on one size.

    ``seconds[i]`` is the time of one call in round ``rounds[i]``; rounds with the same number ran
    side by side. ``state`` is ``absent`` when nothing was timed (``reason`` says why) and
    ``wrong`` when the result missed its tolerance.
    """

    room: str
    operation: str
    size: Size
    contender: str
    state: State
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    iterations: int = 1
    error: float | None = None
    tolerance: float | None = None
    same_work: bool = True
    note: str = ""
    traffic: int | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it runs code of this project: an op in any form, or a reference."""
        return any(word in self.contender for word in (OURS, "reference"))

    @property
    def broken(self) -> bool:
        """Whether ours raised an error instead of giving a result."""
        return self.ours and self.state == "absent" and self.reason.startswith(FAILED)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready values; times to a millionth of themselves."""
        return {**asdict(self), "seconds": [float(f"{value:.6g}") for value in self.seconds]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """Rebuild a row from :meth:`to_json`."""
        return cls(**{**values, "size": Size(**values["size"])})


@dataclass(frozen=True)
class MemoryRow:
    """Peak extra memory of one contender beyond its inputs and outputs.

    ``unit_bytes`` is what ``extra_bytes`` is compared with (``unit`` in words) and ``at_most`` the
    highest allowed ratio of the two, None where there is no bound. ``extra_bytes`` is None when it
    could not be measured.
    """

    room: str
    operation: str
    size: str
    contender: str
    extra_bytes: int | None
    unit_bytes: int
    unit: str
    at_most: float | None
    method: str


@dataclass(frozen=True)
class Declared:
    """The part of a case that the report needs to judge its rows."""

    room: str
    operation: str
    targets: tuple[Target, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Declared":
        """Rebuild a declaration from ``dataclasses.asdict``."""
        targets = [Target(**{**t, "against": tuple(t["against"])}) for t in values["targets"]]
        return cls(values["room"], values["operation"], tuple(targets))


@dataclass(frozen=True)
class RoomResults:
    """All that one run measured in one room, with the facts of that run."""

    machine: dict[str, Any]
    declared: tuple[Declared, ...]
    rows: tuple[Row, ...]
    memory: tuple[MemoryRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "machine": self.machine,
            "declared": [asdict(declared) for declared in self.declared],
            "rows": [row.to_json() for row in self.rows],
            "memory": [asdict(row) for row in self.memory],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RoomResults":
        """Rebuild from :meth:`to_json`."""
        return cls(
            values["machine"],
            tuple(Declared.from_json(declared) for declared in values["declared"]),
            tuple(Row.from_json(row) for row in values["rows"]),
            tuple(MemoryRow(**row) for row in values["memory"]),
        )


Rooms = dict[str, RoomResults]


def by_room(
    machine: dict[str, Any],
    declared: Sequence[Declared],
    rows: Sequence[Row],
    memory: Sequence[MemoryRow],
) -> Rooms:
    """Sort what one run measured into rooms."""
    return {
        room: RoomResults(
            machine,
            tuple(found for found in declared if found.room == room),
            tuple(row for row in rows if row.room == room),
            tuple(row for row in memory if row.room == room),
        )
        for room in sorted({found.room for found in (*declared, *memory)})
    }
