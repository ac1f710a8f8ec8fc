"""Draws the pictures of docs/: real output of the ops on generated images, nothing downloaded.

``python scripts/docs_pictures.py`` trains a small classifier (a few minutes on one core) and
writes docs/pictures/*.png; names as arguments draw these alone. Seeds are fixed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

import wsfast
from wsfast.cam import GradCAM, LayerCAM, LTGradCAM
from wsfast.data import SyntheticDefects, inclusive_corners
from wsfast.models import SmallVGG, load_checkpoint, save_checkpoint
from wsfast.ops.levels.protocol import inclusive_iou, protocol_corners
from wsfast.train import TrainedClassifier, train_classifier

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "pictures"
KEPT = ROOT / "build" / "docs" / "classifier.safetensors"  # delete it to train anew
SIZE = (128, 128)
HEAT = "inferno"
RED, BLUE, GREEN, GREY = "#d1495b", "#2a6f97", "#3a7d44", "#7a7a7a"


@dataclass
class Scene:
    """A trained classifier, and defective images it has not seen."""

    trained: TrainedClassifier
    images: Tensor  # (N, 1, H, W) uint8
    masks: Tensor  # (N, H, W) bool

    def inputs(self, rows: slice) -> Tensor:
        """Normalised images."""
        return self.trained.normalize(self.images[rows])


def trained_classifier() -> TrainedClassifier:
    """Trained on image labels, or the one of the last call."""
    if KEPT.is_file():
        saved = load_checkpoint(KEPT)
        assert isinstance(saved.model, SmallVGG)
        return TrainedClassifier(saved.model, list(saved.mean), list(saved.std))
    trained = train_classifier(SyntheticDefects(400, size=SIZE, seed=1), epochs=10, seed=1)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        trained.model, KEPT, class_names=("good", "defect"), mean=trained.mean, std=trained.std,
        input_size=SIZE,
    )  # fmt: skip
    return trained


def make_scene() -> Scene:
    """The classifier and defective test images."""
    trained = trained_classifier()
    test = SyntheticDefects(24, split="test", size=SIZE, defect_rate=1.0, seed=1)
    samples = [test[i] for i in range(len(test))]
    masks = torch.stack([sample.mask for sample in samples if sample.mask is not None])
    trained.model.eval()
    return Scene(trained, torch.stack([sample.image for sample in samples]), masks)


# ---- drawing -------------------------------------------------------------------------------------


def panels(count: int, *, rows: int = 1, height: float = 2.2) -> tuple[Figure, Any]:
    """A figure of panels side by side."""
    figure, axes = plt.subplots(
        rows, count, figsize=(10.0, height * rows), layout="constrained", squeeze=False
    )
    return figure, axes if rows > 1 else axes[0]


def show(ax: Axes, picture: Tensor, title: str = "", **options: Any) -> None:
    """One picture without ticks."""
    ax.imshow(picture.numpy(), interpolation=options.pop("interpolation", "nearest"), **options)
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


def show_image(ax: Axes, image: Tensor, title: str = "") -> None:
    """A grey image, its range stretched."""
    show(ax, image, title, cmap="gray")


def outline(ax: Axes, mask: Tensor, color: str = "white") -> None:
    """The border of a mask."""
    ax.contour(mask.numpy(), levels=[0.5], colors=color, linewidths=1.0)


def draw_box(
    ax: Axes, box: list[int], color: str, text: str = "", *, left: bool = False, width: float = 1.6
) -> None:
    """A half-open box, with a text at its left or right side."""
    x0, y0, x1, y1 = box
    shape = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec=color, lw=width)
    ax.add_patch(shape)
    if text:
        side = {"x": x0 - 2, "ha": "right"} if left else {"x": x1 + 1, "ha": "left"}
        paper = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
        ax.text(y=(y0 + y1) / 2, s=text, color=color, fontsize=9, va="center", bbox=paper, **side)


def save(figure: Figure, name: str) -> None:
    """A PNG of 256 colours: small files."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=104, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    picture.quantize(256, kmeans=4).save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png: {(FOLDER / f'{name}.png').stat().st_size // 1024} KB")


# ---- the pictures --------------------------------------------------------------------------------


