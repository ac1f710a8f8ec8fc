"""Runs every op again and again under deterministic algorithms: the same bits each time.

Forward and backward, on torch's default stream and on another one, with the rest of the device
busy. An op of torch that has no deterministic form raises, which fails the check too.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import wsfast

RUNS = 6
Op = Callable[[], object]


def leaves(value: object) -> list[Tensor]:
    """The tensors of a nested result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in leaves(part)]
    return []


def with_gradients(run: Callable[..., Tensor], *inputs: Tensor) -> Op:
    """A call that returns the result and the gradients of its sum."""
    variables = [x.clone().requires_grad_() for x in inputs]

    def call() -> tuple[Tensor, ...]:
        out = run(*variables)
        return out.detach(), *torch.autograd.grad(out.sum(), variables)

    return call


def smooth_maps(count: int, side: int, device: torch.device) -> Tensor:
    """Maps (N, H, W) in 0-1 like upsampled CAMs."""
    coarse = torch.rand(count, 1, 9, 9, device=device)
    return F.interpolate(coarse, (side, side), mode="bicubic")[:, 0].clamp(0, 1)


def truncation_ops(device: torch.device) -> dict[str, Op]:
    """The truncation room."""
    a, g = (torch.randn(2, 8, 96, 96, device=device) for _ in range(2))
    names = ("truncated_gradcam", "truncated_layercam")
    ops: dict[str, Op] = {
        f"{name}, {scope}": with_gradients(
            lambda a, g, name=name, scope=scope: getattr(wsfast, name)(a, g, 50, scope=scope), a, g
        )
        for name in names
        for scope in ("map", "sample")
    }
    ops["truncate_gradients"] = with_gradients(lambda g: wsfast.truncate_gradients(g, 50), g)
    ops["positive_percentile"] = lambda: wsfast.positive_percentile(g, 50)
    return ops


def map_ops(device: torch.device) -> dict[str, Op]:
    """The fusion, boxes, levels and seeds rooms."""
    maps, noise = smooth_maps(4, 120, device), torch.rand(4, 120, 120, device=device)
    layers = [torch.rand(3, side, side, device=device) for side in (64, 32, 16)]
    weights = torch.rand(3, device=device)
    seeds = {"foreground": 50, "background": 50, "seed": 0}
    return {
        "fuse_cams": with_gradients(lambda *x: wsfast.fuse_cams(list(x), (64, 64)), *layers),
        "fuse_cams, weighted": with_gradients(
            lambda w, *x: wsfast.fuse_cams(list(x), (64, 64), norm=None, weights=w),
            weights,
            *layers,
        ),
        "fuse_cams, max": with_gradients(
            lambda *x: wsfast.fuse_cams(list(x), (64, 64), reduce="max"), *layers
        ),
        "connected_components": lambda: wsfast.connected_components(noise > 0.45),
        "component_boxes": lambda: wsfast.component_boxes(noise > 0.45),
        "cam_boxes": lambda: wsfast.cam_boxes(noise, 0.45),
        "otsu_threshold": lambda: wsfast.otsu_threshold(maps, repeat=2),
        "level_boxes": lambda: wsfast.level_boxes(maps),
        "score_histograms": lambda: wsfast.score_histograms(
            maps, noise > 0.5, torch.linspace(0, 1, 101, device=device)
        ),
        "seed_keys": lambda: torch.ops.wsfast.seed_keys(
            torch.tensor([3], device=device), torch.arange(5000, device=device), 1
        ),
        "sample_seeds": lambda: wsfast.sample_seeds(maps, **seeds),
        "sample_seeds, weighted": lambda: wsfast.sample_seeds(
            noise, region="top", foreground_share=0.5, foreground_weights="activation", **seeds
        ),
    }


def crf_ops(device: torch.device) -> dict[str, Op]:
    """The crf room; vertices are numbered in the order in which threads arrive."""
    ops: dict[str, Op] = {}
    for dtype in (torch.float32, torch.float64):
        image = torch.rand(2, 3, 90, 110, device=device) * 255
        prob = torch.rand(2, 3, 90, 110, device=device, dtype=dtype).softmax(1)
        lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=100.0)
        ops |= {
            f"dense_crf_loss, {dtype}": with_gradients(
                lambda p, image=image: wsfast.dense_crf_loss(image, p), prob
            ),
            f"mean_field, {dtype}": lambda p=prob, image=image: wsfast.mean_field(p.log(), image),
        }
        if dtype == torch.float32:
            ops["lattice_filter"] = with_gradients(
                lambda v, lattice=lattice: wsfast.lattice_filter(v, lattice), prob.flatten(2)
            )
            ops["dense_crf_loss, lattice kept"] = with_gradients(
                lambda p, lattice=lattice: wsfast.dense_crf_loss(None, p, lattice=lattice), prob
            )
    return ops


def repeated(run: Op, device: torch.device) -> bool:
    """Whether a call gives the same bits every time."""
    first = [leaf.clone() for leaf in leaves(run())]
    stream = torch.cuda.Stream() if device.type == "cuda" else None
    noise = torch.rand(1 << 22, device=device)
    for number in range(RUNS):
        noise.mul_(1.0001)  # the device is busy when the op starts
        if stream is not None and number % 2:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                again = leaves(run())
            torch.cuda.current_stream().wait_stream(stream)
        else:
            again = leaves(run())
        for one, other in zip(first, again, strict=True):
            if not torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)):
                return False
    return True


def main() -> int:
    """Try every op; the names of those that vary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    ops = {**truncation_ops(device), **map_ops(device), **crf_ops(device)}
    torch.use_deterministic_algorithms(True)
    # Else new memory begins alike in every run, and a read of what nobody wrote repeats, too.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    failed = []
    for name, run in ops.items():
        try:
            outcome = "same bits" if repeated(run, device) else "VARIES"
        except Exception as error:  # the next op may still say something
            outcome = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"
        if outcome != "same bits":
            failed.append(name)
        print(f"{name}: {outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
