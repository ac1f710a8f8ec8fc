"""Every threshold in one pass: against the localisation protocol, threshold by threshold.

The plain protocol finds OpenCV's contours at each of 1000 thresholds, as the benchmark's own code
does; the collapsed one looks at each distinct 8-bit level once.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsfast.compat import wsolevaluation
from wsfast.metrics import MaxBoxAcc, MaxBoxAccV2

from . import opencv_protocol as protocol
from .harness import Budget, Case, Contender, Run
from .inputs import blobs
from .records import Size, Target

THRESHOLDS = np.arange(0, 1, 0.001)
CELLS = {"smooth": 7, "mid": 14, "noisy": 28}
NOISE = {"smooth": 0.0, "mid": 0.02, "noisy": 0.15}
ONE_BY_ONE = Size(4, 224, "smooth", headline=True)
BATCH = Size(64, 224, "smooth", headline=True)
ONE_BY_ONE_SIZES = (
    ONE_BY_ONE, Size(4, 224, "mid"), Size(2, 224, "noisy"),
    Size(2, 512, "smooth"), Size(2, 512, "mid"), Size(1, 512, "noisy"),
)  # fmt: skip
BATCH_SIZES = (
    BATCH, Size(16, 224, "smooth"), Size(32, 224, "smooth"), Size(16, 224, "mid"),
    Size(8, 224, "noisy"), Size(16, 112, "smooth"), Size(16, 448, "smooth"), Size(8, 512, "mid"),
)  # fmt: skip
PLAIN, COLLAPSED = "OpenCV, 1000 thresholds", "OpenCV, distinct levels"
Inputs = tuple[Tensor, Tensor]


def maps_and_boxes(size: Size, generator: torch.Generator) -> Inputs:
    """Maps (N, H, W) in 0-1, float64 as the protocol wants them, and one true box each."""
    smooth = blobs(size.batch, size.side, generator, CELLS[size.variant]).double()
    noise = torch.rand(smooth.shape, generator=generator, dtype=torch.float64)
    maps = (smooth + NOISE[size.variant] * noise).clamp(0, 1)
    corners = torch.randint(size.side, (size.batch, 2, 2), generator=generator).sort(dim=1).values
    return maps, corners.flatten(1)


def opencv(metric: type[MaxBoxAcc], *, collapse: bool) -> Callable[[Inputs], Run]:
    """Build the protocol's counts for a metric."""

    def build(inputs: Inputs) -> Run:
        maps = list(inputs[0].numpy())
        truths = [box[None] for box in inputs[1].numpy()]
        return lambda: protocol.num_correct(
            maps,
            truths,
            THRESHOLDS,
            metric.iou_levels,
            every_contour=metric.every_contour,
            collapse=collapse,
        )

    return build


def in_batches(metric_type: type[MaxBoxAcc]) -> Callable[[Inputs], Run]:
    """Build the metric's update with a whole batch."""

    def build(inputs: Inputs) -> Run:
        maps, boxes = inputs
        each = list(boxes[:, None])

        def run() -> Tensor:
            metric = metric_type().to(maps.device)
            metric.update(maps, each)
            return metric.num_correct

        return run

    return build


def one_by_one(metric: type[MaxBoxAcc]) -> Callable[[Inputs], Run]:
    """Build compat's BoxEvaluator, one map at a time."""

    def build(inputs: Inputs) -> Run:
        maps, boxes = inputs[0].numpy(), inputs[1].tolist()
        with tempfile.TemporaryDirectory() as folder:
            evaluator = _evaluator(Path(folder), boxes, metric)

        def run() -> np.ndarray:
            for counts in evaluator.num_correct.values():
                counts[:] = 0
            for name, scoremap in zip(evaluator.image_ids, maps, strict=True):
                evaluator.accumulate(scoremap, name)
            return np.stack(list(evaluator.num_correct.values()))

        return run

    return build


def _evaluator(
    folder: Path, boxes: list[list[int]], metric: type[MaxBoxAcc]
) -> wsolevaluation.BoxEvaluator:
    names = [f"{i}.jpg" for i in range(len(boxes))]
    lines = {
        "image_ids": names,
        "image_sizes": [f"{name},224,224" for name in names],
        "localization": [
            ",".join([name, *map(str, box)]) for name, box in zip(names, boxes, strict=True)
        ],
    }
    for stem, content in lines.items():
        (folder / f"{stem}.txt").write_text("\n".join(content))
    return wsolevaluation.BoxEvaluator(
        metadata=wsolevaluation.configure_metadata(str(folder)),
        dataset_name="CUB",
        split="test",
        cam_threshold_list=list(THRESHOLDS),
        iou_threshold_list=list(metric.iou_levels),
        mask_root="",
        multi_contour_eval=metric.every_contour,
    )


def case(
    operation: str,
    metric: type[MaxBoxAcc],
    ours: Callable[[Inputs], Run],
    sizes: tuple[Size, ...],
    targets: tuple[Target, ...],
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Case:
    return Case(
        room="levels",
        operation=operation,
        inputs=maps_and_boxes,
        sizes=sizes,
        contenders=(
            Contender("wsfast", ours, devices=devices),
            Contender(PLAIN, opencv(metric, collapse=False), devices=("cpu",)),
            Contender(COLLAPSED, opencv(metric, collapse=True), devices=("cpu",)),
        ),
        oracle=lambda inputs: opencv(metric, collapse=True)((inputs[0].cpu(), inputs[1].cpu()))(),
        tolerance=0.0,
        targets=targets,
        budget=Budget(one_round_above=2.0),
    )


CASES = [
    case(
        "BoxEvaluator, largest contour, one map at a time",
        MaxBoxAcc,
        one_by_one(MaxBoxAcc),
        ONE_BY_ONE_SIZES,
        (Target(ONE_BY_ONE.label, 25, 60, (PLAIN,)),),
        devices=("cpu",),  # of NumPy maps
    ),
    case(
        "BoxEvaluator, every contour, one map at a time",
        MaxBoxAccV2,
        one_by_one(MaxBoxAccV2),
        ONE_BY_ONE_SIZES,
        (Target(ONE_BY_ONE.label, 10, 30, (PLAIN,)),),
        devices=("cpu",),  # of NumPy maps
    ),
    case(
        "MaxBoxAcc, batches",
        MaxBoxAcc,
        in_batches(MaxBoxAcc),
        BATCH_SIZES,
        (Target(BATCH.label, 50, 100, (PLAIN,)), Target(BATCH.label, 10, 25, (COLLAPSED,))),
    ),
    case(
        "MaxBoxAccV2, batches",
        MaxBoxAccV2,
        in_batches(MaxBoxAccV2),
        BATCH_SIZES,
        (Target(BATCH.label, 20, 50, (PLAIN,)), Target(BATCH.label, 5, 12, (COLLAPSED,))),
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