def draw_home(scene: Scene) -> Figure:
    """Images, masks, and maps of three methods."""
    rows = [4, 13, 14]
    model = scene.trained.model
    methods = {
        "Grad-CAM, last layer": GradCAM(model, "last"),
        "LayerCAM, all stages": LayerCAM(model),
        "LTGrad-CAM, all stages": LTGradCAM(model, percentile=50),
    }
    figure, axes = panels(2 + len(methods), rows=len(rows), height=1.95)
    maps = {name: method(scene.inputs(slice(None)), 1).cams for name, method in methods.items()}
    for line, i in zip(axes, rows, strict=True):
        first = i == rows[0]
        show_image(line[0], scene.images[i, 0], "image" if first else "")
        show(line[1], scene.masks[i], "true mask" if first else "", cmap="gray")
        for ax, (name, cams) in zip(line[2:], maps.items(), strict=True):
            show(ax, cams[i], name if first else "", cmap=HEAT, vmin=0, vmax=1)
            outline(ax, scene.masks[i])
    return figure


def captured(scene: Scene, stage: int, image: int) -> tuple[Tensor, Tensor]:
    """Activations of a stage and the gradients of the defect's score, (1, C, h, w)."""
    kept: list[Tensor] = []
    model = scene.trained.model
    module = model.get_submodule(model.feature_info[stage]["module"])
    hook = module.register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(scene.inputs(slice(image, image + 1)))
    hook.remove()
    (grads,) = torch.autograd.grad(logits[0, 1], kept[0])
    return kept[0].detach(), grads


def draw_truncation(scene: Scene) -> Figure:
    """A map's gradients, the cut, and what it does to a Grad-CAM."""
    image, percentile = 13, 80.0
    activations, grads = captured(scene, 1, image)
    balance = grads.amax(dim=(2, 3)) * -grads.amin(dim=(2, 3))  # a map with both signs
    channel = int(balance[0].argmax())
    row = grads[0, channel]
    delta = wsfast.positive_percentile(grads, percentile)[0, channel].item()
    kept = wsfast.truncate_gradients(grads, percentile)[0, channel]
    plain = (grads.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1).relu()
    truncated = wsfast.truncated_gradcam(activations, grads, percentile)

    figure, axes = panels(5)
    positive = row[row > 0].numpy()
    edges = np.linspace(0, positive.max(), 40)
    axes[0].hist(positive[positive < delta], bins=edges, color="#b8b8b8", log=True)
    axes[0].hist(positive[positive >= delta], bins=edges, color=RED, log=True)
    axes[0].axvline(delta, color="black", lw=1)
    axes[0].set_title("positive gradients", fontsize=9)
    axes[0].text(delta, axes[0].get_ylim()[1] * 0.5, r" $\delta = P_{80}$", fontsize=9)
    axes[0].set_yticks([])
    axes[0].tick_params(labelsize=7)
    axes[0].ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axes[0].xaxis.get_offset_text().set_fontsize(7)
    limit = float(row.abs().quantile(0.995))
    show(axes[1], row, "gradients g", cmap="RdBu_r", vmin=-limit, vmax=limit)
    show(axes[2], kept, "T(g)", cmap="RdBu_r", vmin=-limit, vmax=limit)
    show(axes[3], wsfast.normalize_cams(plain)[0], "Grad-CAM of the stage", cmap=HEAT)
    show(axes[4], wsfast.normalize_cams(truncated)[0], "with T(g)", cmap=HEAT)
    small = torch.nn.functional.max_pool2d(scene.masks[image][None].float(), 2)[0]
    for ax in axes[3:]:
        outline(ax, small)
    return figure


def draw_fusion(scene: Scene) -> Figure:
    """Maps of the stages at their sizes, fused with and without normalisation."""
    image = 13
    result = LayerCAM(scene.trained.model)(scene.inputs(slice(image, image + 1)), 1)
    literal = wsfast.fuse_cams(result.per_layer, SIZE, layer_norm=None, reduce="sum", norm=None)
    figure, axes = panels(7, height=2.0)
    show_image(axes[0], scene.images[image, 0], "image")
    for number, layer in enumerate(result.per_layer):
        peak = float(layer.max())
        title = f"stage {number + 1}, {layer.shape[1]}²\nmax {peak:.2g}"
        show(axes[1 + number], layer[0], title, cmap=HEAT)
    show(axes[5], result.cams[0], "fuse_cams", cmap=HEAT)
    show(axes[6], literal[0], "literal sum", cmap=HEAT)
    for ax in (axes[5], axes[6]):
        outline(ax, scene.masks[image])
    return figure


