"""The benchmark harness: interleaving, errors, ratios, verdicts and the written report."""

import dataclasses
import doctest
import importlib
import itertools
import json
import math
import re
import threading
from collections.abc import Callable

import pytest
import torch

from benchmarks import report
from benchmarks.clocks import wall_clock, warm_up
from benchmarks.figures import fitted_exponent, judge, scaling, time_ratio
from benchmarks.harness import (
    Case,
    Contender,
    Settings,
    eager,
    measure,
    over_threads,
    relative_error,
    why_absent,
    with_own_modules,
)
from benchmarks.records import Declared, Row, Size, Target, by_room
from tests.benchmark_rows import FACTS, SIZE, row

MODULES = (
    "bench_truncation",
    "bench_fusion",
    "bench_boxes",
    "bench_levels",
    "bench_crf",
    "bench_cam",
    "bench_cam_grid",
    "bench_cam_others",
    "bench_train",
)


def case_of(*contenders: Contender) -> Case:
    return Case(
        room="room",
        operation="double",
        inputs=lambda size, generator: torch.rand(size.batch, size.side, generator=generator),
        sizes=(SIZE,),
        contenders=contenders,
        oracle=lambda x: 2 * x.double(),
        tolerance=1e-6,
    )


def raising(_: object) -> object:
    raise RuntimeError("no kernel")


def test_a_warm_up_lasts_so_long_and_is_one_call_at_least() -> None:
    calls: list[int] = []
    warm_up(lambda: calls.append(1), wall_clock, 0.0)
    assert len(calls) == 1
    warm_up(lambda: calls.append(1), wall_clock, 0.02)
    assert len(calls) > 3


def test_a_contender_of_ours_that_breaks_fails_the_run() -> None:
    case = case_of(Contender("wsfast", raising), Contender("peer", raising))
    ours, peer = measure(case, SIZE, Settings())
    assert (ours.state, ours.broken) == ("absent", True)
    assert (peer.state, peer.broken) == ("absent", False)
    rooms = by_room(FACTS, [Declared("room", "double", ())], [ours, peer], [])
    assert report.failures(rooms, strict=False) == [
        f"double, {SIZE.label}: wsfast failed: RuntimeError: no kernel"
    ]
    wrong = dataclasses.replace(row("wsfast, torch.compile", [1.0]), state="wrong")
    rooms = by_room(FACTS, [Declared(wrong.room, wrong.operation, ())], [wrong], [])
    assert len(report.failures(rooms, strict=False)) == 1


def test_contenders_have_modules_of_their_own() -> None:
    """Hooks of one would run, and keep what they see, in the calls of all."""
    seen = []

    def hooking(inputs: tuple[torch.nn.Module, torch.Tensor]) -> object:
        inputs[0].register_forward_hook(lambda *_: seen.append(1))
        return lambda: inputs[0](inputs[1])

    case = dataclasses.replace(
        case_of(Contender("wsfast", lambda i: lambda: i[0](i[1])), Contender("peer", hooking)),
        inputs=lambda size, generator: (torch.nn.Identity(), torch.ones(2)),
        oracle=lambda inputs: inputs[1].double(),
    )
    ours, peer = measure(case, SIZE, Settings(quick=True))
    assert ours.state == peer.state == "timed"
    # checked, tried, and in every round one call that is not timed
    assert len(seen) == 2 + (peer.iterations + 1) * len(peer.seconds)


