"""FullGrad and LTFullGrad: gradients of the input and of every layer's bias."""

import threading
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from .. import ops
from .._check import check_choice, check_truncation, value_error
from .base import CAMMethod, Explained, Scope
from .capture import (
    LayerCapture,
    backward_precision,
    logits_of,
    start_graph,
    undisturbed,
    usable_images,
)
from .layers import Layers, resolve_layers
from .targets import ScoreSeed, Target, resolve_target, score_seeds

PsiNorm = Literal["channel", "layer"] | None


class BiasCall(NamedTuple):
    """One call of a layer with a bias: the bias it added and where its output is in the graph.

    The bias broadcasts with the output.
    """

    bias: Tensor
    edge: GradientEdge


class FullGrad(CAMMethod):
    r"""FullGrad: the input's and all biases' shares in the score (Srinivas 2019; LTGrad-CAM eq. 6).

    .. math:: M = \sum_c \Psi(g_x \odot x)_c + \sum_l \sum_k \Psi(g^{kl} b^{kl}), \qquad
              \Psi(m) = \mathrm{up}(\mathrm{norm}(|m|))

    with :math:`g^{kl}` the gradient at the output of layer l. For batch normalisation b is what it
    adds in evaluation mode, :math:`\beta - \gamma \mu / \sqrt{\sigma^2 + \epsilon}`.

    Args:
        model: see :class:`CAMMethod`.
        layers: ``"biases"`` (all convolutions, transposed ones too, and batch normalisations with a
            bias) or names or modules among these. Batch normalisations may be synchronised or
            frozen.
        psi_norm: Psi's normalisation: ``"channel"`` (each channel by its own minimum and maximum,
            pytorch-grad-cam's), ``"layer"`` (over all channels of a layer, the authors' code) or
            None.
        psi_input: False adds the input's term as eq. 6 prints it, outside of Psi and signed.
        norm: see :class:`CAMMethod`.
        eps: see :class:`CAMMethod`.

    Warns:
        UserWarning: with ``"biases"``, normalisations whose bias is left out, as what they add
            depends on the image: layer, group and instance norms, and batch norms without running
            statistics; a model without any bias that is taken.

    Note:
        Channels are summed before the one resize per layer: bilinear resizing is linear. One
        backward pass, down to the images. ``per_layer`` of the result holds the input's map, then
        one per bias in the order of execution. See :meth:`completeness` for the identity behind it.
    """

    differentiable = False

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "biases",
        *,
        psi_norm: PsiNorm = "channel",
        psi_input: bool = True,
        norm: Literal["minmax", "max"] | None = "minmax",
        eps: float = 1e-7,
    ) -> None:
        super().__init__(model, layers, layer_norm=None, reduce="sum", norm=norm, eps=eps)
        if psi_norm is not None:
            check_choice(self._where, "psi_norm", psi_norm, ["channel", "layer"])
        self.psi_norm = psi_norm
        self.psi_input = psi_input

    def _find_layers(self, layers: Layers) -> dict[str, nn.Module]:
        if layers != "biases":
            found = resolve_layers(self._where, self.model, layers)
            if found is None:
                value_error(self._where, "layers", '"biases", names or modules', f"{layers}")
            assert found is not None
            without = [name for name, module in found.items() if not _makes_map(module)]
            if without:
                value_error(self._where, "layers", "layers with a bias", f"{without}")
            return found
        modules = dict(self.model.named_modules())
        if left_out := [name for name, module in modules.items() if _adds_no_constant(module)]:
            warnings.warn(
                f"wsfast.{self._where}: left out are the biases of {len(left_out)} normalisations "
                f"whose share depends on the image ('{left_out[0]}' and such)",
                stacklevel=4,
            )
        found = {name: module for name, module in modules.items() if _makes_map(module)}
        if not found:  # as in what torch.export returns, whose layers are no modules
            warnings.warn(
                f"wsfast.{self._where}: the model has no convolution or batch normalisation with a "
                "bias: the map is that of the input alone",
                stacklevel=4,
            )
        return found

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One forward pass, one backward pass per class to the input and to every bias."""
        passed = _BiasPass(self._where, self.model, set(capture.layers.values()), images)
        classes = resolve_target(self._where, target, passed.logits)
        seeds = score_seeds(self._where, target, classes, passed.logits)
        by_class = [self._maps(passed, seed, keep=seed is not seeds[-1]) for seed in seeds]
        maps = [torch.stack(layer, dim=1) for layer in zip(*by_class, strict=True)]
        return Explained(maps, passed.logits, classes)

    def _maps(self, passed: "_BiasPass", seed: ScoreSeed, *, keep: bool) -> list[Tensor]:
        (input_grads, *grads), calls = passed.gradients(seed, keep_graph=keep)
        with torch.no_grad(), torch.autocast(seed.scores.device.type, enabled=False):
            x, g = passed.images.float(), self.input_gradients(input_grads)
            first = self._psi(x * g) if self.psi_input else (x * g).sum(dim=1)
            return [
                first,
                *(
                    self._psi(self.bias_gradients(grad) * call.bias.float())
                    for call, grad in zip(calls, grads, strict=True)
                    if grad.dim() == 4
                ),
            ]

    def bias_gradients(self, grads: Tensor) -> Tensor:
        """What a layer's gradients (N, C, h, w) count as, in float32."""
        return grads.float()

    def input_gradients(self, grads: Tensor) -> Tensor:
        """What the input's gradients (N, C, H, W) count as, in float32."""
        return grads.float()

    def _psi(self, shares: Tensor) -> Tensor:
        """Sum over channels of the normalised |shares|, at the layer's own size."""
        size = shares.abs_()
        if self.psi_norm is not None:
            dims = (2, 3) if self.psi_norm == "channel" else (1, 2, 3)
            size -= size.amin(dim=dims, keepdim=True)
            size /= size.amax(dim=dims, keepdim=True) + self.eps
        return size.sum(dim=1)

    def completeness(self, images: Tensor, target: Target = None) -> Tensor:
        r"""The score less the sum of all shares in it, (N,): 0 for piecewise linear models.

        .. math:: y - \sum g_x \odot x - \sum_l \sum g^l b^l

        over all biases of convolutions (1d to 3d, transposed or not), linear layers and batch
        normalisations (Srinivas 2019, proposition 1). It is not 0 where a layer's contribution has
        another form (sigmoid, softmax, layer norm).

        Args:
            images: see :meth:`__call__`.
            target: see :meth:`__call__`; one class per image.

        Returns:
            (N,) in the dtype and on the device of the logits.

        Raises:
            ValueError: several classes per image, and as :meth:`__call__`.
            TypeError: see :meth:`__call__`.
        """
        self._check_call(images, create_graph=False)
        modules = {module for module in self.model.modules() if _adds_bias(module)}
        passed = _BiasPass(self._where, self.model, modules, images)
        classes = resolve_target(self._where, target, passed.logits)
        seed, *others = score_seeds(self._where, target, classes, passed.logits)
        if others:
            expected, shape = f"of shape ({len(images)},)", [len(images), 1 + len(others)]
            value_error(self._where, "target", expected, f"shape {shape}")
        (input_grads, *grads), calls = passed.gradients(seed, keep_graph=False)
        rest = (seed.scores.detach() * seed.weights).reshape(len(images), -1).sum(dim=1)
        rest -= (input_grads * passed.images).flatten(1).sum(dim=1)
        for call, grad in zip(calls, grads, strict=True):
            rest -= (grad * call.bias).flatten(1).sum(dim=1)
        return rest