def draw_boxes(scene: Scene) -> Figure:
    """A map, its thresholds, components and boxes."""
    image = 15
    cams = LTGradCAM(scene.trained.model)(scene.inputs(slice(image, image + 1)), 1).cams
    plain, again = (float(wsfast.cam_thresholds(cams, name)) for name in ("otsu", "otsu2"))
    labels, counts = wsfast.connected_components(cams >= again)
    found = wsfast.cam_boxes(cams, "otsu2", max_boxes=4)

    figure, axes = panels(4, height=2.7)
    show(axes[0], cams[0], "map, true mask outlined", cmap=HEAT, vmin=0, vmax=1)
    outline(axes[0], scene.masks[image])
    axes[1].hist(cams.flatten().numpy(), bins=64, range=(0, 1), color="#9a9a9a", log=True)
    top = axes[1].get_ylim()[1]
    for value, name, color in ((plain, "otsu", BLUE), (again, "otsu2", RED)):
        axes[1].axvline(value, color=color, lw=1.5)
        axes[1].text(value + 0.02, top * (0.5 if name == "otsu" else 0.25), name, color=color,
                     fontsize=9)  # fmt: skip
    axes[1].set_title("pixels per score", fontsize=9)
    axes[1].tick_params(labelsize=7)
    colours = mpl.colormaps["tab20"].resampled(20)
    painted = colours(labels[0].numpy() % 20)
    painted[labels[0].numpy() == 0] = (0.08, 0.08, 0.08, 1)
    show(axes[2], torch.from_numpy(painted), f"components at otsu2: {int(counts[0])}")
    show_image(axes[3], scene.images[image, 0], "boxes and scores")
    count = min(int(counts[0]), found.boxes.shape[1])
    middle = float(found.boxes[0, :count, ::2].float().mean())
    for box, score in zip(found.boxes[0, :count].tolist(), found.scores[0].tolist(), strict=False):
        left = box[0] + box[2] < 2 * middle
        draw_box(axes[3], box, "#ffb000", f"{score:.2f}", left=left)
    return figure


def draw_levels(scene: Scene) -> Figure:
    """The largest box at some levels, and its IoU at all of them."""
    image = 15
    cams = LTGradCAM(scene.trained.model)(scene.inputs(slice(image, image + 1)), 1).cams
    found = wsfast.component_boxes(scene.masks[image : image + 1], max_boxes=8)
    truth = found.boxes[0, : int(found.counts[0])]
    inclusive = inclusive_corners(truth).long()
    boxes, _ = wsfast.level_boxes(cams)
    best = wsfast.level_best_iou(cams, inclusive, torch.tensor([0, len(truth)]))[0]
    corners = protocol_corners(boxes[0], *SIZE)
    iou = inclusive_iou(corners[:, None], inclusive).amax(dim=1)

    figure = plt.figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2.2])
    show(left, cams[0], "", cmap=HEAT, vmin=0, vmax=1)
    for box in truth.tolist():
        draw_box(left, box, "white", width=2.2)
    colours = mpl.colormaps["viridis"](np.linspace(0.35, 1, 4))
    for level, colour in zip((12, 40, 90, 170), colours, strict=True):
        draw_box(left, boxes[0, level].tolist(), mpl.colors.to_hex(colour))
        right.axvline(level, color=colour, lw=2)
    right.plot(iou.numpy(), color=RED, lw=1.6, label="largest contour (MaxBoxAcc)")
    right.plot(best.numpy(), color=GREY, lw=1.2, ls="--", label="best of all (MaxBoxAccV2)")
    right.set_xlim(0, 255)
    right.set_ylim(0, 1)
    right.set_xlabel("level L of {u > L}", fontsize=9)
    right.set_ylabel("IoU with a true box", fontsize=9)
    right.legend(fontsize=8, loc="upper right", frameon=False)
    right.tick_params(labelsize=8)
    return figure


