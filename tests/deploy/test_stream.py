"""The live loop: nothing accepted is lost, whatever ends it, and it always ends."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.videos import cut_clip, damage_clip, write_clip
from wsfast.deploy import LiveFrame, LiveLoop, LocalizedFrame, VideoSource, stream
from wsfast.deploy.channel import Channel

JOIN = 0.3


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(stream, "_JOIN_SECONDS", JOIN)
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


class Pictures:
    """A source of frames that show their own number; of ``None`` in ``plan`` it is gone once."""

    def __init__(self, plan: range | list[int | None], *, live: bool = False) -> None:
        self.plan, self.live = iter(plan), live
        self.unreadable = self.missing = self.reopened = 0
        self.closed = False

    def read(self) -> LiveFrame | None:
        number = next(self.plan, None)
        if number is None:
            return None
        shape = (12, 20, 3) if number % 50 < 40 else (10, 16, 3)  # as a camera that changes mode
        return LiveFrame(number, number / 30, np.full(shape, number % 256, np.uint8))

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True


def localize(images: Tensor) -> tuple[Tensor, ...]:
    """The image's grey level as logits and map, one box in boxes for three."""
    n, _, height, width = images.shape
    cams = images[:, 0] / 255
    boxes = torch.full((n, 3, 4), -1, dtype=torch.int32)
    boxes[:, 0] = torch.tensor([0, 0, width, height])
    scores = torch.zeros(n, 3)
    level = images[:, :, 0, 0].float()
    return level, cams, cams > 0.5, boxes, scores, torch.ones(n, dtype=torch.int32)


def run(
    source: Pictures | VideoSource,
    localizer: Callable[[Tensor], tuple[Tensor, ...]] = localize,
    write: Callable[[LocalizedFrame], None] = lambda found: None,
    **options: object,
) -> tuple[LiveLoop, list[LocalizedFrame]]:
    results: list[LocalizedFrame] = []

    def keep(found: LocalizedFrame) -> None:
        write(found)
        results.append(found)

    loop = LiveLoop(source, localizer, keep, retry_seconds=0.001, **options)
    loop.run()
    return loop, results


def numbers(results: list[LocalizedFrame]) -> list[int]:
    return [found.frame.index for found in results]


def test_every_frame_of_a_file_gets_its_own_result_in_order() -> None:
    source = Pictures(range(200))
    loop, results = run(source)
    assert numbers(results) == list(range(200))
    for found in results:
        height, width = found.frame.image.shape[:2]
        assert found.logits.tolist() == [found.frame.index] * 3
        assert found.cam.shape == found.mask.shape == (height, width)
        assert found.boxes.tolist() == [[0, 0, width, height]]
        assert len(found.scores) == found.count == 1
    statistics = loop.statistics
    assert statistics.ended == "end"
    counts = (statistics.read, statistics.accepted, statistics.localized, statistics.written)
    assert counts == (200,) * 4
    assert statistics.skipped == 0
    assert source.closed
    assert all(stage.count == 200 for stage in statistics.stages.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_batches_of_what_waits(channels: int) -> None:
    shapes = []

    def slow(images: Tensor) -> tuple[Tensor, ...]:
        shapes.append(tuple(images.shape))
        assert images.dtype == torch.uint8
        time.sleep(0.005)
        return localize(images)

    run(Pictures(range(39)), slow, batch_size=4, queue=6, channels=channels)
    sizes = [shape[0] for shape in shapes]
    assert {shape[1:] for shape in shapes} == {(channels, 12, 20)}
    assert sum(sizes) == 39
    assert max(sizes) == 4


def test_a_file_waits_for_a_slow_writer() -> None:
    ahead = []
    source = Pictures(range(60))
    loop = LiveLoop(source, localize, lambda found: time.sleep(0.002), batch_size=2, queue=3)
    loop.run(lambda statistics: ahead.append(statistics.read - statistics.written))
    assert loop.statistics.written == 60
    # two queues of three, a batch of two, one in the writer's hands and one in the reader's
    assert max(ahead) <= 3 + 3 + 2 + 1 + 1


def test_the_newest_frame_of_a_camera_wins() -> None:
    entered, ready = threading.Event(), threading.Event()

    def plan() -> Iterator[int]:
        yield 0
        assert entered.wait(5)  # the first frame is being localized
        yield from range(1, 11)
        ready.set()

    def held(images: Tensor) -> tuple[Tensor, ...]:
        entered.set()
        assert ready.wait(5)
        return localize(images)

    loop, results = run(Pictures(plan(), live=True), held, batch_size=1, retries=0)
    assert numbers(results) == [0, 10]
    statistics = loop.statistics
    assert (statistics.read, statistics.skipped, statistics.accepted) == (11, 9, 2)


def test_what_a_camera_has_given_is_skipped_or_has_one_result() -> None:
    def slow(images: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.004)
        return localize(images)

    def plan() -> Iterator[int]:
        for number in range(300):
            time.sleep(0.0005)
            yield number

    loop, results = run(Pictures(plan(), live=True), slow, batch_size=2, queue=2, retries=0)
    statistics = loop.statistics
    assert statistics.read == 300
    assert statistics.skipped > 0
    assert statistics.read == statistics.skipped + statistics.accepted
    assert statistics.accepted == statistics.localized == statistics.written == len(results)
    found = numbers(results)
    assert found == sorted(set(found))
    assert found[-1] == 299


def test_a_camera_that_is_gone_is_opened_again_a_few_times() -> None:
    source = Pictures([0, 1, None, None, 2, None, 3], live=True)
    loop, results = run(source, batch_size=8, retries=3)
    assert numbers(results) == [0, 1, 2, 3]
    assert source.reopened == 2 + 1 + 3
    assert loop.statistics.ended == "vanished"
    assert loop.statistics.written == 4


def test_damage_and_a_cut_file_are_reported(tmp_path: Path) -> None:
    clip = damage_clip(write_clip(tmp_path / "clip.avi", range(0, 240, 10)), [4, 9])
    loop, results = run(VideoSource(clip))
    assert numbers(results) == list(range(22))
    assert loop.statistics.unreadable == 2
    assert loop.statistics.ended == "end"
    assert [f.frame.seconds for f in results][3:5] == pytest.approx([0.3, 0.5])
    loop, results = run(VideoSource(cut_clip(clip, before=12)))
    assert len(results) == 10
    assert loop.statistics.ended == "vanished"
    assert (loop.statistics.unreadable, loop.statistics.missing) == (2, 12)


class StreamHandler(http.server.BaseHTTPRequestHandler):
    """A Motion JPEG stream that breaks off after ten frames, and is gone after the second time."""

    broken = 0

    def do_GET(self) -> None:
        if StreamHandler.broken == 2:
            self.send_error(404)
            return
        StreamHandler.broken += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for grey in range(10):
            jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 20 * grey, np.uint8))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
            self.wfile.flush()
            time.sleep(0.02)

    def log_message(self, *words: object) -> None:
        pass


