"""scripts/gpu: the table of kernels, the runner of steps and the plan. No GPU needed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.gpu import coverage, kernels, plan, sanitize, steps
from scripts.gpu.roofline import Bound, Work, judged, measure, report
from scripts.gpu.steps import Runner, Step
from scripts.gpu.summary import write_summary


def step(name: str, code: str, seconds: float = 20, **options) -> Step:
    return Step(name, (sys.executable, "-c", code), seconds, **options)


def runner(out: Path, seconds: float = 60, sources: str = "a") -> Runner:
    return Runner(out, seconds, sources, lambda: None)


def test_table_names_every_kernel_of_the_sources() -> None:
    assert coverage.declared_kernels() == coverage.table_kernels()
    named = {check for checks in coverage.LAUNCHED_BY.values() for check in checks}
    assert named == set(kernels.CHECKS)


def test_budget_knows_every_kernel_of_the_sources() -> None:
    budget = json.loads(coverage.BUDGET.read_text())["kernels"]
    assert {name.split("<")[0] for name in budget} == coverage.declared_kernels()


def test_declarations_are_found_however_they_are_written(tmp_path) -> None:
    folder = tmp_path / "csrc/ops/toy"
    folder.mkdir(parents=True)
    (folder / "toy_kernels.cuh").write_text(
        "template <class T>\nWS_GLOBAL void __launch_bounds__(kThreads)\n    first_kernel(int a);\n"
        "WS_GLOBAL inline void __launch_bounds__(k, 2) second_kernel(\n int a);\n"
        "__global__ void third_kernel() {}\nWS_DEVICE void not_a_kernel(int a);\n"
    )
    names = ("first_kernel", "second_kernel", "third_kernel")
    assert coverage.declared_kernels(tmp_path) == {f"toy::{name}" for name in names}


@pytest.mark.parametrize(
    ("profiled", "wanted"),
    [
        ("void wsfast::crf::embed_kernel<float, 1>(wsfast::crf::Points, wsfast::crf::Build<float>)",
         "crf::embed_kernel<float, 1>"),
        ("wsfast::boxes::join_kernel(wsfast::boxes::Grid, int*)", "boxes::join_kernel"),
        ("void wsfast::truncation::select_row_kernel<wsfast::half_t, true, 512>(wsfast::half_t*)",
         "truncation::select_row_kernel<half_t, true, 512>"),
    ],
)  # fmt: skip
def test_profiled_names_are_the_budgets(profiled: str, wanted: str) -> None:
    assert coverage.readable(profiled) == wanted
    assert wanted in json.loads(coverage.BUDGET.read_text())["kernels"]


def test_a_kernel_that_was_not_launched_is_missed() -> None:
    names = json.loads(coverage.BUDGET.read_text())["kernels"]
    launched = [f"void wsfast::{name}(int)" for name in names if "blur_kernel" not in name]
    found = coverage.compare(launched)
    assert found["missing_kernels"] == ["crf::blur_kernel"]
    assert found["missing_instances"] == ["crf::blur_kernel<double>", "crf::blur_kernel<float>"]


def test_an_empty_profile_is_told_from_missing_kernels(tmp_path, monkeypatch) -> None:
    seen = ["Memcpy HtoD (Pageable -> Device)", "cudaDeviceSynchronize"]
    monkeypatch.setattr(kernels, "launched_by", lambda run: seen)
    file = tmp_path / "kernels.json"
    device = torch.device("cuda")
    assert kernels.covered([], device, file) == ["the profiler saw nothing"]
    run = runner(tmp_path)
    ran = step("kernels", "")
    run.run([[ran]])
    write_summary(tmp_path, [run.status(ran)])
    assert "not known: the profiler saw nothing." in (tmp_path / "summary.md").read_text()
    seen.append("void at::native::fill_kernel<float>(float*)")
    assert "crf::blur_kernel" in kernels.covered([], device, file)


def test_a_wheel_is_installed_once(tmp_path) -> None:
    scripts = tmp_path / "scripts"
    shutil.copytree(coverage.ROOT / "scripts/gpu", scripts / "gpu")
    shutil.copy(coverage.ROOT / "scripts/gpu_check.sh", scripts)
    wheel = tmp_path / "build/gpu_wheels/toy_tool-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(
        f'#!/bin/bash\n[[ $1 == -m ]] || exec {sys.executable} "$@"\necho "$2" >> {calls}\n'
    )
    python.chmod(0o755)

    def called() -> list[str]:
        calls.write_text("")
        command = ["bash", str(scripts / "gpu_check.sh")]
        subprocess.run(command, check=True, env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"})
        return calls.read_text().split()

    assert called() == ["pip", "scripts.gpu.check"]
    information = tmp_path / "build/gpu_site/toy_tool-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-tool\nVersion: 1.0\n")
    assert called() == ["scripts.gpu.check"]


def test_a_failure_stops_only_what_needs_it(tmp_path) -> None:
    bad, good = step("bad", "raise SystemExit(3)"), step("good", "print('fine')")
    after = step("after", "", needs=("bad",))
    absent = step("absent", "", absent="no such tool")
    run = runner(tmp_path)
    assert not run.run([[bad, good], [after, absent]])
    states = [run.status(x).state for x in (bad, good, after, absent)]
    assert states == ["failed", "passed", "not run", "skipped"]
    assert run.status(bad).reason == "exit status 3"
    assert (tmp_path / "good.log").read_text() == "fine\n"


def test_a_second_run_repeats_only_what_did_not_pass(tmp_path) -> None:
    count = "from pathlib import Path; p = Path({!r}); p.write_text(p.read_text() + 'x')"
    once, again, ready = tmp_path / "once", tmp_path / "again", tmp_path / "ready"
    once.write_text("")
    again.write_text("")
    first = step("first", count.format(str(once)), products=(str(once),))
    second = step(
        "second",
        count.format(str(again)) + f"; raise SystemExit(not Path({str(ready)!r}).exists())",
    )
    out = tmp_path / "out"
    assert not runner(out).run([[first], [second]])
    ready.touch()
    assert runner(out).run([[first], [second]])
    assert (once.read_text(), again.read_text()) == ("x", "xx")
    assert runner(out, sources="b").run([[first]])  # other sources: all anew
    assert once.read_text() == "xx"
    once.unlink()
    assert runner(out, sources="b").status(first).state == "not run"


def test_what_was_never_run_comes_before_what_failed(tmp_path) -> None:
    order = tmp_path / "order"
    note = "print({0!r}, file=open({1!r}, 'a')); raise SystemExit(1)"
    build, long, short, new = (
        step(name, note.format(name, str(order)), needs=needs)
        for name, needs in (("build", ()), ("long", ()), ("short", ()), ("new", ("build",)))
    )
    groups = [[build], [long, short], [new]]
    assert not runner(tmp_path).run([[build], [long]])
    order.unlink()
    build = step("build", f"print('build', file=open({str(order)!r}, 'a'))")
    assert not runner(tmp_path).run([[build], *groups[1:]])
    assert order.read_text().split() == ["build", "short", "new", "long"]


def test_limits_end_a_step_and_what_it_started(tmp_path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    slow = step("slow", code, seconds=1)
    run = runner(tmp_path)
    assert not run.run([[slow]])
    assert run.status(slow).state == "timed out"
    late = runner(tmp_path, seconds=0)
    assert not late.run([[step("late", "")]])
    assert late.status(step("late", "")).reason.startswith("no time left")
    assert not mark.exists()


def test_a_step_that_the_end_of_the_run_cut_off_is_not_put_last(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(steps, "SHORTEST", 0.0)
    slow = step("slow", "import time; time.sleep(30)", seconds=60)
    run = runner(tmp_path, seconds=1)
    run.run([[slow]])
    status = run.status(slow)
    assert status.state == "timed out"
    assert status.reason.startswith("cut off by the end of the run")
    assert not status.tried


def test_a_step_out_of_time_still_writes_what_it_has(tmp_path) -> None:
    file = tmp_path / "rows.json"
    code = (
        "import pathlib, time\n"
        "try: time.sleep(30)\n"
        f"except KeyboardInterrupt: pathlib.Path({str(file)!r}).write_text('measured')"
    )
    slow = step("slow", code, seconds=2, products=(str(file),))
    run = runner(tmp_path)
    run.run([[slow]])
    assert run.status(slow).state == "timed out"
    assert file.read_text() == "measured"


def test_what_pytest_skipped_is_told(tmp_path) -> None:
    line = "=========== 3 passed, 2 skipped in 1.2s ==========="
    tests = step("tests", f"print('collecting'); print({line!r})")
    run = runner(tmp_path)
    assert run.run([[tests]])
    assert run.status(tests).reason == "3 passed, 2 skipped in 1.2s"


UNINITIALISED = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at {}(int const *, int)+0x90 in file.cu:24
=========     by thread (0,0,0) in block (0,0,0)
=========     Device Frame: {}(int const *, int)+0x90 in file.cu:7
=========     Saved host backtrace up to driver entry point at kernel launch time
=========     Host Frame: wsfast::boxes::cam_boxes_cuda(wsfast::Tensor const&) [0x5c547]
=========
"""


