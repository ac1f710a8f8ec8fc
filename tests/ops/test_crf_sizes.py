"""The dense-CRF loss on images of extreme size or content."""

import pytest
import torch

import wsfast
from tests.crf_inputs import smooth_image, soft
from wsfast.ops.crf import reference
from wsfast.testing import FLOATING_DTYPES

OPS = torch.ops.wsfast


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("classes", [1, 2])
def test_shared_simplices(classes: int, dtype: torch.dtype) -> None:
    """Few classes on calm images are summed by simplex; the same as by point."""
    image = smooth_image(2, 12, 11).repeat_interleave(6, dim=2).repeat_interleave(6, dim=3)
    vertices = reference.build_bilateral_lattice(image, [15.0] * 3, 100.0, False)[0]
    points = image[0, 0].numel()
    assert len(vertices[0].sort(dim=1).values.unique(dim=0)) <= points // 4
    values = torch.rand(2, classes, *image.shape[2:]).to(dtype)
    roi = (torch.rand(2, *image.shape[2:]) > 0.2).to(reference.accumulate_dtype(dtype))
    for mask in (None, roi):
        arguments = (image, values, mask, [15.0] * 3, 100.0, "symmetric", True)
        energy, filtered = OPS.dense_crf_energy(*arguments)
        theirs = reference.dense_crf_energy(*arguments)
        torch.testing.assert_close(energy, theirs[0], rtol=1e-5, atol=1e-5)
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
        torch.testing.assert_close(filtered, theirs[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [30, 31, 32, 33])
@pytest.mark.parametrize("d", [5, 6])
def test_keys_around_a_word(d: int, bits: int) -> None:
    """Keys that just fit 31 bits and keys that do not; every simplex holds several points."""
    cloud, scale = torch.rand(500, d), reference.elevation_scales(d)
    spread = 1.0
    while reference.key_bits(reference.feature_bounds(cloud * spread), scale)[0] < bits - 0.3:
        spread *= 1.01
    features = (cloud * spread).repeat_interleave(4, dim=0).T[None]
    lattice, theirs = wsfast.Lattice(features), reference.build_lattice(features)
    assert torch.equal(lattice.offsets, theirs[3])
    values = torch.rand(1, 2, 2000)
    wanted = reference.lattice_filter(values, *theirs, "symmetric")
    torch.testing.assert_close(wsfast.lattice_filter(values, lattice), wanted)


@pytest.mark.parametrize("sigma", [0.3, 15.0])
def test_one_image_saves_memory_but_no_bits(sigma: float) -> None:
    """An image alone gives memory back while it is filtered; several keep theirs to use again."""
    torch.set_num_threads(1)
    image, prob = torch.rand(1, 3, 190, 200) * 255, soft(1, 5, 190, 200)
    options = (None, [sigma] * 3, 6 * sigma, "symmetric", True)
    alone = OPS.dense_crf_energy(image, prob, *options)
    twice = OPS.dense_crf_energy(image.repeat(2, 1, 1, 1), prob.repeat(2, 1, 1, 1), *options)
    for one, two in zip(alone, twice, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[0], two[1])


@pytest.mark.parametrize("kind", ["constant", "noise", "row", "pixel"])
def test_stress(kind: str) -> None:
    size = {"constant": (60, 60), "noise": (60, 60), "row": (1, 5000), "pixel": (1, 1)}[kind]
    image = (
        torch.rand(1, 3, *size) * 255
        if kind in ("noise", "row")
        else torch.full((1, 3, *size), 77.0)
    )
    prob = soft(1, 2, *size).requires_grad_()
    arguments = (None, [15.0] * 3, 100.0, "symmetric", True)
    ours = OPS.dense_crf_energy(image, prob.detach(), *arguments)
    theirs = reference.dense_crf_energy(image, prob.detach(), *arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    loss = wsfast.dense_crf_loss(image, prob)
    loss.backward()
    assert prob.grad.isfinite().all()
    if kind == "pixel":  # one pixel: minus its own weight times |s|^2
        assert -1 <= float(loss.detach()) < -0.2


def test_sixteen_million_pixels() -> None:
    """4096 x 4096 without overflow: four far colours are as good as four images."""
    side, half = 4096, 2048
    lower = torch.arange(side) >= half
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    image[0, 0] = lower[:, None] * 220
    image[0, 1] = lower[None, :] * 220
    prob = soft(1, 2, 64, 64).repeat_interleave(64, dim=2).repeat_interleave(64, dim=3)
    whole = wsfast.dense_crf_loss(image, prob)
    halves = (slice(0, half), slice(half, None))
    quarters = [
        wsfast.dense_crf_loss(image[:, :, rows, columns], prob[:, :, rows, columns])
        for rows in halves
        for columns in halves
    ]
    assert float(whole) == pytest.approx(sum(map(float, quarters)), rel=2e-3)
