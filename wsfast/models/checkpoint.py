"""Checkpoints that say all that is needed to use the model again."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wsfast._check import value_error
from wsfast._files import write_atomically
from wsfast.models.small_vgg import SmallVGG
from wsfast.models.weights import load_weights

_ARCHITECTURE = "SmallVGG"


class Checkpoint(NamedTuple):
    """A model in eval mode and how to feed it.

    Attributes:
        model: the network with its weights, on the CPU.
        class_names: one name per logit.
        mean: per channel, subtracted from an image in 0–1.
        std: per channel, divided by afterwards.
        input_size: height and width the model was trained at.
    """

    model: SmallVGG
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int]


def save_checkpoint(
    model: SmallVGG,
    path: str | PathLike[str],
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int],
) -> None:
    """Write a model's weights and description to a safetensors file, whole or not at all.

    Args:
        model: the network; its weights may be on any device.
        path: file to write; an existing one is replaced at the last moment.
        class_names: one name per logit.
        mean: per channel, for images in 0–1.
        std: per channel, for images in 0–1.
        input_size: height and width of the training images.

    Raises:
        ValueError: a count that does not fit the model.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_checkpoint(SmallVGG(), file, class_names=("good", "defect"),
        ...                 mean=(0.5,), std=(0.1,), input_size=(160, 64))
        >>> load_checkpoint(file).class_names
        ('good', 'defect')
    """
    for name, values, count in (
        ("class_names", class_names, model.num_classes),
        ("mean", mean, model.in_chans),
        ("std", std, model.in_chans),
        ("input_size", input_size, 2),
    ):
        if len(values) != count:
            value_error("save_checkpoint", name, f"{count} values", f"{len(values)}")
    description = {
        "architecture": _ARCHITECTURE,
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
        "channels": list(model.channels),
        "class_names": list(class_names),
        "mean": list(mean),
        "std": list(std),
        "input_size": list(input_size),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {name: json.dumps(value) for name, value in description.items()}
    write_atomically(Path(path), save(tensors, metadata=metadata))


def load_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Rebuild the model that :func:`save_checkpoint` wrote.

    Args:
        path: the file.

    Returns:
        The model in eval mode on the CPU, with its description.

    Raises:
        ValueError: the file is missing, corrupt, or not such a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        description = {name: json.loads(value) for name, value in metadata.items()}
        if description["architecture"] != _ARCHITECTURE:
            raise ValueError(f"architecture {description['architecture']}")
        model = SmallVGG(
            description["in_chans"], description["num_classes"], description["channels"]
        )
        checkpoint = Checkpoint(
            model.eval(),
            tuple(description["class_names"]),
            tuple(description["mean"]),
            tuple(description["std"]),
            (description["input_size"][0], description["input_size"][1]),
        )
    except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        value_error("load_checkpoint", "path", "a wsfast checkpoint", f"{path} ({reason})")
    load_weights(model, path)
    return checkpoint
