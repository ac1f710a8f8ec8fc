"""Live localisation: reading, inference and writing side by side, with bounded queues between."""

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from wsfast._check import check_count, check_range, value_error
from wsfast.data.sample import image_to_tensor
from wsfast.deploy.channel import Channel
from wsfast.deploy.latency import LiveStatistics
from wsfast.deploy.sources import FrameSource, LiveFrame

T = TypeVar("T")

_TICK = 0.1  # seconds between two calls of the watcher
_LONGEST_TICK = 1.0  # between two that are longer apart the process itself was stopped
_JOIN_SECONDS = 3.0  # what threads that were told to end may take, such as a camera that is silent


@dataclass(frozen=True, slots=True, eq=False)
class LocalizedFrame:
    """A frame and what was found in it; tensors on the CPU, sizes in the frame's own pixels.

    Attributes:
        frame: the picture, its number and its time.
        logits: float32 (K,).
        cam: float32 (H, W) in 0-1.
        mask: bool (H, W).
        boxes: int32 (B, 4), half-open, without padding.
        scores: float32 (B,).
        count: components found, of which the largest B have a box.
        milliseconds: from the frame's arrival to this result.
    """

    frame: LiveFrame
    logits: Tensor
    cam: Tensor
    mask: Tensor
    boxes: Tensor
    scores: Tensor
    count: int
    milliseconds: float


class _Arrival(NamedTuple):
    frame: LiveFrame
    time: float


class _Finished(NamedTuple):
    found: LocalizedFrame
    arrived: float
    localized: float


