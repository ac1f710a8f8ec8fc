"""Channels weighed by a user's own function, as pytorch-grad-cam's subclasses define one."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cam import CAMMethod
from ...cam.base import Explained
from ...cam.capture import LayerCapture
from ...cam.targets import Target, resolve_target, score_seeds
from .eigen import principal_maps

Weigh = Callable[..., NDArray[Any]]


class OwnWeights(CAMMethod):
    """``relu(sum_k w_k A_k)`` with weights from NumPy arrays; :meth:`of` says which."""

    differentiable = False
    weigh: Weigh
    uses_gradients: bool
    principal: bool

    def of(self, weigh: Weigh, *, uses_gradients: bool, principal: bool) -> Self:
        """The method for one call.

        Args:
            weigh: from logits, class numbers (None where a callable is explained), a layer, its
                activations and their gradients (or None) to its channels' weights (N, C).
            uses_gradients: take a backward pass.
            principal: take the principal component of ``w_k A_k`` in place of the sum.
        """
        method = copy(self)  # what is known of the layers is shared
        method.weigh = weigh
        method.uses_gradients = uses_gradients
        method.principal = principal
        return method

    def explain(
        self, capture: LayerCapture, images: Tensor, target: Target, *, create_graph: bool
    ) -> Explained:
        """One forward pass, one backward pass where gradients are asked for."""
        captured = capture.run(images, graph="cut" if self.uses_gradients else "none")
        logits = captured.logits
        classes = resolve_target(self._where, target, logits)
        grads: list[Tensor | None] = [None] * len(capture.layers)
        if self.uses_gradients:
            (seed,) = score_seeds(self._where, target, classes, logits)
            grads[:] = captured.gradients(seed.scores, seed.weights, keep_graph=False)
        weigh = partial(self.weigh, logits.detach(), classes)
        maps = [
            self._layer_map(partial(weigh, layer), a, g)[:, None]
            for layer, a, g in zip(
                capture.layers.values(), captured.activations(), grads, strict=True
            )
        ]
        return Explained(maps, logits, classes)

    def _layer_map(self, weigh: Weigh, activations: Tensor, grads: Tensor | None) -> Tensor:
        given = [None if t is None else t.float().cpu().numpy() for t in (activations, grads)]
        weighted = torch.from_numpy(weigh(*given)[:, :, None, None] * given[0])
        maps = principal_maps(weighted) if self.principal else weighted.sum(dim=1)
        return maps.float().relu().to(activations.device)
