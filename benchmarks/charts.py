"""Draws charts as inline SVG that takes its colours from the page's style sheet.

Every mark carries its figures as a tooltip; colours are classes (``s0`` is ours, ``s1`` to ``s9``
the others; ``win`` and ``loss``), so that one drawing serves light and dark pages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
ROW = 22
BAR = 12
TOP = 26
DOTS_APART = 3  # vertically, so that equal ones can be told apart
TEXT = 6.8  # width of an average character in pixels
OTHERS = 9  # colours of contenders that are not ours


@dataclass(frozen=True)
class Mark:
    """A bar or a dot: where it ends, its colour class, its text and its tooltip."""

    value: float
    style: str
    text: str = ""
    tip: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A labelled row of marks, with ticks such as a bound; one without marks is a heading."""

    label: str
    marks: tuple[Mark, ...] = ()
    ticks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Series:
    """Measured points (amount, seconds) and the exponent fitted on them."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    exponent: float


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from ``low`` to ``high`` over the pixels ``left`` to ``right``."""

    low: float
    high: float
    left: float
    right: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """Return the pixel of a value; values outside end at the edge."""
        value = min(max(value, self.low), self.high)
        low, here, high = (self._scaled(v) for v in (self.low, value, self.high))
        return self.left + (self.right - self.left) * (here - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value


def decades(low: float, high: float) -> list[float]:
    """Return round values in between: powers of ten, and others where there are few of them.

    Example:
        >>> decades(0.5, 300), decades(0.6, 8), decades(0.6, 1.7)
        ([1.0, 10.0, 100.0], [1.0, 2.0, 5.0], [0.7, 1.0, 1.5])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    across = math.log10(high / low)
    steps = (1,) if across > 2.2 else (1, 2, 5) if across > 0.7 else (1, 1.5, 2, 3, 5, 7)
    found = [float(f"{step}e{power}") for power in powers for step in steps]
    found = [value for value in found if low <= value <= high]
    every = max(1, math.ceil(len(found) / 9))
    return found[::every]


def even_steps(high: float) -> list[float]:
    """Return round values from 0 to ``high``.

    Example:
        >>> even_steps(47)
        [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    rough = high / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * i for i in range(math.floor(high / step) + 1)]


# Rows of bars and dots --------------------------------------------------------------------------


def speedup_chart(lines: Sequence[Line]) -> str:
    """Bars from 1 to each ratio on a logarithmic axis, with quartiles as whiskers."""
    marks = [mark for line in lines for mark in line.marks]
    low = min([0.8, *(mark.low or mark.value for mark in marks)]) * 0.9
    high = max([1.5, *(mark.high or mark.value for mark in marks)]) * 1.15
    axis = Axis(low, high, _label_width(lines), WIDTH - 110, logarithmic=True)
    return _rows(lines, axis, decades(low, high), lambda value: f"{value:g}×", origin=1.0)


def amount_chart(lines: Sequence[Line], text: Callable[[float], str]) -> str:
    """Bars from 0 to each amount on a linear axis."""
    high = max(mark.value for line in lines for mark in (*line.marks, *line.ticks)) or 1.0
    axis = Axis(0.0, high, _label_width(lines), WIDTH - 150, logarithmic=False)
    return _rows(lines, axis, even_steps(high), text, origin=0.0)


def dot_chart(lines: Sequence[Line], low: float, high: float) -> str:
    """Dots on a logarithmic axis that begins with zero: what is below ``low`` lies on its edge."""
    axis = Axis(low, high, _label_width(lines, 420), WIDTH - 20, logarithmic=True)
    ticks = [low, *decades(2 * low, high)]
    return _rows(lines, axis, ticks, lambda x: "0" if x == low else f"{x:.0e}", origin=None)


def _label_width(lines: Sequence[Line], at_most: float = 320) -> float:
    longest = max((len(line.label) for line in lines if line.marks), default=0)
    return min(at_most, max(220, 32 + TEXT * longest))


def _rows(
    lines: Sequence[Line],
    axis: Axis,
    ticks: Sequence[float],
    text: Callable[[float], str],
    origin: float | None,
) -> str:
    height = TOP + ROW * len(lines) + 6
    parts = [_grid(axis.at(value), text(value), height, value == origin) for value in ticks]
    for number, line in enumerate(lines):
        parts.append(_row(line, axis, TOP + ROW * (number + 0.5), origin))
    return _svg(WIDTH, height, parts)


def _grid(x: float, label: str, height: float, strong: bool) -> str:
    style = "origin" if strong else "grid"
    rule = f'<line class="{style}" x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{height - 4}"/>'
    return rule + _text(x, TOP - 10, label, "tick middle")


def _row(line: Line, axis: Axis, y: float, origin: float | None) -> str:
    if not line.marks:
        return _text(0, y + 4, line.label, "heading")
    parts = [_text(14, y + 4, _shortened(line.label, axis.left - 20), "label")]
    for number, mark in enumerate(line.marks):
        beside = DOTS_APART * (number - (len(line.marks) - 1) / 2)
        draw = _dot(mark, axis, y + beside) if origin is None else _bar(mark, axis, y, origin)
        parts.append(f"<g><title>{escape(mark.tip)}</title>{draw}</g>")
    for tick in line.ticks:
        x = axis.at(tick.value)
        rule = f'<line class="bound" x1="{x:.1f}" y1="{y - 9:.1f}" x2="{x:.1f}" y2="{y + 9:.1f}"/>'
        parts.append(f"<g><title>{escape(tick.tip)}</title>{rule}</g>")
    return "".join(parts)


def _bar(mark: Mark, axis: Axis, y: float, origin: float) -> str:
    start, end = sorted((axis.at(origin), axis.at(mark.value)))
    bar = (
        f'<rect class="{mark.style}" x="{start:.1f}" y="{y - BAR / 2:.1f}" '
        f'width="{max(end - start, 1):.1f}" height="{BAR}" rx="2"/>'
    )
    edge = end
    if mark.low is not None and mark.high is not None:
        low, high = axis.at(mark.low), axis.at(mark.high)
        bar += f'<line class="whisker" x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"/>'
        edge = max(edge, high)
    return bar + _text(max(edge, axis.at(origin)) + 6, y + 4, mark.text, "value")


def _dot(mark: Mark, axis: Axis, y: float) -> str:
    return f'<circle class="{mark.style}" cx="{axis.at(mark.value):.1f}" cy="{y:.1f}" r="3.5"/>'


# Log-log lines ----------------------------------------------------------------------------------

PLOT_WIDTH, PLOT_HEIGHT = 420, 250
LEFT, RIGHT, UPPER, LOWER = 58, 12, 12, 34


def scaling_chart(
    series: Sequence[Series],
    ticks: Sequence[tuple[float, str]],
    seconds_text: Callable[[float], str],
    title: str,
) -> str:
    """Points of each series and its fitted line, both axes logarithmic."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    across = Axis(min(xs) / 1.15, max(xs) * 1.15, LEFT, PLOT_WIDTH - RIGHT, logarithmic=True)
    up = Axis(min(ys) / 1.6, max(ys) * 1.6, PLOT_HEIGHT - LOWER, UPPER, logarithmic=True)
    parts = []
    for x, label in ticks:
        at = across.at(x)
        parts.append(_segment("grid", at, up.left, at, up.right))
        parts.append(_text(at, PLOT_HEIGHT - LOWER + 15, label, "tick middle"))
    for y in decades(up.low, up.high):
        at = up.at(y)
        parts.append(_segment("grid", across.left, at, across.right, at))
        parts.append(_text(across.left - 6, at + 4, seconds_text(y), "tick end"))
    parts.append(_text((LEFT + PLOT_WIDTH) / 2, PLOT_HEIGHT - 4, title, "tick middle"))
    parts += [_curve(one, across, up, seconds_text) for one in reversed(series)]
    return _svg(PLOT_WIDTH, PLOT_HEIGHT, parts)


def _curve(one: Series, across: Axis, up: Axis, seconds_text: Callable[[float], str]) -> str:
    """The least-squares line passes through the means of the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in one.points]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    ends = [
        (across.at(x), up.at(math.exp(mean_y + one.exponent * (math.log(x) - mean_x))))
        for x in (one.points[0][0], one.points[-1][0])
    ]
    parts = [_segment(f"curve {one.style}", *ends[0], *ends[1])]
    for x, y in one.points:
        tip = f"{one.name}: {seconds_text(y)}, exponent {one.exponent:.2f}"
        dot = f'<circle class="{one.style}" cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="4"/>'
        parts.append(f"<g><title>{escape(tip)}</title>{dot}</g>")
    return "".join(parts)


def _segment(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, content: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def _shortened(text: str, width: float) -> str:
    fits = int(width / TEXT)
    return text if len(text) <= fits else text[: fits - 1] + "…"


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px"'
    content = "\n".join(parts)
    return f'<svg {size} role="img">\n{content}\n</svg>'
