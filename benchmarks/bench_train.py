"""One iteration of F-CAM and of DiPS, in parts: against the steps as the published codes take them.

Ours is the recipe's own ``step`` with a stand-in for the network, so what is timed is what trains;
networks are timed apart. Seeds are judged by where they may lie, see ``bench_seeds``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsfast.nn import SizeConstraintLoss, partial_cross_entropy
from wsfast.train import DiPSConfig
from wsfast.train.images import TrainingSample

from . import bench_crf, bench_seeds
from .harness import Case, Contender, Run, eager
from .inputs import blobs
from .records import Size, Target
from .stand_ins import (
    DIPS,
    Pooled,
    WithMaps,
    class_loss,
    dips_recipe,
    fcam_recipe,
)
from .training import (
    SIZE_WEIGHT,
    Iteration,
    Outcome,
    iteration,
    judged,
    known_ce,
    known_size,
    known_step,
    loop_cams,
    normalized,
    on_cpu,
    recipe_step,
    right,
    training_batch,
)

HEADLINE = Size(32, 224, headline=True)
SIZES = (Size(8, 112), Size(8, 224), Size(16, 224), HEADLINE)
LOOP = "published steps, image by image"
HELPED = "erosion helped by max-pooling; its CRF gradient -2 A s is not that of its value"
# Losses agree to 1e-6. Of the CRF's gradient a few hundred of 3 million values do not: whole grey
# levels put pixels on faces of the lattice, and float32 may take the simplex on the other side.
ROUNDING, SCALAR_FILTER = 1e-2, 0.1


# F-CAM ------------------------------------------------------------------------------------------


def our_cams(inputs: Iteration) -> Run:
    recipe, batch = fcam_recipe(inputs), inputs.batch
    return lambda: recipe._cams([inputs.features], batch.map, inputs.labels(), batch.image)


def stretched(cams: Tensor) -> Tensor:
    low, high = cams.amin(dim=(1, 2), keepdim=True), cams.amax(dim=(1, 2), keepdim=True)
    return (cams - low) / (high - low)


def fcam_loop(inputs: Iteration) -> Run:
    bench_crf.scalar_library()

    def run() -> Outcome:
        normalized(inputs.batch.image)
        seeds = bench_seeds.fcam_loop(loop_cams(inputs))
        return known_step(inputs, seeds, lambda prob: {"size": known_size(prob)})

    return run


FCAM_JUDGE = judged(bench_seeds.FCAM_VERDICT, lambda inputs: stretched(loop_cams(inputs)))


class Seeded(NamedTuple):
    """What losses of logits take."""

    logits: Tensor
    seeds: Tensor


def seeded(size: Size, generator: torch.Generator) -> Seeded:
    cams, logits = bench_seeds.maps(size, generator), iteration(size, generator).logits
    return Seeded(logits, bench_seeds.fcam_seeds(cams))


def learnt(loss: Callable[[Seeded], Tensor]) -> Callable[[Seeded], list[Tensor]]:
    """Value and gradient."""

    def run(inputs: Seeded) -> list[Tensor]:
        value = loss(inputs)
        return [value.detach(), torch.autograd.grad(value, inputs.logits)[0]]

    return run


def exactly(loss: Callable[[Seeded], Tensor]) -> Callable[[Seeded], list[Tensor]]:
    """Value and gradient in float64."""

    def oracle(inputs: Seeded) -> list[Tensor]:
        logits = inputs.logits.detach().cpu().double().requires_grad_()
        return learnt(loss)(Seeded(logits, inputs.seeds.cpu()))

    return oracle


def published_size(inputs: Seeded) -> Tensor:
    return known_size(inputs.logits.softmax(1))


def published_ce(inputs: Seeded) -> Tensor:
    return known_ce(*inputs)


# DiPS -------------------------------------------------------------------------------------------


def dips_loop(inputs: Iteration) -> Run:
    bench_crf.scalar_library()

    def run() -> Outcome:
        seeds = dips_loop_seeds(inputs)
        return known_step(inputs, seeds, lambda prob: class_loss(inputs, prob))

    return run


def dips_loop_seeds(inputs: Iteration) -> Tensor:
    cams = torch.stack([cam / cam.max() for cam in inputs.batch.map[:, 0].float()])
    return bench_seeds.dips_loop((cams, inputs.batch.box), DIPS)


def dips_guide(inputs: Iteration) -> bench_seeds.Checked:
    return inputs.batch.map[:, 0].float() / 255, inputs.batch.box


DIPS_VERDICT = bench_seeds.verdict(
    bench_seeds.inside, DIPS["foreground"], DIPS["background"], DIPS["background_share"]
)
DIPS_JUDGE = judged(DIPS_VERDICT, dips_guide)


def our_dips_seeds(inputs: Iteration) -> Run:
    recipe = dips_recipe(inputs)
    clean = torch.zeros_like(inputs.labels(), dtype=torch.bool)
    return lambda: (recipe._seeds(inputs.batch, clean, 0), dips_guide(inputs))


# Proposals --------------------------------------------------------------------------------------

MIN_AREA, PROPOSALS = 0.1, 2


class Proposing(NamedTuple):
    """Images with five maps each."""

    batch: TrainingSample
    maps: Tensor


def to_propose(size: Size, generator: torch.Generator) -> Proposing:
    maps = [blobs(size.batch, size.side, generator, cells=6) for _ in range(5)]
    levels = (torch.stack(maps, dim=1) * 255).to(torch.uint8)
    return Proposing(training_batch(size, generator), levels)


def our_proposals(inputs: Proposing) -> Run:
    config = DiPSConfig(select_on="last", maps="cam", min_area=MIN_AREA, proposals=PROPOSALS)
    recipe = WithMaps(config, nn.Identity(), inputs.batch, inputs.maps)
    rows = list(range(len(inputs.maps)))
    classifier = Pooled().to(inputs.maps.device)
    return lambda: recipe._propose(classifier, rows)[:, :, 5]


def map_boxes(levels: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) of what Otsu's threshold leaves."""
    threshold, _ = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = (levels > min(max(threshold, 1), 254)).astype(np.uint8)
    found = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    return [cv2.boundingRect(contour) for contour in found]


