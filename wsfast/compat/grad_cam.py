"""pytorch-grad-cam's classes, answered by :mod:`wsfast.cam`.

Change one line::

    from wsfast.compat.grad_cam import GradCAM  # in place of: from pytorch_grad_cam import GradCAM

Same class names, constructors and calls; ``cam(input_tensor, targets)`` gives a float32 NumPy array
(N, H, W). Or keep the import and hand an existing object to :func:`accelerate`.

What differs: no ``.grad`` is touched and no hook stays on the model; in-place ReLUs do not change
what is captured; fewer targets than images are an error instead of empty maps; ``AblationCAM``
writes zeros, which is pytorch-grad-cam's result behind a ReLU. ``eigen_smooth`` and
``detach=False`` are not offered (for differentiable maps see :class:`wsfast.cam.CAMMethod`), nor
are models that are no classifiers.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import cam as methods
from .._check import type_error, value_error
from ..cam import CAMMethod, GradientCAM

__all__ = [
    "AblationCAM",
    "BaseCAM",
    "ClassifierOutputTarget",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "ScoreCAM",
    "XGradCAM",
    "accelerate",
]

Maps = NDArray[np.float32]
OutputTarget = Callable[[Tensor], Tensor]


class ClassifierOutputTarget:
    """The score of one class; pytorch-grad-cam's class of that name serves as well.

    Args:
        category: class number.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """The class's score in one image's (classes,) or in (N, classes) logits."""
        return model_output[..., self.category]


def _unchanged(images: Tensor) -> Tensor:
    return images


def _flipped(images: Tensor) -> Tensor:
    return images.flip(3)


def _brightened(turn: OutputTarget, factor: float, images: Tensor) -> Tensor:
    return turn(images) * factor


class BaseCAM:
    """What the classes share.

    Args:
        model: a classifier; put into evaluation mode, as pytorch-grad-cam does.
        target_layers: modules of the model.
        reshape_transform: from a layer's output to (N, C, h, w).
        compute_input_gradient: taken and ignored.
        uses_gradients: taken and ignored.
        tta_transforms: transforms of ``aug_smooth`` with ttach's interface; None takes flips and
            brightness 0.9, 1 and 1.1.
        detach: True.

    Attributes:
        outputs: logits of the last call.
    """

    method: ClassVar[Callable[..., CAMMethod]]

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Iterable[Any] | None = None,
        detach: bool = True,
    ) -> None:
        where = f"compat.grad_cam.{type(self).__name__}"
        if not detach:
            value_error(where, "detach", "True (wsfast.cam has create_graph)", "False")
        self.model = model.eval()
        self.target_layers = list(target_layers)
        self.reshape_transform = reshape_transform
        self.tta_transforms = tta_transforms
        self.outputs: Tensor | None = None
        self.device = next(model.parameters()).device
        self._where = where
        self._cam = self._build()

    def _build(self) -> CAMMethod:
        return type(self).method(self.model, self.target_layers, reshape=self.reshape_transform)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget] | None = None,
        eigen_smooth: bool = False,
    ) -> Maps:
        """One batch without augmentation, see :meth:`__call__`."""
        if eigen_smooth:
            value_error(self._where, "eigen_smooth", "False", "True")
        result = self._cam(input_tensor.to(self.device), self._target(targets, len(input_tensor)))
        self.outputs = result.logits
        maps: Maps = result.cams.cpu().numpy()
        return maps

    def _target(self, targets: Sequence[OutputTarget] | None, batch: int) -> Any:
        """Class numbers where all targets are such, else a callable on the logits."""
        if targets is None:
            return None
        targets = list(targets)
        if any(not callable(target) for target in targets):
            type_error(self._where, "targets", "None or callables, one per image", "others")
        if len(targets) != batch:
            value_error(self._where, "targets", f"one per image ({batch})", f"{len(targets)}")
        if all(type(target).__name__ == "ClassifierOutputTarget" for target in targets):
            return [int(target.category) for target in targets]  # type: ignore[attr-defined]
        return lambda logits: torch.stack(
            [target(row) for target, row in zip(targets, logits, strict=True)]
        )

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Maps:
        """Explain one batch.

        Args:
            input_tensor: (N, C, H, W), moved to the model's device.
            targets: one callable per image, from its (classes,) logits to a score; None explains
                the class of highest score.
            aug_smooth: mean over six augmented versions.
            eigen_smooth: False.

        Returns:
            (N, H, W) float32, each map in 0-1.

        Raises:
            ValueError: another number of targets than images; see
                :meth:`wsfast.cam.CAMMethod.__call__`.
            TypeError: targets that are not callable.
        """
        if not aug_smooth:
            return self.forward(input_tensor, targets, eigen_smooth)
        maps = []
        for augment, restore in self._augmentations():
            found = torch.from_numpy(self.forward(augment(input_tensor), targets, eigen_smooth))
            maps.append(restore(found[:, None])[:, 0].numpy())
        mean: Maps = np.mean(np.stack(maps), axis=0)
        return mean

    def _augmentations(self) -> list[tuple[OutputTarget, OutputTarget]]:
        """Pairs of what is done to images and how their maps are brought back."""
        if self.tta_transforms is not None:
            return [(t.augment_image, t.deaugment_mask) for t in self.tta_transforms]
        return [
            (partial(_brightened, turn, factor), turn)
            for turn in (_unchanged, _flipped)
            for factor in (0.9, 1.0, 1.1)
        ]

    def __enter__(self) -> Self:
        """The object itself; there is nothing to set up."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to release, and no exception is swallowed."""


