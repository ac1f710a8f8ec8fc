"""The base of the metrics."""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .._check import value_error


class CountMetric(Metric):
    """A metric of int64 counts, summed over batches and processes."""

    is_differentiable = False
    full_state_update = False

    fingerprint: Tensor
    compute_on_cpu: bool
    _is_synced: bool
    _update_count: int

    def add_counts(self, name: str, *shape: int) -> None:
        """Register a state of zeros.

        Add to it out of place: the state of a metric that was called under
        ``torch.inference_mode`` cannot be changed in place afterwards.
        """
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def tell_apart(self, *settings: object) -> None:
        """Keep ``MetricCollection`` from sharing counts between metrics of other settings.

        It does where all states are equal after the first update, and a batch without a hit looks
        the same to many metrics. A hash of the settings is therefore a state, too: bytes as int64,
        which casts leave alone and ``torch.allclose`` tells apart. The last call counts. To be
        called before other states are registered: torchmetrics below 1.6.2 compares one alone.
        """
        told = repr((type(self).__qualname__, *settings)).encode()
        digest = torch.tensor(list(hashlib.sha256(told).digest()))
        self.add_state("fingerprint", digest, dist_reduce_fx="max")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Count a batch and return its value; a batch that is refused leaves the counts as found.

        torchmetrics resets a metric while the batch is counted.
        """
        if self._is_synced:  # which it refuses, and unsync brings the own counts back
            return super().forward(*args, **kwargs)
        kept, updates = self._copy_state_dict(), self._update_count
        on_cpu = self.compute_on_cpu
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            for name, value in kept.items():
                setattr(self, name, value)
            self._update_count, self._computed, self._is_synced = updates, None, False
            self._to_sync, self._should_unsync = self.sync_on_compute, True
            self._enable_grad, self.compute_on_cpu = False, on_cpu
            raise

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the counts of another metric of this class and these settings, or of its state.

        Raises:
            ValueError: no metric or state, another class, or settings with which other things are
                counted.
        """
        state = incoming_state
        if isinstance(state, Metric):
            state = state.metric_state
        mine = getattr(self, "fingerprint", None)
        other = state.get("fingerprint") if isinstance(state, dict) else None
        if mine is not None and other is not None and not torch.equal(mine, other.to(mine.device)):
            where = f"{type(self).__name__}.merge_state"
            value_error(where, "incoming_state", "of a metric with the same settings", "others")
        super().merge_state(incoming_state)
        self._computed = None  # what compute keeps is of the counts before

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Draw the scores, or those given, as the metrics of torchmetrics do.

        Args:
            val: results of ``compute`` or ``forward``, one or a list; None for ``compute()``.
            ax: axes to draw in; by default new ones.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)

    def over_processes(self, *names: str) -> list[Tensor]:
        """States summed over the processes, as in ``compute``; every process has to call."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self._to_sync,
            should_unsync=self._should_unsync,
        ):
            return [getattr(self, name) for name in names]

    def set_dtype(self, dst_type: str | torch.dtype) -> "CountMetric":
        """Do nothing: counts stay int64."""
        return self