def draw_lattice(ax: Axes) -> None:
    """The lattice of two features: a point, its simplex, the axes of the blur."""
    a, b = np.array([1.0, 0.0]), np.array([0.5, np.sqrt(3) / 2])
    points = np.array([i * a + j * b for i in range(-4, 7) for j in range(-1, 6)])
    inside = points[(abs(points[:, 0] - 1.5) < 2.8) & (abs(points[:, 1] - 1.7) < 2.0)]
    for point in inside:
        for step in (a, b, b - a):
            ax.plot(*np.stack([point, point + step]).T, color="#dddddd", lw=0.8, zorder=0)
    ax.scatter(*inside.T, s=8, color="#aaaaaa", zorder=1)
    simplex = np.array([a + b, 2 * a + b, a + 2 * b])
    weights = np.array([0.5, 0.2, 0.3])
    centre = weights @ simplex
    ax.fill(*simplex.T, color=BLUE, alpha=0.15)
    for corner, weight in zip(simplex, weights, strict=True):
        ax.annotate("", corner, centre, arrowprops={"arrowstyle": "->", "color": BLUE})
        ax.scatter(*corner, s=25 + 250 * weight, color=BLUE, zorder=2)
        for step in (a, b, b - a):
            for sign in (-1, 1):
                ax.plot(*np.stack([corner, corner + sign * step]).T, color=RED, lw=1, alpha=0.35)
    ax.scatter(*centre, s=45, color="black", marker="x", zorder=3)
    ax.set_aspect("equal")
    ax.set_xlim(-0.6, 4.1)
    ax.set_ylim(-0.2, 3.7)
    ax.set_title("splat (blue), blur (red)", fontsize=9)
    ax.axis("off")


def draw_crf(scene: Scene) -> Figure:
    """The lattice, filtering by an image's lattice, and the loss's gradient."""
    image = 13
    picture = scene.images[image : image + 1].float()
    coarse = LTGradCAM(scene.trained.model, "last")(scene.inputs(slice(image, image + 1)), 1).cams
    lattice = wsfast.bilateral_lattice(picture, sigma_rgb=20.0, sigma_xy=20.0)
    filtered = wsfast.lattice_filter(coarse[:, None], lattice, normalize="after")[0, 0]
    logits = torch.logit(coarse.clamp(0.02, 0.98))
    logits = torch.stack([-logits, logits], dim=1).requires_grad_()
    wsfast.dense_crf_loss(None, logits.softmax(dim=1), lattice=lattice).backward()
    descent = -logits.grad[0, 1]

    figure, axes = panels(5, height=2.3)
    draw_lattice(axes[0])
    show_image(axes[1], scene.images[image, 0], "image")
    show(axes[2], coarse[0], "map of the last stage", cmap=HEAT, vmin=0, vmax=1)
    show(axes[3], filtered, "filtered by the lattice", cmap=HEAT)
    limit = float(descent.abs().quantile(0.995))
    show(axes[4], descent, "where the loss pulls", cmap="RdBu_r", vmin=-limit, vmax=limit)
    for ax in axes[2:]:
        outline(ax, scene.masks[image], "white" if ax is not axes[4] else "black")
    return figure


def draw_seeds(scene: Scene) -> Figure:
    """Where seeds come from, and the seeds of two epochs."""
    image = 13
    cams = LTGradCAM(scene.trained.model)(scene.inputs(slice(image, image + 1)), 1).cams
    options = {"region": "top", "foreground_share": 0.02, "background_share": 0.5, "seed": 0}
    everything = SIZE[0] * SIZE[1]
    regions = wsfast.sample_seeds(
        cams, foreground=everything, background=everything, dilate=0, **options
    )
    epochs = [
        wsfast.sample_seeds(cams, foreground=6, background=12, dilate=3, epoch=epoch, **options)
        for epoch in (0, 1)
    ]
    figure, axes = panels(5, height=2.3)
    show_image(axes[0], scene.images[image, 0], "image, true mask outlined")
    outline(axes[0], scene.masks[image], GREEN)
    show(axes[1], cams[0], "map", cmap=HEAT, vmin=0, vmax=1)
    for ax, seeds, title in zip(
        axes[2:], [regions, *epochs], ["regions", "seeds, epoch 0", "seeds, epoch 1"], strict=True
    ):
        show_image(ax, scene.images[image, 0], title)
        layer = np.zeros((*SIZE, 4))
        layer[seeds[0].numpy() == 1] = (*mpl.colors.to_rgb("#ff3b30"), 0.95)
        layer[seeds[0].numpy() == 0] = (
            *mpl.colors.to_rgb("#3fa7ff"), 0.35 if seeds is regions else 0.95
        )  # fmt: skip
        ax.imshow(layer, interpolation="nearest")
    return figure


PICTURES: dict[str, Callable[[Scene], Figure]] = {
    "home": draw_home,
    "truncation": draw_truncation,
    "fusion": draw_fusion,
    "boxes": draw_boxes,
    "levels": draw_levels,
    "crf": draw_crf,
    "seeds": draw_seeds,
}


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all of them."""
    mpl.use("agg")
    plt.rcParams["font.family"] = "DejaVu Sans"
    scene = make_scene()
    for name in names or PICTURES:
        save(PICTURES[name](scene), name)


if __name__ == "__main__":
    main(sys.argv[1:])
