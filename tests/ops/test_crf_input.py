"""Room `crf`: bad input of the loss and of mean field: errors and warnings."""

import math
import warnings

import pytest
import torch

import wsfast
from tests.crf_inputs import smooth_image, soft
from tests.op_errors import check_error

OPS = torch.ops.wsfast


@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_an_error_on_the_cpu(bad: float, method: str) -> None:
    image, prob = smooth_image(2, 4, 4), soft(2, 2, 4, 4)
    image[1, 2, 3, 1] = bad
    with pytest.raises(ValueError, match="image must be finite, got NaN or inf in image 1"):
        wsfast.dense_crf_loss(image, prob, method=method)
    energy, filtered = OPS.dense_crf_energy(image, prob, None, [15.0] * 3, 9.0, "symmetric", True)
    assert energy[0].isfinite().all()
    assert energy[1].isnan().all()
    assert filtered[1].isnan().all()
    with pytest.raises(ValueError, match="image must be finite"):
        wsfast.mean_field(prob, image)
    worse = soft(2, 2, 4, 4)
    worse[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="prob must be finite, got NaN or inf in image 1"):
        wsfast.dense_crf_loss(smooth_image(2, 4, 4), worse, method=method)


@pytest.mark.parametrize("kept", [False, True])
def test_maps_that_are_not_finite_are_named(kept: bool) -> None:
    """With a kept lattice as with an image, and the ROI as well as the probabilities."""
    image, prob, roi = smooth_image(2, 4, 4), soft(2, 2, 4, 4), torch.rand(2, 4, 4)
    lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=9.0) if kept else None
    worse, bad_roi = prob.clone(), roi.clone()
    worse[1, 0, 0, 0] = bad_roi[1, 0, 0] = math.nan
    for maps, mask, name in ((worse, roi, "prob"), (worse, None, "prob"), (prob, bad_roi, "roi")):
        with pytest.raises(ValueError, match=f"{name} must be finite, got NaN or inf in image 1"):
            wsfast.dense_crf_loss(image, maps, roi=mask, lattice=lattice)


@pytest.mark.parametrize("method", ["lattice", "dense"])
@pytest.mark.parametrize("offset", [1e7, -1e7])
def test_far_from_0_is_an_error_on_the_cpu(offset: float, method: str) -> None:
    """Coordinates count as they are, whatever their range, in kernel, reference and message."""
    image, prob = smooth_image(2, 6, 6), soft(2, 2, 6, 6)
    image[1] += offset
    message = "sigma_rgb and sigma_xy must be large enough for lattice coordinates of 18 bits"
    for call in (
        lambda: wsfast.dense_crf_loss(image, prob, method=method),
        lambda: wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=9.0),
        lambda: wsfast.mean_field(prob, image),
    ):
        with pytest.raises(ValueError, match=rf"{message}.* which need .* bits in image 1"):
            call()
    assert wsfast.dense_crf_loss(image.double(), prob.double(), method=method).isfinite()


def test_finer_lattice_of_the_dense_method_is_named_where_it_does_not_fit() -> None:
    image, prob = smooth_image(1, 6, 6), soft(1, 2, 6, 6)
    image += 5.5e6  # between the limits of a lattice and of the refined one
    assert wsfast.dense_crf_loss(image, prob).isfinite()
    with pytest.raises(ValueError, match="lattice coordinates of 18 bits"):
        wsfast.dense_crf_loss(image, prob, method="dense")


