"""What the classes share: constructor, call, augmentation and smoothing."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..._check import type_error, value_error
from ...cam import CAMMethod, CAMResult, ChannelCAM
from .._shared import Managed, OutputTarget, class_name, per_image_scores
from .targets import ClassifierOutputTarget
from .weights import OwnWeights

Maps = NDArray[np.float32]
Reshape = Callable[[Tensor], Tensor]
Targets = Sequence[OutputTarget] | OutputTarget | None

_FIXED = (
    "forward",
    "get_cam_image",
    "get_target_width_height",
    "compute_cam_per_layer",
    "aggregate_multi_layers",
    "forward_augmentation_smoothing",
)


def _unchanged(images: Tensor) -> Tensor:
    return images


def _flipped(images: Tensor) -> Tensor:
    return images.flip(3)


def _brightened(turn: OutputTarget, factor: float, images: Tensor) -> Tensor:
    return turn(images) * factor


def _names_class(target: OutputTarget) -> bool:
    """Whether a target is the plain logit of its category, here or in pytorch-grad-cam."""
    known = class_name("pytorch_grad_cam", target) == "ClassifierOutputTarget"
    return known or type(target) is ClassifierOutputTarget


def _of_one(scores: OutputTarget, row: Tensor) -> Tensor:
    """The score of one image's logits by a callable on a batch's."""
    return scores(row[None])[0]


class BaseCAM(Managed):
    """What the classes share, and the base of classes with :meth:`get_cam_weights` of their own.

    Args:
        model: a classifier; put into evaluation mode, as pytorch-grad-cam does.
        target_layers: modules of the model.
        reshape_transform: from a layer's output to (N, C, h, w).
        compute_input_gradient: taken and ignored.
        uses_gradients: False gives a subclass's :meth:`get_cam_weights` None for gradients, without
            a backward pass; ignored otherwise.
        tta_transforms: transforms of ``aug_smooth`` with ttach's interface; None takes flips and
            brightness 0.9, 1 and 1.1.
        detach: True.

    Attributes:
        outputs: logits of the last call.

    Raises:
        TypeError: on the definition of a subclass that overrides another of pytorch-grad-cam's
            methods, or :meth:`get_cam_weights` of a class that weighs no channels by gradients.
    """

    method: ClassVar[type[CAMMethod] | None] = None
    smooth_method: ClassVar[type[CAMMethod] | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        where = f"compat.grad_cam.{cls.__name__}"
        for name in _FIXED:
            if getattr(cls, name, None) is not getattr(BaseCAM, name, None):
                type_error(where, "the overridden method", "get_cam_weights", name)
        kind = cls.method
        if cls._weighs() and not (kind is None or issubclass(kind, ChannelCAM)):
            expected = "of BaseCAM, GradCAM, GradCAMPlusPlus, XGradCAM or RandomCAM"
            type_error(where, "the overridden get_cam_weights", expected, cls.__mro__[1].__name__)

    @classmethod
    def _weighs(cls) -> bool:
        """Whether a subclass has weights of its own."""
        return cls.get_cam_weights is not BaseCAM.get_cam_weights

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
        self.uses_gradients = uses_gradients
        self.tta_transforms = tta_transforms
        self.outputs: Tensor | None = None
        self.device = next(model.parameters()).device
        self._where = where
        kind = type(self).method
        self._cam = self._build(OwnWeights if kind is None or self._weighs() else kind)
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

    def explain(self, input_tensor: Tensor, targets: Targets, eigen_smooth: bool) -> CAMResult:
        """One batch, on its device; ``targets`` may also be a callable on all its logits."""
        images = input_tensor.to(self.device)
        if targets is not None and not callable(targets):
            targets = list(targets)
        target = self._target(targets, len(images))
        cam = self._cam
        if isinstance(cam, OwnWeights):
            weigh = partial(self._weigh, images, targets)
            uses_gradients = self.uses_gradients
            cam = cam.of(weigh, uses_gradients=uses_gradients, principal=eigen_smooth)
        elif eigen_smooth:
            cam = self._smooth()
        result = cam(images, target)
        self.outputs = result.logits
        return result

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: list[OutputTarget],
        activations: NDArray[np.float32],
        grads: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Weights of one layer's channels; a subclass may define its own.

        Args:
            input_tensor: (N, C, H, W) on the model's device.
            target_layer: one of ``target_layers``.
            targets: one callable per image.
            activations: (N, C, h, w), after ``reshape_transform``.
            grads: of the scores at ``activations``; None with ``uses_gradients=False``.

        Returns:
            (N, C). Here those of the class's own method.

        Raises:
            NotImplementedError: a class without weights that follow from these arrays.
        """
        kind = type(self).method
        if kind is None or not issubclass(kind, ChannelCAM) or grads is None:
            raise NotImplementedError(f"wsfast.{self._where}: get_cam_weights is to be defined")
        formula: Any = self._build(kind)
        weights = formula.channel_weights(torch.as_tensor(activations), torch.as_tensor(grads))
        found: NDArray[np.float32] = weights.numpy()
        return found

    def _weigh(
        self,
        images: Tensor,
        targets: Targets,
        logits: Tensor,
        classes: Tensor | None,
        layer: nn.Module,
        *arrays: Any,
    ) -> NDArray[Any]:
        """A subclass's own weights of one layer, see :meth:`OwnWeights.of`."""
        self.outputs = logits
        if targets is None:
            assert classes is not None
            targets = [ClassifierOutputTarget(category) for category in classes.tolist()]
        elif callable(targets):
            targets = [partial(_of_one, targets)] * len(images)
        weights = np.asarray(self.get_cam_weights(images, layer, list(targets), *arrays))
        if weights.ndim != 2:
            expected = f"of shape {list(arrays[0].shape[:2])}"
            shape = f"shape {list(weights.shape)}"
            value_error(self._where, "what get_cam_weights gives", expected, shape)
        return weights

    def _smooth(self) -> CAMMethod:
        """The method whose maps are principal components, built when first asked for."""
        if self._smooth_cam is None:
            if type(self).smooth_method is None:
                value_error(self._where, "eigen_smooth", "False for this method", "True")
            self._smooth_cam = self._build(type(self).smooth_method)  # type: ignore[arg-type]
        return self._smooth_cam

    def _target(self, targets: Targets, batch: int) -> Any:
        """Class numbers where all targets are such, else a callable on the logits."""
        if targets is None or callable(targets):
            return targets
        if any(not callable(target) for target in targets):
            type_error(self._where, "targets", "None or callables, one per image", "others")
        if len(targets) != batch:
            value_error(self._where, "targets", f"one per image ({batch})", f"{len(targets)}")
        if all(_names_class(target) for target in targets):
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
