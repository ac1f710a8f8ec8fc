"""MkDocs hooks: excerpts of source files, command help, and mathematics as MathML.

An excerpt is named by a comment, so that it can neither be copied nor go stale::

    <!-- excerpt: wsfast/ops/fusion/reference.py normalize resize -->

It shows the functions and classes of these names; a name that is not there fails the build.
``<!-- help: localize -->`` shows what ``wsfast localize --help`` prints, and
``<!-- help: train fcam -->`` a recipe's. A public name that is on no page of the API is a warning,
which ends a strict build.
"""

import ast
import contextlib
import html
import importlib
import io
import logging
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("ops", "cam", "nn", "metrics", "models", "data", "train", "deploy"),
    *("compat.grad_cam", "compat.torchcam", "compat.wsolevaluation"),
)
_EXCERPT = re.compile(r"<!-- excerpt: (\S+) (.+?) -->")
_HELP = re.compile(r"<!-- help: (\w+(?: \w+)*) -->")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def python_excerpt(source: str, name: str) -> str:
    """The function or class of a name, decorators included, without its docstring's tail."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
            return "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    raise ValueError(f"no {name}")


def cpp_excerpt(source: str, name: str) -> str:
    """A definition at the left margin, with the comment and template lines above it."""
    lines = source.splitlines()
    named = re.compile(rf"^(?![\s/#}}]).*\b{re.escape(name)}\b")
    for start, line in enumerate(lines):
        if named.match(line) and not line.endswith(";"):
            end = next(i for i in range(start, len(lines)) if lines[i].startswith("}"))
            while start > 0 and re.match(r"//|template", lines[start - 1]):
                start -= 1
            return "\n".join(lines[start : end + 1])
    raise ValueError(f"no {name}")


def excerpt(path: str, names: str) -> str:
    """A fenced block of definitions of a file."""
    source = (ROOT / path).read_text()
    language, find = ("python", python_excerpt) if path.endswith(".py") else ("cpp", cpp_excerpt)
    try:
        body = "\n\n".join(find(source, name) for name in names.split())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return f'```{language} title="{path}"\n{body}\n```'


def command_help(command: str) -> str:
    """What ``wsfast COMMAND --help`` prints, 96 columns wide."""
    from wsfast.cli import build_parser

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        build_parser().parse_args([*command.split(), "--help"])
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in excerpts and help."""
    markdown = _EXCERPT.sub(lambda found: excerpt(found[1], found[2]), markdown)
    return _HELP.sub(lambda found: command_help(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw without scripts or fonts."""

    def to_mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        drawn = convert(html.unescape(found[2]).strip(), display=display)
        if "\\" in drawn:
            raise ValueError(f"a command that MathML has no sign for: {found[2]}")
        return drawn

    return _FORMULA.sub(to_mathml, content)


def on_post_build(config: Any, **_: Any) -> None:
    """Warn of public names that the API pages lack (a submodule of the same name hides some)."""
    pages = Path(config.site_dir, "api").glob("*.html")
    shown = set(re.findall(r'id="wsfast\.(?:\w+\.)*(\w+)"', "".join(map(Path.read_text, pages))))
    for package in PACKAGES:
        module = importlib.import_module(f"wsfast.{package}")
        for name in module.__all__:
            if name not in shown:
                logging.getLogger("mkdocs.hooks").warning("no API page has %s.%s", package, name)
