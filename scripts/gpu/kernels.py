"""Runs every CUDA kernel on small inputs and compares the results with the reference on the CPU.

The same launches serve the coverage check (--coverage FILE, under torch's profiler) and
compute-sanitizer (scripts/gpu/sanitize.py). With --device cpu the checks themselves are tried out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import wsfast
from scripts.gpu import coverage
from wsfast.ops.boxes import reference as boxes_reference
from wsfast.ops.crf import reference as crf_reference
from wsfast.ops.fusion import gradient as fusion_gradient
from wsfast.ops.fusion import reference as fusion_reference
from wsfast.ops.seeds import reference as seeds_reference
from wsfast.ops.seeds.keys import image_keys
from wsfast.ops.truncation import reference as truncation_reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MASKS = ((3, 1, 1), (4, 37, 70), (2, 130, 301))
DIRECTIONS = ("symmetric", "forward", "transpose")
Check = Callable[[torch.device], None]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of ``dtype`` are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def same(found: object, expected: object, **tolerance: float) -> None:
    """Assert equality, or closeness within a tolerance, of nested results."""
    wanted = tolerance or {"rtol": 0.0, "atol": 0.0}
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        torch.testing.assert_close(found.cpu(), expected.cpu(), equal_nan=True, **wanted)
        return
    assert isinstance(found, (tuple, list))
    assert isinstance(expected, (tuple, list))
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs, **tolerance)


def _truncation(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grads, activations = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    g, a = grads.to(device), activations.to(device)
    reference = truncation_reference
    for scope in ("map", "sample"):
        kept = reference.truncate_gradients(grads, 50, scope=scope)
        same(wsfast.truncate_gradients(g, 50, scope=scope), kept)
        percentile = reference.positive_percentile(grads, 50, scope=scope)
        same(wsfast.positive_percentile(g, 50, scope=scope), percentile, rtol=1e-2, atol=1e-3)
        for name in ("truncated_gradcam", "truncated_layercam"):
            found = getattr(wsfast, name)(a, g, 50, scope=scope)
            expected = getattr(reference, name)(activations, grads, 50, scope=scope)
            same(found, expected, rtol=2e-2, atol=2e-2)
    # CAMs in the dtype of sums, as the fused multi-layer methods ask for them.
    for operator in (torch.ops.wsfast.truncated_gradcam, torch.ops.wsfast.truncated_layercam):
        rest = (50.0, False, True)
        found, expected = operator(a, g, *rest)[0], operator(activations, grads, *rest)[0]
        same(found, expected, rtol=2e-2, atol=2e-2)


def check_truncation(device: torch.device) -> None:
    """Rows of a warp, rows of blocks of every size, in shared memory and beyond it."""
    sizes = ((2, 3, 14, 15), (3, 2, 1, 1), (1, 2, 40, 40), (1, 2, 80, 80), (1, 1, 130, 130),
             (1, 2, 160, 160), (1, 1, 300, 401))  # fmt: skip
    for dtype in DTYPES:
        for size in sizes:
            _truncation(device, size, dtype)


def check_truncation_long(device: torch.device) -> None:
    """Rows of more than 2^17 values, which many blocks share."""
    for dtype in DTYPES:
        _truncation(device, (1, 2, 370, 381), dtype)


def check_fusion(device: torch.device) -> None:
    """Few layers, and more than one launch takes; all reductions and norms."""
    options = ({}, {"layer_norm": None, "reduce": "max", "norm": None}, {"norm": "max"},
               {"reduce": "prod", "layer_norm": "max"})  # fmt: skip
    for dtype in DTYPES:
        for sides, size in (((24, 12, 6), (24, 25)), ((70, 150, 9) + (8,) * 16, (130, 200))):
            cams = [torch.rand(3, side, side + 1).to(dtype) for side in sides]
            for chosen in options:
                found = wsfast.fuse_cams([layer.to(device) for layer in cams], size, **chosen)
                expected = fusion_reference.fuse_cams(cams, size, **chosen)
                same(found, expected, rtol=2e-2, atol=2e-2)
        maps = torch.rand(3, 37, 44).to(dtype)
        for mode in ("minmax", "max"):
            found = wsfast.normalize_cams(maps.to(device), mode=mode)
            expected = fusion_reference.normalize_cams(maps, mode=mode)
            same(found, expected, rtol=2e-2, atol=2e-2)


def check_fusion_gradient(device: torch.device) -> None:
    """Layers of all sizes, an image that is not finite, and more layers than one launch takes."""
    for dtype in DTYPES:
        for sides, size in (((24, 12, 6), (24, 25)), ((70, 150, 9) + (8,) * 16, (130, 300))):
            cams = [torch.rand(3, side, side + 1).to(dtype) for side in sides]
            cams[1][1, 2, 3] = float("inf")
            grad = torch.randn(3, *size).to(dtype)
            weights = torch.linspace(0.5, 1.5, len(cams), dtype=accumulator(dtype))
            for layer_norm, norm in (("minmax", "minmax"), ("max", "none"), ("none", "max")):
                found = torch.ops.wsfast.fuse_cams_backward(
                    grad.to(device), [layer.to(device) for layer in cams], weights.to(device),
                    layer_norm, norm, 1e-7,
                )  # fmt: skip
                expected = fusion_gradient.fuse_backward(
                    grad, cams, weights, layer_norm, "sum", norm, 1e-7
                )
                largest = max(float(part.abs().max()) for part in (*expected[0], expected[1]))
                same(found, expected, rtol=2e-3, atol=2e-2 * largest)


def _masks() -> list[Tensor]:
    """Noise, and a comb whose components merge late."""
    masks = [torch.rand(shape) < 0.55 for shape in MASKS]
    comb = torch.zeros(2, 60, 200, dtype=torch.bool)
    comb[:, :, ::2], comb[0, -1], comb[1, 0] = True, True, True
    return [*masks, comb]


def check_components(device: torch.device) -> None:
    """Labels of both connectivities."""
    for mask in _masks():
        for connectivity in (4, 8):
            found = wsfast.connected_components(mask.to(device), connectivity=connectivity)
            same(found, boxes_reference.connected_components(mask, connectivity=connectivity))


def check_boxes(device: torch.device) -> None:
    """Boxes of masks, boxes and scores of maps of every dtype."""
    for mask in _masks():
        expected = boxes_reference.scored_boxes(mask, mask.float(), 9, 8, 2)
        found = wsfast.component_boxes(mask.to(device), max_boxes=9, min_area=2)
        same(tuple(found), (expected[0], *expected[2:]))
    for dtype in DTYPES:
        for shape in MASKS:
            cams = torch.rand(shape).to(dtype)
            limits = torch.linspace(0.3, 0.7, shape[0], dtype=accumulator(dtype))
            mask = cams.to(limits.dtype) >= limits[:, None, None]
            for connectivity, most in ((4, 9), (8, 700)):
                found = wsfast.cam_boxes(
                    cams.to(device), limits.to(device), max_boxes=most, connectivity=connectivity
                )
                expected = boxes_reference.scored_boxes(mask, cams, most, connectivity, 1)
                same(tuple(found), expected, rtol=1e-6, atol=0.0)


def check_otsu(device: torch.device) -> None:
    """Levels of maps of every dtype, once and twice."""
    for dtype in DTYPES:
        for shape in MASKS:
            cams = torch.rand(shape).to(dtype)
            for repeat in (1, 2):
                found = wsfast.otsu_threshold(cams.to(device), repeat=repeat)
                expected = (boxes_reference.otsu_level(cams, repeat) + 1) / 255
                same(found.float(), expected.float(), rtol=1e-6, atol=0.0)


def near(found: Tensor, expected: Tensor) -> None:
    """Closeness for what lattices give: a point on a simplex's border may fall to either side."""
    same(found, expected, rtol=2e-3, atol=2e-2 * float(expected.abs().max()))