class LTFullGrad(FullGrad):
    r"""LT-FullGrad: FullGrad with truncated gradients of the biases (LTGrad-CAM eq. 6, 9).

    Args:
        model: see :class:`CAMMethod`.
        layers: see :class:`FullGrad`.
        percentile: q in percent, 0 to 100: gradients below the q-th percentile of the positive
            ones of their feature map are dropped.
        scope: ``"map"`` or ``"sample"``, see :class:`TruncatedCAM`.
        truncate_input: truncate the gradient of the input too; the paper truncates feature maps'.
        psi_norm: see :class:`FullGrad`.
        psi_input: see :class:`FullGrad`.
        norm: see :class:`CAMMethod`.
        eps: see :class:`CAMMethod`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "biases",
        *,
        percentile: float = 50.0,
        scope: Scope = "map",
        truncate_input: bool = False,
        psi_norm: PsiNorm = "channel",
        psi_input: bool = True,
        norm: Literal["minmax", "max"] | None = "minmax",
        eps: float = 1e-7,
    ) -> None:
        super().__init__(model, layers, psi_norm=psi_norm, psi_input=psi_input, norm=norm, eps=eps)
        check_truncation(self._where, percentile, scope)
        self.percentile = percentile
        self.scope: Scope = scope
        self.truncate_input = truncate_input

    def bias_gradients(self, grads: Tensor) -> Tensor:
        """Truncated gradients."""
        return ops.truncate_gradients(grads, self.percentile, scope=self.scope).float()

    def input_gradients(self, grads: Tensor) -> Tensor:
        """The input's gradients, as they are unless asked otherwise."""
        return self.bias_gradients(grads) if self.truncate_input else grads.float()


