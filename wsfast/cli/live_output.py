"""The files that ``wsfast localize --live`` writes, and what it says at the end."""

import argparse
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._files import JSONLines, write_atomically
from ..deploy import (
    GradientLocalizer,
    LiveStatistics,
    LocalizedFrame,
    Localizer,
    MatroskaWriter,
    VideoSource,
)
from .drawing import Image, localization_overlay, write_text
from .methods import method_settings
from .opening import DEFAULT_METHOD
from .records import picture_record

RESULTS, VIDEO, SUMMARY = "results.jsonl", "annotated.mkv", "summary.json"
_CLOSE_SECONDS = 1.0  # for the frame that another thread is writing


def frame_record(found: LocalizedFrame, class_names: tuple[str, ...]) -> dict[str, Any]:
    """A frame's line of results.jsonl; boxes are half-open pixels."""
    height, width = found.frame.image.shape[:2]
    return {
        "frame": found.frame.index,
        "seconds": round(found.frame.seconds, 4),
        **picture_record(
            (height, width), found.logits, found.boxes, found.scores, found.count, class_names
        ),
        "valid": bool(found.logits.isfinite().all()),
        "milliseconds": round(found.milliseconds, 3),
    }


class Output:
    """The files of a run: of each frame first its picture is written, then its line.

    One thread writes while another may close: a frame is written whole or, after that, not at all.

    Attributes:
        latest: the newest picture, for whoever shows it.
    """

    def __init__(
        self,
        source: VideoSource,
        localizer: Localizer | GradientLocalizer,
        options: argparse.Namespace,
    ) -> None:
        out: Path = options.out
        out.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, VIDEO, SUMMARY):
            (out / name).unlink(missing_ok=True)
        fps = None if source.live else source.fps
        self._lines = JSONLines(out / RESULTS)
        self._video = None if options.no_video else MatroskaWriter(out / VIDEO, fps=fps)
        self._summary = out / SUMMARY
        self._settings = _settings(source, localizer, options)
        self._class_names = localizer.class_names
        self._draw = options.display or not options.no_video
        self._writing = threading.Lock()
        self._closed = False
        self.latest: Image | None = None

    def write(self, found: LocalizedFrame) -> None:
        """Write one frame's results; once closed, nothing."""
        record = frame_record(found, self._class_names)
        picture = _picture(found, record) if self._draw else None
        with self._writing:
            if self._closed:
                return
            if self._video is not None and picture is not None:
                self._video.write(picture, found.frame.seconds)
            self._lines.write(record)
        self.latest = picture

    def write_summary(self, statistics: LiveStatistics, **more: str) -> None:
        """Write summary.json, whole or not at all."""
        summary = {**self._settings, **statistics.summary(), **more}
        write_atomically(self._summary, json.dumps(summary, indent=1).encode())

    def close(self) -> None:
        """Complete the other files; where a write hangs they stay as they are, which plays too."""
        self._closed = True
        if not self._writing.acquire(timeout=_CLOSE_SECONDS):
            return
        try:
            self._lines.close()
            if self._video is not None:
                self._video.close()
        finally:
            self._writing.release()


def _picture(found: LocalizedFrame, record: dict[str, Any]) -> Image:
    """The frame under its map, with outline, boxes, scores and the predicted class."""
    picture = localization_overlay(
        found.frame.image,
        found.cam.numpy(),
        found.mask.numpy(),
        found.boxes.numpy(),
        found.scores.numpy(),
    )
    if record["valid"]:
        text = f"{record['predicted_name']} {record['probability']:.2f}"
        write_text(picture, text, (4, picture.shape[0] - 6), (255, 255, 255))
    return picture


def _settings(
    source: VideoSource, localizer: Localizer | GradientLocalizer, options: argparse.Namespace
) -> dict[str, Any]:
    gradients = isinstance(localizer, GradientLocalizer)
    chosen = method_settings(localizer.method) if gradients else {}
    of_run = chosen.get("method", "of the run")
    return {
        "source": source.name,
        "live": source.live,
        "fps": source.fps,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": options.model or str(options.folder or options.checkpoint),
        **chosen,
        "method": options.method or (DEFAULT_METHOD if options.folder is None else of_run),
        "input_size": list(localizer.input_size),
    }


def report(statistics: LiveStatistics, out: Path) -> str:
    """Counts, throughput and a table of latencies."""
    figures = statistics.summary()
    ways = {
        "end": "end of the source",
        "stopped": "stopped; everything read was written",
        "vanished": "the source gave out before its end",
    }
    frames = ", ".join(f"{count} {name}" for name, count in figures["frames"].items())
    lines = [
        f"{ways[statistics.ended]}; results in {out}",
        f"frames: {frames}; {figures['frames_per_second']:.1f} per second",
        f"{'latency, ms':<12}" + "".join(f"{q:>10}" for q in ("p50", "p95", "p99", "max")),
    ]
    for stage, latency in figures["latency_ms"].items():
        numbers = (latency[q] for q in ("p50", "p95", "p99", "max"))
        lines.append(f"{stage:<12}" + "".join(f"{number:>10.1f}" for number in numbers))
    return "\n".join(lines)


def short_report(statistics: LiveStatistics) -> str:
    """Throughput, latency and losses in one short line."""
    total = statistics.stages["end_to_end"]
    latency = "/".join(f"{1000 * total.percentile(q):.0f}" for q in (50, 95, 99))
    lost = f"{statistics.skipped} skipped, {statistics.unreadable} unreadable"
    return f"{statistics.frames_per_second:.1f}/s, p50/95/99 {latency} ms, {lost}"
