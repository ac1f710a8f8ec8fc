"""What every CAM method shares: its model and layers, the checks, and the fusion of its maps."""

from contextlib import nullcontext
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from .. import ops
from .._check import (
    check_choice,
    check_floating,
    check_range,
    check_rank,
    check_tensor,
    value_error,
)
from .capture import LayerCapture
from .layers import Layers, dry_run_layers, resolve_layers
from .result import CAMResult
from .targets import Target, in_range
from .tokens import Reshape
from .wrappers import reducer_of, unwrap

Norm = Literal["minmax", "max"] | None
Reduce = Literal["mean", "sum", "max", "prod"]
Scope = Literal["map", "sample"]


class Options(TypedDict, total=False):
    """The keyword arguments that every method takes, see :class:`CAMMethod`."""

    layer_norm: Norm
    reduce: Reduce
    norm: Norm
    weights: Tensor | list[float] | None
    eps: float
    reshape: Reshape | None


class Explained(NamedTuple):
    """What a method makes of one batch, before fusion.

    Attributes:
        maps: (N, K, h, w) float32 per layer, K classes per image (1 unless several were asked).
        logits: (N, classes).
        target: class numbers, (N,) or (N, K); None for a callable.
    """

    maps: list[Tensor]
    logits: Tensor
    target: Tensor | None