def image_scores(classifier: nn.Module, image: Tensor, maps: np.ndarray, label: int) -> Tensor:
    """Probability of the class with all but a box of an image (3, H, W) blurred, the best ones."""
    boxes = sorted((b for levels in maps for b in map_boxes(levels)), key=lambda b: -b[2] * b[3])
    wide = [b for b in boxes if b[2] * b[3] > MIN_AREA * maps[0].size] or boxes[:1]
    sharp = image.cpu().permute(1, 2, 0).contiguous().numpy()
    kernel = (bench_seeds.KERNEL, bench_seeds.KERNEL)
    blurred = cv2.GaussianBlur(sharp, kernel, bench_seeds.SIGMA, borderType=cv2.BORDER_REFLECT_101)
    seen = []
    for x, y, width, height in wide:
        mask = np.zeros((*maps[0].shape, 1))
        cv2.rectangle(mask, (x, y), (x + width - 1, y + height - 1), 1.0, -1)
        seen.append(sharp * mask + blurred * (1 - mask))
    composites = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).to(image)
    scores = classifier(composites).softmax(1)[:, label].sort(descending=True).values
    return F.pad(scores[:PROPOSALS], (0, max(0, PROPOSALS - len(scores))), value=-1.0)


def loop_proposals(inputs: Proposing) -> Tensor:
    classifier = Pooled().to(inputs.maps.device)
    labels = torch.as_tensor(inputs.batch.label).tolist()
    rows = zip(normalized(inputs.batch.image), inputs.maps.cpu().numpy(), labels, strict=True)
    return torch.stack([image_scores(classifier, *row) for row in rows])


def right_proposals(inputs: Proposing) -> Tensor:
    batch = inputs.batch
    labels = torch.as_tensor(batch.label).tolist()
    images = normalized(batch.image.cpu()).double()
    rows = zip(images, inputs.maps.cpu().numpy(), labels, strict=True)
    return torch.stack([image_scores(Pooled(), *row) for row in rows])


# Cases ------------------------------------------------------------------------------------------


