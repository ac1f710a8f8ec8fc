"""Class names and numbers of data sets that a user made."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wsfast._check import value_error

# "good" as MVTec and VisA name it, "MT_Free", "no_defect", …
_NORMAL = re.compile(
    r"(.*[_\- ])?(good|normal|ok|free|clean|negative|no[_\- ]?(defect|object|finding)s?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Classes:
    """Class names in the order of their labels.

    Attributes:
        names: one per label.
        label_of: label by the data set's own class name.
        normal: label of the class without an object, None where there is none.
    """

    names: tuple[str, ...]
    label_of: dict[str, int]
    normal: int | None


def number_classes(where: str, names: Iterable[str], normal: str | None, merge: bool) -> Classes:
    """Number class names in sorted order, the one without an object first.

    Args:
        where: name of the calling class, for messages.
        names: the classes.
        normal: the one without an object; None takes the one that is called so (good, normal, ok,
            free, clean, negative, no_defect; also behind a prefix), ``""`` says there is none.
        merge: make all others one class, ``"defect"``.

    Raises:
        ValueError: ``normal`` is no class or not to be told; nothing to merge into two.
    """
    found = sorted(set(names))
    if normal is None:
        candidates = [name for name in found if _NORMAL.fullmatch(name)]
        if len(candidates) > 1:
            value_error(where, "normal", "given where several fit", ", ".join(candidates))
        normal = candidates[0] if candidates else ""
    elif normal and normal not in found:
        value_error(where, "normal", f"one of {', '.join(found)}", normal)
    if not normal:
        if merge:
            value_error(where, "normal", "given for merge", "no class without an object")
        return Classes(tuple(found), {name: label for label, name in enumerate(found)}, None)
    found.remove(normal)
    if merge:
        return Classes((normal, "defect"), {normal: 0, **dict.fromkeys(found, 1)}, 0)
    ordered = (normal, *found)
    return Classes(ordered, {name: label for label, name in enumerate(ordered)}, 0)
