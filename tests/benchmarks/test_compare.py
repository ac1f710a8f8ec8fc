"""The comparison of runs: no alarm on a slow day, one on a slowdown; seeded simulations."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks import compare
from benchmarks.compare import shift_between, shift_of, unrest_of, verdict
from benchmarks.records import MemoryRow, Row, Size
from tests.benchmark_rows import SIZE, results, row

PEERS = {"peer": 3e-3, "slow peer": 2e-2, "copy": 4e-4}
ERROR_RATE = 0.05
ALL = {"wsfast": 1e-3, **PEERS}


def contenders(
    rng: np.random.Generator,
    *,
    slower: dict[str, float] | None = None,
    noise: float = 0.03,
    machine: float = 1.0,
    rounds: int = 60,
    names: dict[str, float] = ALL,
) -> dict[str, Row]:
    """Rounds on a machine that drifts, with noise of each contender and now and then a hiccup."""
    drift = np.zeros(rounds)
    for i in range(1, rounds):
        drift[i] = 0.95 * drift[i - 1] + rng.normal(0, noise)
    found = {}
    for name, seconds in names.items():
        hiccups = np.where(rng.random(rounds) < 0.04, rng.uniform(1.2, 3, rounds), 1.0)
        factor = machine * (slower or {}).get(name, 1.0)
        own = np.exp(drift + rng.normal(0, noise, rounds)) * hiccups
        found[name] = row(name, list(seconds * factor * own))
    return found


def tally(times: int, seed: int, **now: object) -> Counter:
    """Verdicts on ours over many simulated pairs of runs; ``now`` is what the second has."""
    rng = np.random.default_rng(seed)
    pairs = ((contenders(rng), contenders(rng, **now)) for _ in range(times))
    return Counter(verdict(shift_of("wsfast", old, new), None) for old, new in pairs)


def test_interval_is_the_one_of_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    decisions = Counter()
    for n, m in ((8, 8), (12, 20), (20, 20), (5, 30)) * 30:
        old, new = rng.normal(0, 1, n), rng.normal(rng.uniform(-2, 2), 1, m)
        shift = shift_between(list(old), list(new))
        test = mannwhitneyu(new, old, method="asymptotic", use_continuity=False)
        assert (shift.low <= 0 <= shift.high) == (test.pvalue >= ERROR_RATE)
        assert shift.value == pytest.approx(np.median(new[:, None] - old[None]))
        decisions[bool(test.pvalue >= ERROR_RATE)] += 1
    assert min(decisions.values()) > 20


@pytest.mark.parametrize(("n", "m"), [(12, 9), (20, 5), (20, 20)])
def test_interval_covers_the_shift(n: int, m: int) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(500):
        found = shift_between(list(rng.standard_t(2, n)), list(0.5 + rng.standard_t(2, m)))
        hits += found.low <= 0.5 <= found.high
    assert hits >= 460
    two = shift_between([0.0] * 2, [1.0] * 2)
    assert (two.low, two.high) == (-math.inf, math.inf)
    three = shift_between([0.0] * 3, [1.0] * 3)  # 10 % of unchanged ones lie as far apart
    assert (three.low, three.high) == (-math.inf, math.inf)
    four = shift_between([0.0] * 4, [1.0] * 4)
    assert (four.low, four.high) == (1.0, 1.0)


def test_a_machine_slower_as_a_whole_is_no_regression() -> None:
    assert tally(100, 2, machine=1.8) == {"same": 100}


def test_false_alarms_are_rare() -> None:
    """Of 600 unchanged rows at 3 % and 6 % noise per round at most one may be called changed."""
    found = tally(300, 3) + tally(300, 4, noise=0.06)
    assert found["slower"] + found["faster"] <= 1
    assert found["same"] >= 590


@pytest.mark.parametrize(("factor", "kind"), [(1.2, "slower"), (1 / 1.2, "faster")])
def test_a_fifth_is_found(factor: float, kind: str) -> None:
    assert tally(100, 5, slower={"wsfast": factor}, machine=1.3)[kind] >= 98


def test_three_percent_is_no_change() -> None:
    assert tally(100, 6, slower={"wsfast": 1.03})["same"] == 100


def test_one_contender_with_a_bad_day_decides_nothing() -> None:
    assert tally(50, 7, slower={"copy": 0.5}) == {"same": 50}
    assert tally(50, 8, slower={"copy": 1.9, "wsfast": 1.3})["slower"] == 50


def test_noise_is_admitted() -> None:
    rng = np.random.default_rng(9)
    few = contenders(rng, rounds=2), contenders(rng, rounds=2, slower={"wsfast": 2.0})
    assert verdict(shift_of("wsfast", *few), None) == "too noisy to say"
    wild = (contenders(rng, noise=0.6, rounds=8) for _ in range(2))
    assert verdict(shift_of("wsfast", *wild), None) == "too noisy to say"
    alone = {"wsfast": row("wsfast", [1.0] * 20)}
    assert shift_of("wsfast", alone, alone) is None
    assert verdict(None, None) == "too noisy to say"


def test_unrest_of_unchanged_contenders_raises_the_bar() -> None:
    """From run to run each contender's level moves, which no round of one run can tell."""
    rng = np.random.default_rng(10)
    runs = []
    for _ in range(2):
        rows = []
        for i in range(40):
            levels = {name: math.exp(rng.normal(0, 0.12)) for name in ALL}
            found = contenders(rng, slower=levels)
            rows += [replace(r, size=Size(i, 8)) for r in found.values()]
        runs.append({"room": results(*rows)})
    found = compare.compare(*runs)
    assert found.unrest is not None
    assert found.unrest > math.log(1.2)
    kinds = Counter(change.kind for change in found.changes)
    assert kinds["slower"] + kinds["faster"] <= 2
    assert unrest_of([]) is None


