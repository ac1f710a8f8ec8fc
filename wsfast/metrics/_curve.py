"""Curves of metrics, drawn by matplotlib where it is installed."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def draw_curves(
    x_values: Tensor, curves: Tensor, labels: Sequence[str], ax: Any, *, x: str, y: str
) -> tuple[Any, Any]:
    """Draw the rows of ``curves`` (K, T) over ``x_values`` (T,); figure and axes."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots() if ax is None else (ax.figure, ax)
    for row, label in zip(curves, labels, strict=True):
        axes.plot(x_values.cpu().numpy(), row.cpu().numpy(), label=label)
    axes.set(xlabel=x, ylabel=y, ylim=(0, 1))
    axes.grid(alpha=0.3)
    if len(labels) > 1:
        axes.legend()
    return figure, axes
