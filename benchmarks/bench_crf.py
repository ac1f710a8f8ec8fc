"""Dense-CRF loss, lattice and filter: against a re-creation of the C++ filter that people use.

The filter of rloss, F-CAM and DiPS needs SWIG and an old Python; ``recreations/scalar_lattice.cpp``
does the same work, written anew from the published algorithm, so its times are not the original's.
Images are generated scenes or uniform noise.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import wsfast
from wsfast.ops.crf import reference

from .harness import Case, Contender, MemoryLimit, Run, eager
from .inputs import blobs, scenes
from .records import Size, Target

NOISE = "noise"
HEADLINE = Size(32, 224, headline=True)
NOISY_HEADLINE = Size(32, 224, NOISE, headline=True)
SIZES = (Size(8, 112), Size(8, 224), Size(8, 448), Size(16, 224), HEADLINE)
SIGMA_RGB, SIGMA_XY = 15.0, 100.0
PEER = "scalar C++ re-creation"
ROUNDING = 1e-3
# On noise most vertices hold one point: one that float32 puts on the other side of a face brings
# another vertex, and its neighbours' results change. Float32 peers agree with ours to 1e-6.
NOISE_ROUNDING = 5e-2
EXACT_ROWS = 256
Inputs = tuple[Tensor, Tensor]


def images(size: Size, generator: torch.Generator) -> Tensor:
    if size.variant == NOISE:
        return torch.rand(size.batch, 3, size.side, size.side, generator=generator) * 255
    return scenes(size.batch, size.side, generator)


def with_classes(classes: int) -> Callable[[Size, torch.Generator], Inputs]:
    """Make images and the softmax of smooth logits, (N, classes, H, W), a leaf."""

    def build(size: Size, generator: torch.Generator) -> Inputs:
        maps = [4 * blobs(size.batch, size.side, generator) for _ in range(classes)]
        return images(size, generator), torch.stack(maps, dim=1).softmax(dim=1).requires_grad_()

    return build


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], list[Tensor]]:
    """Apply ``loss`` and differentiate: its value and the gradient of the maps."""

    def run(inputs: Inputs) -> list[Tensor]:
        value = loss(*inputs)
        return [value.detach(), torch.autograd.grad(value, inputs[1])[0]]

    return run


def ours(image: Tensor, prob: Tensor, method: str = "lattice") -> Tensor:
    return wsfast.dense_crf_loss(image, prob, sigma_rgb=SIGMA_RGB, sigma_xy=SIGMA_XY, method=method)


def readable(image: Tensor, prob: Tensor, direction: str = "symmetric") -> list[Tensor]:
    """Value and gradient by the reference."""
    energy, filtered = reference.dense_crf_energy(
        image, prob.detach(), None, [SIGMA_RGB] * 3, SIGMA_XY, direction, True
    )
    return [-energy.sum() / len(image), filtered * (-2 / len(image))]


def by_method(method: str) -> Contender:
    """The loss by a method that is nearer to the Gaussian; checked against brute force."""
    loss = partial(ours, method=method)
    return Contender(
        f"wsfast, method {method}",
        eager(with_gradient(loss)),
        tolerance={"dense": 0.1, "exact": ROUNDING}[method],  # largest difference over largest
        oracle=brute_force,
        note="the exact Gaussian" if method == "exact" else "within 3 % of the Gaussian",
    )


def brute_force(inputs: Inputs) -> list[Tensor]:
    """Value and gradient with the exact Gaussian in float64, pair by pair in plain PyTorch."""
    images, prob = inputs[0].cpu().double(), inputs[1].detach().cpu().double()
    height, width = prob.shape[2:]
    grid = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    position = torch.stack(grid) / SIGMA_XY
    filtered = torch.stack([
        reference.gaussian_matvec(
            torch.cat([image / SIGMA_RGB, position]).flatten(1).T, maps.flatten(1).T
        ).T.view_as(maps)
        for image, maps in zip(images, prob, strict=True)
    ])  # fmt: skip
    return [-(prob * filtered).sum() / len(prob), filtered * (-2 / len(prob))]


def forward_only(inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [ours(*inputs)]


# The peer ---------------------------------------------------------------------------------------


@cache
def scalar_library() -> ctypes.CDLL:
    """The re-creation, compiled as the original is."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is not installed")
    source = Path(__file__).parent / "recreations" / "scalar_lattice.cpp"
    library = Path(tempfile.mkdtemp()) / "scalar_lattice.so"
    command = [compiler, "-O3", "-fopenmp", "-std=c++20", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def scalar_filter(image: Tensor, values: Tensor) -> Tensor:
    """A values, by the re-creation; contiguous float32 on the CPU."""
    n, k, height, width = values.shape
    filtered = torch.empty_like(values)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (image, values, filtered)]
    sigmas = ctypes.c_float(SIGMA_RGB), ctypes.c_float(SIGMA_XY)
    scalar_library().bilateral_filter_batch(*pointers, n, k, height, width, *sigmas)
    return filtered


