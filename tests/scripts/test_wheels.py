"""scripts/build_wheels.sh and test_wheels.sh up to their first program, which is a stand-in."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORD = """#!/bin/bash
echo "$0 $* CFLAGS=${CFLAGS:-}" >> "$CALLS"
"""
INTERPRETER = """
mkdir -p "$3/bin"
printf '#!/bin/bash\\necho no such torch >&2; exit 3\\n' > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with both scripts, an interpreter and an environment beside it."""
    project = tmp_path / "project"
    for folder in ("scripts", "tests", "benchmarks"):
        (project / folder).mkdir(parents=True)
    (project / "pyproject.toml").touch()
    for name in ("build_wheels.sh", "test_wheels.sh"):
        shutil.copy(ROOT / "scripts" / name, project / "scripts")
    git = "[[ $1 != archive ]] || { mkdir source; tar -c source; rmdir source; }\n"
    programs = {
        "system/bin/python3": RECORD + INTERPRETER,
        "system/bin/git": "#!/bin/bash\n" + git,
        "env/bin/python": RECORD + "exit 4\n",
    }
    for name, text in programs.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    return project


def run(
    project: Path, script: str, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What the script does in the folder around the project, and which programs it calls."""
    folder = project.parent
    calls = folder / "calls"
    path = f"{folder / 'system/bin'}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", f"{project.name}/scripts/{script}", *arguments],
        cwd=folder, env={"PATH": path, "HOME": str(folder), "CALLS": str(calls), **variables},
        capture_output=True, text=True,
    )  # fmt: skip
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_an_unknown_variant_ends_with_its_message(project: Path) -> None:
    done, calls = run(project, "build_wheels.sh", VARIANTS="cuda13")
    assert done.returncode == 2
    assert done.stderr == "build_wheels: a variant must be cpu, cu12 or cu13, got cuda13\n"
    assert calls == []


def test_an_environment_that_cannot_be_made_ends_with_pips_message(project: Path) -> None:
    done, calls = run(project, "build_wheels.sh", VARIANTS="cpu")
    assert done.returncode == 3
    assert done.stderr == "no such torch\n"
    assert len(calls) == 1


def test_relative_folders_are_the_callers(project: Path) -> None:
    folder = project.parent
    headers = folder / "older/usr/include/features.h"
    headers.parent.mkdir(parents=True)
    headers.touch()
    done, (call,) = run(
        project, "build_wheels.sh", "out", VARIANTS="cpu", ENVIRONMENT="env", SYSROOT="older"
    )
    assert done.returncode == 4, done.stderr
    assert call.startswith(f"{folder}/env/bin/python -m build ")
    assert f" --outdir {folder}/out CFLAGS=--sysroot={folder}/older " in call
    done, calls = run(project, "build_wheels.sh", VARIANTS="cpu", ENVIRONMENT="env")
    assert f" --outdir {project}/dist " in calls[-1]


def test_a_sysroot_that_is_none_is_named(project: Path) -> None:
    done, _ = run(project, "build_wheels.sh", SYSROOT="nowhere")
    assert done.returncode == 2
    expected = f"SYSROOT must be a folder with usr/include/features.h, got {project.parent}/nowhere"
    assert done.stderr == f"build_wheels: {expected}\n"


@pytest.mark.parametrize("given", [True, False])
def test_wheels_to_test_are_the_callers(project: Path, given: bool) -> None:
    place = project.parent / "wheels" if given else project / "dist"
    (place / "cpu").mkdir(parents=True)
    (place / "cpu" / "some.whl").touch()
    borrowed = project.parent / "borrowed"
    borrowed.mkdir()
    interpreter = project.parent / "system/bin/python3"
    pip = "#!/bin/bash\n" + 'echo "$*" >> "$CALLS"; exit 3\n'
    (project.parent / "pip").write_text(pip)
    interpreter.write_text(
        "#!/bin/bash\n" + 'mkdir -p "$3/bin" "$3/lib/python3.1/site-packages"\n'
        + 'install -m 755 "${CALLS%calls}pip" "$3/bin/pip"\n'
    )  # fmt: skip
    arguments = ["wheels"] if given else []
    done, calls = run(
        project, "test_wheels.sh", *arguments, STEPS="wheels", MATRIX=f"python3={borrowed}"
    )
    assert done.returncode == 3, done.stderr
    assert calls == [f"install --quiet {place}/cpu/some.whl setuptools"]
