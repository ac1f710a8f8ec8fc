"""The site's pages: none is forgotten, every op has its place, and figures are the README's."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import docs_cam_tables
from wsfast import ops
from wsfast.cam import METHODS
from wsfast.cli import _COMMANDS
from wsfast.data import FORMATS
from wsfast.train.runs import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def nav_pages(entry: Any) -> Iterator[str]:
    """Paths of a nav entry."""
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry:
        if not isinstance(entry, str):
            yield from nav_pages(inner)


def readme_ops() -> dict[str, list[str]]:
    """Functions of each room, by the README's table."""
    rows = (ROOT / "README.md").read_text().split("## Ops\n\n")[1].split("\n\n")[0].splitlines()[2:]
    found: dict[str, list[str]] = {}
    for row in rows:
        room, functions, _ = (cell.strip() for cell in row.strip("|").split("|"))
        room = room or list(found)[-1]
        found.setdefault(room, []).extend(re.findall(r"`(\w+)`", functions))
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = list(nav_pages(config["nav"]))
    written = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted(written)


def test_every_op_is_in_the_readme() -> None:
    listed = {name for functions in readme_ops().values() for name in functions}
    assert set(ops.__all__) - {"Boxes", "ScoredBoxes", "Proposals"} == listed


@pytest.mark.parametrize("room", readme_ops())
def test_every_op_is_on_its_rooms_page(room: str) -> None:
    page = (DOCS / "rooms" / f"{room}.md").read_text()
    assert [name for name in readme_ops()[room] if name not in page] == []


@pytest.mark.parametrize("path", sorted((DOCS / "rooms").glob("*.md")), ids=lambda path: path.stem)
def test_speeds_are_rows_of_the_readme(path: Path) -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    speed = path.read_text().partition("## Speed")[2]
    rows = [line for line in speed.splitlines() if re.search(r"\d m?s \|", line)]
    assert [row for row in rows if row not in readme] == []


MEASURED = re.compile(r"\d[\d.]*(?:×|\s(?:µs|ms|s|MB)\b)")
NOT_MEASURED = {"16 MB"}  # from where on a kernel bypasses the caches
STATED = [ROOT / "README.md", *sorted(DOCS.glob("rooms/*.md")), *sorted(DOCS.glob("moving/*.md"))]


@pytest.mark.parametrize("path", STATED, ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_are_in_the_results(path: Path) -> None:
    """Times, ratios and memory, in running text too, are of the runs that are kept."""
    results = "".join(file.read_text() for file in (ROOT / "benchmarks/results").glob("*.md"))
    known = set(MEASURED.findall(results)) | NOT_MEASURED
    stated = [" ".join(figure.split()) for figure in MEASURED.findall(path.read_text())]
    assert [figure for figure in stated if figure not in known] == []


def test_cam_tables_are_the_report_s() -> None:
    page = docs_cam_tables.PAGE.read_text()
    assert docs_cam_tables.tables(docs_cam_tables.RESULTS) in page


def test_extras_are_those_of_the_package() -> None:
    install = (ROOT / "README.md").read_text().split("## Install\n")[1].split("\n## ")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = re.findall(r"^\| `(\w+)` \|", install, re.MULTILINE)
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_help_of_every_command_and_recipe_is_shown() -> None:
    shown = re.findall("<!-- help: (.+) -->", (DOCS / "api" / "cli.md").read_text())
    recipes = [f"train {recipe}" for recipe in CONFIGS]
    assert sorted(shown) == sorted([*_COMMANDS, *recipes])


def test_default_layers_are_those_of_the_methods() -> None:
    page = (DOCS / "guides" / "cam_methods.md").read_text()
    told = {
        method: layers
        for layers, methods in re.findall(r'^\| `"(\w+)"` \| (.+?) \|', page, re.MULTILINE)
        for method in re.findall(r"`(\w+)`", methods)
    }
    assert told == {
        method.__name__: inspect.signature(method).parameters["layers"].default
        for method in METHODS.values()
    }


@pytest.mark.parametrize(
    ("file", "names"), [("cam/methods.py", METHODS), ("data/opening.py", FORMATS)]
)
def test_the_names_to_choose_from_are_on_the_api_pages(file: str, names: Iterable[str]) -> None:
    """METHODS and FORMATS have docstrings, without which their pages leave them out."""
    body = ast.parse((ROOT / "wsfast" / file).read_text()).body[1:]
    strings = [ast.literal_eval(node.value) for node in body if isinstance(node, ast.Expr)]
    assert {*names} <= {*re.findall(r"``(\w+)``", " ".join(strings))}


def test_references_lead_to_where_a_name_is_from() -> None:
    griffe = pytest.importorskip("griffe")
    extensions = griffe.load_extensions(str(ROOT / "scripts/docs_docstrings.py"))
    package = griffe.load("wsfast", search_paths=[ROOT], extensions=extensions)
    for place, target in (
        ("cam.gradient.LayerCAM", "wsfast.cam.base.CAMMethod"),  # imported there
        ("cam.gradient.ChannelCAM", "wsfast.cam.gradient.ChannelCAM.channel_weights"),  # its own
        ("cam.tscam.TSCAM.explain", "wsfast.cam.CAMMethod.__call__"),  # of the package
    ):
        assert f'identifier="{target}"' in package[place].docstring.value


def test_every_picture_is_shown_and_small() -> None:
    shown = {
        Path(picture).name
        for page in DOCS.rglob("*.md")
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    pictures = list((DOCS / "pictures").glob("*.png"))
    assert pictures
    assert {picture.name for picture in pictures} <= shown
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []
