"""The one training loop: every recipe runs in it."""

import inspect
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from wsfast._files import remove_partial_files
from wsfast.train import distributed
from wsfast.train.config import TrainConfig
from wsfast.train.interrupt import Interrupted, StopRequest, stop_on_signals
from wsfast.train.loading import Plan
from wsfast.train.log import Record, RunLog, read_log, summary_writer
from wsfast.train.random_state import derive_seed
from wsfast.train.recipe import Recipe, Step
from wsfast.train.schedule import Schedule
from wsfast.train.state import check_out, has_state, load_state, save_learnt, save_state

_STEP = 3  # keeps the random numbers of a step apart from those of order and augmentation
_CHECK_EVERY = 20  # steps between two looks at the loss, each of which waits for the device


class _StepModule(nn.Module):
    """The recipe's step as a module's forward, which DistributedDataParallel needs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = recipe.model
        self._step = recipe.step

    def forward(self, batch: Any, epoch: int) -> Step:
        return self._step(batch, epoch)


@dataclass
class _Progress:
    """Where a run is, and the sums of its current epoch."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    totals: dict[str, Tensor] = field(default_factory=dict)
    best: float = -math.inf
    best_epoch: int = 0


def fit(
    recipe: Recipe, *, out: Path | None = None, resume: bool = False, progress: bool = True
) -> list[Record]:
    """Train a recipe's model to the end of its epochs.

    Args:
        recipe: model, data and losses. Its model is trained in place.
        out: folder for ``config.yaml``, ``learnt.txt`` (files of the training images),
            ``log.jsonl``, ``last.pt`` (the state to resume from), ``last.safetensors`` and
            ``best.safetensors``; None writes nothing.
        resume: continue the run in ``out``, from its start where it has not saved itself yet.
        progress: show a bar with images per second and the time left.

    Returns:
        One record per epoch, as in the log.

    Raises:
        ValueError: ``out`` holds a run and ``resume`` is False, or what is resumed is another run;
            a model that cannot be saved there (see :func:`wsfast.models.save_checkpoint`).
        Interrupted: SIGTERM or Ctrl-C; the step in progress is finished and the state saved.
        RuntimeError: the loss or a weight is no longer finite.
        OSError: a file could not be written; what was saved before is untouched.

    Note:
        On the CPU a run that was stopped or killed and resumed gives bit for bit the model of an
        unbroken run: order, augmentation, dropout, learning rate and barrier are functions of the
        seed and of the place in the run, the rest is saved. Under ``torchrun`` a global batch is
        that of one process, and so are losses and figures, but for rounding; of a model with
        dropout they are not, as each process (and each part of ``accumulate``) draws its own. The
        global random state is left as it was.
    """
    devices = [recipe.device] if recipe.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        _determinism(recipe.config.deterministic),
        stop_on_signals() as stop,
    ):
        run = _Run(recipe, out, stop, progress)
        run.prepare(resume)
        return run.run()


