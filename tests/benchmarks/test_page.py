"""The HTML page: one well-formed file that needs nothing else and holds every row."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import compare, page
from benchmarks.charts import decades, even_steps
from benchmarks.records import MemoryRow, RoomResults, Size, Target
from tests.benchmark_rows import SIZE, results, row


@pytest.fixture
def measured() -> RoomResults:
    rows = [
        row("wsfast", [1.0, 1.1, 1.2]),
        row("slow <peer>", [3.0, 3.1, 3.2], error=1e-7),
        row("fast peer", [0.5, 0.5, 0.6], error=1e-9),
        row("yardstick", [0.1, 0.1, 0.1], same_work=False, error=None),
        row("wrong peer", [0.1] * 3, state="wrong", error=0.3),
        row("missing", [], state="absent", reason="not installed", rounds=[], error=None),
    ]
    for side in (8, 16, 32):
        rows += [
            row("wsfast", [1e-6 * side**2] * 3, operation="grow & shrink", size=Size(2, side)),
            row("peer", [1e-6 * side**3] * 3, operation="grow & shrink", size=Size(2, side)),
        ]
    memory = (MemoryRow("room", "double", SIZE.label, "wsfast", 10**6, 10**7, "x", 0.2, "rss"),)
    targets = (Target(SIZE.label, 2, 4, ("fast peer",)),)
    return results(*rows, memory=memory, targets=targets)


def tree_of(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!doctype html>\n"))


def words_of(element: ElementTree.Element) -> str:
    return " ".join(element.itertext())


def test_the_page_is_well_formed_and_self_contained(measured: RoomResults) -> None:
    text = page.html({"room": measured})
    assert tree_of(text).tag == "html"
    for needless in ("http", "<script", "<link", "<img", "url(", "@import", "src="):
        assert needless not in text
    links = re.findall(r'href="([^"]*)"', text)
    assert links == ["#room"]
    assert "prefers-color-scheme: dark" in text


def test_every_row_is_there(measured: RoomResults) -> None:
    tree = tree_of(page.html({"room": measured}))
    cells = [[words_of(cell) for cell in line] for line in tree.iter("tr")]
    for found in measured.rows:
        assert any(line[0] == found.contender for line in cells), found.contender
    said = words_of(tree)
    for part in ("2.00× slower", "not installed", "WRONG", "MISSED", "error above", "1.0 MB"):
        assert part in said
    captions = {words_of(caption) for caption in tree.iter("caption")}
    assert {"grow & shrink, 2x8x8", "grow & shrink, 2x16x16", "grow & shrink, 2x32x32"} <= captions


def test_charts_show_losses_exponents_memory_and_errors(measured: RoomResults) -> None:
    tree = tree_of(page.html({"room": measured}))
    titles = [words_of(title) for title in tree.iter("h3")]
    assert titles == ["Speed-up", "Scaling", "Extra memory", "Error"]
    bars = [bar.get("class") for bar in tree.iter("rect")]
    # Headline size: slow peer, fast peer, yardstick, wrong peer; then no headline: three; memory.
    assert bars == ["win", "loss", "loss part", "loss part", "win", "win", "win", "s0"]
    said = words_of(tree)
    assert "wsfast: 1.00" in said
    assert "peer: 1.50" in said
    widths = [float(bar.get("width")) for bar in tree.iter("rect")]
    assert all(width >= 1 for width in widths)


def test_the_comparison_is_on_the_page(measured: RoomResults) -> None:
    found = compare.compare({"room": measured}, {"room": measured})
    text = page.html({"room": measured}, compare.section(found, Path("old.json")))
    assert "compared with old.json" in words_of(tree_of(text))


def test_rooms_measured_apart_carry_their_own_facts(measured: RoomResults) -> None:
    later = results(*measured.rows, date="tomorrow")
    said = words_of(tree_of(page.html({"one": measured, "other": later})))
    assert "today" in said
    assert "tomorrow" in said


def test_a_page_is_written_whole(tmp_path, measured: RoomResults) -> None:
    page.write({"room": measured}, tmp_path / "new" / "page.html")
    assert tree_of((tmp_path / "new" / "page.html").read_text()).tag == "html"


@pytest.mark.parametrize(("low", "high"), [(0.5, 3), (1e-9, 2.0), (0.9, 1.1), (3, 4e5)])
def test_ticks_lie_within(low: float, high: float) -> None:
    assert all(low <= tick <= high for tick in decades(low, high))
    assert len(decades(low, high)) in range(1, 10)
    assert max(even_steps(high)) <= high
