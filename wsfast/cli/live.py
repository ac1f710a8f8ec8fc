"""``wsfast localize --live``: a video file, a camera or a stream, with results while it runs."""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._check import value_error
from ..cam import SmoothGradCAMPlusPlus
from ..cam.perturbation import PerturbationCAM
from ..deploy import (
    GradientLocalizer,
    LiveLoop,
    LiveStatistics,
    Localizer,
    VideoSource,
)
from ..deploy.replay import ReplayedLocalizer
from ..train.interrupt import StopRequest, stop_on_signals
from .arguments import check_left_out
from .live_output import RESULTS, SUMMARY, VIDEO, Output, report, short_report
from .methods import method_inside
from .opening import try_localizer
from .window import Window, check_windows

VANISHED = 3  # exit code: the source gave out before its end
RETRY_SECONDS = 1.0  # between two attempts to open a camera again

DESCRIPTION = f"""\
With --live, IMAGES is one video file, the index of a camera, or an address (rtsp://...).
{RESULTS} (a line per frame), {VIDEO} and {SUMMARY} (counts, latencies) can be read
while it runs, and after a kill. Of a file every frame is localized, of a camera the newest; a
frame once taken always gets its result. Ctrl-C and SIGTERM finish what was read and end with
exit code 130 or 143; a second Ctrl-C ends at once. Where the source gives out before its end,
what it gave is written and the exit code is {VANISHED}."""

OPTIONS = ("queue", "no_video", "display", "overwrite")  # which have no effect without --live

