"""Extractors around others: RefineCAM and Finer-CAM."""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ..._check import check_count, check_range, type_error, value_error
from .._shared import Managed, OutputTarget
from .extractor import Extractor, Layer
from .gradient import GradCAM, GradCAMpp, GradientExtractor, LayerCAM


class _Wrapper(Managed):
    """Hands hooks and names on to the extractor inside."""

    def __init__(self, base_cam: Extractor) -> None:
        self.base_cam = base_cam

    @property
    def model(self) -> nn.Module:
        """The model whose calls are watched."""
        return self.base_cam.model

    @property
    def target_names(self) -> list[str]:
        """The layers' names."""
        return self.base_cam.target_names

    def enable_hooks(self) -> None:
        """Watch the model's calls."""
        self.base_cam.enable_hooks()

    def disable_hooks(self) -> None:
        """Let the model's calls pass."""
        self.base_cam.disable_hooks()

    def _hooks_off(self) -> AbstractContextManager[None]:
        return self.base_cam._hooks_off()

    def reset_hooks(self) -> None:
        """Forget what the last call has left."""
        self.base_cam.reset_hooks()

    def remove_hooks(self) -> None:
        """Take the hooks off the model."""
        self.base_cam.remove_hooks()

    def _leave(self) -> None:
        self.remove_hooks()

    def __repr__(self) -> str:
        inside = type(self.base_cam).__name__
        return f"{type(self).__name__}(base_method={inside}, target_layer={self.target_names})"


