"""Taking images out of a data set for validation or test, the same ones every time."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from wsfast._check import check_range

T = TypeVar("T")


def held_out(
    labels: Sequence[int],
    share: float,
    *,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.bool_]:
    """Choose a share of the images of each class, whole groups together.

    Args:
        labels: one per image.
        share: of each class's groups: 0 for none, 1 for all; between, at least one and not all
            where a class has two or more.
        seed: another seed chooses others.
        groups: what an image belongs to, e.g. the part it shows; images by default stand alone. A
            group counts for the highest label in it.

    Returns:
        bool (images,), True where held out.

    Raises:
        ValueError: a share out of range.

    Example:
        >>> held_out([0, 0, 0, 0, 1, 1], 0.25).sum(), held_out([0, 0, 0, 0, 1, 1], 0.25)[4:].sum()
        (np.int64(2), np.int64(1))
    """
    check_range("held_out", "share", share, 0, 1)
    groups = range(len(labels)) if groups is None else groups
    highest: dict[Hashable, int] = {}
    for group, label in zip(groups, labels, strict=True):
        highest[group] = max(label, highest.get(group, label))
    by_label: dict[int, list[Hashable]] = {}
    for group, top in highest.items():
        by_label.setdefault(top, []).append(group)
    chosen: set[Hashable] = set()
    for label, members in sorted(by_label.items()):
        count = round(share * len(members))
        if 0 < share < 1 and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        order = np.random.default_rng([seed, label]).permutation(len(members))
        chosen.update(members[position] for position in order[:count])
    return np.array([group in chosen for group in groups], dtype=np.bool_)


def choose_split(
    parts: Mapping[str, Sequence[T]],
    split: str,
    label_of: Callable[[T], int],
    *,
    holdout: float,
    test_share: float,
    seed: int,
    group_of: Callable[[T], Hashable] = lambda _: "",
) -> list[T]:
    """The images of a split, whatever splits a data set came with.

    Args:
        parts: images by ``"train"``, ``"val"`` and ``"test"`` as far as they exist, or under
            ``"all"`` where the data set has no splits.
        split: the one wanted.
        label_of: what images are spread evenly by.
        holdout: share of the training images that ``"val"`` takes where it does not exist.
        test_share: share of ``"all"`` that ``"test"`` takes.
        seed: of both choices.
        group_of: what images are kept together by; images whose group is empty stand alone.

    Returns:
        The images in their order; none of a ``"test"`` that a data set with splits has not, and
        none where a share is 0.
    """
    if "all" in parts:
        train, test = _divided(list(parts["all"]), label_of, group_of, test_share, seed)
        parts = {"train": train, "test": test}
    if split in parts and (split != "train" or "val" in parts):
        return list(parts[split])
    if split == "test":
        return []
    train, validation = _divided(list(parts["train"]), label_of, group_of, holdout, seed + 1)
    return validation if split == "val" else train


def _divided(
    items: list[T],
    label_of: Callable[[T], int],
    group_of: Callable[[T], Hashable],
    share: float,
    seed: int,
) -> tuple[list[T], list[T]]:
    groups = [("group", group_of(item)) if group_of(item) else at for at, item in enumerate(items)]
    aside = held_out([label_of(item) for item in items], share, seed=seed, groups=groups)
    pairs = list(zip(items, aside, strict=True))
    return [item for item, out in pairs if not out], [item for item, out in pairs if out]
