"""scripts/soak.py: a second of each source."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_soak_passes(tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    command = [
        sys.executable, "scripts/soak.py", "--minutes", "0.02", "--every", "0.05", "--size", "32",
        "--model", "test_resnet", "--limit", "1e9", "--threads", "1", "--json", report,
    ]  # fmt: skip
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(report.read_text())["runs"]
    assert [run["source"] for run in runs] == ["camera", "file"]
    assert all(run["frames"]["written"] > 0 for run in runs)
