"""scripts/environment.sh: which environment it takes; its interpreters are stand-ins."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERPRETER = """#!/bin/bash
echo "$0 $*" >> "$CALLS"
[[ "$1 $2" == "-m venv" ]] || exit 0
mkdir -p "$3/bin"
cp "$0" "$3/bin/python"
echo "export VIRTUAL_ENV=$PWD/$3 PATH=$PWD/$3/bin:\\$PATH" > "$3/bin/activate"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the script and what it reads, and three interpreters beside it."""
    project = tmp_path / "project"
    for folder in ("scripts", "csrc", "wsfast"):
        (project / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "environment.sh", project / "scripts")
    for name in ("setup.py", "pyproject.toml", "csrc/a.h", "wsfast/_C.so"):
        (project / name).write_text("")
    for name in ("mine/bin/python", "conda/bin/python", "system/bin/python3"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(INTERPRETER)
        program.chmod(0o755)
    return project


def taken(project: Path, first: str, **variables: str) -> tuple[str, int]:
    """Which environment a script gets, relative to the folder of all, and how often pip ran."""
    folder = project.parent
    calls = folder / "calls"
    calls.write_text("")
    path = [folder / first / "bin", folder / "system/bin", "/usr/local/bin", "/usr/bin", "/bin"]
    environment = {"PATH": ":".join(map(str, path)), "CALLS": str(calls), **variables}
    command = ["bash", "-c", 'source "$0"; command -v python', project / "scripts/environment.sh"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    chosen = Path(done.stdout.splitlines()[-1]).relative_to(folder)
    return str(chosen.parents[1]), calls.read_text().count("-m pip")


def test_active_environments_are_taken(project: Path) -> None:
    folder = project.parent
    conda = {"CONDA_PREFIX": str(folder / "conda"), "CONDA_DEFAULT_ENV": "work"}
    assert taken(project, "mine", VIRTUAL_ENV=str(folder / "mine")) == ("mine", 3)
    assert taken(project, "conda", **conda) == ("conda", 3)
    assert taken(project, "conda", **conda) == ("conda", 0)  # the stamp lies in the environment
    assert taken(project, "mine", VIRTUAL_ENV=str(folder / "mine"), **conda) == ("mine", 0)
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(("first", "name"), [("conda", "base"), ("system", "work")])
def test_condas_base_and_an_environment_not_on_the_path_are_left_alone(
    project: Path, first: str, name: str
) -> None:
    conda = {"CONDA_PREFIX": str(project.parent / "conda"), "CONDA_DEFAULT_ENV": name}
    assert taken(project, first, **conda) == ("project/.venv", 3)
    assert not list(project.parent.glob("conda/.wsfast*"))


def test_an_environment_that_was_not_finished_is_made_again(project: Path) -> None:
    """As `python -m venv` leaves it where it finds no pip: an interpreter and nothing else."""
    unfinished = project / ".venv/bin/python"
    unfinished.parent.mkdir(parents=True)
    shutil.copy(project.parent / "system/bin/python3", unfinished)
    assert taken(project, "system") == ("project/.venv", 3)


def test_what_is_no_longer_installed_is_installed_again(project: Path) -> None:
    mine = {"VIRTUAL_ENV": str(project.parent / "mine")}
    assert taken(project, "mine", **mine) == ("mine", 3)
    (project / "wsfast/_C.so").unlink()  # as `git clean` does
    assert taken(project, "mine", WSFAST_NATIVE="0", **mine) == ("mine", 3)
    assert taken(project, "mine", WSFAST_NATIVE="0", **mine) == ("mine", 0)
    assert taken(project, "mine", **mine) == ("mine", 3)
    (project / "wsfast/_C.so").write_text("")
    other = shutil.copytree(project, project.parent / "other")
    assert taken(other, "mine", **mine) == ("mine", 3)  # now the environment's wsfast is this one
    assert taken(project, "mine", **mine) == ("mine", 3)
    assert taken(project, "mine", **mine) == ("mine", 0)
