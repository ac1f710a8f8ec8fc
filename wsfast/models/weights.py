"""Loading a user's weights into any model, safely and with one clear line when they do not fit."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wsfast._check import value_error
from wsfast.models.interface import Encoder

# Where training scripts put the weights; averaged ones first, as timm does.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_NAMES_SHOWN = 3


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Load a state dict from a file into ``model``; nothing is changed unless all of it fits.

    Args:
        model: receives the weights, on whatever device it is.
        path: a ``.safetensors`` file or a ``torch.save`` file. The latter is read with
            ``weights_only=True`` and may hold the state dict itself or a dictionary with it under
            ``state_dict_ema``, ``model_ema``, ``state_dict`` or ``model``. The prefixes that
            DistributedDataParallel and torch.compile add are removed.

    Raises:
        ValueError: the file is missing or corrupt, or its names or shapes are not the model's.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save({"state_dict": {"module.weight": torch.ones(1, 2)}}, file)
        >>> model = nn.Linear(2, 1, bias=False)
        >>> load_weights(model, file)
        >>> model.weight.tolist()
        [[1.0, 1.0]]
    """
    own = model.state_dict()
    state = _without_prefixes(read_state_dict("load_weights", "path", path), own)
    complaint = _misfit(state, own)
    if complaint:
        value_error(
            "load_weights",
            "path",
            f"weights of this {type(model).__name__}",
            f"{path} ({complaint})",
        )
    model.load_state_dict(state)


def load_encoder_state(
    where: str, encoder: Encoder, state: Mapping[str, Tensor], source: str
) -> None:
    """Load what a classifier's state dict holds of its encoder; nothing is changed unless all fits.

    The head and whatever else the encoder has not (auxiliary heads, later stages) is left aside,
    and so are the layers that the encoder adds, where they are not in it.

    Args:
        where: name of the calling function, for messages.
        encoder: receives the weights.
        state: of torchvision's or timm's network, where timm names its features alike, or of one of
            this package's; of an image with three channels also for an encoder of one.
        source: where the state dict is from, for messages.

    Raises:
        ValueError: weights are missing or of other shapes.
    """
    own = encoder.state_dict()
    found = _without_prefixes(dict(state), own)
    found = {name.removeprefix("encoder."): tensor for name, tensor in found.items()}
    found = _without_prefixes(found, own)  # of the encoder alone
    if not any(name in own for name in found):
        found = {f"body.{name}": x for name, x in found.items()}  # timm's own file
    found = {name: x for name, x in found.items() if name in own}
    for name in own:
        if name.startswith(tuple(f"{layer}." for layer in encoder.without_weights)):
            found.setdefault(name, own[name])
    for name, tensor in found.items():
        if encoder.in_chans == 1 and tensor.dim() == 4 and own[name].shape[1] == 1:
            found[name] = tensor.sum(1, keepdim=True)  # a grey image is three equal channels
    complaint = _misfit(found, own)
    if complaint:
        value_error(where, "weights", f"of {encoder.config['name']}", f"{source} ({complaint})")
    encoder.load_state_dict(found)


def read_state_dict(where: str, argument: str, path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a file as :func:`load_weights` does, on the CPU.

    Args:
        where: name of the calling function, for messages.
        argument: name of its argument, for messages.
        path: the file.

    Raises:
        ValueError: the file is missing or corrupt, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        value_error(where, argument, "an existing file", f"{path}")
    content: object = None
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        value_error(where, argument, "a file of weights only", f"{path}, unreadable: {reason}")
    if isinstance(content, Mapping):
        content = next((content[key] for key in _CONTAINERS if key in content), content)
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        value_error(where, argument, "a state dict of tensors", f"{path} without one")
        return {}
    return dict(content)


def _without_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A prefix that belongs to the model's own names stays.
    removable = tuple(
        prefix for prefix in _WRAPPER_PREFIXES if not any(name.startswith(prefix) for name in own)
    )
    clean = {}
    for name, tensor in state.items():
        while name.startswith(removable):
            for prefix in removable:
                name = name.removeprefix(prefix)
        clean[name] = tensor
    return clean


def _misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say how a state dict differs from the model's; empty when it fits."""
    # BatchNorm fills in its step counter itself when a file is too old to have one.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("shape", reshaped))
    return "; ".join(f"{kind}: {_shortened(names)}" for kind, names in problems if names)


def _shortened(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _NAMES_SHOWN
    return ", ".join(listed[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
