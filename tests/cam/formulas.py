"""The methods' maps as the papers print them, in float64."""

from collections.abc import Callable

from torch import Tensor, nn

from tests.cam.nets import fuse, passes
from wsfast.ops.truncation import reference as truncation


def mean_weighted(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean((2, 3), keepdim=True) * a).sum(1).relu()


def gradcamplusplus(a: Tensor, g: Tensor) -> Tensor:
    alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3)
    weights = (alpha.nan_to_num(0.0) * g.relu()).sum((2, 3), keepdim=True)
    return (weights * a).sum(1).relu()


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    weights = (g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-7)
    return (weights * a).sum(1).relu()


# One layer's map from its activations and gradients, as the papers print it.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": mean_weighted,
    "gradcamplusplus": gradcamplusplus,
    "xgradcam": xgradcam,
    "hirescam": lambda a, g: (g * a).sum(1).relu(),
    "layercam": lambda a, g: (g.relu() * a).sum(1).relu(),
    "ltgradcam": lambda a, g: mean_weighted(a, truncation.truncate_gradients(g, 50)),
    "ltlayercam": lambda a, g: (truncation.truncate_gradients(g, 50) * a).sum(1).relu(),
}
# Methods that explain several layers at once by default.
MULTI_LAYER = [*FORMULAS, "smoothgradcamplusplus", "racam"]


def oracle(model: nn.Module, images: Tensor, layers: list[str], formula: Callable) -> Tensor:
    """The formula in float64 with plain hooks and autograd."""
    activations, grads, _ = passes(model.double(), images.double(), layers)
    model.float()
    maps = [formula(a, g) for a, g in zip(activations, grads, strict=True)]
    return fuse(maps, images.shape[2:])
