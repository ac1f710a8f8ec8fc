"""Lays out report sections as aligned text, as Markdown and as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

BAD_CELLS = ("WRONG", "MISSED", "slower")


@dataclass(frozen=True)
class Table:
    """A titled table of strings; the first ``left`` columns are words, the rest numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def text(self) -> str:
        """Return the table in aligned columns."""
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in self._columns()]
        lines = [self.title, self._line(self.header, widths), "  ".join("-" * w for w in widths)]
        lines += [self._line(row, widths) for row in self.rows]
        return "\n".join(line.rstrip() for line in lines)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rules = [":---" if i < self.left else "---:" for i in self._columns()]
        lines = [f"**{self.title}**", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (self.header, rules, *self.rows)]
        return "\n".join(lines)

    def html(self) -> str:
        """Return the table as HTML; losses and misses carry the class ``loss``."""
        lines = [self._html_line("th", self.header), *(self._html_line("td", r) for r in self.rows)]
        head, body = lines[0], "\n".join(lines[1:])
        caption = f"<caption>{escape(self.title)}</caption>"
        table = f"<table>{caption}<thead>{head}</thead><tbody>\n{body}\n</tbody></table>"
        return f'<div class="scroll">{table}</div>'

    def _html_line(self, tag: str, row: Sequence[str]) -> str:
        cells = "".join(
            f'<{tag} class="{" ".join(self._classes(i, cell))}">{escape(cell)}</{tag}>'
            for i, cell in zip(self._columns(), row, strict=True)
        )
        return f"<tr>{cells}</tr>"

    def _classes(self, column: int, cell: str) -> list[str]:
        loss = cell in BAD_CELLS or cell.endswith("× slower")
        return ["word" if column < self.left else "number", *(["loss"] if loss else [])]

    def _columns(self) -> range:
        return range(len(self.header))

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = zip(row, widths, self._columns(), strict=True)
        return "  ".join(c.ljust(w) if i < self.left else c.rjust(w) for c, w, i in cells)


@dataclass(frozen=True)
class Section:
    """A heading with lines of prose and tables."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=list)

    def text(self) -> str:
        """Return the section as plain text."""
        head = [self.title, "=" * len(self.title), *self.lines]
        return "\n\n".join(["\n".join(head), *(table.text() for table in self.tables)])

    def markdown(self) -> str:
        """Return the section as Markdown."""
        head = [f"## {self.title}"]
        if self.lines:
            head += ["\n".join(f"- {line}" for line in self.lines)]
        return "\n\n".join([*head, *(table.markdown() for table in self.tables)])


def seconds_text(seconds: float) -> str:
    """Return a time with three significant digits and its unit.

    Example:
        >>> seconds_text(0.01234), seconds_text(2.5e-6)
        ('12.3 ms', '2.50 µs')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            value = seconds * scale
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def ratio_text(value: float) -> str:
    """Return a ratio of times, such as ``31×`` or ``1.04×``."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}×"


def bytes_text(count: int) -> str:
    """Return a byte count in MB."""
    return f"{count / 1e6:.1f} MB"