def part(case: Case, operation: str, *contenders: str) -> Case:
    """A case of another room as a part of an iteration, at the size of one."""
    return dataclasses.replace(
        case,
        room="train",
        operation=operation,
        sizes=(HEADLINE,),
        contenders=tuple(case.contender(name) for name in contenders),
        targets=(),
        memory=None,
    )


CASES = [
    Case(
        room="train",
        operation="F-CAM iteration without its network",
        inputs=iteration,
        sizes=SIZES,
        contenders=(
            Contender(
                "wsfast",
                lambda inputs: recipe_step(fcam_recipe(inputs), inputs),
                collect=FCAM_JUDGE,
            ),
            Contender(
                LOOP,
                fcam_loop,
                ("skimage",),
                note=HELPED,
                collect=FCAM_JUDGE,
                tolerance=SCALAR_FILTER,
            ),
        ),
        oracle=right(lambda inputs, prob: {"size": known_size(prob)}),
        tolerance=ROUNDING,
        targets=(Target(HEADLINE.label, 5, 10, (LOOP,)),),
    ),
    Case(
        room="train",
        operation="F-CAM, part: CAMs from features",
        inputs=iteration,
        sizes=(HEADLINE,),
        contenders=(
            Contender(
                "wsfast", our_cams, collect=stretched, note="brought to 0-1 after resizing, too"
            ),
            Contender(LOOP, eager(loop_cams), collect=stretched),
        ),
        oracle=lambda inputs: stretched(loop_cams(on_cpu(inputs))),
        tolerance=1e-3,
    ),
    part(bench_seeds.CASES[0], "F-CAM, part: seeds", "wsfast", bench_seeds.LOOP),
    Case(
        room="train",
        operation="F-CAM and DiPS, part: partial cross-entropy forward and backward",
        inputs=seeded,
        sizes=(HEADLINE,),
        contenders=(
            Contender("wsfast", eager(learnt(lambda inputs: partial_cross_entropy(*inputs)))),
            Contender(LOOP, eager(learnt(published_ce))),
        ),
        oracle=exactly(published_ce),
        tolerance=1e-5,
    ),
    part(bench_crf.CASES[0], "F-CAM and DiPS, part: CRF loss", "wsfast", bench_crf.PEER),
    Case(
        room="train",
        operation="F-CAM, part: size constraint forward and backward",
        inputs=seeded,
        sizes=(HEADLINE,),
        contenders=(
            Contender(
                "wsfast",
                eager(learnt(lambda x: SizeConstraintLoss(SIZE_WEIGHT)(x.logits.softmax(1)))),
            ),
            Contender(LOOP, eager(learnt(published_size))),
        ),
        oracle=exactly(published_size),
        tolerance=1e-4,
    ),
    Case(
        room="train",
        operation="DiPS iteration without its networks",
        inputs=iteration,
        sizes=SIZES,
        contenders=(
            Contender(
                "wsfast",
                lambda inputs: recipe_step(dips_recipe(inputs), inputs),
                collect=DIPS_JUDGE,
                note="classifier's loss detached, as published",
            ),
            Contender(LOOP, dips_loop, note=HELPED, collect=DIPS_JUDGE, tolerance=SCALAR_FILTER),
        ),
        oracle=right(class_loss),
        tolerance=ROUNDING,
        targets=(Target(HEADLINE.label, 5, 10, (LOOP,)),),
    ),
    Case(
        room="train",
        operation="DiPS, part: seeds",
        inputs=iteration,
        sizes=(HEADLINE,),
        contenders=(
            Contender("wsfast", our_dips_seeds, collect=DIPS_VERDICT),
            Contender(
                LOOP,
                lambda inputs: lambda: (dips_loop_seeds(inputs), dips_guide(inputs)),
                collect=DIPS_VERDICT,
            ),
        ),
        oracle=lambda inputs: bench_seeds.all_right(dips_guide(inputs)),
        tolerance=0.0,
    ),
    Case(
        room="train",
        operation="DiPS proposals without the classifier",
        inputs=to_propose,
        sizes=(Size(8, 112), Size(8, 224), HEADLINE),
        contenders=(
            Contender("wsfast", our_proposals),
            Contender(LOOP, eager(loop_proposals), note="one OpenCV blur per image"),
        ),
        oracle=right_proposals,
        tolerance=1e-2,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)
