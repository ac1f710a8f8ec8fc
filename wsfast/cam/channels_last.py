"""Whether a layer's four-dimensional output is (N, h, w, C) instead of (N, C, h, w)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._check import value_error

Rerun = Callable[[], Tensor | None]


def says_channels_last(model: nn.Module) -> bool:
    """Whether a timm model says that its feature maps are (N, h, w, C) (Swin)."""
    return getattr(model, "output_fmt", None) == "NHWC"


def is_channels_last(
    where: str, owners: list[nn.Module], output: Tensor, images: Tensor, at_twice_the_height: Rerun
) -> bool:
    """Decide by sure signs only.

    What the model says; which side of the output the layer's own norms, linear layers and
    convolutions work on; what stays as it is when the images' height doubles; at last the images'
    shape. Only where a norm or linear layer of the model has as many channels as the output's last
    dimension is there anything to decide. Rows and columns of another shape than the images' are
    none: windows and their tokens (NesT, torchvision's MaxViT).

    Args:
        where: name of the calling function, for messages.
        owners: the model and what lies in it around the layer, down to the layer itself.
        output: the layer's, of 4 dimensions.
        images: that it came from.
        at_twice_the_height: gives the layer's output for such images; None if the model takes none.

    Raises:
        ValueError: both readings fit, or none.
    """
    layer = owners[-1]
    if isinstance(layer, (nn.Conv2d, _BatchNorm)):
        return False
    told = [owner for owner in owners if hasattr(owner, "output_fmt")]
    if told:
        return _checked(where, layer, output, images, says_channels_last(told[-1]))
    first, _, last = output.shape[1:]
    if last not in _widths(owners[0], _last_width):
        return False
    runs_last = last in _widths(layer, _last_width)
    runs_first = first in _widths(layer, _last_width) | _widths(layer, _first_width)
    decided = runs_last if runs_last != runs_first else _by_size(output, at_twice_the_height())
    decided = _by_shape(output, images) if decided is None else decided
    return _checked(where, layer, output, images, decided)


def _checked(
    where: str, layer: nn.Module, output: Tensor, images: Tensor, decided: bool | None
) -> bool:
    """What was decided, unless (N, h, w, C) would be of another shape than the images."""
    aspect, (rows, columns) = images.shape[3] / images.shape[2], output.shape[1:3]
    if decided is None or (decided and abs(columns - rows * aspect) > 1 + aspect):
        expected = "of a layout that can be told, (N, C, h, w) or (N, h, w, C); reshape= tells it"
        value_error(
            where, "layers", expected, f"{list(output.shape)} from a {type(layer).__name__}"
        )
    assert decided is not None
    return decided


def _last_width(module: nn.Module) -> Any:
    """Channels of what works on the last dimension."""
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return None if _turns(module) else shape[-1]
    return module.out_features if isinstance(module, nn.Linear) else None


def _first_width(module: nn.Module) -> Any:
    """Channels of what works on the dimension behind the batch's."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    shape = getattr(module, "normalized_shape", None)
    return shape[-1] if shape is not None and _turns(module) else None


def _turns(norm: nn.Module) -> bool:
    """Whether this is a layer norm of (N, C, h, w), as torchvision and timm call them."""
    return "2d" in type(norm).__name__


def _widths(module: nn.Module, width_of: Callable[[nn.Module], Any]) -> set[Any]:
    return {width_of(part) for part in module.modules()} - {None}


def _by_size(output: Tensor, taller: Tensor | None) -> bool | None:
    """Channels keep their number when the height doubles; the rows do not."""
    if taller is None or taller.dim() != 4:
        return None
    same = [a == b for a, b in zip(output.shape[1:], taller.shape[1:], strict=True)]
    if same == [True, False, True]:
        return False
    return True if same == [False, True, True] else None


def _by_shape(output: Tensor, images: Tensor) -> bool | None:
    """Which reading alone has the images' shape."""
    first, second, third = output.shape[1:]
    aspect = images.shape[3] / images.shape[2]
    as_maps = abs(third - second * aspect) <= max(1.0, second * aspect / 2)
    as_last = abs(second - first * aspect) < 1
    return None if as_maps == as_last else as_last