class _BiasPass:
    """A forward pass from the images on that remembers every call of some layers."""

    def __init__(
        self, where: str, model: nn.Module, layers: set[nn.Module], images: Tensor
    ) -> None:
        images = usable_images(where, images)
        self.where = where
        self.model = model
        self.images = images.detach()
        self.calls: list[BiasCall] = []
        self._thread = threading.get_ident()
        handles = [self._hook(layer) for layer in layers]
        try:
            with undisturbed(model, images.device), torch.enable_grad():
                started = start_graph(images.clone())  # the caller's tensor stays unwritten
                self._input = get_gradient_edge(started)
                self.logits = logits_of(where, model(started), images)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: nn.Module) -> RemovableHandle:
        """Remember where the bias has been added: behind the layer, or before its activation."""
        activation = getattr(layer, "act", None)  # timm's BatchNormAct2d is a BatchNorm2d
        if _is_batch_norm(layer) and isinstance(activation, nn.Module):
            return activation.register_forward_pre_hook(lambda _, x: self._keep(layer, None, x[0]))
        return layer.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        if threading.get_ident() == self._thread:
            shape = [1] * output.dim()
            shape[-1 if isinstance(module, nn.Linear) else 1] = -1
            bias = added_bias(module).view(shape)
            self.calls.append(BiasCall(bias, get_gradient_edge(output)))

    def gradients(
        self, seed: ScoreSeed, *, keep_graph: bool
    ) -> tuple[list[Tensor], list[BiasCall]]:
        """Gradients at the input and at the calls that the score depends on, and these calls.

        Raises:
            ValueError: scores that no gradient leads from.
        """
        if not seed.scores.requires_grad:
            value_error(self.where, "target", "scores that depend on the images", "detached ones")
        # A checkpointed part of the model runs again in the backward pass.
        with undisturbed(self.model, self.images.device), backward_precision(seed.scores):
            grads = torch.autograd.grad(
                seed.scores,
                [self._input, *(call.edge for call in self.calls)],
                seed.weights,
                retain_graph=keep_graph,
                allow_unused=True,
            )
        if all(grad is None for grad in grads):
            value_error(self.where, "model", "differentiable", "no gradient at images and biases")
        used = [(g, call) for g, call in zip(grads[1:], self.calls, strict=True) if g is not None]
        first = torch.zeros_like(self.images) if grads[0] is None else grads[0]
        return [first, *(g for g, _ in used)], [call for _, call in used]


def _is_batch_norm(module: nn.Module) -> bool:
    """Whether this normalises by running statistics; timm's and torchvision's frozen ones do."""
    statistics = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return hasattr(module, "eps") and all(isinstance(values, Tensor) for values in statistics)


def _makes_map(module: nn.Module) -> bool:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    fits = isinstance(module, kinds) or (
        _is_batch_norm(module) and not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d))
    )
    return fits and _adds_bias(module)


def _adds_no_constant(module: nn.Module) -> bool:
    """Whether this normalises each image, or the batch, by its own statistics and has a bias."""
    kinds = (nn.LayerNorm, nn.GroupNorm, _NormBase)
    return isinstance(module, kinds) and module.bias is not None and not _adds_bias(module)


def _adds_bias(module: nn.Module) -> bool:
    """Whether this adds a constant per channel in evaluation mode.

    Looks at no value: FSDP has the parameters in memory while their layer runs, and not before.
    """
    if isinstance(module, (_ConvNd, nn.Linear)):
        return module.bias is not None
    return _is_batch_norm(module)


def added_bias(module: nn.Module) -> Tensor:
    """(C,), what a layer that :func:`_adds_bias` adds: a copy, for FSDP frees the layer's own."""
    bias: Any = getattr(module, "bias", None)
    if isinstance(module, (_ConvNd, nn.Linear)):
        kept: Tensor = bias.detach().clone()
        return kept
    norm: Any = module
    scale = (norm.running_var + norm.eps).rsqrt()
    if getattr(norm, "weight", None) is not None:
        scale = scale * norm.weight.detach()
    shift: Tensor = -norm.running_mean * scale
    return shift if bias is None else shift + bias.detach()
