"""What every test of the live loop has to hold to."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.deploy.streams import JOIN
from wsfast.deploy import stream


@pytest.fixture
def no_thread_is_left(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(stream, "_JOIN_SECONDS", JOIN)
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
