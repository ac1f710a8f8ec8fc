"""What the docstrings' few Sphinx constructs mean in Markdown, as a Griffe extension."""

import re
from textwrap import indent
from typing import Any

from griffe import Extension, Object

_MATH = re.compile(r"^( *)\.\. math:: *(.+(?:\n\1 +\S.*)*)", re.MULTILINE)
_LONE_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([\w.]+)`")


def _formula(found: re.Match[str]) -> str:
    body = " ".join(line.strip() for line in found[2].splitlines())
    return f"{found[1]}$${body}$$"


def _reference(path: str, name: str) -> str:
    """A link that may lead nowhere: to a full name, or to one of the same module."""
    target = name if name.startswith("wsfast.") else f"{path}.{name}"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'


def to_markdown(text: str, path: str) -> str:
    """A docstring as the Google parser and Markdown want it."""
    text = _MATH.sub(_formula, text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(
        r"^( *(?:\*{0,2}\w+: )?)>(?!>>)", r"\1\\>", text, flags=re.MULTILINE
    )  # no quotation
    text = _LONE_EXAMPLE.sub(lambda found: "Examples:\n" + indent(found[0], "    "), text)
    text = _ROLE.sub(lambda found: _reference(path, found[1]), text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return re.sub(r"``([^`]+)``", r"`\1`", re.sub(r"::\n\n", ":\n\n", text))


class Docstrings(Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            module = obj.path if obj.is_module else obj.module.path
            obj.docstring.value = to_markdown(obj.docstring.value, module)