def known_loss(inputs: Inputs) -> Run:
    """The known loss: filter in the forward pass, scale in the backward pass."""
    image, prob = inputs[0].contiguous(), inputs[1].detach().contiguous()
    scalar_library()

    def run() -> list[Tensor]:
        filtered = scalar_filter(image, prob)
        value = -(prob * filtered).sum() / len(image)
        return [value, filtered * (-2 / len(image))]

    return run


# Parts ------------------------------------------------------------------------------------------


def build_lattice(inputs: Inputs) -> list[Tensor]:
    """Build the lattice to keep; its row sums would be another case."""
    lattice = wsfast.bilateral_lattice(inputs[0], sigma_rgb=SIGMA_RGB, sigma_xy=SIGMA_XY)
    return [lattice.num_vertices]


def reference_lattice(inputs: Inputs) -> list[Tensor]:
    tensors = reference.build_bilateral_lattice(inputs[0], [SIGMA_RGB] * 3, SIGMA_XY, False)
    return [tensors[3].diff()]


def reuse(inputs: Inputs) -> Run:
    """Value and gradient with a lattice that was built before."""
    lattice = wsfast.bilateral_lattice(inputs[0], sigma_rgb=SIGMA_RGB, sigma_xy=SIGMA_XY)
    run = with_gradient(lambda _, prob: wsfast.dense_crf_loss(None, prob, lattice=lattice))
    return lambda: run(inputs)


def in_float64(inputs: Inputs) -> list[Tensor]:
    return readable(inputs[0].cpu(), inputs[1].detach().cpu().double())


def known_in_float64(inputs: Inputs) -> list[Tensor]:
    """The known implementations' gradient, -2 A s, which is not that of their value."""
    return readable(inputs[0].cpu(), inputs[1].detach().cpu().double(), "forward")


def against_gaussian(inputs: Inputs, result: list[Tensor]) -> dict[str, float]:
    """The first image's gradient beside that of the exact Gaussian, at some pixels.

    The cosine is of what a softmax lets through: without the mean over classes.
    """
    image, prob = inputs[0][0].cpu().double(), inputs[1][0].detach().cpu().double()
    height, width = image.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    features = torch.stack([x / SIGMA_XY, y / SIGMA_XY, *(image / SIGMA_RGB)]).flatten(1).T
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:EXACT_ROWS]
    distance = torch.cdist(features[rows].double(), features.double()).square()
    exact = (-0.5 * distance).exp() @ prob.flatten(1).T * (-2 / len(inputs[0]))
    ours = result[1][0].cpu().double().flatten(1).T[rows]
    contrast = [gradient - gradient.mean(dim=1, keepdim=True) for gradient in (ours, exact)]
    cosine = torch.nn.functional.cosine_similarity(*(part.flatten() for part in contrast), dim=0)
    return {
        "L2 from the Gaussian": float((ours - exact).norm() / exact.norm()),
        "cosine of the gradient": float(cosine),
    }


def vertex_counts(inputs: Inputs) -> list[Tensor]:
    tensors = reference.build_bilateral_lattice(inputs[0].cpu(), [SIGMA_RGB] * 3, SIGMA_XY, True)
    return [tensors[3].diff()]


def at_most_200_bytes(size: Size) -> MemoryLimit:
    return MemoryLimit(
        size,
        "200 bytes per pixel",
        lambda inputs: 200 * inputs[0][:, 0].numel(),
        1.0,
        contenders=("wsfast",),
    )


def contenders(sweep: bool) -> tuple[Contender, ...]:
    return (
        Contender("wsfast", eager(with_gradient(ours))),
        Contender("wsfast, lattice kept", reuse, sweep=False),
        Contender("reference", eager(lambda inputs: readable(*inputs)), sweep=False),
        Contender(
            PEER,
            known_loss,
            sweep=sweep,
            devices=("cpu",),
            oracle=known_in_float64,
            note="its gradient, -2 A s, is not that of its value",
        ),
    )


# Mean field -------------------------------------------------------------------------------------

ITERATIONS, WEIGHTS = 5, {"bilateral_weight": 5.0, "spatial_weight": 3.0}


def logits_of(inputs: Inputs) -> Tensor:
    return inputs[1].detach().log()


def infer(inputs: Inputs) -> Run:
    image, logits = inputs[0].round(), logits_of(inputs)
    return lambda: wsfast.mean_field(logits, image, iterations=ITERATIONS, **WEIGHTS)