def _compare_lattices(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], values: Tensor, device: torch.device
) -> None:
    counts, expected = ours[3].cpu().diff(), theirs[3].diff()
    assert ((counts - expected).abs() <= 2 + expected // 100).all(), (counts, expected)
    found = torch.ops.wsfast.lattice_filter(values.to(device), *ours, "symmetric")
    near(found, crf_reference.lattice_filter(values, *theirs, "symmetric"))
    kept = torch.ops.wsfast.lattice_energy(values.to(device), *ours, "symmetric", True)
    for part, expected in zip(
        kept, crf_reference.lattice_energy(values, *theirs, "symmetric", True), strict=True
    ):
        near(part, expected)


def check_lattice(device: torch.device) -> None:
    """Lattices of 1 to 8 dimensions and of images of every dtype, by what they do to values."""
    for wide in (torch.float32, torch.float64):
        for d in range(1, 9):
            features, values = torch.randn(2, d, 90, dtype=wide), torch.rand(2, 3, 90, dtype=wide)
            ours = torch.ops.wsfast.build_lattice(features.to(device))
            _compare_lattices(ours, crf_reference.build_lattice(features), values, device)
        for dtype in (*DTYPES, torch.uint8):
            image = (torch.rand(2, 3, 19, 23) * 255).to(dtype)
            values = torch.rand(2, 3, 19 * 23, dtype=wide)
            arguments = ([15.0, 20.0, 25.0], 30.0, wide == torch.float64)
            ours = torch.ops.wsfast.build_bilateral_lattice(image.to(device), *arguments)
            theirs = crf_reference.build_bilateral_lattice(image, *arguments)
            _compare_lattices(ours, theirs, values, device)
    torch.ops.wsfast.build_lattice(torch.rand(0, 3, 5, device=device))


def check_crf(device: torch.device) -> None:
    """Energies and filtered values in all directions, with and without a region of interest."""
    for dtype in DTYPES:
        for shape in ((2, 3, 1, 1), (3, 2, 40, 57), (1, 10, 90, 120)):
            image = torch.rand(shape[0], 3, *shape[2:]) * 255
            values = torch.rand(shape).to(dtype)
            roi = (torch.rand(shape[0], *shape[2:]) < 0.8).to(accumulator(dtype))
            for direction, mask in zip(DIRECTIONS, (roi, None, roi), strict=True):
                rest = ([15.0, 20.0, 25.0], 30.0, direction, True)
                found = torch.ops.wsfast.dense_crf_energy(
                    image.to(device), values.to(device),
                    None if mask is None else mask.to(device), *rest,
                )  # fmt: skip
                expected = crf_reference.dense_crf_energy(image, values, mask, *rest)
                for ours, theirs in zip(found, expected, strict=True):
                    near(ours, theirs)


def check_seeds(device: torch.device) -> None:
    """Keys, and seeds of all kinds of regions and draws, bit for bit."""
    for n in (1, 300, 5000):
        seed, ids = torch.randint(-(2**62), 2**62, (1,)), torch.randint(-(2**62), 2**62, (n,))
        found = torch.ops.wsfast.seed_keys(seed.to(device), ids.to(device), n)
        same(found, image_keys(seed, ids, n))
    for shape in MASKS:
        n = shape[0]
        cams = torch.rand(shape)
        cams[0] = (cams[0] - 0.6).relu()  # many equal values
        keys, clean = torch.randint(2**62, (n,)), torch.arange(n) == 1
        boxes = torch.randint(-3, max(shape), (n, 4), dtype=torch.int32)
        for roi, only, *rest in (
            (None, None, 1, 1, False, 0.1, 0.3, False, False, 11, 3),
            (cams > 0.3, clean, 10, 60, True, 0.01, 0.95, False, True, 0, 5),
            (boxes, clean, 5139, 2399, True, 0.938, 0.906, True, False, 0, 3),
        ):
            moved = [None if x is None else x.to(device) for x in (cams, keys, roi, only)]
            seeds, _ = torch.ops.wsfast.sample_seeds(*moved, *rest)
            same(seeds, seeds_reference.sample_seeds(cams, keys, roi, only, *rest))


CHECKS: dict[str, Check] = {
    "truncation": check_truncation,
    "truncation_long": check_truncation_long,
    "fusion": check_fusion,
    "fusion_gradient": check_fusion_gradient,
    "components": check_components,
    "boxes": check_boxes,
    "otsu": check_otsu,
    "lattice": check_lattice,
    "crf": check_crf,
    "seeds": check_seeds,
}


def run_checks(names: list[str], device: torch.device) -> list[str]:
    """Run these checks, going on after a failure; the names of those that failed."""
    failed = []
    for name in names:
        torch.manual_seed(0)
        started = time.perf_counter()
        try:
            CHECKS[name](device)
            outcome = "ok"
        except Exception as error:  # the next check may still say something
            outcome = f"FAILED: {type(error).__name__}: {error}"
            failed.append(name)
        print(f"{name}: {outcome} ({time.perf_counter() - started:.1f} s)", flush=True)
    return failed


def launched_by(run: Callable[[], object]) -> list[str]:
    """Names of the CUDA kernels that a call launches."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sorted({event.key for event in profiler.key_averages()})


def covered(names: list[str], device: torch.device, file: Path) -> list[str]:
    """Run the checks under the profiler and write what they launched; what is wrong."""
    failed: list[str] = []
    if device.type == "cuda":
        launched = launched_by(lambda: failed.extend(run_checks(names, device)))
    else:  # to try the check itself: as if every instance had been launched
        failed = run_checks(names, device)
        kernels = json.loads(coverage.BUDGET.read_text())["kernels"]
        launched = [f"void wsfast::{name}(int)" for name in kernels]
    if coverage.nothing_seen(launched):
        note = "the profiler saw nothing"
        file.write_text(json.dumps({"device": device.type, "note": note}, indent=1))
        return [*failed, note]
    found = coverage.compare(launched)
    file.write_text(json.dumps({"device": device.type, **found}, indent=1))
    for kind in ("missing_kernels", "missing_instances"):
        print(f"{kind}: {', '.join(found[kind]) or 'none'}")
    return [*failed, *found["missing_kernels"]]


def main() -> int:
    """Check, and note what was launched where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(CHECKS)} (all)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--coverage", type=Path, metavar="FILE", help="write launched kernels")
    options = parser.parse_args()
    device, names = torch.device(options.device), options.checks or list(CHECKS)
    if options.coverage:
        failed = covered(names, device, options.coverage)
    else:
        failed = run_checks(names, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"failed: {', '.join(failed)}" if failed else "all kernels agree with the reference")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
