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
from wsfast.ops.truncation import reference


def check(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Compare every truncation op on the device with the reference."""
    grads = torch.randn(shape, device="cuda").to(dtype)
    activations = torch.randn(shape, device="cuda").to(dtype)
    for scope in ("map", "sample"):
        ours = wsfast.truncate_gradients(grads, 50, scope=scope)
        assert torch.equal(ours, reference.truncate_gradients(grads, 50, scope=scope)), shape
        wsfast.positive_percentile(grads, 50, scope=scope)
        for name in ("truncated_gradcam", "truncated_layercam"):
            found = getattr(wsfast, name)(activations, grads, 50, scope=scope)
            expected = getattr(reference, name)(activations, grads, 50, scope=scope)
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


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


def measure() -> dict[str, dict[str, float]]:
    """Times and bandwidths on (64, 64, 224, 224) float32 gradients."""
    grads = torch.randn(64, 64, 224, 224, device="cuda")
    other = torch.randn_like(grads)
    gigabytes = grads.numel() * 4 / 1e9
    runs = {
        "copy_": (2, lambda: other.copy_(grads)),
        "truncate_gradients": (2, lambda: wsfast.truncate_gradients(grads, 50)),
        "truncated_gradcam": (2, lambda: wsfast.truncated_gradcam(other, grads, 50)),
        "truncated_layercam": (2, lambda: wsfast.truncated_layercam(other, grads, 50)),
    }
    rows = {}
    for name, (passes, run) in runs.items():
        time = milliseconds(run)
        rows[name] = {"milliseconds": time, "gb_per_s": passes * gigabytes / time * 1e3}
    for row in rows.values():
        row["fraction_of_copy"] = row["gb_per_s"] / rows["copy_"]["gb_per_s"]
    return rows


def main() -> None:
    """Check, and time where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=Path, metavar="FILE", help="write timings as JSON")
    options = parser.parse_args()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shape in ((2, 3, 14, 15), (1, 2, 300, 301), (1, 5, 400, 410)):
            check(shape, dtype)
    if options.time:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        options.time.write_text(json.dumps({**facts, "ops": measure()}, indent=1))
    print("all kernels agree with the reference")


if __name__ == "__main__":
    main()