@pytest.mark.parametrize(
    ("places", "status", "summary", "clean"),
    [
        ([], 0, "0 errors", True),
        ([("void at::native::copy_kernel<float>",) * 2], 9, "1 error", True),
        ([("at::native::copy",) * 2, ("wsfast::crf::blur_kernel",) * 2], 9, "2 errors", False),
        ([("ThreadLoad<int>", "void wsfast::crf::blur_kernel<float>")], 9, "1 error", False),
        ([("at::native::copy",) * 2], 9, "9 errors\n========= 8 errors were not printed.", False),
        ([("at::native::copy",) * 2], 1, "1 error", False),  # the program failed
        ([], 0, "", False),
    ],
)  # fmt: skip
def test_initcheck_counts_reports_that_name_our_kernels(
    places: list[tuple[str, str]], status: int, summary: str, clean: bool
) -> None:
    text = "".join(UNINITIALISED.format(*names) for names in places)
    if summary:
        text += f"========= ERROR SUMMARY: {summary}\n"
    assert sanitize.judged("initcheck", status, text) is clean


def test_other_sanitizers_have_to_find_nothing() -> None:
    text = UNINITIALISED.format("a", "b") + "========= ERROR SUMMARY: 1 error\n"
    assert not sanitize.judged("memcheck", 9, text)
    assert not sanitize.judged("memcheck", 0, text)
    assert sanitize.judged("synccheck", 0, "========= ERROR SUMMARY: 0 errors\n")
    assert not sanitize.judged("synccheck", 1, "========= ERROR SUMMARY: 0 errors\n")
    assert sanitize.judged("racecheck", 0, "========= RACECHECK SUMMARY: 0 hazards displayed\n")
    assert set(sanitize.OPTIONS) == set(sanitize.TOOLS)


