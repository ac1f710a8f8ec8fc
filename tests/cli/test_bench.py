"""``wsfast bench``: bad input, exit codes, files, and Ctrl-C from an installed layout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import runner, store
from benchmarks.records import Rooms
from tests.benchmark_rows import results, row
from wsfast.cli import bench, main

ROOT = Path(__file__).resolve().parents[2]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    message = capsys.readouterr().err
    assert message.startswith("wsfast bench: error: ")
    assert message.count("\n") == 1
    return message


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Rooms:
    """What the next run measures, instead of measuring."""
    rooms = {"crf": results(row("wsfast", [1.0] * 9), row("peer", [2.0] * 9))}

    def run(files, wanted, recorder) -> bool:
        recorder.rooms = rooms
        return False

    monkeypatch.setattr(runner, "_run_pytest", run)
    return rooms


def test_an_unknown_room(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kitchen"]) == 2
    message = one_line(capsys)
    assert "ROOM must be one of boxes, cam, cam_grid, cam_others, " in message
    assert "got kitchen" in message


def test_rooms_are_discovered() -> None:
    rooms = {room for found in runner.bench_files().values() for room in found}
    ops = {path.parent.name for path in (ROOT / "wsfast" / "ops").glob("*/__init__.py")}
    assert ops <= rooms == {*bench.ROOMS}


def test_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench._NEEDED, "no_such_module", "pytest-benchmark")
    assert main(["bench"]) == 2
    assert 'pytest-benchmark missing: pip install "wsfast[bench]"' in one_line(capsys)


@pytest.mark.parametrize("content", [None, "", "[1]", '{"schema": 9, "rooms": {}}'])
def test_a_bad_file_to_compare_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    assert main(["bench", "--compare", str(path)]) == 2
    assert str(path) in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"],
        ["--device", "abacus"],
        ["--device", "meta"],
        ["--fail-on-regression"],
        ["--grid", "axes", "--quick"],
        ["--compare", "."],
        ["--html", "one", "--json", "./one"],
    ],
)
def test_bad_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert arguments[0] in one_line(capsys)


def test_files_and_exit_codes(
    tmp_path: Path, measured: Rooms, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, html = (tmp_path / name for name in ("old.json", "out/new.json", "new.html"))
    assert main(["bench", "--json", str(old)]) == 0
    assert store.load(old) == measured
    measured["crf"] = results(row("wsfast", [1.5] * 9), row("peer", [2.0] * 9))
    arguments = ["bench", "--compare", str(old), "--json", str(new), "--html", str(html)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "compared with old.json" in printed.out
    assert "+50 % time" in printed.out
    assert store.load(new) == measured
    assert "compared with old.json" in html.read_text()
    assert main([*arguments, "--fail-on-regression"]) == 1
    assert "double, 2x4x4: slower" in capsys.readouterr().err


INTERRUPTED = """
import sys
from wsfast.benchmarks import harness, laboratory, machine
from wsfast.cli import main
from wsfast.cli.bench import suite

def measure(case, size, settings):
    if measure.calls == 1:
        raise KeyboardInterrupt
    measure.calls += 1
    return [
        harness.Row(case.room, case.operation, size, c.name, "timed", "", [1.0] * 3, [0, 1, 2])
        for c in case.entries(size)
    ]

measure.calls = 0
laboratory.measure = measure
machine.copy_bandwidth = lambda device: 1e9
assert suite() == "wsfast.benchmarks"
sys.exit(main(["bench", "fusion", "--quick", "--json", "new.json", "--html", "new.html"]))
"""


def test_ctrl_c_keeps_what_was_measured_in_an_installed_layout(tmp_path: Path) -> None:
    """In a wheel the benchmarks lie inside the package."""
    shutil.copytree(ROOT / "wsfast", tmp_path / "site" / "wsfast")
    leave_out = shutil.ignore_patterns("results", "quality", "training_quality")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "site/wsfast/benchmarks", ignore=leave_out)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --of-another-project\n")
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 130, found.stderr
    rooms = json.loads((tmp_path / "new.json").read_text())["rooms"]
    assert {entry["operation"] for entry in rooms["fusion"]["rows"]} == {
        rooms["fusion"]["declared"][0]["operation"]
    }
    assert rooms["fusion"]["machine"]["commit"] == "an installed package"
    assert "fusion" in (tmp_path / "new.html").read_text()
    assert "fuse_cams" in found.stdout


def test_benchmarks_import_one_another_relatively() -> None:
    """Else they break inside the wheel, where their package has another name."""
    for path in (ROOT / "benchmarks").glob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("from benchmarks", "import benchmarks")), path
