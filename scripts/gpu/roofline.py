"""Times every op beside the bytes it has to move and the copy bandwidth measured on the device.

Times are medians of rounds between CUDA events after a warm-up, with the quartiles; short calls
are repeated within a round. The error beside each time is the largest one against the CPU kernels
over the largest value; above the work's tolerance the result is wrong, however fast. Where an op
can be captured, its CUDA graph is timed too: that leaves the launches' own cost out. "Must move"
counts each input read once and each output written once.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import wsfast
from benchmarks.clocks import Clock, cuda_clock, wall_clock, warm_up
from benchmarks.harness import relative_error
from benchmarks.inputs import scenes
from benchmarks.memory import extra_bytes
from scripts.gpu.determinism import leaves
from scripts.gpu.facts import said

STAGES = ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))  # VGG-16: channels, side
ROUND_SECONDS = 2e-3
# Largest relative errors. Of counts and places: less than one pixel more or less.
EXACT = 1e-5
SUMS = 1e-4  # float32, in another order
LATTICE = 2e-2  # a point on a simplex's border may fall to either side
Call = Callable[..., Any]


@dataclass(frozen=True)
class Bound:
    """What an op has to reach: milliseconds at most, or a share of copy bandwidth at least."""

    milliseconds: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Work:
    """One op on one size.

    Args:
        room: Its room.
        name: What is timed.
        size: Size of the inputs, in words.
        inputs: Tensors on the CPU; moved to the device.
        call: The op, of the inputs.
        capturable: False where it waits for the device, which a CUDA graph cannot hold.
        bound: What it has to reach.
        extra_limit: Most extra memory, as bytes; None sets no bound.
        tolerance: Largest error of a correct result.
    """

    room: str
    name: str
    size: str
    inputs: tuple[Tensor, ...]
    call: Call
    capturable: bool = True
    bound: Bound = Bound()
    extra_limit: int | None = None
    tolerance: float = EXACT


@dataclass(frozen=True)
class Measured:
    """What was found of one piece of work; times in milliseconds."""

    room: str
    name: str
    size: str
    median: float
    quartiles: tuple[float, float]
    rounds: int
    graph: float | None
    graph_note: str
    must_move: int
    bandwidth: float
    share_of_copy: float
    fits_in_l2: bool
    error: float
    wrong: bool
    extra_bytes: int | None
    extra_limit: int | None
    bound: Bound
    reached: bool | None


def times(run: Call, clock: Clock, rounds: int) -> list[float]:
    """Seconds per call, round by round."""
    warm_up(run, clock)
    once = max(clock(run, 1), 1e-7)
    calls = max(1, math.ceil(ROUND_SECONDS / once)) if rounds > 1 else 1
    clock(run, calls)
    return [clock(run, calls) / calls for _ in range(rounds)]


def copy_bandwidth(device: torch.device, clock: Clock, megabytes: int, rounds: int) -> float:
    """Bytes per second, read plus written, of a copy several times as large as the L2 cache."""
    source = torch.rand(megabytes << 18, device=device)
    other = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(times(lambda: other.copy_(source), clock, rounds))


def graph_milliseconds(work: Work, device: torch.device, rounds: int) -> float:
    """Median time of a replay of the op's CUDA graph, which must give the op's own bits."""
    inputs = tuple(x.to(device) for x in work.inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [leaf.clone() for leaf in leaves(work.call(*inputs))]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = leaves(work.call(*inputs))
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        if not torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)):
            raise RuntimeError("the replay differs")
    return 1e3 * statistics.median(times(graph.replay, cuda_clock, rounds))


def add_graphs(found: list[dict[str, Any]], device: torch.device, rounds: int) -> Iterator[None]:
    """Time CUDA graphs too, after all else: a capture that fails may harm what follows it."""
    by_name = {(entry["room"], entry["name"], entry["size"]): entry for entry in found}
    for work in all_work(True):
        entry = by_name[work.room, work.name, work.size]
        if not work.capturable or "failed" in entry:
            continue
        try:
            entry["graph"] = graph_milliseconds(work, device, rounds)
        except Exception as error:  # the op is timed without a graph, at least
            entry["graph_note"] = f"not captured: {str(error).splitlines()[0][:100]}"
        print(f"graph of {work.name} {work.size}: {entry['graph']} {entry['graph_note']}")
        yield


def measure(work: Work, device: torch.device, copy: float, l2: int, rounds: int) -> Measured:
    """Time one piece of work, check its result and judge it."""
    clock = cuda_clock if device.type == "cuda" else wall_clock
    inputs = tuple(x.to(device) for x in work.inputs)

    def run() -> Any:
        return work.call(*inputs)

    result, expected = run(), work.call(*work.inputs)
    error = relative_error(leaves(result), leaves(expected))
    wrong = not error <= work.tolerance
    written = sum(leaf.nbytes for leaf in leaves(result))
    must_move = sum(x.nbytes for x in work.inputs) + written
    del result, expected
    seconds = times(run, clock, rounds)
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    extra = extra_bytes(run, device)
    share, on_gpu = must_move / median / copy, device.type == "cuda"
    reached = judged(work.bound, median * 1e3, share) if on_gpu else None
    return Measured(
        room=work.room,
        name=work.name,
        size=work.size,
        median=median * 1e3,
        quartiles=(low * 1e3, high * 1e3),
        rounds=len(seconds),
        graph=None,
        graph_note="" if work.capturable else "waits for the device",
        must_move=must_move,
        bandwidth=must_move / median,
        share_of_copy=share,
        fits_in_l2=must_move < l2,
        error=error,
        wrong=wrong,
        extra_bytes=extra,
        extra_limit=work.extra_limit if on_gpu else None,
        bound=work.bound,
        reached=False if wrong else reached,
    )


def judged(bound: Bound, milliseconds: float, share: float) -> bool | None:
    """Whether a bound is kept; None without one."""
    if bound.milliseconds is not None:
        return milliseconds <= bound.milliseconds
    return None if bound.share is None else share >= bound.share


def smooth(count: int, side: int) -> Tensor:
    """Maps (N, H, W) in 0-1 like upsampled CAMs."""
    coarse = torch.rand(count, 1, 7, 7)
    return F.interpolate(coarse, (side, side), mode="bicubic")[:, 0].clamp(0, 1)


def truncation_work(batch: int, side: int) -> Iterator[Work]:
    """Rows of one map, in shared memory; rows of a sample, by many blocks."""
    a, g = torch.randn(batch, 64, side, side), torch.randn(batch, 64, side, side)
    size, few = f"({batch}, 64, {side}, {side})", g.nbytes // 20
    wide = Bound(share=0.6)
    yield Work("truncation", "truncate_gradients", size, (g,),
               lambda g: wsfast.truncate_gradients(g, 50), bound=wide)  # fmt: skip
    yield Work("truncation", "truncate_gradients, per sample", size, (g,),
               lambda g: wsfast.truncate_gradients(g, 50, scope="sample"))  # fmt: skip
    yield Work("truncation", "positive_percentile", size, (g,),
               lambda g: wsfast.positive_percentile(g, 50))  # fmt: skip
    for name in ("truncated_gradcam", "truncated_layercam"):
        yield Work("truncation", name, size, (a, g),
                   lambda a, g, name=name: getattr(wsfast, name)(a, g, 50),
                   bound=wide, extra_limit=few, tolerance=SUMS)  # fmt: skip


def fused_gradients(upstream: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the layers that were fused, forward and backward."""
    variables = [layer.detach().requires_grad_() for layer in layers]
    fused = wsfast.fuse_cams(variables, upstream.shape[-2:])
    return torch.autograd.grad(fused, variables, upstream)


