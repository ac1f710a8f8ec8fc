"""The emulated CUDA kernels beside the ops on the device under test.

On the CPU this compares the two native backends; with --device cuda it compares the emulator with
the GPU it stands for. Integers have to be equal, floats close: a GPU fuses multiplications and
additions where the host compiler does not.
"""

import numpy as np
import pytest
import torch

import wsfast
from tests.masks import snake
from tests.native.emulator import from_bits, to_bits
from wsfast.testing import FLOATING_DTYPES, tolerance

SIGMA_RGB, SIGMA_XY = [20.0, 15.0, 30.0], 6.0


def assert_equal(found: tuple[np.ndarray, ...], ours: tuple[torch.Tensor, ...]) -> None:
    for emulated, native in zip(found, ours, strict=True):
        np.testing.assert_array_equal(emulated, native.cpu().numpy())


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_truncation(emulator, dtype: torch.dtype, device: torch.device) -> None:
    a, g = torch.randn(2, 3, 19, 23).to(dtype), torch.randn(2, 3, 19, 23).to(dtype)
    found = emulator.call(
        "truncation", to_bits(a), to_bits(g), 40.0, False, "block 128", 16, dtype=dtype
    )
    truncated, delta, gradcam, layercam = (from_bits(x, dtype) for x in found[:4])
    moved_a, moved_g = a.to(device), g.to(device)
    assert torch.equal(truncated, wsfast.truncate_gradients(moved_g, 40).cpu())
    for emulated, native in (
        (delta, wsfast.positive_percentile(moved_g, 40).flatten()),
        (gradcam, wsfast.truncated_gradcam(moved_a, moved_g, 40)),
        (layercam, wsfast.truncated_layercam(moved_a, moved_g, 40)),
    ):
        torch.testing.assert_close(emulated, native.cpu(), **tolerance(dtype))


def test_fusion(emulator, device: torch.device) -> None:
    cams = [torch.rand(3, side, side + 2) for side in (40, 20, 9)]
    maps = [layer.numpy() for layer in cams]
    options = (40, 42, "minmax", "sum", "minmax", 1e-7)
    out, _ = emulator.call("fuse_cams", maps, np.ones(3, np.float32), *options)
    native = wsfast.fuse_cams([layer.to(device) for layer in cams], (40, 42), reduce="sum")
    torch.testing.assert_close(torch.from_numpy(out), native.cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_boxes(emulator, connectivity: int, device: torch.device) -> None:
    masks = torch.cat([torch.rand(2, 40, 70) < 0.55, snake(40, 70).view(1, 40, 70).bool()])
    bytes_ = masks.to(torch.uint8).numpy()
    moved = masks.to(device)
    found = emulator.call("connected_components", bytes_, connectivity)
    assert_equal(found, wsfast.connected_components(moved, connectivity=connectivity))
    found = emulator.call("component_boxes", bytes_, 9, connectivity, 2)
    options = {"max_boxes": 9, "connectivity": connectivity, "min_area": 2}
    assert_equal(found, tuple(wsfast.component_boxes(moved, **options)))


def test_scores_and_levels(emulator, device: torch.device) -> None:
    cams = torch.rand(3, 33, 65)
    limits = torch.tensor([0.3, 0.5, 0.7])
    found = emulator.call("cam_boxes", cams.numpy(), limits.numpy(), 6, 8, 1)
    boxes, scores, areas, counts = wsfast.cam_boxes(cams.to(device), limits.to(device), max_boxes=6)
    assert_equal((found[0], *found[2:4]), (boxes, areas, counts))
    torch.testing.assert_close(torch.from_numpy(found[1]), scores.cpu(), rtol=1e-6, atol=0)
    levels = emulator.call("otsu_level", cams.numpy(), 1)[0]
    native = wsfast.otsu_threshold(cams.to(device)) * 255
    np.testing.assert_array_equal(levels + 1, native.round().int().cpu().numpy())


def test_crf(emulator, device: torch.device) -> None:
    coarse = torch.rand(2, 3, 3, 3) * 255
    image = torch.nn.functional.interpolate(coarse, size=(11, 13), mode="bilinear")
    values = torch.rand(2, 3, 11, 13)
    energy, filtered = emulator.call(
        "dense_crf_energy", image.numpy(), values.flatten(2).numpy(), None,
        [SIGMA_XY, SIGMA_XY, *SIGMA_RGB], "symmetric", True,
    )  # fmt: skip
    native = torch.ops.wsfast.dense_crf_energy(
        image.to(device), values.to(device), None, SIGMA_RGB, SIGMA_XY, "symmetric", True
    )
    torch.testing.assert_close(torch.from_numpy(energy), native[0].cpu(), rtol=1e-4, atol=0)
    filtered = torch.from_numpy(filtered).view(values.shape)
    torch.testing.assert_close(filtered, native[1].cpu(), rtol=1e-4, atol=1e-4)


def test_seeds(emulator, device: torch.device) -> None:
    cams, keys = torch.rand(4, 23, 41), torch.randint(2**62, (4,))
    options = (10, 60, True, 0.5, 0.95, True, False, 5, 3)
    found = emulator.call("sample_seeds", cams.numpy(), keys.numpy(), None, None, None, *options)
    moved = (cams.to(device), keys.to(device), None, None)
    assert_equal(found, torch.ops.wsfast.sample_seeds(*moved, *options))
    ids = torch.arange(-20, 300)
    keys = emulator.call("seed_keys", -5, ids.numpy(), 9)
    native = torch.ops.wsfast.seed_keys(torch.tensor([-5], device=device), ids.to(device), 9)
    np.testing.assert_array_equal(keys, native.cpu().numpy())