def test_warnings() -> None:
    image, prob = smooth_image(1, 6, 6), torch.rand(1, 1, 6, 6)
    with pytest.warns(UserWarning, match="with one channel the rloss form is degenerate"):
        wsfast.dense_crf_loss(image, prob)
    with pytest.warns(UserWarning, match="colours hardly count; scale the image to 0-255"):
        wsfast.dense_crf_loss(image / 255, soft(1, 2, 6, 6))
    with pytest.warns(UserWarning, match="mean_field: the image's values end at .*colours hardly"):
        wsfast.mean_field(soft(1, 2, 6, 6), image / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wsfast.dense_crf_loss(image, prob, form="paper")
        wsfast.dense_crf_loss(image / 255, soft(1, 2, 6, 6), sigma_rgb=0.1)


IMAGE, PROB = smooth_image(2, 4, 5), soft(2, 2, 4, 5)
loss = wsfast.dense_crf_loss
ERRORS = [
    (lambda: loss(IMAGE[0], PROB), ValueError, "image must be a tensor of 4 dimensions"),
    (lambda: loss(IMAGE.int(), PROB), TypeError, "image must be float32"),
    (lambda: loss(IMAGE[:1], PROB), ValueError, "prob must be of the image's batch and size"),
    (lambda: loss(IMAGE[..., 1:], PROB), ValueError, "prob must be of the image's batch and size"),
    (lambda: loss(IMAGE, PROB.int()), TypeError, "prob must be float32"),
    (lambda: loss(IMAGE, PROB[:, :0]), ValueError, "prob must be of at least one channel"),
    (lambda: loss(IMAGE, PROB.to("meta")), ValueError, "prob must be on the device of image"),
    (lambda: loss(IMAGE[:, :, :0], PROB[:, :, :0]), ValueError, "image must be of 1 <= pixels"),
    (lambda: loss(IMAGE, PROB, sigma_rgb=0), ValueError, "sigma_rgb must be finite and above 0"),
    (lambda: loss(IMAGE, PROB, sigma_xy=-1), ValueError, "sigma_xy must be finite and above 0"),
    (lambda: loss(IMAGE, PROB, sigma_xy=math.nan), ValueError, "sigma_xy must be finite"),
    (lambda: loss(IMAGE, PROB, sigma_rgb=1e-6), ValueError, "large enough for vertex keys of 62"),
    (lambda: loss(IMAGE, PROB, sigma_rgb=["9"] * 3), TypeError, "sigma_rgb must be a number, got"),
    (lambda: loss(IMAGE, PROB, sigma_xy="9"), TypeError, "sigma_xy must be a number, got str"),
    (lambda: loss(IMAGE, PROB, scale_factor=None), TypeError, "scale_factor must be a number"),
    (lambda: loss(IMAGE, PROB, scale_factor=0), ValueError, "scale_factor must be finite and"),
    (lambda: loss(IMAGE, PROB, scale_factor=0.1), ValueError, "scale_factor must be large enough"),
    (lambda: loss(IMAGE, PROB, form="l2"), ValueError, "form must be one of rloss, paper"),
    (lambda: loss(IMAGE, PROB, normalize="n"), ValueError, "normalize must be one of pixels"),
    (lambda: loss(IMAGE, PROB, method="fft"), ValueError, "method must be one of lattice"),
    (lambda: loss(IMAGE, PROB, reduction="mean"), ValueError, "reduction must be one of batchmean"),
    (lambda: loss(IMAGE, PROB, roi=[1]), TypeError, "roi must be a torch.Tensor, got list"),
    (lambda: loss(IMAGE, PROB, roi=PROB), ValueError, "roi must be a tensor of 3 dimensions"),
    (lambda: loss(IMAGE, PROB, roi=PROB[:1, 0]), ValueError, "roi must be (B, H, W)"),
    (lambda: loss(None, PROB), ValueError, "image must be a tensor where lattice is None"),
    (lambda: loss(None, PROB, lattice=3), TypeError, "lattice must be a wsfast.Lattice"),
    (
        lambda: loss(None, PROB, lattice=wsfast.Lattice(torch.rand(2, 5, 9))),
        ValueError,
        "prob must be of the lattice's 2 images of [9] pixels",
    ),
    (
        lambda: loss(None, torch.rand(2, 2, 3, 4), lattice=wsfast.Lattice(torch.rand(2, 5, 4, 3))),
        ValueError,
        "prob must be of the lattice's 2 images of [4, 3] pixels",
    ),
    (
        lambda: loss(IMAGE.clone().requires_grad_(), PROB),
        ValueError,
        "image must be without gradient (detach it)",
    ),
    (lambda: wsfast.mean_field(PROB, IMAGE, iterations=-1), ValueError, "iterations must be at"),
    (lambda: wsfast.mean_field(PROB, IMAGE, sigma_xy="9"), TypeError, "sigma_xy must be a number"),
    (lambda: wsfast.mean_field(PROB, IMAGE, spatial_weight=-1), ValueError, "spatial_weight must"),
    (
        lambda: wsfast.mean_field(PROB, IMAGE, compatibility=torch.eye(3)),
        ValueError,
        "compatibility must be of shape (2, 2)",
    ),
    (lambda: wsfast.mean_field(PROB * math.nan, IMAGE), ValueError, "logits must be finite"),
    (
        lambda: wsfast.mean_field(PROB, IMAGE, compatibility=torch.eye(2) * math.nan),
        ValueError,
        "compatibility must be finite",
    ),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    check_error(ERRORS[case])