_FILE_BATCH, _CAMERA_BATCH = 8, 1
_QUEUE = 8
_MANY_PASSES = (PerturbationCAM, SmoothGradCAMPlusPlus)
_PATIENCE, _SLOW_PATIENCE = 120.0, 3600.0  # seconds for a batch; for methods of many passes
_SUMMARY_SECONDS = 5.0
_FIGURES_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the live mode."""
    live = parser.add_argument_group("live", DESCRIPTION)
    live.add_argument("--live", action="store_true", help="localize while the frames come in")
    live.add_argument(
        "--queue",
        type=int,
        help="frames that may wait between stages, of a file at least a batch in front of the "
        f"model (default: {_QUEUE})",
    )
    live.add_argument("--no-video", action="store_true", help=f"write no {VIDEO}")
    live.add_argument(
        "--display",
        action="store_true",
        help="show a window; q, or closing it, ends (needs opencv-python in place of "
        "opencv-python-headless, which wsfast is installed with)",
    )
    live.add_argument(
        "--overwrite", action="store_true", help="replace the results of an earlier live run"
    )


def open_source(options: argparse.Namespace) -> VideoSource:
    """The source that the options name.

    Raises:
        ValueError: no such source, options that do not go with one, results that are there already.
    """
    if len(options.images) != 1:
        value_error("localize", "--live", "given with one source", f"{len(options.images)}")
    check_left_out("localize", options, ("compare", "npy", "refine"), "--live")
    _check_source_kept(options.images[0], options.out)
    for name in (RESULTS, VIDEO, SUMMARY):
        if (options.out / name).is_dir():
            expected = "a folder whose results can be replaced"
            value_error("localize", "--out", expected, f"{options.out} with a folder {name}")
    found = [name for name in (RESULTS, VIDEO, SUMMARY) if (options.out / name).exists()]
    if found and not options.overwrite:
        expected = "a folder without results (--overwrite replaces them)"
        value_error("localize", "--out", expected, f"{options.out} with {found[0]}")
    if options.display:
        check_windows()
    return VideoSource(options.images[0])


def _check_source_kept(source: str, out: Path) -> None:
    """Raise ValueError where one of the files that a run writes is the one that it reads."""
    for name in (RESULTS, VIDEO, SUMMARY):
        with contextlib.suppress(OSError):  # no file, such as the index of a camera
            if (out / name).samefile(source):
                expected = "another folder than the source's, which would be replaced"
                value_error("localize", "--out", expected, f"{out} with {name}")


def keep_live_results(out: Path) -> None:
    """Refuse a folder whose results.jsonl is of a live run, for a run over files.

    Raises:
        ValueError: it is; a live run has written another of its files beside it.
    """
    found = [name for name in (SUMMARY, VIDEO) if (out / name).exists()]
    if found and (out / RESULTS).exists():
        expected = "a folder without the results of a live run"
        value_error("localize", "--out", expected, f"{out} with {RESULTS} and {found[0]}")


def written(out: Path) -> list[Path]:
    """The video that an earlier run has written to its folder."""
    return [out / VIDEO] if (out / SUMMARY).is_file() else []


class Watcher:
    """Looks after the loop ten times a second: signals, bar, window and summary.json."""

    def __init__(
        self,
        loop: LiveLoop,
        output: Output,
        request: StopRequest,
        bar: Any,
        window: Window | None,
    ) -> None:
        self._loop, self._output, self._request = loop, output, request
        self._bar, self._window = bar, window
        self._due = {"figures": 0.0, "summary": 0.0}

    def watch(self, statistics: LiveStatistics) -> None:
        """Bring everything up to date that is due."""
        if self._request.number:
            self._loop.stop()
        if self._is_due("figures", _FIGURES_SECONDS):
            self._bar.set_postfix_str(short_report(statistics), refresh=False)
        self._bar.update(statistics.written - self._bar.n)
        if self._is_due("summary", _SUMMARY_SECONDS):
            with contextlib.suppress(OSError):  # the last one tells, if it fails as well
                self._output.write_summary(statistics)
        picture = self._output.latest
        if self._window and picture is not None and not self._window.show(picture):
            self._loop.stop()

    def finish(self, statistics: LiveStatistics) -> None:
        """Show the last figures; the window goes."""
        if self._window:
            self._window.close()
        self._bar.update(statistics.written - self._bar.n)
        self._bar.set_postfix_str(short_report(statistics))

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + seconds
        return True


def run(
    source: VideoSource, localizer: Localizer | GradientLocalizer, options: argparse.Namespace
) -> int:
    """Run the loop to its end and say how it went."""
    try_localizer(localizer)
    output = Output(source, localizer, options)
    loop = _build_loop(source, localizer, output, options)
    with (
        stop_on_signals() as request,
        tqdm(total=source.count or None, unit="frame", desc="localizing", mininterval=1.0) as bar,
    ):
        watcher = Watcher(loop, output, request, bar, Window() if options.display else None)
        try:
            watcher.watch(loop.statistics)  # summary.json is there from the first frame on
            loop.run(watcher.watch)
            output.close()
        except BaseException as error:
            _end_after(error, output, loop.statistics)
            raise
        watcher.finish(loop.statistics)
    output.write_summary(loop.statistics)
    print(report(loop.statistics, options.out))
    if not loop.statistics.read:
        print("wsfast localize: no frame could be read", file=sys.stderr)
    return exit_code(loop.statistics, request.number)


def _build_loop(
    source: VideoSource,
    localizer: Localizer | GradientLocalizer,
    output: Output,
    options: argparse.Namespace,
) -> LiveLoop:
    slow = isinstance(method_inside(getattr(localizer, "method", None)), _MANY_PASSES)
    batch_size = options.batch_size or (_CAMERA_BATCH if source.live or slow else _FILE_BATCH)
    device = localizer.mean.device
    replayed = device.type == "cuda" and isinstance(localizer, Localizer)
    return LiveLoop(
        source,
        ReplayedLocalizer(localizer, batch_size) if replayed else localizer,
        output.write,
        batch_size=batch_size,
        queue=options.queue or _QUEUE,
        channels=localizer.channels,
        device=device,
        retry_seconds=RETRY_SECONDS,
        patience=_SLOW_PATIENCE if slow else _PATIENCE,
    )


def _end_after(error: BaseException, output: Output, statistics: LiveStatistics) -> None:
    """Complete what can be completed; the error is what the user is to see, not what follows."""
    with contextlib.suppress(OSError):
        output.close()
    with contextlib.suppress(OSError):
        output.write_summary(statistics, error=repr(error))


def exit_code(statistics: LiveStatistics, signal: int) -> int:
    """0 at the source's end, 2 without a frame, 3 for a source that is gone, 128 + the signal."""
    if statistics.ended == "stopped":
        return 128 + signal if signal else 0
    if not statistics.written:
        return 2
    return VANISHED if statistics.ended == "vanished" else 0
