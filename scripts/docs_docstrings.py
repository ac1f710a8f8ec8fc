"""What the docstrings' few Sphinx constructs mean in Markdown, as a Griffe extension."""

import re
from textwrap import indent
from typing import Any

from griffe import Alias, Extension, Module, Object

_MATH = re.compile(r"^( *)\.\. math:: *(.+(?:\n\1 +\S.*)*)", re.MULTILINE)
_LONE_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([\w.]+)`")


def _formula(found: re.Match[str]) -> str:
    body = " ".join(line.strip() for line in found[2].splitlines())
    return f"{found[1]}$${body}$$"


def _full_name(module: Module, name: str) -> str:
    """Where a module has a name from: itself, an import, or the nearest package that exports it."""
    at: Object | None = module
    if name in module.members:
        member = module.members[name]
        return member.target_path if isinstance(member, Alias) else member.path
    while isinstance(at, Module) and name not in (at.exports or ()):
        at = at.parent
    return f"{(at or module).path}.{name}"


def _target(obj: Object, name: str) -> str:
    """What a docstring means by a name: a full one, of the object's class or of its module."""
    if name.startswith("wsfast."):
        return name
    around = obj if obj.is_class else obj.parent
    if around is not None and around.is_class and name in around.members:
        return f"{around.path}.{name}"
    head, dot, rest = name.partition(".")
    return _full_name(obj.module, head) + dot + rest


def _reference(obj: Object, name: str) -> str:
    """A link that may lead nowhere."""
    return f'<autoref optional identifier="{_target(obj, name)}"><code>{name}</code></autoref>'


def to_markdown(text: str, obj: Object) -> str:
    """A docstring as the Google parser and Markdown want it."""
    text = _MATH.sub(_formula, text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(
        r"^( *(?:\*{0,2}\w+: )?)>(?!>>)", r"\1\\>", text, flags=re.MULTILINE
    )  # no quotation
    text = _LONE_EXAMPLE.sub(lambda found: "Examples:\n" + indent(found[0], "    "), text)
    text = _ROLE.sub(lambda found: _reference(obj, found[1]), text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return re.sub(r"``([^`]+)``", r"`\1`", re.sub(r"::\n\n", ":\n\n", text))


class Docstrings(Extension):
    """Rewrites every docstring of a package, once all is known of it."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Rewrite all."""
        self._rewrite(pkg)

    def _rewrite(self, obj: Object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)
        for member in obj.members.values():
            if isinstance(member, Object):  # no alias
                self._rewrite(member)
