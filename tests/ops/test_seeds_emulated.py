"""The CUDA kernels of room `seeds` on the CPU, under the emulator: bit for bit the reference."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from wsfast.ops.seeds import reference
from wsfast.ops.seeds.keys import image_keys

PAPER = {"foreground": 1, "background": 1, "erode": 11}
SMALL = {"top": True, "foreground": 10, "background": 60, "background_share": 0.95}
DIPS = {"top": True, "foreground": 40, "foreground_share": 0.5, "weighted": True}
SETTINGS = {
    "foreground": 1,
    "background": 1,
    "top": False,
    "foreground_share": 0.1,
    "background_share": 0.3,
    "weighted": False,
    "background_outside_roi": False,
    "erode": 0,
    "dilate": 3,
}


def maps(shape: tuple[int, int, int]) -> torch.Tensor:
    """Noise, ReLUed noise, few values, a constant map, values outside 0-1."""
    cams = torch.rand(shape)
    cams[1] = (cams[1] - 0.6).relu()
    cams[2] = (cams[2] * 4).round() / 4
    cams[3] = 0.5
    cams[4] = cams[4] * 3 - 1
    return cams


def run(
    emulator: Any,
    cams: torch.Tensor,
    roi: torch.Tensor | None,
    background_only: torch.Tensor | None,
    settings: dict[str, Any],
    every_order: bool = False,
) -> None:
    keys = torch.randint(2**62, (len(cams),))
    values = list({**SETTINGS, **settings}.values())
    mask = roi.numpy() if roi is not None and roi.dim() == 3 else None
    boxes = roi.numpy() if roi is not None and roi.dim() == 2 else None
    clean = None if background_only is None else background_only.numpy()
    call = emulator.call_in_every_order if every_order else emulator.call
    arguments = (cams.numpy(), keys.numpy(), mask, boxes, clean, *values)
    seeds, valid = call("sample_seeds", *arguments)
    expected = reference.sample_seeds(cams, keys, roi, background_only, *values)
    np.testing.assert_array_equal(seeds, expected.numpy())
    np.testing.assert_array_equal(valid, ~cams.isnan().flatten(1).any(1).numpy())


@pytest.mark.parametrize("images", [0, 1, 255, 257])
def test_emulated_keys(emulator, images: int) -> None:
    ids = torch.randint(-(2**62), 2**62, (images,))
    ids[:3] = torch.tensor([0, -1, 2**63 - 1])[:images]
    for seed, epoch in ((0, 0), (-1, 1), (2**63 - 1, 2**63 - 1), (-(2**63), 7)):
        found = emulator.call("seed_keys", seed, ids.numpy(), epoch)
        np.testing.assert_array_equal(found, image_keys(torch.tensor([seed]), ids, epoch).numpy())


@pytest.mark.parametrize("settings", [PAPER, SMALL, DIPS], ids=["paper", "small", "dips"])
@pytest.mark.parametrize("shape", [(5, 1, 70), (5, 70, 1), (5, 23, 41), (5, 9, 224)])
def test_emulated_kernel(emulator, shape: tuple[int, int, int], settings: dict[str, Any]) -> None:
    cams = maps(shape)
    run(emulator, cams, None, None, settings)
    run(emulator, cams, torch.rand(shape) < 0.5, torch.rand(5) < 0.5, settings)
    boxes = torch.randint(-3, 40, (5, 4), dtype=torch.int32)
    run(emulator, cams, boxes, None, {**settings, "background_outside_roi": True, "dilate": 5})


def test_emulated_kernel_takes_everything_and_nothing(emulator) -> None:
    cams = maps((5, 9, 13))
    run(emulator, cams, None, None, {"foreground": 999, "background": 999, "background_share": 1.0})
    run(emulator, cams, None, None, {"foreground": 0, "background": 0})
    run(emulator, cams, None, None, {**DIPS, "foreground": 999, "foreground_share": 1.0})
    run(emulator, cams, None, None, {"top": True, "foreground_share": 0.0, "background_share": 0.0})


def test_emulated_kernel_with_empty_and_whole_rois(emulator) -> None:
    cams = maps((5, 9, 13))
    corners = [[0, 0, 13, 9], [3, 3, 3, 9], [-5, -5, 99, 99], [12, 8, 13, 9], [0, 0, 1, 9]]
    boxes, masks = torch.tensor(corners, dtype=torch.int32), torch.zeros(5, 9, 13).bool()
    masks[0], masks[1, 4, 4:] = True, True
    for settings in (PAPER, SMALL, DIPS):
        for roi in (boxes, masks):
            run(emulator, cams, roi, None, {**settings, "background_outside_roi": True})
            run(emulator, cams, roi, torch.ones(5).bool(), settings)


def test_emulated_kernel_of_regions_that_erosion_leaves_and_takes(emulator) -> None:
    cams = 0.1 * torch.rand(5, 33, 47)
    for n, side in enumerate((2, 5, 7, 8, 30)):
        cams[n, 1 : 1 + side, 4 : 4 + side] += 0.8
    settings = {"erode": 5, "background": 500, "background_share": 0.5}
    for foreground in (7, 24):  # less and more than erosion leaves of most
        run(emulator, cams, None, None, {**settings, "foreground": foreground}, every_order=True)
        weighted = {**settings, "foreground": foreground, "weighted": True}
        run(emulator, cams, torch.rand(cams.shape) < 0.98, None, weighted)


def test_emulated_kernel_cuts_through_equal_values(emulator) -> None:
    cams = torch.rand(5, 30, 41)
    for n, values in enumerate((1, 2, 3, 255, 4)):
        cams[n] = (cams[n] * values).round() / values
    for share in (0.01, 0.3, 0.7, 0.999):
        both = {"top": True, "foreground_share": share, "background_share": share}
        run(emulator, cams, None, None, {**both, "foreground": 2000, "background": 2000})
        run(emulator, cams, None, None, {**both, "foreground": 200, "background": 300})


def test_emulated_kernel_of_strange_maps(emulator) -> None:
    cams = maps((5, 6, 40))
    cams[0, 2, 3], cams[1, 0, 0], cams[2, 1, 1] = math.nan, math.inf, -math.inf
    cams[4] = 1e-42 * torch.rand(6, 40)
    cams[4, 0, 0] = 1.0
    run(emulator, cams, None, None, {**DIPS, "foreground_share": 1.0})


def test_emulated_kernel_in_every_order(emulator) -> None:
    cams = maps((5, 20, 30))[1:3]
    for settings in (PAPER, DIPS, SMALL):
        run(emulator, cams, None, None, settings, every_order=True)
    run(emulator, cams, torch.rand(cams.shape) < 0.5, None,
        {**SMALL, "background_outside_roi": True}, every_order=True)  # fmt: skip


def test_emulated_kernel_on_an_empty_batch_and_single_pixels(emulator) -> None:
    run(emulator, torch.zeros(0, 4, 5), None, None, PAPER)
    run(emulator, torch.ones(5, 1, 1), None, None, PAPER)
