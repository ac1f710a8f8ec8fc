"""Typed configurations: from YAML and the command line, into the run's folder, and compared."""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from wsfast._check import check_choice, check_range, value_error
from wsfast._files import write_atomically
from wsfast.data.masks import MASK_KINDS
from wsfast.train.schedule import SCHEDULES

CONFIG = "config.yaml"
HELD_OUT = ("holdout", "split_seed")  # what chooses the images that are kept from training
SELECTIONS = ["localization", "classification", "last"]

# These say where, how fast and how long a run goes, not what comes out of an epoch; data and
# classifiers may be moved, as a run's state tells them by their images and weights.
FREE_ON_RESUME = frozenset(
    {"device", "workers", "tensorboard", "patience", "data", "metadata", "masks", "classifier"}
)
_LENGTH_MATTERS = {"cosine", "onecycle"}  # schedules that depend on the number of epochs


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every recipe is told.

    Attributes:
        preset: name of settings to start from, where the recipe has some; those given win.
        data: ``"synthetic"``, the folder of a data set or a CSV file.
        format: of the data: ``"folder"`` (one subfolder per class), ``"csv"``, ``"ksdd"``,
            ``"ksdd2"`` or ``"wsol"`` (the localisation benchmark's metadata); ``"auto"`` looks.
        images: training images of the synthetic data set.
        metadata: folder of WSOL metadata; empty for ``metadata`` in the data's folder.
        masks: folder of mask files, for ``"folder"`` and ``"wsol"``.
        mask_kind: what the object is in the mask files of ``"folder"`` and ``"csv"``: ``"binary"``
            (the default: what reaches half of 255, or is 1 in a file of 0 and 1), ``"nonzero"`` or
            ``"index"`` (every class number but 0; 255 is ignored).
        normal: class without an object, for ``"folder"`` and ``"csv"``; empty finds it by its name.
        merge: make all other classes one, ``defect``, for ``"folder"`` and ``"csv"``.
        channels: 3 for RGB, 1 for grey; None takes the classifier's, and 3 for a new one.
        size: height and width that images are resized to; None takes the classifier's, and for a
            new one that of the first image.
        crop: height and width of the random crop in training and of the images in validation; None
            takes ``size``.
        flips: ``"none"``, ``"horizontal"`` or ``"both"``.
        holdout: share of the training split that validation takes where there is no such split; 0
            for no validation at all, which needs ``select_on`` to be ``"last"``.
        split_seed: which images are held out for validation and test where the data do not say so;
            another one draws other synthetic data. Runs that build on one another must share it.
        strict: an unreadable file is an error instead of being reported and skipped.
        epochs: passes over the data.
        batch_size: images per optimizer step, over all processes and accumulated parts. What one
            part of a process has also bounds how many images are explained at a time.
        accumulate: parts a process takes its batch in, to save memory. Batch normalisation and
            means over labelled pixels are then those of a part.
        balanced: as many images of each class per epoch.
        optimizer: ``"sgd"`` (with Nesterov momentum) or ``"adamw"``.
        learning_rate: before the schedule's factor; the peak of ``"onecycle"``.
        momentum: of SGD; ``"onecycle"`` has its own.
        weight_decay: of the optimizer.
        schedule: ``"constant"``, ``"step"``, ``"cosine"`` or ``"onecycle"``.
        decay_every: epochs between two steps of ``"step"``.
        decay_factor: what such a step multiplies the rate with.
        warmup_epochs: in which the rate first rises linearly; ``"onecycle"`` has its own rise.
        clip_gradients: largest norm of all gradients of a step together, as transformers need it;
            larger ones are scaled down to it. 0 for no bound.
        select_on: what makes the ``best`` model: ``"localization"`` (masks or boxes of the
            validation images, which is supervision), ``"classification"`` (their labels only; not
            of ``pseudo``) or ``"last"``.
        validate_every: epochs between two validations; the last epoch is always validated.
        patience: epochs without a better model after which a validation ends the run early; 0 for
            none. The schedule is still that of ``epochs``.
        seed: of weights, order, augmentation and sampling.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ….
        amp: ``"off"``, ``"bf16"`` or ``"fp16"``; losses are in float32 always.
        channels_last: memory order of images and weights.
        workers: processes that read images; 0 reads in the training process.
        deterministic: only deterministic kernels, on CUDA slower.
        tensorboard: also write TensorBoard's files; needs the package.
    """

    recipe: ClassVar[str] = ""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    preset: str = ""
    data: str = "synthetic"
    format: str = "auto"
    images: int = 600
    metadata: str = ""
    masks: str = ""
    mask_kind: str = ""
    normal: str = ""
    merge: bool = False
    channels: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    flips: str = "horizontal"
    holdout: float = 0.2
    split_seed: int = 0
    strict: bool = False
    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    balanced: bool = True
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "constant"
    decay_every: int = 15
    decay_factor: float = 0.1
    warmup_epochs: int = 0
    clip_gradients: float = 0.0
    select_on: str = "localization"
    validate_every: int = 1
    patience: int = 0
    seed: int = 0
    device: str = "auto"
    amp: str = "off"
    channels_last: bool = False
    workers: int = 0
    deterministic: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "decay_every", "validate_every"):
            check_range("train", name, getattr(self, name), 1, 10**9)
        for name in ("seed", "split_seed", "workers", "warmup_epochs", "patience"):
            check_range("train", name, getattr(self, name), 0, 2**63 - 1)
        check_range("train", "holdout", self.holdout, 0, 0.9)
        for name in ("learning_rate", "weight_decay", "decay_factor", "clip_gradients"):
            check_range("train", name, getattr(self, name), 0, 1e30)
        check_range("train", "momentum", self.momentum, 0, 1)
        check_choice("train", "flips", self.flips, ["none", "horizontal", "both"])
        check_choice("train", "optimizer", self.optimizer, ["sgd", "adamw"])
        check_choice("train", "schedule", self.schedule, SCHEDULES)
        check_choice("train", "select_on", self.select_on, SELECTIONS)
        check_choice("train", "amp", self.amp, ["off", "bf16", "fp16"])
        if self.mask_kind:
            check_choice("train", "mask_kind", self.mask_kind, MASK_KINDS)
        if self.preset:
            check_choice("train", "preset", self.preset, sorted(self.presets))

    @property
    def length_matters(self) -> bool:
        """Whether a run of more epochs is another from its first epoch on."""
        return self.schedule in _LENGTH_MATTERS

    def idle(self) -> dict[str, str]:
        """Settings that have no effect, each with what it has none beside."""
        found = {"patience": "select_on last"} if self.select_on == "last" else {}
        if self.schedule == "onecycle":
            found |= dict.fromkeys(("momentum", "warmup_epochs"), "schedule onecycle")
        elif self.optimizer != "sgd":
            found["momentum"] = f"optimizer {self.optimizer}"
        if self.schedule != "step":
            found |= dict.fromkeys(("decay_every", "decay_factor"), f"schedule {self.schedule}")
        return found

    def check_effect(self, given: Iterable[str]) -> None:
        """Raise ValueError for settings that were given another value than theirs in vain."""
        usual = type(self).build({"preset": self.preset})
        idle = self.idle()
        for name in given:
            value, default = getattr(self, name), getattr(usual, name)
            if name in idle and value != default:
                expected = f"left out (or {default}) with {idle[name]}"
                value_error("train", name, expected, f"{value}")

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Self:
        """From settings by name; those of its ``preset`` are taken where a setting is not given.

        Raises:
            ValueError: an unknown name or a value out of range.
            TypeError: a value of another type.
        """
        kinds = _field_types(cls)
        for name in settings:
            if name not in kinds:
                close = difflib.get_close_matches(str(name), list(kinds), 1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                value_error("train", "a setting", f"known to {cls.recipe}", f"'{name}'{hint}")
        preset = str(settings.get("preset", ""))
        if preset:
            check_choice("train", "preset", preset, sorted(cls.presets))
        merged = {**cls.presets.get(preset, {}), **settings}
        return cls(**{name: _coerced(name, value, kinds[name]) for name, value in merged.items()})

    def as_dict(self) -> dict[str, Any]:
        """All settings, of plain types that YAML and ``torch.load(weights_only=True)`` know."""
        plain = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def save(self, folder: Path) -> None:
        """Write the settings to the run's ``config.yaml``."""
        text = yaml.safe_dump({"recipe": self.recipe, **self.as_dict()}, sort_keys=False)
        write_atomically(folder / CONFIG, text.encode())


def read_settings(path: Path, recipe: str) -> dict[str, Any]:
    """Settings of a YAML file, which may name the recipe it is for.

    Raises:
        ValueError: no such file, no YAML of settings, or settings of another recipe.
    """
    named, found = read_recipe(path)
    if named not in ("", recipe):
        value_error("train", "--config", f"of the recipe {recipe}", f"{path}, of {named}")
    return found


def read_run_settings(out: Path, recipe: str) -> dict[str, Any]:
    """Settings of the run in a folder; none where it holds no run yet.

    Raises:
        ValueError: a run of another recipe, or one whose settings cannot be read.
    """
    if not (out / CONFIG).is_file():
        return {}
    named, found = read_recipe(out / CONFIG)
    if named != recipe:
        value_error("train", "--out", f"a new folder or a run of {recipe}", f"{out}, of {named}")
    return as_saved(found)


def read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    """The recipe that a YAML file names, empty where it does not, and its settings.

    Raises:
        ValueError: no such file, or no YAML of settings.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        value_error("train", "--config", "a readable YAML file", f"{path} ({reason})")
    if not isinstance(found, dict):
        value_error("train", "--config", "a YAML file of `name: value` lines", f"{path}")
    settings = dict(found)
    if settings.get("amp") is False:  # YAML reads a bare `off` so
        settings["amp"] = "off"
    return str(settings.pop("recipe", "")), settings


def as_saved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a run has saved; before there was ``split_seed``, ``seed`` split the data."""
    return {"split_seed": settings.get("seed", TrainConfig.seed), **settings}


def changes_on_resume(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """What a resumed run may not change and does, as ``name: before -> now``."""
    usual = type(config)().as_dict()  # what a run has kept to that was saved before a setting was
    saved, now = {**usual, **as_saved(saved)}, config.as_dict()
    free = set(FREE_ON_RESUME)
    if not config.length_matters:
        free.add("epochs")
    return [
        f"{name}: {saved[name]} -> {now.get(name)}"
        for name in sorted(saved.keys() - free)
        if saved[name] != now.get(name)
    ]


def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(cls)}


def _coerced(name: str, value: Any, kind: Any) -> Any:
    """The value as ``kind``: whole numbers serve as float, lists as tuple, ``2e-9`` is a number."""
    if isinstance(kind, types.UnionType):
        optional = type(None) in typing.get_args(kind)
        if optional and value is None:
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    if typing.get_origin(kind) is tuple:
        item, *rest = typing.get_args(kind)
        fixed = None if rest == [Ellipsis] else 1 + len(rest)
        if isinstance(value, list | tuple) and fixed in (None, len(value)):
            return tuple(_coerced(name, part, item) for part in value)
    elif kind is float:
        try:
            return float(value) if not isinstance(value, bool) else _wrong(name, value, kind)
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    return _wrong(name, value, kind)


def _wrong(name: str, value: Any, kind: Any) -> None:
    expected = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    raise TypeError(
        f"wsfast.train: {name} must be {expected.get(kind, 'a list, as [256, 256]')}, got {value!r}"
    )


def documented(name: str, cls: type) -> str:
    """What the docstring of a configuration says of a setting, in one line."""
    for parent in cls.__mro__:
        lines = inspect.cleandoc(parent.__doc__ or "").splitlines()
        for number, line in enumerate(lines):
            if line.strip().startswith(f"{name}: "):
                told = [line.strip().removeprefix(f"{name}: ")]
                for more in lines[number + 1 :]:
                    if not more.startswith(" " * 8):
                        break
                    told.append(more.strip())
                plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(told))
                return plain.replace("``", "")
    return ""
