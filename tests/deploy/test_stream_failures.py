"""The live loop when a stage fails, hangs or is interrupted: what was accepted is written."""

import threading
import time

import pytest
from torch import Tensor

from tests.deploy.streams import JOIN, Pictures, localize
from wsfast.deploy import LiveFrame, LiveLoop, LocalizedFrame

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class CameraOnFireError(Exception):
    """A fault that nobody has foreseen."""


@pytest.mark.parametrize("stage", ["read", "localize", "write", "watch"])
def test_an_error_in_any_stage_reaches_the_caller(stage: str) -> None:
    def fail_at(number: int, limit: int) -> None:
        if number >= limit:
            raise CameraOnFireError(stage)

    class Source(Pictures):
        def read(self) -> LiveFrame | None:
            frame = super().read()
            if stage == "read":
                fail_at(frame.index, 20)
            return frame

    def localizer(images: Tensor) -> tuple[Tensor, ...]:
        if stage == "localize":
            fail_at(int(images.max()), 20)
        return localize(images)

    written = []

    def write(found: LocalizedFrame) -> None:
        if stage == "write":
            fail_at(found.frame.index, 20)
        written.append(found.frame.index)

    def watch(statistics: object) -> None:
        if stage == "watch":
            fail_at(len(written), 1)

    loop = LiveLoop(Source(range(10**9)), localizer, write, batch_size=4)
    with pytest.raises(CameraOnFireError, match=stage):
        loop.run(watch)
    assert loop.statistics.ended == "failed"
    assert written == list(range(len(written)))
    if stage == "read":
        assert len(written) == 20  # all that came before
    elif stage == "localize":
        assert 16 <= len(written) <= 20  # all batches before
    elif stage == "write":
        assert len(written) == 20
    assert loop.statistics.written == len(written)


def test_a_watcher_that_fails_costs_no_accepted_frame() -> None:
    written, calls = [], []

    def slow(found: LocalizedFrame) -> None:
        time.sleep(0.01)
        written.append(found.frame.index)

    def watch(statistics: object) -> None:
        calls.append(len(written))
        if written:
            raise CameraOnFireError

    source = Pictures(range(10**9))
    loop = LiveLoop(source, localize, slow)
    with pytest.raises(CameraOnFireError):
        loop.run(watch)
    statistics = loop.statistics
    assert statistics.ended == "failed"
    assert statistics.accepted == statistics.written == statistics.read == len(written)
    assert len(written) > calls[-1]  # frames were waiting, and it was not called again
    assert [count > 0 for count in calls].count(True) == 1
    assert source.closed


def test_a_frame_that_comes_after_the_end_counts_as_skipped() -> None:
    class Late(Pictures):
        def read(self) -> LiveFrame | None:
            frame = super().read()
            while frame.index == 3 and not loop._waiting.closed:
                time.sleep(0.01)
            return frame

    written = []
    source = Late(range(10))
    loop = LiveLoop(source, localize, lambda found: written.append(found.frame.index))

    def watch(statistics: object) -> None:
        if len(written) == 3:
            loop.stop()

    statistics = loop.run(watch)
    while not source.closed and not statistics.skipped:
        time.sleep(0.01)  # the reader may have been left behind
    assert written == [0, 1, 2]
    assert (statistics.read, statistics.skipped, statistics.written) == (4, 1, 3)


def test_threads_that_hang_share_one_deadline(monkeypatch) -> None:
    release = threading.Event()

    def hang(*_: object) -> None:
        release.wait(60)
        raise CameraOnFireError

    class Silent(Pictures):
        def read(self) -> LiveFrame | None:
            return super().read() if not loop.statistics.read else hang()

    waits = []
    join = threading.Thread.join

    def timed(thread: threading.Thread, timeout: float | None = None) -> None:
        if loop._stopping.is_set():
            waits.append(timeout)
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", timed)
    loop = LiveLoop(Silent(range(9)), hang, lambda found: None, patience=0.2)
    with pytest.raises(TimeoutError):
        loop.run()
    release.set()
    assert len(waits) == 3
    assert 0 < waits[0] <= JOIN
    assert waits[1] == 0  # the first has used it up


def test_a_second_interrupt_drops_what_waits() -> None:
    def slow(found: LocalizedFrame) -> None:
        time.sleep(0.01)

    def watch(statistics: object) -> None:
        raise KeyboardInterrupt

    loop = LiveLoop(Pictures(range(10**9)), localize, slow)
    with pytest.raises(KeyboardInterrupt):
        loop.run(watch)
    assert loop.statistics.ended == "aborted"
    assert loop.statistics.written < loop.statistics.read


def test_a_silent_camera_does_not_keep_the_loop_from_ending() -> None:
    silence = threading.Event()

    class Silent(Pictures):
        def read(self) -> LiveFrame | None:
            frame = super().read()
            if frame is None:
                silence.wait(60)
            return frame

    source = Silent(range(3), live=True)
    written = []
    loop = LiveLoop(source, localize, lambda found: written.append(found.frame.index))

    def watch(statistics: object) -> None:
        if len(written) == 3:
            loop.stop()

    begun = time.monotonic()
    statistics = loop.run(watch)
    assert time.monotonic() - begun < 20
    assert statistics.ended == "stopped"
    assert statistics.written == 3 - statistics.skipped
    assert not source.closed  # it is still in use
    silence.set()


def test_a_localizer_that_hangs_is_given_up() -> None:
    release = threading.Event()

    def hangs(images: Tensor) -> tuple[Tensor, ...]:
        release.wait(60)
        return localize(images)

    loop = LiveLoop(Pictures(range(100)), hangs, lambda found: None, patience=0.3)
    with pytest.raises(TimeoutError, match=r"no frame was finished for 0\.3 seconds"):
        loop.run()
    release.set()


def test_a_process_that_was_stopped_meanwhile_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-Z and fg: the clock has run on while no thread did."""
    stopped, clock, written = [0.0], time.monotonic, []
    monkeypatch.setattr(time, "monotonic", lambda: clock() + stopped[0])

    def wakes_later(images: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.15)
        stopped[0] += 1000
        time.sleep(0.15)
        return localize(images)

    LiveLoop(Pictures(range(12)), wakes_later, written.append, batch_size=4, patience=5.0).run()
    assert len(written) == 12
