"""Runs every CUDA kernel once, checked against the reference; with --time also times them.

Used by gpu_check.sh, alone and under compute-sanitizer. Times are medians of CUDA events; the
fraction is of the bandwidth that a plain copy reaches on the same device.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

import wsfast
from wsfast.ops.boxes import reference as boxes_reference
from wsfast.ops.crf import reference as crf_reference
from wsfast.ops.fusion import reference as fusion_reference
from wsfast.ops.seeds import reference as seeds_reference
from wsfast.ops.truncation import reference as truncation_reference

STAGES = ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))  # VGG-16: channels, side


def check_truncation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Compare every truncation op on the device with the reference."""
    grads = torch.randn(shape, device="cuda").to(dtype)
    activations = torch.randn(shape, device="cuda").to(dtype)
    for scope in ("map", "sample"):
        ours = wsfast.truncate_gradients(grads, 50, scope=scope)
        theirs = truncation_reference.truncate_gradients(grads, 50, scope=scope)
        assert torch.equal(ours, theirs), shape
        wsfast.positive_percentile(grads, 50, scope=scope)
        for name in ("truncated_gradcam", "truncated_layercam"):
            found = getattr(wsfast, name)(activations, grads, 50, scope=scope)
            expected = getattr(truncation_reference, name)(activations, grads, 50, scope=scope)
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def check_fusion(sides: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype) -> None:
    """Compare fuse_cams on the device with the reference."""
    cams = [torch.rand(3, side, side + 1, device="cuda").to(dtype) for side in sides]
    for options in ({}, {"layer_norm": None, "reduce": "max", "norm": None}, {"norm": "max"}):
        found = wsfast.fuse_cams(cams, size, **options)
        expected = fusion_reference.fuse_cams(cams, size, **options)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def check_boxes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Compare every op of the boxes room on the device with the reference."""
    cams = torch.rand(shape, device="cuda").to(dtype)
    limits = torch.linspace(0.3, 0.7, shape[0], device="cuda")
    limits = limits.double() if dtype == torch.float64 else limits
    mask = cams.to(limits.dtype) >= limits[:, None, None]
    for connectivity in (4, 8):
        found = wsfast.connected_components(mask, connectivity=connectivity)
        expected = boxes_reference.connected_components(mask, connectivity=connectivity)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs), shape
        options = {"max_boxes": 9, "connectivity": connectivity, "min_area": 2}
        scored = boxes_reference.scored_boxes(mask, cams, **options)
        boxes, _, areas, counts = scored
        for ours, theirs in zip(wsfast.cam_boxes(cams, limits, **options), scored, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        plain = (boxes, areas, counts)
        for ours, theirs in zip(wsfast.component_boxes(mask, **options), plain, strict=True):
            assert torch.equal(ours, theirs), shape
    for repeat in (1, 2):
        levels = (wsfast.otsu_threshold(cams, repeat=repeat) * 255).round().int() - 1
        assert torch.equal(levels, boxes_reference.otsu_level(cams, repeat)), shape


def check_crf(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Compare the lattice's energies, gradients and filter on the device with the reference."""
    batch, _, height, width = shape
    image = torch.rand(batch, 3, height, width, device="cuda") * 255
    values = torch.rand(shape, device="cuda").to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    roi = (torch.rand(batch, height, width, device="cuda") < 0.8).to(wide)
    sigmas = ([15.0, 20.0, 25.0], 30.0)
    for direction in ("symmetric", "forward", "transpose"):
        arguments = (image, values, roi, *sigmas, direction, True)
        found = torch.ops.wsfast.dense_crf_energy(*arguments)
        for ours, theirs in zip(found, crf_reference.dense_crf_energy(*arguments), strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=2e-3, atol=2e-2 * float(theirs.abs().max())
            )
    lattice = torch.ops.wsfast.build_bilateral_lattice(image, *sigmas, wide == torch.float64)
    flat = values.flatten(2)
    ours = torch.ops.wsfast.lattice_filter(flat, *lattice, "symmetric")
    theirs = crf_reference.lattice_filter(flat, *lattice, "symmetric")
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3 * float(theirs.abs().max()))


def check_seeds(shape: tuple[int, int, int]) -> None:
    """Compare seeds on the device with the reference, bit for bit."""
    cams = torch.rand(shape, device="cuda")
    cams[0] = (cams[0] - 0.6).relu()  # many equal values
    keys = torch.randint(2**62, (shape[0],), device="cuda")
    boxes = torch.randint(-3, max(shape), (shape[0], 4), dtype=torch.int32, device="cuda")
    clean = torch.arange(shape[0], device="cuda") == 1
    for arguments in (
        (None, None, 1, 1, False, 0.1, 0.3, False, False, 11, 3),
        (cams > 0.3, clean, 10, 60, True, 0.01, 0.95, False, True, 0, 5),
        (boxes, clean, 5139, 2399, True, 0.938, 0.906, True, False, 0, 3),
    ):
        seeds, _ = torch.ops.wsfast.sample_seeds(cams, keys, *arguments)
        assert torch.equal(seeds, seeds_reference.sample_seeds(cams, keys, *arguments)), shape


