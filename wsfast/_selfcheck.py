"""Runs every op here once, on small inputs, and compares it with its reference.

For a user who wants to know whether what was installed computes what it should, on this CPU and
this GPU. The tests go much further.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import native

Arguments = tuple[Any, ...]
SIDE, CLASSES = 23, 5  # odd, so that no kernel runs on whole vectors only


def _random(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """The same numbers in 0-1 on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).to(device)


def _maps(device: torch.device) -> Tensor:
    """Smooth maps with a few components each."""
    coarse = _random(device, 3, 1, 6, 6)
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE + 2), mode="bilinear")[:, 0]


def _signed(device: torch.device, seed: int) -> Tensor:
    return _random(device, 2, 3, SIDE, SIDE, seed=seed) - 0.4


def _image(device: torch.device) -> Tensor:
    return _maps(device)[None] * 255


def _lattice(device: torch.device) -> Arguments:
    lattice: Arguments = native.reference_of("build_bilateral_lattice")(
        _image(device), [15.0] * 3, 9.0, False
    )
    return lattice


def _filtered(lattice: Arguments) -> Arguments:
    """What a lattice does: its vertices may be numbered in another order."""
    points = lattice[0].shape[1]
    values = _random(lattice[1].device, 1, 2, points).to(lattice[1].dtype)
    return (native.reference_of("lattice_filter")(values, *lattice, "symmetric"),)


_ARGUMENTS: dict[str, Callable[[torch.device], Arguments]] = {
    "build_bilateral_lattice": lambda d: (_image(d), [15.0] * 3, 9.0, False),
    "build_lattice": lambda d: (_random(d, 1, 4, 300) * 3,),
    "cam_boxes": lambda d: (_maps(d), _random(d, 3) * 0.4 + 0.3, 8, 8, 1),
    "component_boxes": lambda d: (_maps(d) > 0.5, 8, 8, 1),
    "connected_components": lambda d: (_maps(d) > 0.5, 4),
    "dense_crf_energy": lambda d: (
        _image(d), _random(d, 1, CLASSES, SIDE, SIDE + 2), None, [15.0] * 3, 9.0, "symmetric", True
    ),
    "fuse_cams": lambda d: (
        [_random(d, 2, 7, 8), _random(d, 2, 14, 15, seed=1)], _random(d, 2), SIDE, SIDE,
        "minmax", "sum", "minmax", 1e-7,
    ),
    "fuse_cams_backward": lambda d: (
        _random(d, 2, SIDE, SIDE) - 0.4, [_random(d, 2, 7, 8), _random(d, 2, 14, 15, seed=1)],
        _random(d, 2), "minmax", "minmax", 1e-7,
    ),
    "label_boxes": lambda d: ((_maps(d) * CLASSES).int(), CLASSES),
    "lattice_energy": lambda d: (
        _random(d, 1, CLASSES, SIDE * (SIDE + 2)), *_lattice(d), "symmetric", True
    ),
    "lattice_filter": lambda d: (
        _random(d, 1, CLASSES, SIDE * (SIDE + 2)), *_lattice(d), "symmetric"
    ),
    "level_best_iou": lambda d: (
        _maps(d)[:1], torch.tensor([[3, 4, 20, 15]], device=d), torch.arange(2, device=d), True
    ),
    "level_boxes": lambda d: (_maps(d)[:1],),
    "otsu_level": lambda d: (_maps(d), 2),
    "positive_percentile": lambda d: (_signed(d, 0), 50.0, False),
    "sample_seeds": lambda d: (
        _maps(d), torch.arange(1, 4, device=d), None, None, 9, 90, False, 0.2, 0.4, True, False,
        1, 1,
    ),
    "score_histograms": lambda d: (
        _maps(d), (_maps(d) > 0.6).byte(), torch.linspace(0, 1, 51, dtype=torch.float64, device=d)
    ),
    "seed_keys": lambda d: (torch.tensor([7], device=d), torch.arange(-2, 4, device=d), 5),
    "truncate_gradients": lambda d: (_signed(d, 0), 50.0, False),
    "truncated_gradcam": lambda d: (_signed(d, 1), _signed(d, 0), 50.0, False, False),
    "truncated_layercam": lambda d: (_signed(d, 1), _signed(d, 0), 50.0, True, False),
}  # fmt: skip
_COMPARED_AS = {"build_lattice": _filtered, "build_bilateral_lattice": _filtered}


def _compare(name: str, device: torch.device) -> None:
    """Raise AssertionError where an op and its reference differ."""
    arguments = _ARGUMENTS[name](device)
    found = getattr(torch.ops.wsfast, name)(*arguments)
    wanted = native.reference_of(name)(*arguments)
    seen = _COMPARED_AS.get(name, lambda results: results)
    torch.testing.assert_close(seen(found), seen(wanted), rtol=1e-4, atol=1e-5)


def check_op(name: str, device: str) -> str:
    """Run one op on a device.

    Returns:
        ``"ok"``: as its reference; ``"reference"``: there is no other code to compare with;
        ``"failed: ..."`` with the first line of what went wrong.
    """
    if native.kernel_kind(name, device) == "reference":
        return "reference"
    try:
        with torch.no_grad():
            _compare(name, torch.device(device))
    except (AssertionError, RuntimeError) as error:
        return f"failed: {str(error).strip().splitlines()[0]}"
    return "ok"


def check_ops() -> dict[str, dict[str, str]]:
    """:func:`check_op` of every op on every device that is here, by op and device."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        name: {device: check_op(name, device) for device in devices}
        for name in sorted(native.registered_schemas())
    }
