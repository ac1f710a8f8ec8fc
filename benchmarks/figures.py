"""Numbers drawn from rows: medians, paired ratios, fitted exponents and target verdicts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .records import OURS, Row, Size, Target

Axis = Literal["pixels", "batch"]
Outcome = Literal["aim met", "met", "MISSED", "not measured"]
MIN_PAIRS = 3
MIN_SIZES_TO_FIT = 3


@dataclass(frozen=True)
class Ratio:
    """A ratio of times with its quartiles; ``paired`` tells if it was taken round by round."""

    value: float
    low: float
    high: float
    paired: bool


@dataclass(frozen=True)
class Verdict:
    """Outcome of one target: what was measured, and against which contender."""

    outcome: Outcome
    measured: float | None = None
    against: str = ""
    spread: tuple[float, float] | None = None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile (linear interpolation)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def median(row: Row) -> float:
    """Return the median time of one call in seconds."""
    return quartiles(row.seconds)[1]


def time_ratio(numerator: Row, denominator: Row) -> Ratio:
    """Return how many times longer ``numerator`` takes than ``denominator``.

    Rounds that both ran are compared one by one, so that drift of the machine cancels; with fewer
    than three common rounds the ratio of the medians is taken.
    """
    below = dict(zip(denominator.rounds, denominator.seconds, strict=True))
    pairs = [
        seconds / below[number]
        for number, seconds in zip(numerator.rounds, numerator.seconds, strict=True)
        if number in below
    ]
    if len(pairs) >= MIN_PAIRS:
        low, middle, high = quartiles(pairs)
        return Ratio(middle, low, high, paired=True)
    top_low, top, top_high = quartiles(numerator.seconds)
    low, middle, high = quartiles(denominator.seconds)
    return Ratio(top / middle, top_low / high, top_high / low, paired=False)


def fitted_exponent(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Return a of ``seconds ∝ amounts^a`` by least squares in log-log space.

    Raises:
        ValueError: If there are fewer than three different amounts.

    Example:
        >>> round(fitted_exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    if len(set(amounts)) < MIN_SIZES_TO_FIT:
        raise ValueError(f"an exponent needs {MIN_SIZES_TO_FIT} different sizes, got {amounts}")
    x = [math.log(amount) for amount in amounts]
    y = [math.log(second) for second in seconds]
    return statistics.linear_regression(x, y).slope


def series(rows: Sequence[Row], axis: Axis) -> list[tuple[Size, float]]:
    """Return sizes and median times of one contender along one axis, the other one held.

    Args:
        rows: Rows of one contender of one operation.
        axis: Which amount varies.

    Returns:
        The longest series that holds the other axis and the variant fixed, from small to large;
        nothing when no series has three sizes.
    """
    found: dict[tuple[int, str], dict[int, tuple[Size, float]]] = {}
    for row in rows:
        if row.state == "timed":
            held = row.size.batch if axis == "pixels" else row.size.pixels
            along = found.setdefault((held, row.size.variant), {})
            along[amount(row.size, axis)] = (row.size, median(row))
    longest = max(found.values(), key=len, default={})
    return [longest[n] for n in sorted(longest)] if len(longest) >= MIN_SIZES_TO_FIT else []


def amount(size: Size, axis: Axis) -> int:
    """Return how much of an axis a size has."""
    return size.pixels if axis == "pixels" else size.batch


def scaling(rows: Sequence[Row], axis: Axis) -> tuple[float, list[int]] | None:
    """Return the exponent fitted on :func:`series` and its amounts, None without a series."""
    found = series(rows, axis)
    if not found:
        return None
    amounts = [amount(size, axis) for size, _ in found]
    return fitted_exponent(amounts, [seconds for _, seconds in found]), amounts


def judge(target: Target, rows: Sequence[Row], copy_bandwidth: float | None) -> Verdict:
    """Compare the rows of one operation with one target.

    A target whose own row is wrong is missed; one without a correct row to compare with is not
    measured.
    """
    here = {row.contender: row for row in rows if row.size.label == target.size}
    ours = here.get(OURS)
    if ours is None or ours.state == "absent":
        return Verdict("not measured")
    if ours.state == "wrong":
        return Verdict("MISSED")
    if target.measure == "milliseconds":
        return _bounded(target, 1e3 * median(ours))
    if target.measure == "copy_bandwidth":
        if copy_bandwidth is None or ours.traffic is None:
            return Verdict("not measured")
        return _bounded(target, ours.traffic / median(ours) / copy_bandwidth)
    peers = [here[name] for name in target.against if name in here]
    timed = [peer for peer in peers if peer.state == "timed"]
    if not timed:
        return Verdict("not measured")
    fastest = min(timed, key=median)
    slower = target.measure == "slowdown"
    ratio = time_ratio(ours, fastest) if slower else time_ratio(fastest, ours)
    return _bounded(target, ratio.value, fastest.contender, (ratio.low, ratio.high))


def _bounded(
    target: Target,
    measured: float,
    against: str = "",
    spread: tuple[float, float] | None = None,
) -> Verdict:
    sign = -1.0 if target.measure in ("slowdown", "milliseconds") else 1.0
    outcome: Outcome = "MISSED"
    if sign * measured >= sign * target.aim:
        outcome = "aim met"
    elif sign * measured >= sign * target.at_least:
        outcome = "met"
    return Verdict(outcome, measured, against, spread)
