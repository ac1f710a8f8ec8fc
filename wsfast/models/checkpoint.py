"""Checkpoints that say all that is needed to use the model again."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from wsfast._check import value_error
from wsfast._files import write_atomically
from wsfast.data.sample import check_normalization, check_size
from wsfast.models.registry import build_model, config_differences
from wsfast.models.weights import load_weights

# What the first checkpoints, all of SmallVGG, had beside the description of the images.
_FIRST_SETTINGS = ("architecture", "in_chans", "num_classes", "channels")


class Checkpoint(NamedTuple):
    """A model in eval mode and how to feed it.

    Attributes:
        model: the network with its weights, on the CPU.
        class_names: one name per class of image.
        mean: per channel, subtracted from an image in 0–1.
        std: per channel, divided by afterwards.
        input_size: height and width the model was trained at.
        config: what :func:`wsfast.models.build_model` builds the network from.
        extra: whatever else was saved with it.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int]
    config: dict[str, Any]
    extra: dict[str, Any]


def save_checkpoint(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int],
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's weights and description to a safetensors file, whole or not at all.

    It is on the disk when this returns, and so survives a power cut.

    Args:
        model: the network; its weights may be on any device.
        path: file to write, ``.safetensors``; an existing one is replaced at the last moment.
        class_names: one name per class; checked against ``model.num_classes`` where there is one.
        mean: finite, per channel, for images in 0–1.
        std: positive, per channel, for images in 0–1.
        input_size: height and width of the training images.
        config: what :func:`wsfast.models.build_model` builds the network from; by default the
            model's own ``config``, so that it is needed for other packages' models only.
        extra: anything else that JSON can hold, e.g. a threshold.

    Raises:
        TypeError: ``mean`` that is no number, sides that are no integers.
        ValueError: a count that does not fit the model, values out of range, a model that no
            description is known of, another suffix.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from wsfast.models import SmallVGG
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_checkpoint(SmallVGG(), file, class_names=("good", "defect"),
        ...                 mean=(0.5,), std=(0.1,), input_size=(160, 64))
        >>> load_checkpoint(file).class_names
        ('good', 'defect')
    """
    if Path(path).suffix != ".safetensors":  # by which it is read again
        value_error("save_checkpoint", "path", "a file that ends in .safetensors", f"{path}")
    description = description_of(
        model, class_names=class_names, mean=mean, std=std, input_size=input_size, config=config
    )
    description["extra"] = dict(extra or {})
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {name: json.dumps(value) for name, value in description.items()}
    write_atomically(Path(path), save(tensors, metadata=metadata), durable=True)


def description_of(
    model: nn.Module,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int],
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What :func:`save_checkpoint` writes beside the weights, checked as it says."""
    config = getattr(model, "config", None) if config is None else config
    if not isinstance(config, Mapping):
        name = type(model).__name__
        value_error("save_checkpoint", "config", f"given for a {name}", "nothing")
        raise AssertionError  # value_error always raises
    channels = getattr(model, "in_chans", config.get("in_chans", 3))
    for name, values, count in (
        ("class_names", class_names, getattr(model, "num_classes", len(class_names))),
        ("mean", mean, channels),
        ("std", std, channels),
        ("input_size", input_size, 2),
    ):
        if len(values) != count:
            value_error("save_checkpoint", name, f"{count} values", f"{len(values)}")
    check_normalization("save_checkpoint", mean, std)
    check_size("save_checkpoint", input_size, 1, "input_size")
    return {
        "config": dict(config),
        "class_names": list(class_names),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "input_size": list(input_size),
    }


def load_checkpoint(
    path: str | PathLike[str], *, config: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Rebuild the model that :func:`save_checkpoint` wrote, whatever it is.

    Args:
        path: the file.
        config: the description that the model must have; None takes any.

    Returns:
        The model in eval mode on the CPU, with its description.

    Raises:
        ValueError: the file is missing, corrupt, or not such a checkpoint; its model is not the
            one of ``config`` (what differs is named).

    Note:
        The global random state is left as it was.
    """
    try:
        description = _read_description(path)
        saved: dict[str, Any] = description["config"]
        if config is not None:
            _check_same(path, saved, config)
        with torch.random.fork_rng(devices=[]):
            model = build_model(saved)
        checkpoint = Checkpoint(
            model.eval(),
            tuple(description["class_names"]),
            tuple(description["mean"]),
            tuple(description["std"]),
            (description["input_size"][0], description["input_size"][1]),
            saved,
            description.get("extra", {}),
        )
    except _OtherModelError:
        raise
    except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        value_error("load_checkpoint", "path", "a wsfast checkpoint", f"{path} ({reason})")
    load_weights(checkpoint.model, path)
    return checkpoint


def saved_normalization(
    path: str | PathLike[str],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that :func:`save_checkpoint` wrote to a file; None of other files."""
    try:
        description = _read_description(path)
        return tuple(description["mean"]), tuple(description["std"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


class _OtherModelError(ValueError):
    """A checkpoint of another model than the one asked for."""


def _read_description(path: str | PathLike[str]) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    description = {name: json.loads(value) for name, value in metadata.items()}
    if "config" not in description:
        description["config"] = {name: description[name] for name in _FIRST_SETTINGS}
    return description


def _check_same(
    path: str | PathLike[str], saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    differences = config_differences(saved, wanted)
    if differences:
        raise _OtherModelError(
            "wsfast.load_checkpoint: path must be a checkpoint of the model asked for, got "
            f"{path} ({'; '.join(differences)})"
        )
