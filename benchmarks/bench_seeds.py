"""Seeds, proposals, blurred images: against per-image loops of the steps that F-CAM and DiPS take.

The loops are written anew from the papers' descriptions: full sorts, ``nonzero``, ``multinomial``
and max-pools in place of erosion and dilation; so their times are not the originals'. Draws are
random, so a result is right when every seed lies where it may and no image has too few or too many.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import wsfast
from wsfast.ops.seeds import reference

from .harness import Case, Contender, MemoryLimit, Run, eager, over_threads
from .inputs import blobs, scenes
from .records import Size, Target

HEADLINE = Size(32, 224, headline=True)
RELU = Size(32, 224, "relu", headline=True)
SIZES = (Size(32, 56), Size(32, 112), HEADLINE, Size(8, 224), Size(16, 224), RELU)
DILATE = 3
IGNORED = -255
FCAM = {"foreground": 1, "background": 1, "background_share": 0.3, "erode": 11}
DIPS = {
    "foreground": 5139,
    "background": 2399,
    "foreground_share": 0.938,
    "background_share": 0.906,
}
LOOP = "per-image sort + multinomial loop"
BATCHED = "batched torch"
Checked = tuple[Tensor, Tensor]


def maps(size: Size, generator: torch.Generator) -> Tensor:
    """CAMs (N, H, W) in 0-1; half of a "relu" map is 0."""
    cams = blobs(size.batch, size.side, generator)
    return (2 * cams - 1).relu() if size.variant == "relu" else cams


def with_boxes(size: Size, generator: torch.Generator) -> Checked:
    """Maps and one box per image around its middle."""
    side = size.side
    box = torch.tensor([side // 8, side // 6, side - side // 5, side - side // 7])
    return maps(size, generator), box.int().repeat(size.batch, 1)


# What is right ----------------------------------------------------------------------------------


def grown(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), DILATE, 1, DILATE // 2)[:, 0] > 0


def lowest(cams: Tensor, share: float) -> Tensor:
    flat = cams.flatten(1)
    cut = flat.kthvalue(max(1, int(share * flat.shape[1])), dim=1).values
    return cams <= cut[:, None, None]


def verdict(
    front: Callable[[Any], Tensor], foreground: int, background: int, share: float
) -> Callable[[Any], Tensor]:
    """1 per image and rule: places and numbers of both kinds of seeds."""

    def judge(result: tuple[Tensor, Any]) -> Tensor:
        seeds, inputs = result
        cams = inputs[0] if isinstance(inputs, tuple) else inputs
        rules = []
        for label, allowed, most in (
            (1, front(inputs), foreground),
            (0, lowest(cams, share), background),
        ):
            found = (seeds == label).flatten(1).sum(1)
            rules.append((found > 0) & (found <= most * DILATE**2))
            rules.append(~((seeds == label) & ~grown(allowed)).flatten(1).any(1))
        return torch.stack(rules).double()

    return judge


def above_otsu(cams: Tensor) -> Tensor:
    return cams >= wsfast.otsu_threshold(cams)[:, None, None]


def inside(inputs: Checked) -> Tensor:
    return reference.roi_mask(inputs[1], inputs[0])


def all_right(inputs: Any) -> Tensor:
    cams = inputs[0] if isinstance(inputs, tuple) else inputs
    return torch.ones(4, len(cams))


def judged(function: Callable[[Any], Tensor]) -> Callable[[Any], Run]:
    """Return the inputs with the seeds, for the verdict."""
    return lambda inputs: lambda: (function(inputs), inputs)


# The peers --------------------------------------------------------------------------------------


def labels(front: Tensor, back: Tensor) -> Tensor:
    """Dilate the drawn pixels, (N, H, W) bool, and settle conflicts."""
    front, back = grown(front), grown(back)
    seeds = torch.full(front.shape, IGNORED, dtype=torch.int64, device=front.device)
    seeds[front & ~back] = 1
    seeds[back & ~front] = 0
    return seeds


def eroded(mask: Tensor, side: int) -> Tensor:
    """(H, W) bool, or as it was if nothing would be left."""
    shrunk = -F.max_pool2d(-mask[None, None].float(), side, 1, side // 2)[0, 0] > 0
    return shrunk if shrunk.any() else mask


def scattered(pixels: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    mask[pixels] = True
    return mask.view_as(like)


def draw_lowest(cam: Tensor, count: int, share: float) -> Tensor:
    order = cam.flatten().sort().indices[: int(share * cam.numel())]
    chosen = torch.multinomial(torch.ones(len(order), device=cam.device), min(count, len(order)))
    return order[chosen]


def fcam_image(cam: Tensor) -> Tensor:
    from skimage.filters import threshold_otsu

    levels = (cam * 255).byte()
    threshold = min(max(int(threshold_otsu(levels.cpu().numpy())), 1), 254)
    region = eroded(levels > threshold, FCAM["erode"])
    pixels = region.flatten().nonzero()[:, 0]
    count = min(FCAM["foreground"], len(pixels))
    front = pixels[torch.multinomial(torch.ones(len(pixels), device=cam.device), count)]
    back = draw_lowest(cam, FCAM["background"], FCAM["background_share"])
    return labels(scattered(front, cam)[None], scattered(back, cam)[None])[0]


def fcam_loop(cams: Tensor) -> Tensor:
    return torch.stack([fcam_image(cam) for cam in cams])


def dips_image(cam: Tensor, roi: Tensor, settings: dict[str, Any]) -> Tensor:
    values, order = (cam * roi).flatten().sort(descending=True)
    wanted = int(settings["foreground_share"] * int(roi.sum()))
    values, order = values[:wanted], order[:wanted]
    count = min(settings["foreground"], int((values > 0).sum()))
    front = order[torch.multinomial(values, count)]
    back = draw_lowest(cam, settings["background"], settings["background_share"])
    return labels(scattered(front, cam)[None], scattered(back, cam)[None])[0]


def dips_loop(inputs: Checked, settings: dict[str, Any] = DIPS) -> Tensor:
    rows = zip(inputs[0], inside(inputs), strict=True)
    return torch.stack([dips_image(cam, roi, settings) for cam, roi in rows])


def drawn(weights: Tensor, count: int, like: Tensor) -> Tensor:
    """Draw ``count`` pixels of each image by weights (N, H*W), all at once."""
    chosen = torch.multinomial(weights, count)
    mask = torch.zeros_like(weights, dtype=torch.bool)
    return mask.scatter_(1, chosen, True).view_as(like)


def drawn_alike(allowed: Tensor, count: int) -> Tensor:
    """Draw ``count`` pixels of each mask (N, H, W), all as likely: those of the largest numbers."""
    keys = torch.rand(allowed.shape, device=allowed.device).masked_fill_(~allowed, -1.0).flatten(1)
    mask = torch.zeros_like(keys, dtype=torch.bool)
    return mask.scatter_(1, keys.topk(count).indices, True).view_as(allowed)


def fcam_batched(cams: Tensor) -> Tensor:
    region = above_otsu(cams)
    side = FCAM["erode"]
    rows = F.max_pool2d(-region[:, None].float(), (1, side), 1, (0, side // 2))
    shrunk = F.max_pool2d(rows, (side, 1), 1, (side // 2, 0))[:, 0] < 0
    region = torch.where(shrunk.flatten(1).any(1)[:, None, None], shrunk, region)
    low = lowest(cams, FCAM["background_share"])
    return labels(
        drawn_alike(region, FCAM["foreground"]),
        drawn_alike(low, FCAM["background"]),
    )


def dips_batched(inputs: Checked) -> Tensor:
    cams, rois = inputs[0], inside(inputs)
    flat = torch.where(rois, cams, 0.0).flatten(1)
    wanted = int(DIPS["foreground_share"] * int(rois[0].sum()))  # equal boxes
    cut = flat.kthvalue(flat.shape[1] - wanted + 1, dim=1).values
    weights = torch.where(flat >= cut[:, None], flat, 0.0)
    count = min(DIPS["foreground"], int((weights > 0).sum(1).min()))
    low = lowest(cams, DIPS["background_share"]).flatten(1).float()
    return labels(drawn(weights, count, cams), drawn(low, DIPS["background"], cams))


# Ours -------------------------------------------------------------------------------------------


def fcam_seeds(cams: Tensor) -> Tensor:
    return wsfast.sample_seeds(cams, dilate=DILATE, seed=0, **FCAM)


def dips_seeds(inputs: Checked) -> Tensor:
    return wsfast.sample_seeds(
        inputs[0],
        region="top",
        foreground_weights="activation",
        dilate=DILATE,
        roi=inputs[1],
        seed=0,
        **DIPS,
    )


def fcam_reference(cams: Tensor) -> Tensor:
    keys = torch.arange(len(cams), device=cams.device)
    counts = (FCAM["foreground"], FCAM["background"])
    shares = (0.0, FCAM["background_share"])
    rest = (False, False, FCAM["erode"], DILATE)
    return reference.sample_seeds(cams, keys, None, None, *counts, False, *shares, *rest)


def dips_reference(inputs: Checked) -> Tensor:
    keys = torch.arange(len(inputs[0]), device=inputs[0].device)
    counts = (DIPS["foreground"], DIPS["background"])
    shares = (DIPS["foreground_share"], DIPS["background_share"])
    rest = (True, False, 0, DILATE)
    return reference.sample_seeds(inputs[0], keys, inputs[1], None, *counts, True, *shares, *rest)


# Proposals --------------------------------------------------------------------------------------
# Every contender gives the number of boxes and the area of the largest of each image.

MAPS_PER_IMAGE = 5
MIN_AREA = 0.04
PROPOSED = Size(8, 224, headline=True)


def attention(size: Size, generator: torch.Generator) -> Tensor:
    coarse = [blobs(size.batch, size.side, generator, 14) for _ in range(MAPS_PER_IMAGE)]
    return torch.stack(coarse, dim=1)


def proposals(found: wsfast.Proposals) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = found.boxes[:, 0].unbind(1)
    return found.counts, (x1 - x0) * (y1 - y0)


def opencv_proposals(batch: Tensor) -> Run:
    images = batch.numpy()

    def boxes(image: np.ndarray) -> list[int]:
        levels = (image * 255).astype(np.uint8)
        _, mask = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        found = [cv2.boundingRect(c) for c in cv2.findContours(
            mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]]  # fmt: skip
        return [width * height for _, _, width, height in found]

    return lambda: [[area for image in maps for area in boxes(image)] for maps in images]


def opencv_proposal_rows(
    found: list[list[int]], pixels: int = PROPOSED.pixels
) -> tuple[Tensor, Tensor]:
    limit = MIN_AREA * pixels
    counts = [max(1, sum(area > limit for area in areas)) for areas in found]
    return torch.tensor(counts), torch.tensor([max(areas) for areas in found])


# Blur -------------------------------------------------------------------------------------------

BOXES_PER_IMAGE = 4
KERNEL, SIGMA = 115, 100.5
BLURRED = Size(8, 224, headline=True)
Blur = tuple[Tensor, Tensor, Tensor]


def boxed_images(size: Size, generator: torch.Generator) -> Blur:
    corners = torch.randint(0, size.side, (size.batch * BOXES_PER_IMAGE, 2, 2), generator=generator)
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1).int()
    index = torch.arange(size.batch).repeat_interleave(BOXES_PER_IMAGE)
    return scenes(size.batch, size.side, generator) / 255, boxes, index


def blur(inputs: Blur) -> Tensor:
    return wsfast.blur_outside_boxes(*inputs, kernel=KERNEL, sigma=SIGMA)


def looped(function: Callable[[Any], Any], images: Any) -> Run:
    return lambda: [function(image) for image in images]


def opencv_blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (KERNEL, KERNEL), SIGMA, borderType=cv2.BORDER_REFLECT_101)


def opencv_blur(inputs: Blur, each: Callable[..., Run] = looped) -> Run:
    """Blur each image once, composite box by box."""
    images = inputs[0].permute(0, 2, 3, 1).contiguous().numpy()
    rows = list(zip(inputs[1].tolist(), inputs[2].tolist(), strict=True))
    blur_each = each(opencv_blurred, images)

    def run() -> np.ndarray:
        blurred = blur_each()
        results = np.empty((len(rows), *images.shape[1:]), np.float32)
        for result, ((x0, y0, x1, y1), n) in zip(results, rows, strict=True):
            result[:] = blurred[n]
            result[y0:y1, x0:x1] = images[n, y0:y1, x0:x1]
        return results.transpose(0, 3, 1, 2)

    return run


def torchvision_blur(inputs: Blur) -> Tensor:
    """Blur each image once, composite with masks."""
    from torchvision.transforms.v2.functional import gaussian_blur

    images, boxes, index = inputs
    blurred = gaussian_blur(images, [KERNEL, KERNEL], [SIGMA, SIGMA])
    mask = reference.roi_mask(boxes, images[index, 0])[:, None]
    return images[index] * mask + blurred[index] * ~mask


def plain_blur(inputs: Blur) -> Tensor:
    """The convolution as it is written down, in float64."""
    images, boxes, index = inputs[0].cpu().double(), inputs[1].cpu(), inputs[2].cpu()
    half = KERNEL // 2
    weights = torch.exp(-(torch.arange(-half, half + 1).double() ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    padded = F.pad(images, (half, half, half, half), mode="reflect")
    rows = sum(w * padded[:, :, i : i + images.shape[2]] for i, w in enumerate(weights))
    blurred = sum(w * rows[..., i : i + images.shape[3]] for i, w in enumerate(weights))
    results = blurred[index]
    for result, (x0, y0, x1, y1), n in zip(results, boxes.tolist(), index.tolist(), strict=True):
        result[:, y0:y1, x0:x1] = images[n, :, y0:y1, x0:x1]
    return results


FCAM_VERDICT = verdict(above_otsu, FCAM["foreground"], FCAM["background"], FCAM["background_share"])
DIPS_VERDICT = verdict(inside, DIPS["foreground"], DIPS["background"], DIPS["background_share"])

CASES = [
    Case(
        room="seeds",
        operation="sample_seeds, F-CAM",
        inputs=maps,
        sizes=SIZES,
        contenders=(
            Contender("wsfast", judged(fcam_seeds), collect=FCAM_VERDICT),
            Contender(LOOP, judged(fcam_loop), requires=("skimage",), collect=FCAM_VERDICT),
            Contender(
                BATCHED,
                judged(fcam_batched),
                collect=FCAM_VERDICT,
                note="with wsfast's Otsu; kthvalue in place of sorting, separable erosion",
            ),
            Contender("reference", judged(fcam_reference), sweep=False, collect=FCAM_VERDICT),
        ),
        oracle=all_right,
        tolerance=0.0,
        targets=tuple(Target(size.label, 10, 20, (LOOP,)) for size in (HEADLINE, RELU)),
        memory=MemoryLimit(HEADLINE, "the maps' bytes", lambda cams: cams.nbytes, 1.0, ("wsfast",)),
    ),
    Case(
        room="seeds",
        operation="sample_seeds, DiPS",
        inputs=with_boxes,
        sizes=(Size(8, 224), Size(16, 224), HEADLINE, RELU),
        contenders=(
            Contender("wsfast", judged(dips_seeds), collect=DIPS_VERDICT),
            Contender(LOOP, judged(dips_loop), collect=DIPS_VERDICT),
            Contender(
                BATCHED,
                judged(dips_batched),
                collect=DIPS_VERDICT,
                note="kthvalue in place of sorting; needs boxes of one size",
            ),
            Contender("reference", judged(dips_reference), sweep=False, collect=DIPS_VERDICT),
        ),
        oracle=all_right,
        tolerance=0.0,
        targets=tuple(Target(size.label, 5, 10, (LOOP,)) for size in (HEADLINE, RELU)),
    ),
    Case(
        room="seeds",
        operation="propose_boxes",
        inputs=attention,
        sizes=(Size(8, 56), Size(8, 112), PROPOSED),
        contenders=(
            Contender(
                "wsfast",
                eager(lambda batch: wsfast.propose_boxes(batch, min_area=MIN_AREA, max_boxes=64)),
                collect=proposals,
            ),
            Contender(
                "OpenCV Otsu + findContours loop",
                opencv_proposals,
                sweep=False,
                devices=("cpu",),
                collect=opencv_proposal_rows,
            ),
        ),
        oracle=lambda batch: opencv_proposal_rows(
            opencv_proposals(batch.cpu())(), batch[0, 0].numel()
        ),
        tolerance=0.0,
    ),
    Case(
        room="seeds",
        operation="blur_outside_boxes",
        inputs=boxed_images,
        sizes=(Size(8, 112), BLURRED, Size(8, 448)),
        contenders=(
            Contender("wsfast", eager(blur)),
            Contender("OpenCV GaussianBlur loop", opencv_blur, devices=("cpu",)),
            Contender(
                "OpenCV GaussianBlur, an image per thread",
                lambda inputs: opencv_blur(inputs, over_threads),
                devices=("cpu",),
            ),
            Contender(
                "torchvision gaussian_blur",
                eager(torchvision_blur),
                requires=("torchvision",),
                sweep=False,
                note="not separable",
            ),
        ),
        oracle=plain_blur,
        tolerance=1e-4,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
