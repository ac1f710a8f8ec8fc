"""Random states that are a function of where a run is, so that nothing of them has to be saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from non-negative numbers such as seed, epoch and position.

    >>> derive_seed(0, 1) != derive_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Set torch's CPU generator from ``parts`` inside the block and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield
