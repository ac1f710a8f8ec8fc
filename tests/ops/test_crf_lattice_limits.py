"""Room `crf`: what a lattice can hold, and what it refuses."""

import math

import numpy as np
import pytest
import torch

import wsfast
from tests.crf_inputs import relative
from tests.op_errors import check_error
from wsfast.ops.crf import reference

OPS = torch.ops.wsfast


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_an_error_on_the_cpu(bad: float) -> None:
    features = torch.randn(2, 3, 10)
    features[1, 2, 4] = bad
    with pytest.raises(
        ValueError, match=r"Lattice: features must be finite, got NaN or inf in image 1"
    ):
        wsfast.Lattice(features)
    tensors = OPS.build_lattice(features)
    assert tensors[3][1] == tensors[3][2]
    filtered = OPS.lattice_filter(torch.rand(2, 1, 10), *tensors, "symmetric")
    assert filtered[0].isfinite().all()
    assert filtered[1].isnan().all()
    for with_filtered in (True, False):
        arguments = (torch.rand(2, 9, 10), *tensors, "symmetric", with_filtered)
        energy = OPS.lattice_energy(*arguments)[0]
        assert energy[0].isfinite().all()
        assert energy[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_kernel_and_reference_hold_the_same_features(sign: int, dtype: torch.dtype) -> None:
    """Up to 2^18 (2^30) lattice cells from 0, however small the range is."""
    cloud, scale = torch.rand(1, 2, 50, dtype=dtype), reference.elevation_scales(2)
    limit = sign * 2.0 ** reference.QUOTIENT_BITS[dtype] * 3 / sum(scale)
    held = []
    for share in (0.3, 0.99, 1.01, 3.0):
        features = cloud + limit * share
        counts = [
            build(features)[3][1].item() for build in (OPS.build_lattice, reference.build_lattice)
        ]
        assert counts[0] == counts[1]
        held.append(counts[0] > 0)
        if not held[-1]:
            with pytest.raises(
                ValueError, match=r"features must be small enough for lattice coord"
            ):
                wsfast.Lattice(features)
    assert held == [True, True, False, False]


def test_bytes_of_a_small_range() -> None:
    """Keys that 0-255 in every channel would not leave room for, but the image's values do."""
    image = torch.randint(0, 60, (2, 6, 20, 20), dtype=torch.uint8)
    options = {"sigma_rgb": 1.5, "sigma_xy": 100.0}
    lattice = wsfast.bilateral_lattice(image, **options)
    theirs = reference.build_bilateral_lattice(image, [1.5] * 6, 100.0, False)
    assert torch.equal(lattice.offsets, theirs[3])
    values = torch.rand(2, 2, 20, 20)
    wanted = reference.lattice_filter(values.flatten(2), *theirs, "symmetric")
    assert relative(wsfast.lattice_filter(values, lattice).flatten(2), wanted) < 1e-5
    as_floats = wsfast.bilateral_lattice(image.float(), **options)
    assert torch.equal(as_floats.weights, lattice.weights)
    image[1, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"vertex keys of 62 bits .* bits in image 1"):
        wsfast.bilateral_lattice(image, **options)


GOOD = torch.randn(2, 3, 6)
LATTICE = wsfast.Lattice(GOOD)
TALL = wsfast.Lattice(torch.rand(2, 3, 3, 2))
IMAGE = torch.rand(1, 3, 4, 4) * 255
ERRORS = [
    (lambda: wsfast.Lattice(GOOD[0]), ValueError, "features must be of shape (B, d, *spatial)"),
    (lambda: wsfast.Lattice(torch.rand(1, 9, 5)), ValueError, "with d of 1 to 8"),
    (lambda: wsfast.Lattice(torch.rand(1, 2, 0)), ValueError, "features must be of 1 <= pixels"),
    (lambda: wsfast.Lattice(GOOD.int()), TypeError, "features must be float32"),
    (
        lambda: wsfast.Lattice(GOOD.requires_grad_()),
        ValueError,
        "features must be without gradient",
    ),
    (lambda: wsfast.Lattice(torch.rand(1, 5, 9) * 1e6), ValueError, "bits in image 0"),
    (
        lambda: wsfast.Lattice(torch.rand(1, 5, 9).double() * 1e308),
        ValueError,
        "got inf bits in image 0",
    ),
    (lambda: wsfast.lattice_filter(torch.rand(2, 1, 5), LATTICE), ValueError, "values must be of"),
    (lambda: wsfast.lattice_filter(torch.rand(1, 1, 6), LATTICE), ValueError, "values must be of"),
    (
        lambda: wsfast.lattice_filter(torch.rand(2, 3, 2, 3), TALL),
        ValueError,
        "values must be of shape (2, K, *[3, 2]), got shape [2, 3, 2, 3]",
    ),
    (
        lambda: wsfast.lattice_filter(torch.ones(2, 1, 6).int(), LATTICE),
        TypeError,
        "values must be",
    ),
    (
        lambda: wsfast.lattice_filter(torch.rand(2, 1, 6), GOOD),
        TypeError,
        "lattice must be a wsfast",
    ),
    (
        lambda: wsfast.lattice_filter(torch.rand(2, 1, 6), LATTICE, normalize="before"),
        ValueError,
        "normalize must be one of",
    ),
    (
        lambda: wsfast.bilateral_lattice(IMAGE, sigma_rgb=0.0, sigma_xy=9.0),
        ValueError,
        "sigma_rgb must be finite and above 0, got 0.0",
    ),
    (
        lambda: wsfast.bilateral_lattice(IMAGE, sigma_rgb=[1.0, 2.0], sigma_xy=9.0),
        ValueError,
        "sigma_rgb must be a number or one per channel (3), got 2 numbers",
    ),
    (
        lambda: wsfast.bilateral_lattice(IMAGE, sigma_rgb="15", sigma_xy=9.0),
        TypeError,
        "sigma_rgb must be a number or a list",
    ),
    (
        lambda: wsfast.bilateral_lattice(IMAGE, sigma_rgb=1e-5, sigma_xy=9.0),
        ValueError,
        "sigma_rgb and sigma_xy must be large enough for vertex keys of 62 bits",
    ),
    (
        lambda: wsfast.bilateral_lattice(torch.rand(1, 7, 4, 4), sigma_rgb=1.0, sigma_xy=9.0),
        ValueError,
        "image must be of 1 to 6 channels",
    ),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])


def test_wide_keys() -> None:
    """Key spaces beyond 32 bits: small sigmas and spread clouds, in float32 too."""
    image = torch.rand(1, 3, 40, 40) * 255
    values = torch.rand(1, 2, 40, 40)
    for sigma in (0.5, 2.0):
        lattice = wsfast.bilateral_lattice(image, sigma_rgb=sigma, sigma_xy=3.0)
        theirs = reference.build_bilateral_lattice(image, [sigma] * 3, 3.0, False)
        assert torch.equal(lattice.offsets, theirs[3])
        wanted = reference.lattice_filter(values.flatten(2), *theirs, "symmetric")
        assert relative(wsfast.lattice_filter(values, lattice).flatten(2), wanted) < 1e-5
    features = torch.tensor(np.random.default_rng(0).normal(size=(1, 8, 200)) * 15)
    lattice = wsfast.Lattice(features)
    theirs = reference.build_lattice(features)
    assert torch.equal(lattice.offsets, theirs[3])