def test_bounds() -> None:
    assert judged(Bound(milliseconds=1.0), 0.9, 0.1) is True
    assert judged(Bound(milliseconds=1.0), 1.1, 0.9) is False
    assert judged(Bound(share=0.6), 9.0, 0.7) is True
    assert judged(Bound(share=0.6), 9.0, 0.5) is False
    assert judged(Bound(), 1.0, 1.0) is None


@pytest.mark.parametrize(("change", "wrong"), [(0.0, False), (1e-7, False), (1e-3, True)])
def test_a_result_out_of_tolerance_reaches_nothing(change: float, wrong: bool) -> None:
    factors = iter((1.0, 1.0 + change))  # of the device's result and of the expected one

    def call(x: torch.Tensor) -> torch.Tensor:
        return x * next(factors, 1.0)

    work = Work("room", "double", "(9,)", (torch.ones(9),), call)
    found = measure(work, torch.device("cpu"), 1e9, 0, 1)
    assert found.wrong is wrong
    assert found.reached is (False if wrong else None)
    assert ("WRONG" in report(found)) is wrong
    loose = Work("room", "double", "(9,)", (torch.ones(9),), call, tolerance=1e-2)
    factors = iter((1.0, 1.0 + change))
    assert not measure(loose, torch.device("cpu"), 1e9, 0, 1).wrong


def test_plan_names_files_that_are_there(tmp_path) -> None:
    for device in ("cuda", "cpu"):
        groups = plan.plan(plan.Setting(device, tmp_path))
        steps = [step for group in groups for step in group]
        names = [step.name for step in steps]
        assert len(names) == len(set(names))
        assert {need for step in steps for need in step.needs} <= set(names)
        for argument in {part for step in steps for part in step.command}:
            if argument.startswith(("tests/", "benchmarks/")):
                assert Path(argument).exists(), argument


def test_benchmarks_have_all_cores(tmp_path) -> None:
    step = plan.benchmark("boxes", plan.Setting("cuda", tmp_path, cores=16))
    assert step.command[step.command.index("--threads") + 1] == "16"
    assert step.environment == {"OMP_NUM_THREADS": "16"}


def test_summary_without_results(tmp_path) -> None:
    run = runner(tmp_path)
    run.run([[step("only", "")]])
    write_summary(tmp_path, [run.status(step("only", ""))])
    assert json.loads((tmp_path / "summary.json").read_text())["steps"][0]["state"] == "passed"
    assert "| only | passed |" in (tmp_path / "summary.md").read_text()


def test_figures_of_other_sources_are_left_out(tmp_path) -> None:
    file = tmp_path / "roofline.json"
    timed = {"copy_bandwidth": 3e9, "work": []}
    code = f"open({str(file)!r}, 'w').write({json.dumps(timed)!r})"
    measured = step("roofline", code, products=(str(file),))
    run = runner(tmp_path)
    assert run.run([[measured]])
    write_summary(tmp_path, [run.status(measured)])
    assert "3 GB/s" in (tmp_path / "summary.md").read_text()

    edited = runner(tmp_path, sources="b")
    write_summary(tmp_path, [edited.status(measured)])
    assert "GB/s" not in (tmp_path / "summary.md").read_text()
    broken = step("roofline", "raise SystemExit(1)", products=(str(file),))
    assert not edited.run([[broken]])  # fails before it writes anything
    write_summary(tmp_path, [edited.status(broken)])
    assert json.loads((tmp_path / "summary.json").read_text())["roofline"] is None