class CAMMethod:
    """Base of all methods; a method defines :meth:`explain`.

    Args:
        model: a classifier giving (N, classes) logits, alone, as ``logits`` of its output, or as
            the first (N, C) tensor in it, where all of these have one C. Its mode,
            ``requires_grad`` flags, ``.grad``, buffers and hooks are left as found; DataParallel,
            DDP and compiled wrappers are looked through.
        layers: ``"stages"`` (the last layer of each resolution), ``"last"``, a module name, a
            module, or a list of names and modules.
        layer_norm: normalisation of each layer's map before fusion, ``"minmax"``, ``"max"`` or
            None.
        reduce: fusion over layers, ``"mean"``, ``"sum"``, ``"max"`` or ``"prod"``.
        norm: normalisation of the fused map, ``"minmax"``, ``"max"`` or None.
        weights: one factor per layer, (L,) tensor or list; None weighs all alike.
        eps: absolute, added to the divisors of the normalisations.
        reshape: from a layer's output (and its gradient) to an (N, C, h, w) view of it, for token
            layers. None finds it for timm's and torchvision's vision transformers and for timm's
            channels-last models.

    The defaults fuse as pytorch-grad-cam does. ``layer_norm=None, reduce="sum", norm=None`` is the
    literal sum over layers of LTGrad-CAM eq. 8 and 10.

    Raises:
        ValueError: unknown layers or options.
        TypeError: a model that is not an eager module.

    Note:
        timm models name their stages in ``feature_info``; for others ``"stages"`` and ``"last"``
        cost a dry run on two copies of one image, once, at the first call. Hooks do not fire inside
        compiled code, so of a compiled model the module that was compiled is run, uncompiled.
    """

    differentiable = True

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "stages",
        *,
        layer_norm: Norm = "minmax",
        reduce: Reduce = "mean",
        norm: Norm = "minmax",
        weights: Tensor | list[float] | None = None,
        eps: float = 1e-7,
        reshape: Reshape | None = None,
    ) -> None:
        where = f"cam.{type(self).__name__}"
        check_choice(where, "reduce", reduce, ["mean", "sum", "max", "prod"])
        check_norm(where, "layer_norm", layer_norm)
        check_norm(where, "norm", norm)
        check_range(where, "eps", eps, 0.0, 1.0)
        self.model = unwrap(where, model)
        self.layers = layers
        self.layer_norm: Norm = layer_norm
        self.reduce: Reduce = reduce
        self.norm: Norm = norm
        self.weights = weights
        self.eps = eps
        self.reshape = reshape
        self._where = where
        found = self._find_layers(layers)
        self._reducer = reducer_of(model)
        self._capture = None if found is None else self._captures(found)

    def _find_layers(self, layers: Layers) -> dict[str, nn.Module] | None:
        """The layers to look at; None leaves them to a dry run at the first call."""
        return resolve_layers(self._where, self.model, layers)

    def _captures(self, layers: dict[str, nn.Module]) -> LayerCapture:
        return LayerCapture(self._where, self.model, layers, self.reshape, self._reducer)

    @property
    def layer_names(self) -> tuple[str, ...] | None:
        """Names of the layers looked at; None before a first call that has to find them."""
        return tuple(self._capture.layers) if self._capture else None

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """Maps of every layer, neither normalised nor resized."""
        raise NotImplementedError

    def __call__(
        self, images: Tensor, target: Target = None, *, create_graph: bool = False
    ) -> CAMResult:
        """Explain one batch.

        Args:
            images: (N, 3, H, W) or whatever the model takes, floating point.
            target: None (the class of highest score), one class, (N,) classes, (N, K) classes, or
                a callable from logits to (N,) scores.
            create_graph: keep the maps and logits differentiable, for losses on CAMs.

        Returns:
            A :class:`CAMResult`; ``cams`` is (N, H, W), or (N, K, H, W) for an (N, K) target.

        Raises:
            ValueError: a layer that does not run, that gives no (N, C, h, w) tensor or that the
                scores do not depend on; a target of wrong shape or range; a model that is not a
                classifier; ``torch.inference_mode``; ``create_graph`` for a method without it.
            TypeError: images that are not floating point, a target that is no class number.

        Note:
            Gradient methods take one forward pass and one backward pass per class, down to the
            shallowest layer only, and no device sync. The model runs in evaluation mode whatever
            its mode. Works under ``torch.no_grad`` and with frozen models; under autocast gradients
            are reduced in float32.

            With ``create_graph`` the forward pass is that of a training step, in the model's own
            mode (batch statistics, dropout) and with its history down to the images; the logits
            serve the classification loss too. The truncation's mask counts as a constant. Fused
            attention is off during the call (in the whole process), as it has no second derivative,
            and so is timm's checkpointing in any call, so memory grows.

            A DDP wrapper runs with ``create_graph`` only: its ranks then end with equal ``.grad``,
            if all of them make the call and the loss has a part in ``logits``, for parameters on
            which the maps do not depend (DDP waits for every gradient). Other calls run the module
            inside, so one rank may make them alone.
        """
        self._check_call(images, create_graph=create_graph)
        if self._capture is None:
            layers = dry_run_layers(self._where, self.model, self.layers, images)
            self._capture = self._captures(layers)
        with torch.enable_grad() if create_graph else nullcontext():
            maps, logits, classes = self.explain(
                self._capture, images, target, create_graph=create_graph
            )
            logits = logits if create_graph else logits.detach()
            valid = (finite(logits) & in_range(classes, logits)).to(images.device)
            maps = [layer.to(images.device) for layer in maps]
            cams, maps, valid = self._fuse(maps, valid, images)
            if classes is None or classes.dim() == 1:
                cams, maps = cams[:, 0], [layer[:, 0] for layer in maps]
        return CAMResult(cams, maps, logits, classes, valid)

    def _check_call(self, images: Tensor, *, create_graph: bool) -> None:
        check_images(self._where, images)
        if create_graph and not self.differentiable:
            value_error(self._where, "create_graph", "False for this method", "True")
        if create_graph and getattr(self._reducer, "static_graph", False):
            # It would take the backward pass to the layers for that of the training step.
            expected = "without static_graph for create_graph"
            value_error(self._where, "model", expected, "static_graph=True")

    def _fuse(
        self, maps: list[Tensor], valid: Tensor, images: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Fused and single maps, zero where an image is not valid, and which images are."""
        size = (images.shape[2], images.shape[3])
        for layer in maps:
            valid = valid & finite(layer)
        maps = [layer.masked_fill(~valid[:, None, None, None], 0.0) for layer in maps]
        cams = ops.fuse_cams(
            [layer.flatten(0, 1) for layer in maps],
            size,
            layer_norm=self.layer_norm,
            reduce=self.reduce,
            norm=self.norm,
            weights=self.weights,
            eps=self.eps,
        )
        return cams.unflatten(0, maps[0].shape[:2]), maps, valid


def check_norm(where: str, argument: str, value: Norm) -> None:
    """Raise ValueError unless ``value`` is a normalisation of maps or None."""
    if value is not None:
        check_choice(where, argument, value, ["minmax", "max"])


def check_images(where: str, images: Tensor, argument: str = "images") -> None:
    """Raise unless ``images`` is a floating-point batch (N, C, H, W) with something in it."""
    check_tensor(where, argument, images)
    check_floating(where, argument, images)
    check_rank(where, argument, images, 4)
    if 0 in images.shape:
        shape = f"shape {list(images.shape)}"
        value_error(where, argument, "a batch of at least one image and pixel", shape)


def finite(values: Tensor) -> Tensor:
    """(N,) bool: whether all of an image's values are finite."""
    return values.isfinite().flatten(1).all(dim=1)


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """``sum_k w_k A_k`` in float32: (N, C) or (N, M, C) weights give (N, h, w) or (N, M, h, w)."""
    maps = torch.matmul(
        weights if weights.dim() == 3 else weights[:, None], activations.float().flatten(2)
    )
    maps = maps.unflatten(2, activations.shape[2:])
    return maps if weights.dim() == 3 else maps[:, 0]