@pytest.mark.parametrize(("seconds", "calls_of_a_round"), [(4e-3, 2), (20e-3, 1)])
def test_short_calls_are_warmed_up_in_every_round(seconds: float, calls_of_a_round: int) -> None:
    calls, timed = itertools.count(), []

    def called(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: (2 * x, next(calls))[0]

    def clock(run: Callable[[], object], count: int) -> float:
        timed.append(next(calls))
        run()
        return seconds * count

    (found,) = measure(case_of(Contender("wsfast", called)), SIZE, Settings(), clock)
    steps = [after - before for before, after in itertools.pairwise(timed)]
    assert steps[2:] == [1 + calls_of_a_round] * (len(found.seconds) - 1)  # after two to plan with
    assert found.seconds == [seconds] * len(found.seconds)


@pytest.mark.parametrize(("compiles", "calls"), [(True, 3), (False, 2)])
def test_what_took_long_to_compile_is_warmed_up(compiles: bool, calls: int) -> None:
    made, times = itertools.count(), itertools.chain([6.0], itertools.repeat(0.02))

    def called(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: (2 * x, next(made))[0]

    def clock(run: Callable[[], object], count: int) -> float:
        run()
        return next(times) * count

    case = case_of(Contender("wsfast", called, compiles=compiles))
    (found,) = measure(case, SIZE, Settings(), clock)
    assert (found.seconds, next(made)) == ([0.02], calls)


@pytest.mark.parametrize(("first", "calls", "rounds"), [(70.0, 1, 1), (6.0, 2, 1), (0.1, 3, 50)])
def test_a_first_call_is_the_timed_one_only_where_it_is_very_slow(
    first: float, calls: int, rounds: int
) -> None:
    """It may compile, or meet a cold cache."""
    times = itertools.chain([first], itertools.repeat(0.02))

    def clock(run: Callable[[], object], count: int) -> float:
        run()
        return next(times) * count

    (found,) = measure(
        case_of(Contender("wsfast", eager(lambda x: 2 * x))), SIZE, Settings(), clock
    )
    assert len(found.seconds) == rounds
    assert found.seconds[0] == pytest.approx(first if calls == 1 else 0.02)


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, 9.0], [1.0, math.nan], 0.0),  # NaN of the oracle: not compared
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([math.inf, 2.0], [math.inf, 2.0], 0.0),
        ([math.inf, 2.0], [1.0, 2.0], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(got: list[float], wanted: list[float], error: float) -> None:
    assert relative_error(torch.tensor(got), torch.tensor(wanted)) == error


def test_a_missing_tensor_is_an_infinite_error() -> None:
    assert relative_error([torch.ones(1)], [torch.ones(1), torch.ones(1)]) == math.inf


def test_contenders_are_interleaved_and_wrong_results_are_found() -> None:
    ticks = itertools.count(1)
    order: list[str] = []

    def noted(name: str, factor: float) -> Contender:
        return Contender(name, eager(lambda x: order.append(name) or factor * x))

    def clock(run, calls: int) -> float:
        for _ in range(calls):
            run()
        next(ticks)
        return 0.1 * calls

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cannot\nsecond line")

    contenders = (
        noted("wsfast", 2.0),
        noted("wrong", 2.1),
        Contender("broken", eager(broken)),
        Contender("absent", eager(broken), requires=("no_such_module",)),
        Contender("elsewhere", eager(broken), devices=("cuda",)),
        Contender("compiled", eager(broken), compiles=True),
    )
    rows = {
        r.contender: r for r in measure(case_of(*contenders), SIZE, Settings(compile=False), clock)
    }
    assert [r.state for r in rows.values()] == ["timed", "wrong", *["absent"] * 4]
    assert rows["broken"].reason == "failed: RuntimeError: cannot"
    assert rows["absent"].reason == "not installed"
    assert rows["elsewhere"].reason == "does not run on cpu"
    assert rows["compiled"].reason == "left out (--no-compile)"
    assert rows["wsfast"].seconds == pytest.approx([0.1] * len(rows["wsfast"].rounds))
    timed = order[-2 * len(rows["wsfast"].rounds) :]
    assert {timed.count("wsfast"), timed.count("wrong")} == {len(rows["wsfast"].rounds)}
    assert timed[:4] == ["wsfast", "wrong", "wrong", "wsfast"]  # the order turns


@pytest.mark.parametrize("quick", [True, False])
def test_a_row_names_the_option_that_left_it_out(quick: bool) -> None:
    contender = Contender("compiled", raising, compiles=True)
    named = "--quick" if quick else "--no-compile"
    assert why_absent(contender, Settings(compile=False, quick=quick)) == f"left out ({named})"


def test_a_grid_runs_as_far_as_it_is_asked_for() -> None:
    headline, along, inner = Size(1, 8, headline=True, axis=True), Size(2, 8, axis=True), Size(2, 9)
    case = dataclasses.replace(case_of(), sizes=(headline, along, inner), grid=True)
    assert case.chosen_sizes("headlines") == [headline]
    assert case.chosen_sizes("axes") == [headline, along]
    assert case.chosen_sizes("full") == [headline, along, inner]


def test_a_size_that_does_not_fit_in_memory_is_left_out_and_says_so() -> None:
    doubled = Contender("wsfast", eager(lambda x: 2 * x))
    for needed, state in ((1e3, "timed"), (1e18, "absent")):
        case = dataclasses.replace(case_of(doubled), needs=lambda size, needed=needed: int(needed))
        (found,) = measure(case, SIZE, Settings())
        assert found.state == state
    assert re.fullmatch("needs about 1000000000 GB of memory, [0-9]+ GB are free", found.reason), (
        found.reason
    )


def test_a_contender_that_does_not_fit_in_memory_leaves_the_others_in() -> None:
    double = eager(lambda x: 2 * x)
    hungry = Contender("hungry", double, needs=lambda size: 10**18)
    ours, left_out = measure(case_of(Contender("wsfast", double), hungry), SIZE, Settings())
    assert (ours.state, left_out.state) == ("timed", "absent")
    assert left_out.reason.startswith("needs about 1000000000 GB of memory")


def test_inputs_are_the_same_in_every_run() -> None:
    case = case_of()
    first, second = (case.make_inputs(SIZE, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first, second)


def test_ratios_are_paired_by_round() -> None:
    drifting = row("wsfast", [1.0, 2.0, 4.0])
    assert time_ratio(row("peer", [3.0, 6.0, 12.0]), drifting).value == 3.0
    assert time_ratio(row("peer", [3.0, 6.0, 12.0]), drifting).paired
    few = time_ratio(row("peer", [8.0], rounds=[7]), drifting)
    assert (few.value, few.paired) == (4.0, False)


def test_exponents_need_three_sizes() -> None:
    assert fitted_exponent([1, 2, 4], [5.0, 10.0, 20.0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 different sizes"):
        fitted_exponent([1, 2, 2], [1.0, 2.0, 2.0])
    rows = [row("wsfast", [float(s * s)], size=Size(2, s)) for s in (4, 8, 16)]
    assert scaling(rows, "pixels") == (pytest.approx(1.0), [16, 64, 256])
    assert scaling(rows, "batch") is None


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        (Target(SIZE.label, 2, 4, ("peer",)), "met"),
        (Target(SIZE.label, 2, 3, ("peer",)), "aim met"),
        (Target(SIZE.label, 4, 5, ("peer",)), "MISSED"),
        (Target(SIZE.label, 0.5, 0.2, ("peer",), "slowdown"), "met"),
        (Target(SIZE.label, 0.2, 0.1, ("peer",), "slowdown"), "MISSED"),
        (Target(SIZE.label, 2, 4, ("nobody",)), "not measured"),
        (Target("9x9x9", 2, 4, ("peer",)), "not measured"),
        (Target(SIZE.label, 2000, 500, measure="milliseconds"), "met"),
        (Target(SIZE.label, 0.5, 0.6, measure="copy_bandwidth"), "not measured"),
    ],
)
def test_verdicts(target: Target, outcome: str) -> None:
    rows = [row("wsfast", [1.0, 1.0, 1.0]), row("peer", [3.0, 3.0, 3.0])]
    assert judge(target, rows, copy_bandwidth=1e9).outcome == outcome


def test_wrong_rows_never_win() -> None:
    wrong = row("wsfast", [0.001] * 3, state="wrong", error=1.0)
    right = row("peer", [1.0] * 3)
    target = Target(SIZE.label, 2, 4, ("peer",))
    assert judge(target, [wrong, right], None).outcome == "MISSED"
    cheating = row("peer", [0.001] * 3, state="wrong", error=1.0)
    assert judge(target, [row("wsfast", [1.0] * 3), cheating], None).outcome == "not measured"


def write_run(path, rows: list[Row], targets: list[Target]) -> None:
    declared = {"room": "room", "operation": "double", "targets": [vars(t) for t in targets]}
    content = {
        "benchmarks": [{"extra_info": r.to_json()} for r in rows if r.state != "absent"],
        "wsfast": {
            "machine": FACTS,
            "absent": [r.to_json() for r in rows if r.state == "absent"],
            "memory": [],
            "declared": [declared],
        },
    }
    path.write_text(json.dumps(content))


def test_report_prints_losses_and_writes_whole_files(tmp_path, capsys) -> None:
    rows = [
        row("wsfast", [1.0] * 3),
        row("fast peer", [0.5] * 3),
        row("wrong peer", [0.1] * 3, state="wrong", error=0.3),
        row("missing", [], state="absent", reason="not installed", rounds=[]),
    ]
    write_run(tmp_path / "run.json", rows, [Target(SIZE.label, 2, 4, ("fast peer",))])
    out = tmp_path / "results"
    arguments = [str(tmp_path / "run.json"), "--write", "--out", str(out)]
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--strict"]) == 1
    printed = capsys.readouterr().out
    for text in ("2.00× slower", "WRONG", "not installed", "MISSED", "0.50×"):
        assert text in printed
    names = {path.name for path in out.iterdir()}
    assert names == {f"some-processor-1-0ghz-2-threads.{end}" for end in ("json", "md")}
    assert report.main([str(tmp_path / "run.json"), "--markdown"]) == 0
    assert "2.00× slower" in (out / "some-processor-1-0ghz-2-threads.md").read_text()


def test_report_keeps_rooms_of_earlier_runs(tmp_path) -> None:
    for room in ("first", "second"):
        write_run(tmp_path / "run.json", [row("wsfast", [1.0] * 3)], [])
        text = (tmp_path / "run.json").read_text().replace('"room"', f'"{room}"')
        text = text.replace(f'"{room}":', '"room":')
        (tmp_path / "run.json").write_text(text)
        arguments = [str(tmp_path / "run.json"), "--write", "--out", str(tmp_path / "out")]
        assert report.main(arguments) == 0
    written = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert list(written["rooms"]) == ["first", "second"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"wsfast": {}, "benchmarks": []}', "[1]"])
def test_report_refuses_other_files(tmp_path, capsys, content: str | None) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert report.main([str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("benchmarks.report: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", ["charts", "compare", "figures", "tables"])
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert (found.attempted > 0, found.failed) == (True, 0)


def test_images_over_threads_keep_their_order_and_share_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meeting = threading.Barrier(2, timeout=10)  # passed by two calls at the same time only

    def twice(image: int) -> int:
        if image < 2:
            meeting.wait()
        return 2 * image

    assert over_threads(twice, list(range(5)))() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("module", MODULES)
def test_cases_are_right_at_a_small_size(module: str, device: torch.device) -> None:
    """Ours, references and installed peers agree with the oracle of each case with a headline."""
    for case in importlib.import_module(f"benchmarks.{module}").CASES:
        if not any(size.headline for size in case.sizes):
            continue
        small = Size(1, 32, case.sizes[0].variant, headline=True)
        inputs = case.make_inputs(small, device)
        expected = case.oracle(inputs)
        for contender in case.contenders:
            if not contender.same_work or why_absent(contender, Settings(device, compile=False)):
                continue
            found = contender.collect(contender.build(with_own_modules(inputs))())
            wanted = contender.oracle(inputs) if contender.oracle else expected
            tolerance = case.tolerance if contender.tolerance is None else contender.tolerance
            assert relative_error(found, wanted) <= tolerance, contender.name
        labels = [size.label for size in case.sizes]
        assert all(target.size in labels for target in case.targets)
