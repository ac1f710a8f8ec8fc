"""The training images of a whole run as one stream of batches, wherever it starts."""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from wsfast._check import value_error
from wsfast.train import distributed
from wsfast.train.config import TrainConfig
from wsfast.train.random_state import seeded
from wsfast.train.recipe import Draw, Recipe

_AUGMENTATION = 2  # keeps these random numbers apart from others of the same epoch and position


class _Samples(Dataset[Any]):
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __getitem__(self, draw: Draw) -> Any:
        # A function of the place in the run: the same whatever the process, worker or batch.
        with seeded(self.recipe.config.seed, _AUGMENTATION, draw.epoch, draw.position):
            return self.recipe.read(draw)


def read_batch(recipe: Recipe, draws: list[Draw]) -> Any:
    """The samples of some draws as a training step gets them, on the CPU."""
    samples = _Samples(recipe)
    return default_collate([samples[draw] for draw in draws])


class Plan:
    """How epochs are cut into global batches, and these into the parts of this process.

    Batch ``k`` of an epoch holds the same images whatever the number of processes. Images that do
    not fill a last batch come in other epochs.

    Raises:
        ValueError: fewer images than processes and parts, or a batch they do not divide.
    """

    def __init__(self, recipe: Recipe) -> None:
        config: TrainConfig = recipe.config
        parts = distributed.world_size() * config.accumulate
        length = len(recipe.epoch_order(0))
        if config.batch_size % parts:
            what = f"a multiple of processes x accumulate ({parts})"
            value_error("train", "batch_size", what, f"{config.batch_size}")
        self.recipe = recipe
        self.batch_size = min(config.batch_size, length - length % parts)
        if self.batch_size == 0:
            value_error("train", "data", f"at least {parts} training images", f"{length}")
        self.steps = length // self.batch_size
        self.start = (0, 0)
        self.end = config.epochs

    def __iter__(self) -> Iterator[list[Draw]]:
        """Parts of this process from ``start`` (epoch, step) to before the epoch ``end``."""
        accumulate = self.recipe.config.accumulate
        size = self.batch_size // distributed.world_size() // accumulate
        epoch, step = self.start
        while epoch < self.end:
            order = self.recipe.epoch_order(epoch)
            for number in range(step, self.steps):
                own = number * self.batch_size + distributed.rank() * accumulate * size
                for first in range(own, own + accumulate * size, size):
                    yield [Draw(epoch, at, order[at]) for at in range(first, first + size)]
            epoch, step = epoch + 1, 0

    def batches(self, device: torch.device) -> Iterator[Any]:
        """The parts as batches of samples on the device."""
        config = self.recipe.config
        first = self.start[0] + 1
        turns = [e for e in range(first, config.epochs) if self.recipe.changes_data(e)]
        for end in [*turns, config.epochs]:
            self.end = end
            loader = DataLoader(
                _Samples(self.recipe),
                batch_sampler=self,
                num_workers=config.workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=_leave_signals_to_the_run,
                # Readers share the recipe, maps on disk included, which pickling would copy.
                multiprocessing_context="fork" if config.workers else None,
            )
            for batch in loader:
                yield to_device(batch, device, channels_last=config.channels_last)
            self.start = (end, 0)


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to all processes of a job must not take the readers from the step in progress."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def to_device(batch: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """A batch with its tensors moved, whatever tuples and dictionaries they are in."""
    if isinstance(batch, Tensor):
        order = torch.channels_last if channels_last and batch.dim() == 4 else None
        moved = batch.to(device, non_blocking=True)
        return moved if order is None else moved.contiguous(memory_format=order)
    if isinstance(batch, dict):
        return {
            name: to_device(value, device, channels_last=channels_last)
            for name, value in batch.items()
        }
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(v, device, channels_last=channels_last) for v in batch))
    if isinstance(batch, tuple):
        return tuple(to_device(value, device, channels_last=channels_last) for value in batch)
    return batch
