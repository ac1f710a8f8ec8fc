"""What the benchmarks of training iterations share: inputs, the published steps, judgement.

The steps are written anew from descriptions of the codes of F-CAM and DiPS, in plain PyTorch: one
image, one region, one channel at a time. Where the originals are known to be slower they are helped
(erosion by max-pooling instead of unfolding 121 taps), so ratios are no more than they were.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wsfast.ops.crf import reference
from wsfast.train import DiPSRecipe, Draw, FCAMRecipe
from wsfast.train.images import IMAGENET_MEAN, IMAGENET_STD, ImageData, TrainingSample

from . import bench_crf, bench_seeds
from .harness import Run
from .inputs import blobs, scenes
from .records import Size

CLASSES, CHANNELS = 200, 1024  # CUB's classes; channels and stride of F-CAM's VGG16
STRIDE = 8
CRF_WEIGHT, SIZE_WEIGHT, CLASS_WEIGHT = 2e-9, 0.1, 0.3
Terms = dict[str, Tensor]


class Iteration(NamedTuple):
    """What those parts of an iteration take that are not the network."""

    features: Tensor
    cam_weights: Tensor
    logits: Tensor
    batch: TrainingSample

    def labels(self) -> Tensor:
        """Class per image."""
        return torch.as_tensor(self.batch.label)

    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.batch.image.shape[2], self.batch.image.shape[3]


class Sample(NamedTuple):
    """One image."""

    image: Tensor


class Images:
    """A batch as a data set."""

    def __init__(self, batch: TrainingSample) -> None:
        self.images = batch.image.cpu()
        self.labels = torch.as_tensor(batch.label).cpu()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index])


def image_data(batch: TrainingSample) -> ImageData:
    names = [str(number) for number in range(CLASSES)]
    return ImageData(Images(batch), None, IMAGENET_MEAN, IMAGENET_STD, names)


def training_batch(size: Size, generator: torch.Generator) -> TrainingSample:
    cams, box = bench_seeds.with_boxes(size, generator)
    position = torch.arange(size.batch)
    return TrainingSample(
        scenes(size.batch, size.side, generator).to(torch.uint8),
        position * 7 % CLASSES,
        Draw(torch.zeros_like(position), position, position),
        (cams[:, None] * 255).to(torch.uint8),
        box,
    )


def iteration(size: Size, generator: torch.Generator) -> Iteration:
    coarse = max(2, size.side // STRIDE)
    maps = [4 * blobs(size.batch, size.side, generator) for _ in range(2)]
    return Iteration(
        torch.randn(size.batch, CHANNELS, coarse, coarse, generator=generator).relu(),
        torch.randn(CLASSES, CHANNELS, generator=generator),
        torch.stack(maps, dim=1).requires_grad_(),
        training_batch(size, generator),
    )


def on_cpu(inputs: Iteration) -> Iteration:
    """A copy on the CPU with floating-point tensors in float64."""
    batch = inputs.batch
    moved = batch._replace(
        image=batch.image.cpu(),
        label=inputs.labels().cpu(),
        map=batch.map.cpu(),
        box=batch.box.cpu(),
    )
    floats = [tensor.detach().cpu().double() for tensor in inputs[:3]]
    return Iteration(floats[0], floats[1], floats[2].requires_grad_(), moved)


def normalized(images: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images / 255 - mean) / std


# The published steps ----------------------------------------------------------------------------


def image_cam(features: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Weighted sum of one image's features (C, h, w), to 0-1, then to the image's size."""
    cam = (weights[:, None, None] * features).sum(0)
    cam = cam - cam.min()
    cam = torch.nan_to_num(cam / cam.max(), nan=0.0, posinf=1.0, neginf=0.0)
    return F.interpolate(cam[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def loop_cams(inputs: Iteration) -> Tensor:
    rows = zip(inputs.features, inputs.labels().tolist(), strict=True)
    size = inputs.size()
    return torch.stack([image_cam(f, inputs.cam_weights[label], size) for f, label in rows])


def known_ce(logits: Tensor, seeds: Tensor) -> Tensor:
    return F.cross_entropy(logits, seeds, ignore_index=bench_seeds.IGNORED)


class KnownCRF(torch.autograd.Function):
    """Filters on the CPU, wherever the maps are."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, prob: Tensor) -> Tensor:
        """The loss, from the filtered maps."""
        host = prob.detach().cpu().contiguous()
        filtered = bench_crf.scalar_filter(images.cpu().contiguous(), host)
        ctx.save_for_backward(filtered)
        ctx.device = prob.device
        return prob.new_tensor(-float((host * filtered).sum()) / len(host))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        """As published: -2 A s."""
        (filtered,) = ctx.saved_tensors
        return None, (filtered * (-2 / len(filtered))).to(ctx.device) * grads[0]


def known_barrier(values: Tensor, t: float) -> Tensor:
    """Extended log barrier of the constraint that ``values`` are at most 0, one by one."""
    terms = []
    for value in values:
        if value <= -1 / t**2:
            terms.append(-torch.log(-value) / t)
        else:
            terms.append(t * value - math.log(1 / t**2) / t + 1 / t)
    return torch.stack(terms).mean()


def known_size(prob: Tensor) -> Tensor:
    regions = [known_barrier(-prob[:, region].flatten(1).sum(1), 1.0) for region in (0, 1)]
    return SIZE_WEIGHT * (regions[0] + regions[1]) / 2


# An iteration without its network, and what is right --------------------------------------------


class Outcome(NamedTuple):
    """What an iteration came to: its losses, their gradient for the logits, and its seeds."""

    inputs: Iteration
    losses: Terms
    gradient: Tensor
    seeds: Callable[[], Tensor]


def outcome(inputs: Iteration, losses: Terms, seeds: Callable[[], Tensor]) -> Outcome:
    total = torch.stack(list(losses.values())).sum()
    # The graph is kept so that it can be asked for the terms' own gradients, out of time.
    gradient = torch.autograd.grad(total, inputs.logits, retain_graph=True)[0]
    return Outcome(inputs, losses, gradient, seeds)


def recipe_step(recipe: FCAMRecipe | DiPSRecipe, inputs: Iteration) -> Run:
    """The recipe's own step; its seeds, a function of the batch, are drawn again to judge them."""
    seeds = lambda: recipe.preview(inputs.batch, 0).seeds  # noqa: E731
    return lambda: outcome(inputs, recipe.step(inputs.batch, 0).losses, seeds)


def known_step(inputs: Iteration, seeds: Tensor, terms: Callable[[Tensor], Terms]) -> Outcome:
    prob = inputs.logits.softmax(1)
    crf = CRF_WEIGHT * KnownCRF.apply(inputs.batch.image.float(), prob)
    losses = {"ce": known_ce(inputs.logits, seeds), "crf": crf, **terms(prob)}
    return outcome(inputs, losses, lambda: seeds)


def judged(
    rules: Callable[[tuple[Tensor, Any]], Tensor], guide: Callable[[Iteration], Any]
) -> Callable[[Outcome], list[Tensor]]:
    """What :func:`right` gives: rules kept, ratios to the right values, other losses and gradient.

    Draws differ, so the cross-entropy is compared with one in float64 on the same seeds. Its
    gradient is 10,000 times that of the rest, which is therefore looked at by itself too.
    """

    def collect(found: Outcome) -> list[Tensor]:
        exact, seeds = on_cpu(found.inputs), found.seeds().cpu()
        ce = known_ce(exact.logits, seeds)
        learnt = torch.autograd.grad(ce, exact.logits)[0]
        rest = {name: found.losses[name] for name in sorted(found.losses) if name != "ce"}
        gradient = torch.autograd.grad(sum(rest.values()), found.inputs.logits)[0].cpu().double()
        error = (found.gradient.cpu().double() - learnt - gradient).abs().max()
        ratio = found.losses["ce"].detach().cpu().double() / ce.detach()
        ratios = torch.stack([ratio, 1 + error / learnt.abs().max()])
        return [rules((seeds, guide(exact))), ratios, *rest.values(), gradient]

    return collect


def right(terms: Callable[[Iteration, Tensor], Terms]) -> Callable[[Iteration], list[Tensor]]:
    """The oracle of :func:`judged`, in float64, with the reference of the CRF."""

    def oracle(inputs: Iteration) -> list[Tensor]:
        exact = on_cpu(inputs)
        prob = exact.logits.softmax(1)
        energy, filtered = reference.dense_crf_energy(
            exact.batch.image.float(), prob.detach(), None, [bench_crf.SIGMA_RGB] * 3,
            bench_crf.SIGMA_XY, "symmetric", True,
        )  # fmt: skip
        scale = -CRF_WEIGHT / len(prob)
        found = {**terms(exact, prob), "crf": scale * energy.sum()}
        # The energy s'As has the gradient 2As, as this product has where As is a constant.
        differentiable = {**found, "crf": 2 * scale * (prob * filtered).sum()}
        gradient = torch.autograd.grad(sum(differentiable.values()), exact.logits)[0]
        kept = bench_seeds.all_right(exact.batch.map[:, 0])
        return [kept, torch.ones(2), *(found[n].detach() for n in sorted(found)), gradient]

    return oracle