class _Run:
    def __init__(self, recipe: Recipe, out: Path | None, stop: StopRequest, progress: bool) -> None:
        config = recipe.config
        self.recipe, self.config, self.out, self.stop = recipe, config, out, stop
        self.device = recipe.device
        self.show = progress and distributed.is_writer()
        self.plan = Plan(recipe)
        recipe.model.to(self.device)
        if config.channels_last:
            recipe.model.to(memory_format=torch.channels_last)
        distributed.synchronize_batchnorm(recipe.model, self.device)
        self.optimizer = _build_optimizer(recipe, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.schedule = Schedule(
            config.schedule, self.plan.steps, config.epochs, config.decay_every,
            config.decay_factor, config.warmup_epochs * self.plan.steps,
        )  # fmt: skip
        self.at = _Progress()
        self.agreement = distributed.Agreement()
        self.history: list[Record] = []
        self.log: RunLog | None = None
        recipe.check_selection()
        if config.tensorboard:
            summary_writer()  # its absence is told before the run's folder is made

    def prepare(self, resume: bool) -> None:
        """Take up the state in the run's folder, or begin one."""
        if self.out is not None:
            self.recipe.check_saving()
            self.out.mkdir(parents=True, exist_ok=True)
            check_out(self.out, resume=resume)
            if has_state(self.out):
                self._restore(self.out)
            distributed.barrier()  # nobody writes before all have read
            if distributed.is_writer():
                remove_partial_files(self.out)
                self.config.save(self.out)
                save_learnt(self.out, self.recipe)
                self.log = RunLog(
                    self.out, epochs=self.at.epoch, tensorboard=self.config.tensorboard
                )
                self.history = read_log(self.out)
        self.module: Any = _StepModule(self.recipe)
        if distributed.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.module = DistributedDataParallel(self.module, ids, **_own_buffers())

    def run(self) -> list[Record]:
        """All epochs that are left."""
        self.plan.start = (self.at.epoch, self.at.step)
        batches = self.plan.batches(self.device)
        per_epoch = self.plan.steps * self.plan.batch_size
        done = self.at.epoch * per_epoch + self.at.step * self.plan.batch_size
        total = max(self.config.epochs * per_epoch, done)
        with tqdm(
            total=total, initial=done, unit="image", desc="training", disable=not self.show
        ) as bar:
            while self.at.epoch < self.config.epochs and not self._out_of_patience():
                self._epoch(batches, bar)
            if self.show and self.at.epoch < self.config.epochs:
                told = f"no better model since epoch {self.at.best_epoch}"
                bar.write(f"wsfast train: ended at epoch {self.at.epoch}: {told}", file=sys.stderr)
        if self.log is not None:
            self.log.close()
        return self.history

    def _epoch(self, batches: Iterator[Any], bar: Any) -> None:
        self.recipe.begin_epoch(self.at.epoch)
        self.recipe.resumed_inside = False
        self.module.train()
        start, before = time.perf_counter(), self.at.seconds
        while self.at.step < self.plan.steps:
            self._step(batches)
            self.at.seconds = before + time.perf_counter() - start
            bar.update(self.plan.batch_size)
            stopping = self.agreement.any(self.stop.number != 0)
            if self.at.step % _CHECK_EVERY == 0 or self.at.step == self.plan.steps or stopping:
                loss = self._means()["loss"]
                bar.set_postfix(
                    epoch=f"{self.at.epoch + 1}/{self.config.epochs}", loss=f"{loss:.3f}"
                )
            if stopping:
                self._save()
                raise Interrupted(self.stop.number or signal.SIGTERM)
        self._finish_epoch(bar)
        if self.agreement.any(self.stop.number != 0):
            raise Interrupted(self.stop.number or signal.SIGTERM)

    def _step(self, batches: Iterator[Any]) -> None:
        epoch, step, parts = self.at.epoch, self.at.step, self.config.accumulate
        self.schedule.apply(self.optimizer, epoch * self.plan.steps + step)
        for part in range(parts):
            with self._without_sync(part < parts - 1):
                batch = next(batches)  # before seeding: a loader draws numbers when it starts
                place = (_STEP, epoch, step, part, distributed.rank())
                torch.manual_seed(derive_seed(self.config.seed, *place))
                with self._autocast():
                    result: Step = self.module(batch, epoch)
                loss = torch.stack([value.float() for value in result.losses.values()]).sum()
                self.scaler.scale(loss / parts).backward()
            self._count({"loss": loss, **_prefixed(result.losses), **result.figures}, parts)
        self._update_weights()
        self.at.step += 1

    def _update_weights(self) -> None:
        if self.config.clip_gradients:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained(), self.config.clip_gradients)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _without_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        """Gradients of all but the last part need not be exchanged."""
        parallel = isinstance(self.module, DistributedDataParallel)
        return self.module.no_sync() if wanted and parallel else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.amp)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _count(self, values: dict[str, Tensor], parts: int) -> None:
        for name, value in values.items():
            share = value.detach().double() / parts
            self.at.totals[name] = self.at.totals.get(name, 0.0) + share

    def _means(self) -> dict[str, float]:
        """Figures of the epoch so far, over all processes."""
        names = sorted(self.at.totals)
        values = torch.stack([self.at.totals[name] for name in names]) / self.at.step
        means = dict(zip(names, distributed.reduce_mean(values).tolist(), strict=True))
        wrong = [
            name for name in names if name.startswith("loss") and not math.isfinite(means[name])
        ]
        if not wrong and not self._finite_weights():  # the last step's loss was before it
            wrong = ["a weight"]
        if wrong:
            raise RuntimeError(
                f"wsfast.train: {' and '.join(wrong)} in epoch {self.at.epoch + 1} is no longer "
                "finite; lower learning_rate or set clip_gradients"
            )
        return means

    def _finite_weights(self) -> bool:
        return bool(torch.stack([p.isfinite().all() for p in self._trained()]).all())

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _finish_epoch(self, bar: Any) -> None:
        epoch = self.at.epoch + 1
        record: Record = {"epoch": epoch, **self._means()}
        record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        record["seconds"] = self.at.seconds
        record["images_per_second"] = self.plan.steps * self.plan.batch_size / self.at.seconds
        validated = self._validates(epoch)
        if validated:
            self._save()  # a validation may outlast the time that a stopped process is given
            record.update(self._validate())
        for line in [*self.recipe.warnings(record), *self._without_figure(record, validated)]:
            if self.show:
                bar.write(f"wsfast train: warning: epoch {epoch}: {line}", file=sys.stderr)
            record.setdefault("warnings", []).append(line)
        self.history.append(record)
        better = self._is_better(record, epoch, validated)
        self.at = _Progress(epoch, best=self.at.best, best_epoch=self.at.best_epoch)
        if self.out is not None and distributed.is_writer():
            assert self.log is not None
            self.log.write(record)
            self.recipe.save_model(self.out / "last.safetensors", record)
            if better:
                self.recipe.save_model(self.out / "best.safetensors", record)
        self._save()

    def _validates(self, epoch: int) -> bool:
        return epoch % self.config.validate_every == 0 or epoch == self.config.epochs

    def _out_of_patience(self) -> bool:
        """Whether the run ends here; a validation, the same in all processes, says so."""
        waited, patience = self.at.epoch - self.at.best_epoch, self.config.patience
        return 0 < patience <= waited and self._validates(self.at.epoch)

    def _validate(self) -> dict[str, float]:
        self.module.eval()
        try:
            return self.recipe.validate()
        finally:
            self.module.train()

    def _without_figure(self, record: Record, validated: bool) -> list[str]:
        """A warning where nothing chooses the best model, so that the first one stays it."""
        select_on = self.config.select_on
        if not validated or select_on == "last" or self.recipe.selections[select_on] in record:
            return []
        return [f"validation gave no figure for {select_on} (are all masks empty?)"]

    def _is_better(self, record: Record, epoch: int, validated: bool) -> bool:
        if self.config.select_on == "last":
            score = float(epoch)
        elif validated:
            score = record.get(self.recipe.selections[self.config.select_on], 0.0)
        else:
            return False
        if score > self.at.best:
            self.at.best, self.at.best_epoch = score, epoch
            return True
        return False

    def _save(self) -> None:
        """Write the state; the totals of several processes are saved as their mean."""
        means = self._means() if self.at.step else {}
        if self.out is None or not distributed.is_writer():
            return
        totals = (
            self.at.totals
            if distributed.world_size() == 1
            else {n: torch.tensor(v * self.at.step).double() for n, v in means.items()}
        )
        save_state(
            self.out,
            {
                "recipe": self.recipe.name,
                "config": self.config.as_dict(),
                "fingerprint": self.recipe.fingerprint(),
                "classifier": self.recipe.classifier_digest,
                **{
                    k: getattr(self.at, k)
                    for k in ("epoch", "step", "seconds", "best", "best_epoch")
                },
                "totals": {name: value.cpu() for name, value in totals.items()},
                "model": self.recipe.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def _restore(self, out: Path) -> None:
        state = load_state(out, self.recipe)
        self.recipe.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        totals = {name: value.to(self.device) for name, value in state["totals"].items()}
        self.at = _Progress(
            state["epoch"], state["step"], state["seconds"], totals, state["best"],
            state["best_epoch"],
        )  # fmt: skip
        self.recipe.resumed_inside = self.at.step > 0


def _own_buffers() -> dict[str, Any]:
    """The option of DDP that leaves each process its buffers, by its name since torch 2.13."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


def _prefixed(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"loss_{name}": value for name, value in losses.items()} if len(losses) > 1 else {}


def _build_optimizer(recipe: Recipe, config: TrainConfig) -> torch.optim.Optimizer:
    groups = recipe.parameter_groups()
    for group in groups:
        group["initial_lr"] = group.setdefault("lr", config.learning_rate)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups,
        config.learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