def milliseconds(run: Callable[[], object], rounds: int = 30) -> float:
    """Median time of a call on the device."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[rounds // 2]


def measure_truncation() -> dict[str, dict[str, float]]:
    """Times and bandwidths on (64, 64, 224, 224) float32 gradients, beside a plain copy."""
    grads = torch.randn(64, 64, 224, 224, device="cuda")
    other = torch.randn_like(grads)
    gigabytes = 2 * grads.numel() * 4 / 1e9  # two passes each
    runs = {
        "copy_": lambda: other.copy_(grads),
        "truncate_gradients": lambda: wsfast.truncate_gradients(grads, 50),
        "truncated_gradcam": lambda: wsfast.truncated_gradcam(other, grads, 50),
        "truncated_layercam": lambda: wsfast.truncated_layercam(other, grads, 50),
    }
    times = {name: milliseconds(run) for name, run in runs.items()}
    return {
        name: {
            "milliseconds": time,
            "gb_per_s": gigabytes / time * 1e3,
            "fraction_of_copy": times["copy_"] / time,
        }
        for name, time in times.items()
    }


def measure_fusion() -> dict[str, dict[str, float]]:
    """Times of fusing VGG-16's five stages at 224 x 224, batch 64, beside the reference."""
    cams = [torch.rand(64, side, side, device="cuda") for _, side in STAGES]
    runs = {
        "fuse_cams": lambda: wsfast.fuse_cams(cams, (224, 224)),
        "fuse_cams_reference": lambda: fusion_reference.fuse_cams(cams, (224, 224)),
    }
    return {name: {"milliseconds": milliseconds(run)} for name, run in runs.items()}


def measure_boxes() -> dict[str, dict[str, float]]:
    """Times on 64 smooth maps of 224 x 224, beside the reference."""
    coarse = torch.rand(64, 1, 7, 7, device="cuda")
    cams = torch.nn.functional.interpolate(coarse, (224, 224), mode="bicubic")[:, 0].clamp(0, 1)
    mask = cams >= 0.5
    runs = {
        "connected_components": lambda: wsfast.connected_components(mask),
        "component_boxes": lambda: wsfast.component_boxes(mask),
        "cam_boxes": lambda: wsfast.cam_boxes(cams),
        "otsu_threshold": lambda: wsfast.otsu_threshold(cams),
        "connected_components_reference": lambda: boxes_reference.connected_components(mask),
    }
    return {name: {"milliseconds": milliseconds(run)} for name, run in runs.items()}


def measure_crf() -> dict[str, dict[str, float]]:
    """Times of the dense-CRF loss on (32, 2, 224, 224): smooth images and noise."""
    coarse = torch.rand(32, 3, 14, 14, device="cuda") * 255
    smooth = torch.nn.functional.interpolate(coarse, (224, 224), mode="bicubic").clamp(0, 255)
    values = torch.rand(32, 2, 224, 224, device="cuda").softmax(1)

    def run(image: torch.Tensor, with_filtered: bool) -> Callable[[], object]:
        arguments = (image, values, None, [15.0] * 3, 100.0, "symmetric", with_filtered)
        return lambda: torch.ops.wsfast.dense_crf_energy(*arguments)

    noise = torch.rand_like(smooth) * 255
    runs = {
        "dense_crf_loss": run(smooth, False),
        "dense_crf_loss_backward": run(smooth, True),
        "dense_crf_loss_backward_noise": run(noise, True),
    }
    return {name: {"milliseconds": milliseconds(run)} for name, run in runs.items()}


def measure_seeds() -> dict[str, dict[str, float]]:
    """Times of sampling 32 smooth maps of 224 x 224 with the settings of F-CAM and DiPS."""
    coarse = torch.rand(32, 1, 14, 14, device="cuda")
    cams = torch.nn.functional.interpolate(coarse, (224, 224), mode="bicubic")[:, 0].clamp(0, 1)
    dips = {"region": "top", "foreground_share": 0.938, "foreground_weights": "activation"}
    runs = {
        "sample_seeds_fcam": lambda: wsfast.sample_seeds(cams, erode=11, seed=0),
        "sample_seeds_dips": lambda: wsfast.sample_seeds(
            cams, foreground=5139, background=2399, background_share=0.906, seed=0, **dips
        ),
    }
    return {name: {"milliseconds": milliseconds(run)} for name, run in runs.items()}


def main() -> None:
    """Check, and time where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=Path, metavar="FILE", help="write timings as JSON")
    options = parser.parse_args()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shape in ((2, 3, 14, 15), (1, 2, 300, 301), (1, 5, 400, 410)):
            check_truncation(shape, dtype)
        check_fusion((24, 12, 6), (24, 25), dtype)
        check_fusion((70, 300, 9) + (8,) * 16, (130, 200), dtype)
        for shape in ((3, 1, 1), (4, 37, 70), (2, 300, 301)):
            check_boxes(shape, dtype)
        for shape in ((2, 3, 1, 1), (3, 2, 40, 57), (2, 10, 130, 200)):
            check_crf(shape, dtype)
    for shape in ((3, 1, 1), (4, 37, 70), (2, 300, 301)):
        check_seeds(shape)
    if options.time:
        ops = {**measure_truncation(), **measure_fusion(), **measure_boxes(), **measure_crf()}
        ops |= measure_seeds()
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        options.time.write_text(json.dumps({**facts, "ops": ops}, indent=1))
    print("all kernels agree with the reference")


if __name__ == "__main__":
    main()
