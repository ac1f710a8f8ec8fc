"""The CUDA kernels of room `crf` on the CPU, under the emulator."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.native.emulator import from_bits, to_bits
from wsfast.ops.crf import reference
from wsfast.testing import FLOATING_DTYPES

DIRECTIONS = ("symmetric", "forward", "transpose")
SIGMA_RGB, SIGMA_XY = [20.0, 15.0, 30.0], 6.0


def image_of(kind: str, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(3)
    if kind == "noise":
        return torch.rand(shape, generator=random) * 255
    if kind == "flat":
        return torch.full(shape, 90.0)
    if kind == "stripes":
        return torch.where(torch.arange(shape[3]) // 3 % 2 == 0, 90.0, 210.0).expand(shape).clone()
    coarse = torch.rand(*shape[:2], 3, 3, generator=random) * 255
    return torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear")


def as_matrix(lattice: tuple[Tensor, ...]) -> list[np.ndarray]:
    """What the numbering of vertices does not change: the matrices splat, and blur by axis."""
    vertices, weights, neighbours, offsets = (part.numpy() for part in lattice)
    found = []
    for n in range(len(vertices)):
        count = offsets[n + 1] - offsets[n]
        points, corners = vertices[n].shape
        splat = np.zeros((count, points))
        np.add.at(splat, (vertices[n].T, np.arange(points)), weights[n].T)
        found.append(splat.T @ splat)
        for axis in range(corners):
            blur = np.eye(count)
            for side in neighbours[axis, :, offsets[n] : offsets[n + 1]]:
                near = np.flatnonzero(side >= 0)
                np.add.at(blur, (near, side[near]), 0.5)
            found.append(splat.T @ blur @ splat)
    return found


def build(emulator, features: Tensor, sigmas: list[float]) -> tuple[Tensor, ...]:
    return tuple(
        torch.from_numpy(part) for part in emulator.call("build_lattice", features.numpy(), sigmas)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", range(1, 9))
def test_emulated_kernel_of_lattices(emulator, d: int, dtype: torch.dtype) -> None:
    features = torch.randn(2, d, 40, generator=torch.Generator().manual_seed(d)).to(dtype)
    features[1] -= 3000 if dtype == torch.float64 else 30  # keys do not depend on where they lie
    ours = build(emulator, features, [1.0] * d)
    theirs = reference.build_lattice(features)
    assert torch.equal(ours[3], theirs[3])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for found, expected in zip(as_matrix(ours), as_matrix(theirs), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("kind", ["smooth", "noise", "flat"])
def test_emulated_kernel_of_images(emulator, kind: str) -> None:
    for shape in ((2, 3, 9, 14), (1, 1, 1, 33), (1, 3, 1, 1), (3, 3, 17, 1)):
        image = image_of(kind, *shape)
        sigma_rgb = SIGMA_RGB[: shape[1]]
        ours = build(emulator, image, [SIGMA_XY, SIGMA_XY, *sigma_rgb])
        theirs = reference.build_bilateral_lattice(image, sigma_rgb, SIGMA_XY, False)
        assert torch.equal(ours[3], theirs[3])
        for found, expected in zip(as_matrix(ours), as_matrix(theirs), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)


def energy(
    emulator,
    image: Tensor,
    values: Tensor,
    roi: Tensor | None,
    direction: str,
    filtered: bool,
    sigma_xy: float = SIGMA_XY,
) -> tuple[Tensor, Tensor]:
    found = emulator.call(
        "dense_crf_energy",
        image.numpy(),
        to_bits(values.flatten(2)),
        None if roi is None else roi.flatten(1).numpy(),
        [sigma_xy, sigma_xy, *SIGMA_RGB],
        direction,
        filtered,
        dtype=values.dtype,
    )
    return torch.from_numpy(found[0]), from_bits(found[1], values.dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_emulated_kernel_of_energies(emulator, dtype: torch.dtype, direction: str) -> None:
    image = image_of("smooth", 2, 3, 11, 13)
    random = torch.Generator().manual_seed(4)
    values = torch.randn(2, 10, 11, 13, generator=random).to(dtype)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    roi = (torch.rand(2, 11, 13, generator=random) < 0.7).to(sums)
    for mask in (None, roi):
        ours = energy(emulator, image, values, mask, direction, True)
        theirs = reference.dense_crf_energy(
            image, values, mask, SIGMA_RGB, SIGMA_XY, direction, True
        )
        torch.testing.assert_close(ours[0], theirs[0], rtol=2e-5, atol=1e-4)
        exact = {"rtol": 2e-5, "atol": 2e-5} if sums == dtype else {}
        torch.testing.assert_close(ours[1].view(values.shape), theirs[1], **exact)
    assert energy(emulator, image, values, None, direction, False)[1].numel() == 0


@pytest.mark.parametrize("kind", ["flat", "stripes", "smooth", "noise"])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (2, 3, 1, 33), (9, 3, 1, 1), (1, 3, 9, 16)])
def test_emulated_kernel_of_points_that_share_vertices(emulator, kind: str, shape) -> None:
    """Whole warps, parts of one and single points on a vertex; images that end within a warp."""
    image = image_of(kind, *shape)
    values = torch.randn(
        shape[0], 9, *shape[2:], generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    values[:, 1] = 0.0
    for sigma_xy in (SIGMA_XY, 500.0):
        ours = energy(emulator, image, values, None, "symmetric", True, sigma_xy)
        theirs = reference.dense_crf_energy(
            image, values, None, SIGMA_RGB, sigma_xy, "symmetric", True
        )
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours[1].view(values.shape), theirs[1], rtol=1e-9, atol=1e-9)


def test_emulated_kernel_of_more_vertices_than_an_energy_sums_at_a_time(emulator) -> None:
    image = image_of("noise", 1, 3, 28, 30)
    count = int(reference.build_bilateral_lattice(image, SIGMA_RGB, SIGMA_XY, True)[3][1])
    assert count > 4 * 1024
    values = torch.randn(1, 2, 28, 30, dtype=torch.float64)
    found = energy(emulator, image, values, None, "forward", False)[0]
    arguments = (image, values, None, SIGMA_RGB, SIGMA_XY, "forward", False)
    torch.testing.assert_close(found, reference.dense_crf_energy(*arguments)[0], rtol=1e-9, atol=0)


def test_emulated_kernel_of_an_image_of_more_vertices_than_its_grid(emulator) -> None:
    """Grids are sized for twice the mean image."""
    image = image_of("flat", 6, 3, 12, 15)
    image[4] = image_of("noise", 3, 12, 15)
    counts = reference.build_bilateral_lattice(image, SIGMA_RGB, SIGMA_XY, True)[3].diff()
    channels, threads = 3, 256
    assert counts[4] * channels > 2 * counts.double().mean() * channels + threads
    values = torch.randn(6, channels, 12, 15, dtype=torch.float64)
    ours = energy(emulator, image, values, None, "symmetric", True)
    theirs = reference.dense_crf_energy(image, values, None, SIGMA_RGB, SIGMA_XY, "symmetric", True)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours[1].view(values.shape), theirs[1], rtol=1e-9, atol=1e-9)


def test_emulated_kernel_of_strange_values(emulator) -> None:
    """NaN and infinities stay in their plane; tiny, huge and zero values keep their size."""
    image = image_of("smooth", 2, 3, 6, 7)
    values = torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(5))
    values[0] *= torch.tensor([1e-30, 1e15, 0.0, 1.0, 1.0])[:, None, None]
    values[0, 3, 2, 2], values[1, 0, 0, 0] = torch.nan, torch.inf
    ours = energy(emulator, image, values, None, "symmetric", True)[1].view(values.shape)
    clean = values.nan_to_num(0, 0)
    theirs = reference.dense_crf_energy(image, clean, None, SIGMA_RGB, SIGMA_XY, "symmetric", True)[
        1
    ]
    broken = torch.zeros(2, 5, dtype=torch.bool)
    broken[0, 3] = broken[1, 0] = True
    assert ours[broken].isnan().all()
    scale = theirs.abs().amax((2, 3), keepdim=True).clamp(min=1e-38)
    torch.testing.assert_close((ours / scale)[~broken], (theirs / scale)[~broken])
    image[1, 0, 3, 3] = torch.nan  # an image without a lattice
    energies, filtered = energy(emulator, image, clean, None, "symmetric", True)
    assert energies[1].isnan().all()
    assert filtered.view(values.shape)[1].isnan().all()
    torch.testing.assert_close(filtered.view(values.shape)[0, [0, 1, 2, 4]], ours[0, [0, 1, 2, 4]])


def test_emulated_kernel_in_every_order(emulator) -> None:
    image = image_of("smooth", 2, 3, 8, 9)
    values = torch.randn(2, 3, 72, generator=torch.Generator().manual_seed(6))
    arguments = (image.numpy(), values.numpy(), None, [SIGMA_XY, SIGMA_XY, *SIGMA_RGB])
    for direction in DIRECTIONS:
        emulator.call_in_every_order("dense_crf_energy", *arguments, direction, True)
    emulator.call_in_every_order(
        "dense_crf_energy", image.to(torch.uint8).numpy(), *arguments[1:], "symmetric", True
    )


def test_emulated_kernel_of_energies_does_not_feel_the_numbering_of_vertices(emulator) -> None:
    """Threads number vertices as they arrive; the sum over vertices must not show it."""
    random = torch.Generator().manual_seed(7)
    image = image_of("noise", 2, 3, 12, 15)
    values = torch.randn(2, 3, 180, generator=random, dtype=torch.float64)
    values[1, 0] *= 1e-200
    values[1, 1] *= 1e100
    arguments = (image.numpy(), values.numpy(), None, [SIGMA_XY, SIGMA_XY, *SIGMA_RGB])
    found = emulator.call_in_every_order("dense_crf_energy", *arguments, "symmetric", False)
    sigmas = (SIGMA_RGB, SIGMA_XY, "symmetric", False)
    expected = reference.dense_crf_energy(image, values.view(2, 3, 12, 15), None, *sigmas)[0]
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-6, atol=0)
