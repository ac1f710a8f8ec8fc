"""Calls of every op with every option away from its default at least once."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import wsfast
from wsfast import ops

N = 3  # images of every case

_random = torch.Generator().manual_seed(7)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_random)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_random)


CAMS = uniform(N, 7, 9)
SMALL_CAMS = uniform(N, 3, 4)
MASK = uniform(N, 7, 9) > 0.6
ACTIVATIONS, GRADS = normal(N, 3, 5, 6), normal(N, 3, 5, 6)
IMAGE = uniform(N, 3, 6, 8) * 255
PROB = normal(N, 2, 6, 8).softmax(dim=1)
ROI = uniform(N, 6, 8) > 0.3
BOXES = torch.tensor([[0, 0, 4, 3], [2, 1, 9, 6], [1, 1, 2, 2]])
LAYERS = {"cams": [CAMS, SMALL_CAMS]}
HARD = {"image": IMAGE, "prob": PROB}
LOGITS = {"logits": PROB.log(), "image": IMAGE}
SCORED = ops.cam_boxes(CAMS, 0.4, max_boxes=6)


def lattice_of(step: int = 1) -> Callable[[int], wsfast.Lattice]:
    """The lattice of every ``step``-th pixel of n images."""
    return lambda n: wsfast.bilateral_lattice(
        IMAGE[:n, :, ::step, ::step], sigma_rgb=40.0, sigma_xy=5.0
    )


def whole(value: Any) -> Callable[[int], Any]:
    """An input that does not grow with the batch."""
    return lambda n: value


@dataclass(frozen=True)
class Case:
    """A call of an op with tensors and options.

    Attributes:
        inputs: are cut to the first n images; functions are called with n.
        tracked: the inputs that ask for a gradient.
        differentiable: whether they get one.
        per_image: whether row n of every result is that of image n alone.
        compiles: False for what ``torch.compile(fullgraph=True)`` cannot take.
        draws: takes torch's own random numbers.
    """

    op: str
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tracked: tuple[str, ...] = ()
    differentiable: bool = True
    per_image: bool = True
    compiles: bool = True
    draws: bool = False

    def take(self, n: int) -> dict[str, Any]:
        return {
            name: value(n) if callable(value) else tree_map(lambda x: x[:n], value)
            for name, value in self.inputs.items()
        }

    def call(self, inputs: dict[str, Any]) -> Any:
        return getattr(ops, self.op)(**inputs, **self.options)

    def __str__(self) -> str:
        given = [name for name in self.inputs if name in optional_parameters(self.op)]
        return "-".join([self.op, *given, *(f"{k}={v}" for k, v in self.options.items())])


def optional_parameters(op: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(ops, op)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def truncation_cases() -> Iterator[Case]:
    grads, both = {"grads": GRADS}, {"activations": ACTIVATIONS, "grads": GRADS}
    for scope in ("map", "sample"):
        options = {"percentile": 60, "scope": scope}
        yield Case("positive_percentile", grads, options, ("grads",), differentiable=False)
        yield Case("truncate_gradients", grads, options, ("grads",))
        for op in ("truncated_gradcam", "truncated_layercam"):
            yield Case(op, both, options, ("activations", "grads"))
            wide = {**options, "dtype": torch.float64}
            yield Case(op, both, wide, ("activations", "grads"))


def fusion_cases() -> Iterator[Case]:
    yield Case("normalize_cams", {"cams": CAMS}, {}, ("cams",))
    yield Case("normalize_cams", {"cams": CAMS}, {"mode": "max", "eps": 1e-2}, ("cams",))
    for options in (
        {},
        {"layer_norm": "max", "norm": "max", "eps": 1e-2, "weights": [1, 2.5]},
        {"reduce": "prod"},
    ):
        yield Case("fuse_cams", LAYERS, {"size": (11, 8), **options}, ("cams",))
    weighted = {**LAYERS, "weights": whole(torch.tensor([0.5, 2.0]))}
    for options in ({}, {"reduce": "sum", "layer_norm": None}, {"reduce": "max", "norm": None}):
        yield Case("fuse_cams", weighted, {"size": (5, 12), **options}, ("cams", "weights"))


def boxes_cases() -> Iterator[Case]:
    def fixed(op: str, inputs: dict[str, Any], **options: Any) -> Case:
        tracked = ("cams",) if "cams" in inputs else ()
        return Case(op, inputs, options, tracked, differentiable=False)

    cams, mask = {"cams": CAMS}, {"mask": MASK}
    thresholds = uniform(N)
    limits = {"max_boxes": 3, "connectivity": 4, "min_area": 2}
    yield fixed("otsu_threshold", cams)
    yield fixed("otsu_threshold", cams, repeat=2)
    for threshold in (0.25, "otsu", "otsu2"):
        yield fixed("cam_thresholds", cams, threshold=threshold)
        yield fixed("cam_boxes", cams, threshold=threshold, **limits)
    yield fixed("cam_thresholds", {**cams, "threshold": thresholds})
    yield fixed("cam_boxes", {**cams, "threshold": thresholds})
    yield fixed("connected_components", mask)
    yield fixed("connected_components", {"mask": MASK.to(torch.uint8)}, connectivity=4)
    yield fixed("component_boxes", mask)
    yield fixed("component_boxes", {"mask": MASK.to(torch.uint8)}, **limits)
    labels = ops.connected_components(MASK)[0]
    yield fixed("label_boxes", {"labels": labels})
    yield fixed("label_boxes", {"labels": labels.long()}, max_labels=3)
    yield fixed("suppress_overlaps", {"found": SCORED})
    yield fixed("suppress_overlaps", {"found": SCORED}, iou_threshold=0.0)


def levels_cases() -> Iterator[Case]:
    def fixed(op: str, inputs: dict[str, Any], per_image: bool = True, **options: Any) -> Case:
        tracked = ("maps",) if inputs["maps"].is_floating_point() else ()
        return Case(op, inputs, options, tracked, differentiable=False, per_image=per_image)

    truth = {
        "gt_boxes": lambda n: BOXES.repeat(2, 1)[: 2 * n],
        "gt_offsets": lambda n: torch.arange(n + 1) * 2,
    }
    for maps in (CAMS, (CAMS * 255).to(torch.uint8)):
        yield fixed("level_boxes", {"maps": maps})
        yield fixed("level_best_iou", {"maps": maps, **truth})
        yield fixed("threshold_levels", {"maps": maps, "thresholds": whole(uniform(5))})
    yield fixed("level_best_iou", {"maps": CAMS, **truth}, holes=False)
    edges = whole(torch.linspace(0, 1, 6))
    for masks in (MASK, MASK.to(torch.uint8) * 255):
        inputs = {"maps": CAMS, "masks": masks, "edges": edges}
        yield fixed("score_histograms", inputs, per_image=False)


def seeds_cases() -> Iterator[Case]:
    def seeds(inputs: dict[str, Any] | None = None, **options: Any) -> Case:
        inputs = {"cams": CAMS, **(inputs or {})}
        return Case("sample_seeds", inputs, {"seed": 5, **options}, ("cams",), False)

    cams = {"cams": CAMS}
    generator = {"generator": lambda n: torch.Generator().manual_seed(3)}
    yield Case("sample_seeds", cams, {}, ("cams",), False, draws=True)
    yield Case("sample_seeds", {**cams, **generator}, {}, ("cams",), False, compiles=False)
    yield seeds(foreground=3, background=2, erode=3, dilate=0, epoch=2)
    yield seeds(region="top", foreground_share=0.4, foreground_weights="activation", dilate=1)
    yield seeds({"roi": BOXES}, background_outside_roi=True, background_share=0.6)
    yield seeds({"roi": MASK, "background_only": torch.arange(N) == 0})
    yield seeds({"image_ids": torch.arange(N) + 9})
    maps = {"maps": torch.stack([CAMS, 1 - CAMS], dim=1)}
    yield Case("propose_boxes", maps, {}, ("maps",), False)
    options = {"min_area": 0.5, "max_boxes": 3, "connectivity": 4}
    yield Case("propose_boxes", maps, options, ("maps",), False)
    blurred = {"images": IMAGE, "boxes": BOXES, "image_index": torch.arange(N)}
    yield Case("blur_outside_boxes", blurred, {}, ("images",))
    yield Case("blur_outside_boxes", blurred, {"kernel": 5, "sigma": 2.0}, ("images",))


def crf_cases() -> Iterator[Case]:
    sigmas = {"sigma_rgb": 40, "sigma_xy": 5}
    several = {"sigma_rgb": [40, 50.0, 60], "sigma_xy": 5.0}
    yield Case("Lattice", {"features": IMAGE.flatten(2) / 40}, per_image=False)
    for options in (sigmas, several):
        yield Case("bilateral_lattice", {"image": IMAGE}, options, per_image=False)
    filtered = {"values": PROB, "lattice": lattice_of()}
    for normalize in ("none", "after", "symmetric"):
        for symmetric in (True, False):
            options = {"normalize": normalize, "symmetric": symmetric}
            yield Case("lattice_filter", filtered, options, ("values",))

    def loss(inputs: dict[str, Any] | None = None, **options: Any) -> Case:
        each = options.get("reduction") == "none"
        inputs = {**HARD, **(inputs or {})}
        return Case("dense_crf_loss", inputs, options, ("prob",), per_image=each)

    roi = {"roi": ROI}
    yield loss()
    yield loss(**several, reduction="sum")
    for method in ("lattice", "dense", "exact"):
        yield loss(roi, **sigmas, method=method, reduction="none", normalize="affinity")
    yield loss(roi, **sigmas, form="paper", normalize="pixels", reduction="none")
    yield loss({"roi": ROI[:, None].float()}, **several, form="paper", normalize="affinity")
    yield loss(roi, **sigmas, scale_factor=0.5, symmetric=False, reduction="none")
    kept, half = {"image": whole(None), "lattice": lattice_of()}, {"lattice": lattice_of(2)}
    yield loss(kept, reduction="none")
    yield loss({**kept, **roi}, form="paper", normalize="affinity", reduction="none")
    yield loss({**half, **roi}, scale_factor=0.5, symmetric=False, normalize="pixels")

    yield Case("mean_field", LOGITS, {"iterations": 1}, ("logits",))
    options = {"iterations": 2, "bilateral_weight": 4, "spatial_weight": 2, "spatial_sigma": 2}
    yield Case("mean_field", LOGITS, {**options, **several, "normalize": "after"}, ("logits",))
    classes = {**LOGITS, "compatibility": whole(torch.tensor([[0.0, 1.0], [2.0, 0.5]]))}
    options = {**options, **sigmas, "normalize": "none"}
    yield Case("mean_field", classes, options, ("logits", "compatibility"))


CASES = [
    *truncation_cases(),
    *fusion_cases(),
    *boxes_cases(),
    *levels_cases(),
    *seeds_cases(),
    *crf_cases(),
]
