"""What the classes share: constructor, call, augmentation and smoothing."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..._check import type_error, value_error
from ...cam import CAMMethod, CAMResult
from .._shared import Managed, OutputTarget, per_image_scores

Maps = NDArray[np.float32]
Reshape = Callable[[Tensor], Tensor]


def _unchanged(images: Tensor) -> Tensor:
    return images


def _flipped(images: Tensor) -> Tensor:
    return images.flip(3)


def _brightened(turn: OutputTarget, factor: float, images: Tensor) -> Tensor:
    return turn(images) * factor


class BaseCAM(Managed):
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
    smooth_method: ClassVar[Callable[..., CAMMethod] | None] = None

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Reshape | None = None,
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
        self._cam = self._build(type(self).method)
        self._smooth_cam: CAMMethod | None = None

    def _build(self, method: Callable[..., CAMMethod]) -> CAMMethod:
        return method(self.model, self.target_layers, reshape=self.reshape_transform)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget] | None = None,
        eigen_smooth: bool = False,
    ) -> Maps:
        """One batch without augmentation, see :meth:`__call__`."""
        return to_numpy(self.explain(input_tensor, targets, eigen_smooth).cams)

    def explain(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget] | OutputTarget | None,
        eigen_smooth: bool,
    ) -> CAMResult:
        """One batch, on its device; ``targets`` may also be a callable on all its logits."""
        cam = self._smooth() if eigen_smooth else self._cam
        target = targets if callable(targets) else self._target(targets, len(input_tensor))
        result = cam(input_tensor.to(self.device), target)
        self.outputs = result.logits
        return result

    def _smooth(self) -> CAMMethod:
        """The method whose maps are principal components, built when first asked for."""
        if self._smooth_cam is None:
            if type(self).smooth_method is None:
                value_error(self._where, "eigen_smooth", "False for this method", "True")
            self._smooth_cam = self._build(type(self).smooth_method)  # type: ignore[arg-type]
        return self._smooth_cam

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
        return partial(per_image_scores, self._where, targets)

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
            eigen_smooth: project the weighted activations onto their first principal component
                instead of summing them.

        Returns:
            (N, H, W) float32, each map in 0-1.

        Raises:
            ValueError: another number of targets than images; ``eigen_smooth`` of a method that
                sums no weighted activations; see :meth:`wsfast.cam.CAMMethod.__call__`.
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


def to_numpy(cams: Tensor) -> Maps:
    """Maps as pytorch-grad-cam returns them."""
    maps: Maps = cams.cpu().numpy()
    return maps