def fusion_work(batch: int, side: int, bound: Bound) -> Iterator[Work]:
    """VGG-16's five stages to full size."""
    sides = [max(1, side * stage // 224) for _, stage in STAGES]
    layers = tuple(torch.rand(batch, s, s) for s in sides)
    yield Work("fusion", "fuse_cams", f"{batch} x 5 stages to {side}", layers,
               lambda *x: wsfast.fuse_cams(list(x), (side, side)),
               bound=bound, tolerance=SUMS)  # fmt: skip
    yield Work("fusion", "fuse_cams, no norms", f"{batch} x 5 stages to {side}", layers,
               lambda *x: wsfast.fuse_cams(list(x), (side, side), layer_norm=None,
                                           norm=None), tolerance=SUMS)  # fmt: skip
    yield Work("fusion", "fuse_cams forward and backward", f"{batch} x 5 stages to {side}",
               (torch.randn(batch, side, side), *layers), fused_gradients,
               tolerance=SUMS)  # fmt: skip


def boxes_work(batch: int, side: int, bound: Bound) -> Iterator[Work]:
    """Smooth masks and noise, which has many components."""
    for kind, maps in (("smooth", smooth(batch, side)), ("noise", torch.rand(batch, side, side))):
        size, mask = f"({batch}, {side}, {side}) {kind}", maps >= 0.5
        one = bound if kind == "smooth" else Bound()
        yield Work("boxes", "component_boxes", size, (mask,), wsfast.component_boxes, bound=one)
        yield Work("boxes", "connected_components", size, (mask,), wsfast.connected_components)
        yield Work("boxes", "cam_boxes", size, (maps,), wsfast.cam_boxes)
        yield Work("boxes", "cam_boxes, Otsu", size, (maps,),
                   lambda m: wsfast.cam_boxes(m, "otsu"))  # fmt: skip
        yield Work("boxes", "otsu_threshold", size, (maps,), wsfast.otsu_threshold)


def loss_and_gradient(image: Tensor, prob: Tensor) -> tuple[Tensor, Tensor]:
    """The dense-CRF loss forward and backward."""
    variable = prob.detach().requires_grad_()
    loss = wsfast.dense_crf_loss(image, variable)
    return loss.detach(), torch.autograd.grad(loss, variable)[0]


def crf_work(batch: int, side: int, bound: Bound) -> Iterator[Work]:
    """Scenes like photographs, and noise, whose lattice is the largest there can be."""
    prob = torch.rand(batch, 2, side, side).softmax(1)
    natural = scenes(batch, side, torch.Generator().manual_seed(0))
    most = 200 * batch * side * side
    for kind, image in (("natural", natural), ("noise", torch.rand_like(natural) * 255)):
        size, one = f"({batch}, 2, {side}, {side}) {kind}", bound if kind == "natural" else Bound()
        inputs = (image, prob)
        yield Work("crf", "dense_crf_loss forward", size, inputs,
                   lambda i, p: wsfast.dense_crf_loss(i, p), capturable=False,
                   tolerance=LATTICE)  # fmt: skip
        yield Work("crf", "dense_crf_loss forward and backward", size, inputs, loss_and_gradient,
                   capturable=False, bound=one, extra_limit=most, tolerance=LATTICE)  # fmt: skip
    few = natural[: max(1, batch // 8)]
    logits = torch.rand(len(few), 5, side, side)
    yield Work("crf", "mean_field, 5 iterations", f"{tuple(logits.shape)}", (logits, few),
               wsfast.mean_field, capturable=False, tolerance=LATTICE)  # fmt: skip


def seeds_work(batch: int, side: int) -> Iterator[Work]:
    """The settings of F-CAM and DiPS."""
    maps, size = smooth(batch, side), f"({batch}, {side}, {side})"
    pixels = side * side
    dips = {"region": "top", "foreground_share": 0.938, "foreground_weights": "activation",
            "foreground": pixels // 10, "background": pixels // 20,
            "background_share": 0.906}  # fmt: skip
    yield Work("seeds", "sample_seeds, F-CAM", size, (maps,),
               lambda m: wsfast.sample_seeds(m, erode=11, seed=0))  # fmt: skip
    yield Work("seeds", "sample_seeds, DiPS", size, (maps,),
               lambda m: wsfast.sample_seeds(m, seed=0, **dips))  # fmt: skip


def all_work(full: bool) -> Iterator[Work]:
    """Everything: what has a bound first, the largest last; small sizes for a dry run."""
    if not full:
        yield from truncation_work(1, 24)
        yield from fusion_work(2, 32, Bound())
        yield from boxes_work(2, 32, Bound())
        yield from crf_work(2, 24, Bound())
        yield from seeds_work(2, 32)
        return
    yield from truncation_work(64, 224)
    yield from fusion_work(512, 224, Bound(share=0.6))  # several times as much as an L2 cache holds
    yield from boxes_work(64, 224, Bound(milliseconds=0.2))
    yield from crf_work(32, 224, Bound(milliseconds=1.0))
    yield from seeds_work(32, 224)
    yield from fusion_work(64, 224, Bound())  # an L2 cache holds it: no matter of copy bandwidth
    yield from boxes_work(1024, 224, Bound())


def report(found: Measured) -> str:
    """One line about one piece of work."""
    verdict = {True: " REACHED", False: " MISSED", None: ""}[found.reached]
    verdict = " WRONG" if found.wrong else verdict
    return (
        f"{found.room}: {found.name} {found.size}: {found.median:.4f} ms, "
        f"{found.bandwidth / 1e9:.0f} GB/s, {found.share_of_copy:.0%} of copy, "
        f"error {found.error:.1e}{verdict}"
    )


def main() -> int:
    """Measure everything; results are written after each piece of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    device = torch.device(options.device)
    full = device.type == "cuda"
    torch.manual_seed(0)
    clock, rounds = (cuda_clock, 30) if full else (wall_clock, 3)
    l2 = torch.cuda.get_device_properties(0).L2_cache_size if full else 0
    copy = copy_bandwidth(device, clock, 1024 if full else 16, rounds)
    results: dict[str, Any] = {"device": device.type, "copy_bandwidth": copy, "work": []}
    print(f"copy: {copy / 1e9:.0f} GB/s", flush=True)
    broken = 0
    for work in all_work(full):
        try:
            found = measure(work, device, copy, l2, rounds)
            results["work"].append(asdict(found))
            print(report(found), flush=True)
            broken += found.wrong
        except Exception as error:  # the others may still say something
            broken += 1
            print(f"{work.name} {work.size} FAILED: {type(error).__name__}: {error}", flush=True)
            results["work"].append({"room": work.room, "name": work.name, "size": work.size,
                                    "failed": f"{type(error).__name__}: {error}"})  # fmt: skip
        options.out.write_text(json.dumps(results, indent=1))
    if full:  # facts reads them before the device has worked
        clocks = ("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader")
        results["clocks"] = said(*clocks)
    for _ in add_graphs(results["work"], device, rounds) if full else ():
        options.out.write_text(json.dumps(results, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
