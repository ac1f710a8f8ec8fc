"""The live loop: nothing accepted is lost, whatever ends it, and it always ends."""

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.videos import cut_clip, damage_clip, write_clip
from tests.deploy.streams import Pictures, localize, numbers, run
from wsfast.deploy import LiveLoop, LocalizedFrame, VideoSource
from wsfast.deploy.channel import Channel

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


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


def test_a_batch_of_a_file_may_be_larger_than_the_queue() -> None:
    entered, filled = threading.Event(), threading.Event()
    sizes = []

    def plan() -> Iterator[int]:
        yield 0
        assert entered.wait(5)  # the first frame is being localized
        yield from range(1, 13)
        filled.set()

    def held(images: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(images))
        entered.set()
        assert filled.wait(2)
        return localize(images)

    run(Pictures(plan()), held, batch_size=12, queue=2)
    assert sizes == [1, 12]


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


@pytest.mark.parametrize("argument", ["batch_size", "queue"])
def test_sizes_are_at_least_one(argument: str) -> None:
    with pytest.raises(ValueError, match=f"LiveLoop: {argument} must be at least 1, got 0"):
        LiveLoop(Pictures(range(1)), localize, lambda found: None, **{argument: 0})


@pytest.mark.parametrize(
    ("argument", "value"),
    [("channels", 2), ("retries", -1), ("retry_seconds", -0.1), ("patience", 0), ("patience", "9")],
)
def test_other_arguments_out_of_range(argument: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"LiveLoop: {argument} must be"):
        LiveLoop(Pictures(range(1)), localize, lambda found: None, **{argument: value})


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
