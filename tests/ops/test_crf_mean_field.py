"""Room `crf`: mean-field inference against NumPy and on images with a known answer."""

import numpy as np
import pytest
import torch

import wsfast
from tests.permutohedral import DictionaryLattice, bilateral_features
from wsfast.testing import FLOATING_DTYPES


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=0))
    return shifted / shifted.sum(axis=0)


def numpy_mean_field(unary, image, iterations, costs, normalize) -> np.ndarray:
    """(K, P) marginals with weights 2 and 1.5, sigmas 20, 6 and 2."""
    bilateral = DictionaryLattice(bilateral_features(image, 20.0, 6.0)).operator()
    bilateral = 0.5 * (bilateral + bilateral.T)
    grid = bilateral_features(image[:0], 1.0, 2.0)
    spatial = np.exp(-0.5 * ((grid[:, None] - grid[None]) ** 2).sum(axis=2))
    kernels = []
    for kernel in (bilateral, spatial):
        degree = kernel.sum(axis=1)
        if normalize == "symmetric":
            kernel = kernel / np.sqrt(degree[:, None] * degree)
        elif normalize == "after":
            kernel = kernel / degree[:, None]
        kernels.append(kernel)
    q = softmax(unary)
    for _ in range(iterations):
        message = q @ (2 * kernels[0] + 1.5 * kernels[1]).T
        q = softmax(unary - costs @ message)
    return q


@pytest.mark.parametrize("normalize", ["symmetric", "after", "none"])
def test_matches_numpy(device: torch.device, normalize: str) -> None:
    image = torch.rand(2, 3, 7, 9, dtype=torch.float64) * 255
    logits = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    costs = torch.tensor([[0.0, 1, 2], [1, 0, 0.5], [2, 0.5, 0]], dtype=torch.float64)
    potts = 1 - torch.eye(3, dtype=torch.float64)
    for compatibility, matrix in ((None, potts), (costs, costs), (potts, potts)):
        found = wsfast.mean_field(
            logits.to(device), image.to(device), iterations=3, bilateral_weight=2.0, sigma_rgb=20.0,
            sigma_xy=6.0, spatial_weight=1.5, spatial_sigma=2.0, normalize=normalize,
            compatibility=None if compatibility is None else compatibility.to(device),
        )  # fmt: skip
        for n in range(2):
            wanted = numpy_mean_field(
                logits[n].flatten(1).numpy(), image[n].numpy(), 3, matrix.numpy(), normalize
            )
            np.testing.assert_allclose(found[n].flatten(1).cpu(), wanted, rtol=1e-9, atol=1e-12)


def test_follows_the_edge() -> None:
    """Noisy unaries on a two-coloured image are cleaned up to its edge."""
    image = torch.full((1, 3, 40, 60), 60.0)
    truth = torch.zeros(40, 60, dtype=torch.bool)
    truth[12:30, 20:47] = True
    image[:, :, truth] = torch.tensor([200.0, 120.0, 40.0])[:, None]
    image += torch.randn_like(image) * 5
    logits = torch.randn(1, 2, 40, 60) * 1.5
    logits[:, 1] += truth.float() * 1.5
    logits[:, 0] += (~truth).float() * 1.5
    before = (logits.argmax(dim=1)[0].bool() == truth).float().mean()
    found = wsfast.mean_field(logits, image).argmax(dim=1)[0].bool()
    after = (found == truth).float().mean()
    assert before < 0.85
    assert after > 0.99
    torch.testing.assert_close(
        wsfast.mean_field(logits, image, iterations=0), logits.softmax(dim=1)
    )


@pytest.mark.parametrize("normalize", ["symmetric", "after", "none"])
@pytest.mark.parametrize("sigma", [1e-39, 1e-46, 1e-300])
def test_spatial_sigma_below_float32(sigma: float, normalize: str) -> None:
    """A kernel of less than a pixel is the identity, however narrow."""
    image, logits = torch.rand(1, 3, 5, 6) * 255, torch.randn(1, 3, 5, 6)
    found, wanted = (
        wsfast.mean_field(logits, image, spatial_sigma=s, normalize=normalize)
        for s in (sigma, 0.01)
    )
    assert torch.equal(found, wanted)
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_dtypes(device: torch.device, dtype: torch.dtype) -> None:
    image = (torch.rand(2, 3, 9, 8, device=device) * 255).to(torch.uint8)
    logits = torch.randn(2, 4, 9, 8, device=device)
    q = wsfast.mean_field(logits.to(dtype), image)
    assert q.dtype == dtype
    torch.testing.assert_close(q.float(), wsfast.mean_field(logits, image), rtol=0.05, atol=0.05)
    total = q.float().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=0.02)


def test_autocast(device: torch.device) -> None:
    """The products of the spatial kernel and the costs stay in float32."""
    image, logits = torch.rand(1, 3, 9, 8) * 255, torch.randn(1, 3, 9, 8)
    image, logits = image.to(device), logits.to(device)
    costs = torch.rand(3, 3, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        found = wsfast.mean_field(logits, image, compatibility=costs)
    torch.testing.assert_close(found, wsfast.mean_field(logits, image, compatibility=costs))