class RefineCAM(_Wrapper):
    """The product of the layers' maps (RefineCAM 2026).

    Args:
        model: see :class:`Extractor`.
        target_layer: at least two layers.
        input_shape: see :class:`Extractor`.
        base_method: an extractor of this package.
        base_kwargs: for ``base_method``.

    Raises:
        ValueError: fewer layers.
        TypeError: another ``base_method``.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: list[Layer],
        input_shape: tuple[int, ...] = (3, 224, 224),
        *,
        base_method: type[Extractor] = GradCAMpp,
        **base_kwargs: Any,
    ) -> None:
        where = "compat.torchcam.RefineCAM"
        if not isinstance(target_layer, list) or len(target_layer) < 2:
            value_error(where, "target_layer", "a list of two layers or more", f"{target_layer}")
        if not (isinstance(base_method, type) and issubclass(base_method, Extractor)):
            expected = "an extractor of wsfast.compat.torchcam"
            type_error(where, "base_method", expected, f"{base_method}")
        super().__init__(base_method(model, target_layer, input_shape=input_shape, **base_kwargs))

    def __call__(
        self,
        class_idx: int | list[int] | None = None,
        scores: Any = None,
        normalized: bool = True,
        target_shape: tuple[int, int] | None = None,
        *,
        targets: OutputTarget | list[OutputTarget] | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """One (N, H, W) map in a list, see :meth:`Extractor.__call__` and :meth:`fuse_cams`."""
        cams = self.base_cam(class_idx, scores, targets=targets, **kwargs)
        return [self.fuse_cams(cams, target_shape, normalized)]

    @staticmethod
    @torch.no_grad()
    def fuse_cams(
        cams: list[Tensor],
        target_shape: tuple[int, int] | None = None,
        normalized: bool = True,
    ) -> Tensor:
        """The product of normalised maps at the size of the largest, or at ``target_shape``.

        Raises:
            TypeError: not a list of tensors.
            ValueError: an empty list.
        """
        where = "compat.torchcam.RefineCAM.fuse_cams"
        if not isinstance(cams, list) or any(not isinstance(cam, Tensor) for cam in cams):
            type_error(where, "cams", "a list of tensors", type(cams).__name__)
        if not cams:
            value_error(where, "cams", "a list of at least one tensor", "an empty list")
        largest = (max(cam.shape[1] for cam in cams), max(cam.shape[2] for cam in cams))
        norm: Any = "minmax" if normalized else None
        return ops.fuse_cams(cams, target_shape or largest, reduce="prod", norm=norm, eps=1e-8)


class FinerCAM(_Wrapper):
    r"""A class against similar ones: maps of :math:`y_c - \gamma\, \mathrm{mean}_d\, y_d`.

    Args:
        model: see :class:`Extractor`.
        target_layer: see :class:`Extractor`.
        input_shape: see :class:`Extractor`.
        base_method: GradCAM, GradCAMpp or LayerCAM of this package.
        gamma: strength of the comparison.
        num_references: classes d taken by closeness of score where none are named.
        base_kwargs: for ``base_method``.

    Raises:
        ValueError: values out of range.
        TypeError: another ``base_method``.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | list[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        *,
        base_method: type[GradientExtractor] = GradCAM,
        gamma: float = 0.6,
        num_references: int = 3,
        **base_kwargs: Any,
    ) -> None:
        self._where = "compat.torchcam.FinerCAM"
        if base_method not in (GradCAM, GradCAMpp, LayerCAM):
            expected = "GradCAM, GradCAMpp or LayerCAM of wsfast.compat.torchcam"
            type_error(self._where, "base_method", expected, f"{base_method}")
        check_range(self._where, "gamma", gamma, 0.0, math.inf)
        check_count(self._where, "num_references", num_references, 1)
        self.gamma = float(gamma)
        self.num_references = num_references
        super().__init__(base_method(model, target_layer, input_shape=input_shape, **base_kwargs))

    def __call__(
        self,
        class_idx: int | list[int],
        scores: Tensor | None = None,
        comparison_idx: int | list[int] | list[list[int]] | None = None,
        normalized: bool = True,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Maps of the model's last call, see :meth:`Extractor.__call__`.

        Args:
            class_idx: the explained class, or one per image.
            scores: the model's output (N, classes).
            comparison_idx: the classes compared with: one, several, or several per image.
            normalized: scale each map to 0-1.
            kwargs: ``retain_graph``.

        Raises:
            ValueError: classes out of range, twice or equal to the explained one; no scores.
        """
        where = self._where
        if kwargs.get("targets") is not None:
            value_error(where, "targets", "None for this method", "callables")
        if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[1] < 2:
            value_error(where, "scores", "the model's (N, classes) output", f"{type(scores)}")
        assert scores is not None
        chosen = self._rows("class_idx", class_idx, scores)
        others = self._references(comparison_idx, chosen, scores)
        compared = scores.gather(1, others).mean(dim=1, keepdim=True)
        contrast = scores.gather(1, chosen) - self.gamma * compared
        return self.base_cam([0] * len(contrast), contrast, normalized, **kwargs)

    def _rows(self, name: str, classes: Any, scores: Tensor) -> Tensor:
        """Class numbers as (N, D): one row for all images, or a row (or number) for each."""
        if isinstance(classes, int):
            classes = [[classes]] * len(scores)
        try:
            rows = torch.tensor(classes, device=scores.device)
        except (TypeError, ValueError):
            value_error(self._where, name, "class numbers in rows of one length", f"{classes}")
        if rows.dim() == 1:
            rows = rows[:, None] if name == "class_idx" else rows.expand(len(scores), -1)
        if rows.dim() != 2 or len(rows) != len(scores) or rows.shape[1] == 0:
            value_error(self._where, name, f"one per image ({len(scores)})", f"{classes}")
        if rows.dtype != torch.int64 or rows.min() < 0 or rows.max() >= scores.shape[1]:
            expected = f"class numbers from 0 to {scores.shape[1] - 1}"
            value_error(self._where, name, expected, f"{classes}")
        return rows

    def _references(self, comparison_idx: Any, chosen: Tensor, scores: Tensor) -> Tensor:
        if comparison_idx is None:
            distances = (scores.detach() - scores.detach().gather(1, chosen)).abs()
            distances.scatter_(1, chosen, math.inf)
            count = min(self.num_references, scores.shape[1] - 1)
            return distances.topk(count, dim=1, largest=False).indices
        rows = self._rows("comparison_idx", comparison_idx, scores)
        ordered = torch.cat([rows, chosen], dim=1).sort(dim=1).values
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            expected = "other classes than the explained one, each once"
            value_error(self._where, "comparison_idx", expected, f"{comparison_idx}")
        return rows

    def fuse_cams(self, cams: list[Tensor], target_shape: tuple[int, int] | None = None) -> Tensor:
        """See :meth:`Extractor.fuse_cams`."""
        return self.base_cam.fuse_cams(cams, target_shape)