class GradCAM(BaseCAM):
    """:class:`wsfast.cam.GradCAM`."""

    method = methods.GradCAM


class HiResCAM(BaseCAM):
    """:class:`wsfast.cam.HiResCAM`."""

    method = methods.HiResCAM


class _ElementWise(GradientCAM):
    """``sum_k relu(g_k * A_k)``."""

    def layer_map(self, activations: Tensor, grads: Tensor) -> Tensor:
        return (grads.float() * activations.float()).relu_().sum(dim=1)


class GradCAMElementWise(BaseCAM):
    """``sum_k relu(g_k * A_k)``."""

    method = _ElementWise


def _with_epsilon(*args: Any, **options: Any) -> CAMMethod:
    return methods.GradCAMPlusPlus(*args, alpha_eps=1e-6, **options)


class GradCAMPlusPlus(BaseCAM):
    """:class:`wsfast.cam.GradCAMPlusPlus` with pytorch-grad-cam's epsilon."""

    method = staticmethod(_with_epsilon)


class XGradCAM(BaseCAM):
    """:class:`wsfast.cam.XGradCAM`."""

    method = methods.XGradCAM


class LayerCAM(BaseCAM):
    """:class:`wsfast.cam.LayerCAM`."""

    method = methods.LayerCAM


class FullGrad(BaseCAM):
    """:class:`wsfast.cam.FullGrad` over all biases, whatever ``target_layers`` are."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module] = (),
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)

    def _build(self) -> CAMMethod:
        return methods.FullGrad(self.model)


class ScoreCAM(BaseCAM):
    """:class:`wsfast.cam.ScoreCAM` with corners aligned."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)

    def _build(self) -> CAMMethod:
        return methods.ScoreCAM(
            self.model, self.target_layers, align_corners=True, reshape=self.reshape_transform
        )


class AblationCAM(BaseCAM):
    """:class:`wsfast.cam.AblationCAM`, divided by the signed score.

    Args:
        model: see :class:`BaseCAM`.
        target_layers: see :class:`BaseCAM`.
        reshape_transform: see :class:`BaseCAM`.
        ablation_layer: taken and ignored.
        batch_size: taken and ignored: groups of channels follow the memory.
        ratio_channels_to_ablate: 1.0.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        ablation_layer: nn.Module | None = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.batch_size = batch_size
        if ratio_channels_to_ablate != 1.0:
            actual = f"{ratio_channels_to_ablate}"
            value_error(self._where, "ratio_channels_to_ablate", "1.0", actual)

    def _build(self) -> CAMMethod:
        return methods.AblationCAM(
            self.model, self.target_layers, signed=True, reshape=self.reshape_transform
        )


_CLASSES: dict[str, type[BaseCAM]] = {
    kind.__name__: kind
    for kind in (
        GradCAM, HiResCAM, GradCAMElementWise, GradCAMPlusPlus, XGradCAM, LayerCAM, FullGrad,
        ScoreCAM, AblationCAM,
    )
}  # fmt: skip


def accelerate(cam: Any) -> BaseCAM:
    """An object of this module with the model and layers of one of pytorch-grad-cam's.

    Args:
        cam: a pytorch-grad-cam object; its hooks on the model are released.

    Raises:
        TypeError: a class that has no counterpart here.
    """
    kind = _CLASSES.get(type(cam).__name__)
    if kind is None or not hasattr(cam, "activations_and_grads"):
        expected = "a pytorch-grad-cam object of " + ", ".join(_CLASSES)
        type_error("compat.grad_cam.accelerate", "cam", expected, type(cam).__name__)
    assert kind is not None
    cam.activations_and_grads.release()
    fast = kind(cam.model, cam.target_layers, cam.reshape_transform)
    fast.tta_transforms = cam.tta_transforms
    return fast