def test_a_stream_that_breaks_off_is_taken_up_again(monkeypatch) -> None:
    monkeypatch.setattr(StreamHandler, "broken", 0)
    monkeypatch.delenv("http_proxy", raising=False)  # FFmpeg would ask it
    with http.server.HTTPServer(("127.0.0.1", 0), StreamHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        source = VideoSource(f"http://127.0.0.1:{server.server_port}/camera")
        assert source.live
        loop, results = run(source, batch_size=32, retries=2)
        server.shutdown()
        thread.join()
    assert loop.statistics.ended == "vanished"
    assert loop.statistics.read >= 16  # FFmpeg may keep the last frame before a break to itself
    assert loop.statistics.written == loop.statistics.read
    assert numbers(results) == list(range(len(results)))
    times = [found.frame.seconds for found in results]
    assert times == sorted(times)


def test_a_stop_finishes_what_was_read() -> None:
    loop: LiveLoop
    results = []

    def slow(found: LocalizedFrame) -> None:
        time.sleep(0.003)
        results.append(found.frame.index)
        if len(results) == 5:
            loop.stop()

    source = Pictures(range(10_000))
    loop = LiveLoop(source, localize, slow)
    statistics = loop.run()
    assert statistics.ended == "stopped"
    assert results == list(range(statistics.read))
    assert statistics.written == statistics.read < 100
    assert source.closed


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


@pytest.mark.parametrize("argument", ["batch_size", "queue"])
def test_sizes_are_at_least_one(argument: str) -> None:
    with pytest.raises(ValueError, match=f"LiveLoop: {argument} must be at least 1, got 0"):
        LiveLoop(Pictures(range(1)), localize, lambda found: None, **{argument: 0})


def test_a_channel_wakes_those_who_wait_when_it_closes() -> None:
    full, empty = Channel[int](1), Channel[int](1)
    assert full.put(1)
    answers: dict[str, object] = {}
    waiting = [
        threading.Thread(target=lambda: answers.update(put=full.put(2))),
        threading.Thread(target=lambda: answers.update(take=empty.take(1))),
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert answers == {}
    full.close()
    empty.close()
    for thread in waiting:
        thread.join(5)
    assert answers == {"put": False, "take": []}
    assert full.take(9) == [1]
    assert full.put_newest(3) == 1
    assert full.take(9) == []


@pytest.mark.parametrize("source", ["nowhere.avi", "."])
def test_a_source_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ValueError, match="source must be an existing video file, the index of"):
        VideoSource(source)