def test_quiet_contenders_leave_the_bar_at_ten_percent() -> None:
    rng = np.random.default_rng(11)
    runs = [
        {
            "room": results(
                *(
                    replace(r, size=Size(i, 8))
                    for i in range(10)
                    for r in contenders(rng, slower={"wsfast": factor}).values()
                )
            )
        }
        for factor in (1.0, 1.2)
    ]
    found = compare.compare(*runs)
    assert found.unrest is not None
    assert found.unrest < math.log(1.1)
    assert {change.kind for change in found.changes} == {"slower"}
    assert len(found.regressions) == 10


def both(name: str, **changes: object) -> tuple[Row, Row]:
    return row("wsfast", [1.0] * 9, operation=name, **changes), row(
        "peer", [2.0] * 9, operation=name
    )


def test_rows_that_came_went_or_went_wrong() -> None:
    old = results(*both("kept"), *both("broken"), *both("mended", state="wrong", error=1.0))
    new = results(
        *both("kept", error=1e-3), *both("broken", state="wrong", error=1.0), *both("mended"),
        *both("born"),
    )  # fmt: skip
    old = replace(old, rows=(*old.rows, *both("gone", size=Size(7, 7))))
    found = compare.compare({"room": old, "unmeasured now": old}, {"room": new})
    kinds = {change.new.operation: change.kind for change in found.changes}
    assert kinds == {"kept": "same", "broken": "WRONG", "mended": "right again"}
    assert [change.new.operation for change in found.regressions] == ["broken"]
    assert f"room: only in the new run: born ({SIZE.label})" in found.warnings
    assert "room: only in the old run: gone (7x7x7)" in found.warnings
    text = compare.section(found, Path("old.json")).text()
    assert "0.0e+00 → 1.0e-03" in text
    assert text.index("WRONG") < text.index("same")


def test_other_machines_and_more_memory_are_named() -> None:
    def memory(amount: int) -> tuple[MemoryRow]:
        return (MemoryRow("room", "kept", "2x4x4", "wsfast", amount, 10, "x", None, "rss"),)

    old = results(*both("kept"), memory=memory(10_000_000))
    new = results(
        *both("kept"),
        memory=memory(15_000_000),
        threads=4,
        load_before=2.5,
        packages={"torch": "2.12", "numpy": "2"},
    )
    said = "\n".join(compare.compare({"room": old}, {"room": new}).warnings)
    for part in (
        "threads was 2, is 4",
        "torch was 2.11, is 2.12",
        "numpy was unknown, is 2",
        "busy before the new run (load 2.5)",
    ):
        assert part in said
    assert "extra memory of kept, 2x4x4 was 10.0 MB, is 15.0 MB" in said
    assert compare.compare({"room": old}, {"room": old}).warnings == []
    assert compare.compare({"a": old}, {"b": old}).warnings == ["no room was measured in both runs"]
