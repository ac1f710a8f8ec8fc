"""The base of the metrics."""

import hashlib

import torch
from torch import Tensor
from torchmetrics import Metric


class CountMetric(Metric):
    """A metric of int64 counts, summed over batches and processes."""

    is_differentiable = False
    full_state_update = False

    fingerprint: Tensor

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
        which casts leave alone and ``torch.allclose`` tells apart. The last call counts.
        """
        told = repr((type(self).__qualname__, *settings)).encode()
        digest = torch.tensor(list(hashlib.sha256(told).digest()))
        self.add_state("fingerprint", digest, dist_reduce_fx="max")

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
