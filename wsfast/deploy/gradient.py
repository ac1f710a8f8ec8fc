"""CAM methods that need gradients, behind the call of a localizer."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from wsfast._check import check_choice, type_error, value_error
from wsfast.cam import METHODS, CAMMethod
from wsfast.deploy.base import Boxing, LocalizerBase, check_class_names, input_settings
from wsfast.deploy.steps import LocalizerOutput
from wsfast.models import load_checkpoint
from wsfast.train.evaluation import RunMaps


class GradientLocalizer(LocalizerBase):
    """Any CAM method behind the same call, in eager mode only.

    Args:
        method: a method of :mod:`wsfast.cam` on its model, or the maps of a run.
        mean: see :class:`Localizer`.
        std: see :class:`Localizer`.
        input_size: see :class:`Localizer`.
        class_names: see :class:`Localizer`.
        target: class to explain; None takes the predicted one.
        **boxing: ``threshold``, ``max_boxes`` and others of :class:`Localizer`.

    Raises:
        ValueError: a setting out of its range.
        TypeError: a setting of another type, a ``method`` that is none.

    Note:
        Cannot be exported or compiled in one graph: gradients come from hooks and a backward pass.
        A batch has at least one image; ``torch.inference_mode`` is refused by the methods.

    Example:
        >>> from wsfast.models import SmallVGG
        >>> localizer = GradientLocalizer.from_model(
        ...     SmallVGG(in_chans=1).eval(), "ltgradcam", mean=(0.5,), std=(0.2,),
        ...     input_size=(64, 32))
        >>> localizer(torch.rand(1, 1, 64, 32)).boxes.shape
        torch.Size([1, 16, 4])
    """

    def __init__(
        self,
        method: CAMMethod | RunMaps,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        class_names: Sequence[str] = (),
        target: int | None = None,
        **boxing: Unpack[Boxing],
    ) -> None:
        super().__init__(
            mean=mean, std=std, input_size=input_size, class_names=class_names, **boxing
        )
        if not isinstance(method, (CAMMethod, RunMaps)):
            type_error(self.where, "method", "a method of wsfast.cam", type(method).__name__)
        self.method = method
        self._prepare_for(method.model)
        self.model = method.model  # so that the device follows; the classifier's, too
        self.classifier = getattr(method, "classifier", None)
        _check_target(self.where, target, class_names, method.model)
        self.target = target
        self.eval()

    def forward(self, images: Tensor) -> LocalizerOutput:
        """Localise a batch, see :meth:`Localizer.forward`."""
        if torch.compiler.is_compiling():
            value_error(self.where, "call", "eager", "torch.compile or torch.export")
        result = self.method(self.prepare(images), self.target)
        return self.finish(images, result.logits, result.cams)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | PathLike[str],
        *,
        method: str | None = None,
        classifier: str | PathLike[str] | None = None,
        target: int | None = None,
        input_size: tuple[int, int] | None = None,
        method_options: dict[str, Any] | None = None,
        **boxing: Unpack[Boxing],
    ) -> "GradientLocalizer":
        """A CAM method on a classifier that ``wsfast train`` wrote, or the maps that a run learnt.

        Args:
            path: a run's folder or a checkpoint file.
            method: a name of :data:`wsfast.cam.METHODS`; None takes the run's own, with the
                threshold that validation chose, and of a file ``"ltgradcam"``.
            classifier: run or file of the classifier that a DiPS or pseudo-label run was trained
                with, where it has been moved since.
            target: class to explain; None takes the predicted one.
            input_size: height and width of the network's input.
            method_options: of the method, ``layers``, ``percentile``, …; with ``method`` only
                where the run has its own.
            **boxing: ``threshold``, ``max_boxes`` and others of :class:`Localizer`.

        Raises:
            ValueError: no run or checkpoint, an argument without an effect on this model.
        """
        where = "deploy.GradientLocalizer.from_checkpoint"
        folder = Path(path)
        scorer = None if classifier is None else Path(classifier)
        run = None
        if folder.is_dir():
            run = RunMaps(folder, torch.device("cpu"), classifier=scorer)
        elif scorer is not None:
            value_error(where, "classifier", "left out for a checkpoint file", f"{scorer}")
        saved = load_checkpoint(folder) if run is None else run.checkpoint
        found: CAMMethod | RunMaps
        if run is not None and method is None:
            if method_options:
                value_error(where, "method_options", "given with a method", f"{method_options}")
            if target is not None and not run.of_classes:
                expected = "left out for a model that learnt its maps"
                value_error(where, "target", expected, f"{target}")
            found = run
            boxing.setdefault("threshold", run.threshold)
        else:
            found = _method(where, saved.model, method or "ltgradcam", method_options)
        return cls(
            found, mean=saved.mean, std=saved.std, input_size=input_size or saved.input_size,
            class_names=saved.class_names, target=target, **boxing,
        )  # fmt: skip

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        method: str = "ltgradcam",
        *,
        target: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: tuple[int, int] | None = None,
        class_names: Sequence[str] = (),
        method_options: dict[str, Any] | None = None,
        **boxing: Unpack[Boxing],
    ) -> "GradientLocalizer":
        """A CAM method, by its name in :data:`wsfast.cam.METHODS`, on any classifier.

        Other arguments as :meth:`Localizer.from_model`'s, and ``method_options`` as
        :meth:`from_checkpoint`'s.

        Raises:
            ValueError: an unknown method, a missing argument, what the method refuses.
        """
        where = "deploy.GradientLocalizer.from_model"
        feed = input_settings(where, model, mean=mean, std=std, input_size=input_size)
        classes = getattr(model, "num_classes", None)
        if isinstance(classes, int):
            check_class_names(where, class_names, classes)
        found = _method(where, model, method, method_options)
        return cls(found, class_names=class_names, target=target, **feed, **boxing)


def _check_target(
    where: str, target: int | None, class_names: Sequence[str], model: nn.Module
) -> None:
    """Raise ValueError for a class that the model is known not to have."""
    classes = len(class_names) or getattr(model, "num_classes", None)
    if target is not None and classes and not 0 <= target < classes:
        value_error(where, "target", f"a class of 0 to {classes - 1}", f"{target}")


def _method(where: str, model: nn.Module, name: str, options: dict[str, Any] | None) -> CAMMethod:
    check_choice(where, "method", name, list(METHODS))
    return METHODS[name](model, **(options or {}))