class LiveLoop:
    """Reads frames, localizes and hands the results over, each in a thread of its own.

    A file waits: every frame is read, localized and written. A camera does not: up to
    ``batch_size`` of its newest frames wait for the localizer, older ones are skipped and counted.
    A frame that the localizer has accepted always gets its result, in the order of the frames.

    Whatever ends the loop - the source, :meth:`stop` or an error - ends it from the front: what was
    read before is still localized and written, unless that is what failed. A
    KeyboardInterrupt (a second Ctrl-C) and a stage that hangs drop what waits.

    Args:
        source: of the frames; closed at the end.
        localizer: ``localizer(images)`` with uint8 (N, C, H, W) gives logits, maps, masks, boxes,
            scores and counts, as :class:`wsfast.deploy.Localizer` does.
        write: called with each :class:`LocalizedFrame`, in one thread.
        batch_size: frames that are localized at a time, at most; never waited for.
        queue: frames that may wait in front of the localizer (of a file; ``batch_size`` where that
            is more) and of ``write``.
        channels: 3 for RGB, 1 for grey.
        device: where the localizer is.
        retries: how often a live source that is gone is opened again before it is given up, 0 for
            never.
        retry_seconds: pause before each.
        patience: seconds that a frame may take before the loop is given up, above 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import tempfile
        >>> import cv2, numpy as np
        >>> from wsfast.deploy.sources import VideoSource
        >>> clip = tempfile.mkdtemp() + "/clip.avi"
        >>> writer = cv2.VideoWriter(clip, cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
        >>> _ = [writer.write(np.zeros((24, 32, 3), np.uint8)) for _ in range(3)]
        >>> writer.release()
        >>> from wsfast import ops
        >>> def localizer(images):
        ...     maps = images[:, 0] / 255
        ...     found = ops.cam_boxes(maps, 0.5, max_boxes=4)
        ...     logits = torch.zeros(len(images), 2)
        ...     return logits, maps, maps >= 0.5, found.boxes, found.scores, found.counts
        >>> loop = LiveLoop(VideoSource(clip), localizer, lambda found: print(found.frame.index))
        >>> loop.run().ended
        0
        1
        2
        'end'
    """

    def __init__(
        self,
        source: FrameSource,
        localizer: Callable[[Tensor], Any],
        write: Callable[[LocalizedFrame], None],
        *,
        batch_size: int = 8,
        queue: int = 8,
        channels: int = 3,
        device: torch.device | str = "cpu",
        retries: int = 5,
        retry_seconds: float = 1.0,
        patience: float = 120.0,
    ) -> None:
        check_count("LiveLoop", "batch_size", batch_size, 1)
        check_count("LiveLoop", "queue", queue, 1)
        check_count("LiveLoop", "retries", retries, 0)
        check_range("LiveLoop", "retry_seconds", retry_seconds, 0.0, math.inf)
        check_range("LiveLoop", "patience", patience, 1e-3, math.inf)
        if channels not in (1, 3):
            value_error("LiveLoop", "channels", "1 or 3", f"{channels}")
        self._source, self._localizer, self._write = source, localizer, write
        self._batch_size, self._channels = batch_size, channels
        self._device = torch.device(device)
        self._retries, self._retry_seconds, self._patience = retries, retry_seconds, patience
        waiting = batch_size if source.live else max(queue, batch_size)
        self._waiting = Channel[_Arrival](waiting)
        self._finished = Channel[_Finished](queue)
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        self._reading_since: float | None = None  # while the source has the reader's thread
        self.statistics = LiveStatistics()

    def stop(self) -> None:
        """Read nothing more; what was read is still localized and written."""
        self._stopping.set()

    def run(self, watch: Callable[[LiveStatistics], None] | None = None) -> LiveStatistics:
        """Run to the end, once.

        Args:
            watch: called about ten times a second in the calling thread, until it fails.

        Returns:
            The statistics, complete.

        Raises:
            BaseException: what the source, the localizer, ``write`` or ``watch`` has raised.
            TimeoutError: nothing was finished for ``patience`` seconds though frames were waiting.
        """
        self.statistics = LiveStatistics()
        threads = [
            threading.Thread(target=self._stage, args=(work, inlet, outlet), daemon=True)
            for work, inlet, outlet in (
                (self._read, None, self._waiting),
                (self._localize, self._waiting, self._finished),
                (self._hand_over, self._finished, None),
            )
        ]
        try:
            for thread in threads:
                thread.start()
            self._supervise(threads, watch)
        except BaseException as error:
            self._failures.insert(0, error)
        self._give_up(threads)
        if self._failures:
            failed = isinstance(self._failures[0], Exception)
            self.statistics.ended = "failed" if failed else "aborted"
            raise self._failures[0]
        return self.statistics

    def _give_up(self, threads: list[threading.Thread]) -> None:
        """Drop what still waits and end the threads; those that hang are left behind."""
        self._stopping.set()
        self._waiting.abort()
        self._finished.abort()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            if thread.ident is not None:  # else it was not started
                thread.join(max(0.0, deadline - time.monotonic()))
        if not threads[0].is_alive():
            self._source.close()

    def _supervise(
        self,
        threads: list[threading.Thread],
        watch: Callable[[LiveStatistics], None] | None,
    ) -> None:
        """Wait for the last stage, with the watcher; a source that does not end is left behind."""
        writer = threads[-1]
        statistics = self.statistics
        progress, waited, before = (0, 0), 0.0, time.monotonic()
        while writer.is_alive():
            writer.join(_TICK)
            if watch is not None and not self._look(watch):
                watch = None
            now = time.monotonic()
            waited += min(now - before, _LONGEST_TICK)
            before = now
            since = self._reading_since
            if self._stopping.is_set() and since is not None and now - since > _JOIN_SECONDS:
                statistics.ended = "stopped"
                self._waiting.close()
            idle = statistics.written == statistics.read - statistics.skipped
            if idle or progress != (statistics.localized, statistics.written):
                progress, waited = (statistics.localized, statistics.written), 0.0
            elif waited > self._patience:
                raise TimeoutError(f"no frame was finished for {self._patience:g} seconds")

    def _look(self, watch: Callable[[LiveStatistics], None]) -> bool:
        """Call the watcher; where it fails, the loop is to end as it does at a stop."""
        try:
            watch(self.statistics)
        except Exception as error:
            self._failures.append(error)
            self._stopping.set()
            return False
        return True

    def _stage(
        self,
        work: Callable[[], None],
        inlet: Channel[Any] | None,
        outlet: Channel[Any] | None,
    ) -> None:
        """Run a stage; at its end the stage before may give nothing more and the next none get."""
        try:
            work()
        except BaseException as error:
            self._failures.append(error)
        finally:
            if inlet is not None:
                inlet.abort()
            if outlet is not None:
                outlet.close()

    def _read(self) -> None:
        statistics = self.statistics
        tries = 0
        while not self._waiting.closed:
            if self._stopping.is_set():
                statistics.ended = "stopped"
                return
            begun = time.perf_counter()
            frame = self._ask(self._source.read)
            statistics.unreadable = self._source.unreadable
            if frame is not None:
                self._arrive(frame, begun)
                tries = 0
            elif self._source.live and tries < self._retries:
                tries += 1
                if not self._stopping.wait(self._retry_seconds):
                    self._ask(self._source.reopen)
            else:
                statistics.missing = self._source.missing
                gone = self._source.live or self._source.missing
                statistics.ended = "vanished" if gone else "end"
                return

    def _ask(self, question: Callable[[], T]) -> T:
        """Call the source, which may take its time."""
        self._reading_since = time.monotonic()
        answer = question()
        self._reading_since = None
        return answer

    def _arrive(self, frame: LiveFrame, begun: float) -> None:
        """Count a frame and queue it."""
        now = time.perf_counter()
        self.statistics.read += 1
        self.statistics.stages["read"].add(now - begun)
        if self._source.live:
            self.statistics.skipped += self._waiting.put_newest(_Arrival(frame, now))
        else:
            self.statistics.skipped += not self._waiting.put(_Arrival(frame, now))

    def _localize(self) -> None:
        while arrivals := self._waiting.take(self._batch_size):
            self.statistics.accepted += len(arrivals)
            for _, same in itertools.groupby(arrivals, key=lambda a: a.frame.image.shape):
                for finished in self._localize_batch(list(same)):
                    if not self._finished.put(finished):
                        return

    def _localize_batch(self, arrivals: list[_Arrival]) -> list[_Finished]:
        """Localize frames of one size."""
        begun = time.perf_counter()
        images = [image_to_tensor(a.frame.image, self._channels) for a in arrivals]
        output = self._localizer(torch.stack(images).to(self._device))
        # copied on the CPU too: a localizer may use the memory of its output again
        copies = (part.detach().to("cpu", copy=True) for part in output)
        logits, cams, masks, boxes, scores, counts = copies
        now = time.perf_counter()
        stages = self.statistics.stages
        stages["localize"].add(now - begun, len(arrivals))
        found = []
        for i, (frame, arrived) in enumerate(arrivals):
            stages["wait"].add(begun - arrived)
            count = int(counts[i])
            kept = min(count, boxes.shape[1])
            result = LocalizedFrame(
                frame, logits[i], cams[i], masks[i], boxes[i, :kept], scores[i, :kept], count,
                (now - arrived) * 1000,
            )  # fmt: skip
            found.append(_Finished(result, arrived, now))
        self.statistics.localized += len(found)
        return found

    def _hand_over(self) -> None:
        statistics = self.statistics
        while items := self._finished.take(1):
            for found, arrived, localized in items:
                self._write(found)
                now = time.perf_counter()
                statistics.stages["write"].add(now - localized)
                statistics.stages["end_to_end"].add(now - arrived)
                statistics.count_written(now)
