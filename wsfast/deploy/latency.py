"""Latency and throughput of a live loop, in memory that does not grow with its length."""

import math
import time
from typing import Any

import numpy as np

_SHORTEST = 1e-6  # seconds
_LONGEST = 1e4
_STEP = math.log(1.01)
_BUCKETS = math.ceil(math.log(_LONGEST / _SHORTEST) / _STEP) + 1

STAGES = ("read", "wait", "localize", "write", "end_to_end")


class LatencyHistogram:
    """Durations counted in buckets 1 % apart, from a microsecond to almost three hours.

    Attributes:
        count: durations added.
        maximum: the longest, in seconds.

    Example:
        >>> latency = LatencyHistogram()
        >>> for milliseconds in range(1, 101):
        ...     latency.add(milliseconds / 1000)
        >>> [round(latency.percentile(q) * 1000) for q in (50, 95, 100)]
        [50, 95, 100]
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)
        self._total = 0.0
        self.count = 0
        self.maximum = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration."""
        bucket = int(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _STEP)
        self._counts[min(bucket, _BUCKETS - 1)] += times
        self._total += seconds * times
        self.count += times
        self.maximum = max(self.maximum, seconds)

    @property
    def mean(self) -> float:
        """Mean duration in seconds, 0 without any."""
        return self._total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The shortest duration that this share of all does not exceed, within 0.5 %; in seconds.

        Args:
            percent: 0–100.
        """
        counted = np.cumsum(self._counts)
        rank = max(1, math.ceil(percent / 100 * counted[-1]))
        middle = _SHORTEST * math.exp((int(np.searchsorted(counted, rank)) + 0.5) * _STEP)
        return min(middle, self.maximum)

    def milliseconds(self) -> dict[str, float]:
        """The usual percentiles, mean and maximum in milliseconds."""
        figures = {f"p{q}": self.percentile(q) for q in (50, 95, 99)}
        figures |= {"mean": self.mean, "max": self.maximum}
        return {name: round(seconds * 1000, 3) for name, seconds in figures.items()}


class LiveStatistics:
    """What a live loop has done so far.

    Attributes:
        read: frames that came from the source.
        skipped: frames of a live source that a newer one replaced before the localizer was free,
            and those that came when the loop had already been ended.
        unreadable: damaged frames that the source left out.
        missing: frames that a file announces and does not have, known at its end.
        accepted: frames handed to the localizer; each of them gets a result.
        localized: frames with a result.
        written: frames whose result was written.
        stages: a :class:`LatencyHistogram` for each of ``read`` (waiting for and decoding a frame),
            ``wait`` (in front of the localizer), ``localize`` (the batch that a frame was in),
            ``write`` (waiting for the writer included) and ``end_to_end`` (from the frame's arrival
            to its result written).
        ended: ``"end"`` of the source, ``"stopped"``, ``"vanished"`` (the source gave out before
            its end), ``"failed"``, ``"aborted"`` (a second Ctrl-C) or, meanwhile, ``"running"``.
    """

    def __init__(self) -> None:
        self.read = self.skipped = self.unreadable = self.missing = 0
        self.accepted = self.localized = self.written = 0
        self.stages = {name: LatencyHistogram() for name in STAGES}
        self.ended = "running"
        self._begun = self._latest = time.perf_counter()

    def count_written(self, now: float) -> None:
        """One more result written."""
        self.written += 1
        self._latest = now

    @property
    def seconds(self) -> float:
        """From the start to the latest result."""
        return self._latest - self._begun

    @property
    def frames_per_second(self) -> float:
        """Results written per second."""
        return self.written / self.seconds if self.seconds > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, latencies in milliseconds."""
        counts = ("read", "skipped", "unreadable", "missing", "accepted", "localized", "written")
        return {
            "ended": self.ended,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
            "frames": {name: getattr(self, name) for name in counts},
            "latency_ms": {name: stage.milliseconds() for name, stage in self.stages.items()},
        }