def infer_in_float64(inputs: Inputs) -> Tensor:
    return infer((inputs[0].cpu(), inputs[1].detach().cpu().double()))()


def known_inference(inputs: Inputs) -> Run:
    """pydensecrf, image by image; its kernels go through the lattice, that of position, too."""
    from pydensecrf.densecrf import DenseCRF2D

    images = inputs[0].round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    unary = (-logits_of(inputs)).flatten(2).contiguous().numpy()
    classes, height, width = inputs[1].shape[1:]

    def one(image: Any, energy: Any) -> Tensor:
        crf = DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(energy)
        crf.addPairwiseGaussian(sxy=3, compat=WEIGHTS["spatial_weight"])
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=WEIGHTS["bilateral_weight"])
        return torch.from_numpy(np.array(crf.inference(ITERATIONS))).view(classes, height, width)

    return lambda: torch.stack([one(*pair) for pair in zip(images, unary, strict=True)])


def agreement(inputs: Inputs, result: Tensor) -> dict[str, float]:
    labels = infer_in_float64(inputs).argmax(dim=1)
    return {"equal labels": float((result.cpu().argmax(dim=1) == labels).double().mean())}


CASES = [
    Case(
        room="crf",
        operation="dense_crf_loss forward and backward, 2 classes",
        inputs=with_classes(2),
        sizes=SIZES,
        contenders=contenders(sweep=True),
        oracle=in_float64,
        figures=against_gaussian,
        tolerance=ROUNDING,
        targets=(Target(HEADLINE.label, 6, 12, (PEER,)),),
        memory=at_most_200_bytes(HEADLINE),
    ),
    Case(
        room="crf",
        operation="dense_crf_loss forward and backward, 2 classes, noise",
        inputs=with_classes(2),
        sizes=(Size(2, 224, NOISE), Size(8, 224, NOISE), NOISY_HEADLINE),
        contenders=contenders(sweep=True),
        oracle=in_float64,
        figures=against_gaussian,
        tolerance=NOISE_ROUNDING,
        targets=(Target(NOISY_HEADLINE.label, 2.5, 5, (PEER,)),),
        memory=at_most_200_bytes(Size(1, 224, NOISE)),
    ),
    Case(
        room="crf",
        operation="dense_crf_loss forward and backward, 21 classes",
        inputs=with_classes(21),
        sizes=(Size(12, 257, headline=True), Size(1, 513, headline=True)),
        contenders=contenders(sweep=False),
        oracle=in_float64,
        figures=against_gaussian,
        tolerance=ROUNDING,
    ),
    Case(
        room="crf",
        operation="dense_crf_loss forward and backward, 2 classes, by method",
        inputs=with_classes(2),
        sizes=(Size(2, 32), Size(2, 48), Size(2, 64, headline=True)),
        contenders=(
            Contender("wsfast", eager(with_gradient(ours))),
            *(by_method(method) for method in ("dense", "exact")),
        ),
        oracle=in_float64,
        figures=against_gaussian,
        tolerance=ROUNDING,
    ),
    Case(
        room="crf",
        operation="dense_crf_loss forward, 2 classes",
        inputs=with_classes(2),
        sizes=(Size(8, 112), Size(8, 224), HEADLINE),
        contenders=(Contender("wsfast", eager(forward_only)),),
        oracle=lambda inputs: in_float64(inputs)[:1],
        tolerance=ROUNDING,
    ),
    Case(
        room="crf",
        operation="mean_field, 5 iterations, 5 classes",
        inputs=with_classes(5),
        sizes=(Size(1, 128), Size(1, 256, headline=True), Size(1, 512)),
        contenders=(
            Contender("wsfast", infer),
            Contender(
                "pydensecrf2",
                known_inference,
                requires=("pydensecrf",),
                devices=("cpu",),
                tolerance=0.6,
                note="position through a lattice, too; both one way; one thread",
            ),
        ),
        oracle=infer_in_float64,
        figures=agreement,
        tolerance=ROUNDING,
    ),
    Case(
        room="crf",
        operation="bilateral_lattice, built to keep",
        inputs=with_classes(1),
        sizes=(Size(8, 112), Size(8, 224), HEADLINE, NOISY_HEADLINE),
        contenders=(
            Contender("wsfast", eager(build_lattice)),
            Contender("reference", eager(reference_lattice), sweep=False),
        ),
        oracle=vertex_counts,
        tolerance=1e-2,
    ),
]


def test_time(laboratory: Any, benchmark: Any, case: Any, size: Any, contender: Any) -> None:
    laboratory.record_time(benchmark, case, size, contender)


def test_memory(laboratory: Any, case: Any, contender: Any) -> None:
    laboratory.record_memory(__name__, case, contender)
