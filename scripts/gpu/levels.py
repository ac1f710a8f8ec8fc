"""What would decide how the levels room serves CUDA maps: its parts, and overlaps, side by side.

Now, maps are quantised on the device, copied as bytes to pageable memory and searched by the CPU
kernel. Timed beside that: the same with pinned memory, in chunks whose copies run while the CPU
searches the chunk before, quantised on the host instead; each part of the present way alone; and
what a search on the device by brute force would cost at least, component_boxes at every 8th level
times eight. Whatever overlap can gain is bounded by the parts that are not the search.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wsfast
from benchmarks.inputs import blobs
from wsfast.ops.levels import reference

STEP = 8  # every so many levels stand for all in the brute force
Search = Callable[[Tensor], tuple[Tensor, ...]]


def quantised(maps: Tensor) -> Tensor:
    """Levels as bytes, where the maps are."""
    return reference.map_levels(maps).to(torch.uint8)


def present(maps: Tensor, search: Search) -> tuple[Tensor, ...]:
    """As the room does it now."""
    return tuple(part.to(maps.device) for part in search(quantised(maps).cpu()))


def through_pinned(maps: Tensor, search: Search) -> tuple[Tensor, ...]:
    """One chunk, copied into pinned memory."""
    return in_chunks(maps, search, 1)


def in_chunks(maps: Tensor, search: Search, chunks: int) -> tuple[Tensor, ...]:
    """Quantise all, copy chunk by chunk into pinned memory, search each as soon as it is here."""
    parts = quantised(maps).chunk(chunks)
    cuda = maps.is_cuda
    hosts, copied = [], []
    for part in parts:
        host = torch.empty(part.shape, dtype=torch.uint8, pin_memory=cuda)
        host.copy_(part, non_blocking=True)
        hosts.append(host)
        if cuda:
            event = torch.cuda.Event()
            event.record()
            copied.append(event)
    found = []
    for number, host in enumerate(hosts):
        if cuda:
            copied[number].synchronize()
        found.append([part.to(maps.device, non_blocking=True) for part in search(host)])
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def on_host(maps: Tensor, search: Search) -> tuple[Tensor, ...]:
    """The float maps themselves are copied; the CPU kernel quantises."""
    return tuple(part.to(maps.device) for part in search(maps.cpu()))


def brute_force(maps: Tensor) -> Tensor:
    """Components of every STEP-th level's mask, on the device."""
    levels = quantised(maps)
    areas = [wsfast.component_boxes(levels > level, max_boxes=1).areas
             for level in range(0, 256, STEP)]  # fmt: skip
    return torch.stack(areas)


def seconds(run: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Wall-clock seconds, the device's work included."""
    taken = []
    for number in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:  # after the warm-up
            taken.append(time.perf_counter() - started)
    return taken


def variants(maps: Tensor, search: Search) -> dict[str, Callable[[], object]]:
    """Whole ways first, then the parts of the present one."""
    levels = quantised(maps)
    host = levels.cpu()
    pinned = torch.empty(host.shape, dtype=torch.uint8, pin_memory=maps.is_cuda)
    found = search(host)
    return {
        "now: device quantises, pageable copy": lambda: present(maps, search),
        "pinned copy": lambda: through_pinned(maps, search),
        "pinned, 4 chunks overlapped": lambda: in_chunks(maps, search, 4),
        "pinned, 16 chunks overlapped": lambda: in_chunks(maps, search, 16),
        "host quantises": lambda: on_host(maps, search),
        "part: quantise": lambda: quantised(maps),
        "part: pageable copy": lambda: levels.cpu(),
        "part: pinned copy": lambda: pinned.copy_(levels, non_blocking=True),
        "part: CPU search": lambda: search(host),
        "part: results back": lambda: [part.to(maps.device) for part in found],
        f"device by brute force, 1/{STEP} of the levels": lambda: brute_force(maps),
    }


def same_results(maps: Tensor, search: Search) -> bool:
    """Whether the whole ways agree."""
    expected = present(maps, search)
    others = (through_pinned(maps, search), in_chunks(maps, search, 4), on_host(maps, search))
    return all(
        torch.equal(one, two) for other in others for one, two in zip(expected, other, strict=True)
    )


def compare(kind: str, maps: Tensor, device: torch.device, rounds: int) -> dict[str, Any]:
    """All variants on one kind of maps, in milliseconds, and the way that they suggest."""

    def search(given: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.wsfast.level_boxes(given)[:2]

    on_device = maps.to(device)
    runs = variants(on_device, search)
    taken = {name: seconds(run, device, rounds) for name, run in runs.items()}
    medians = {name: 1e3 * statistics.median(values) for name, values in taken.items()}
    spread = {name: [1e3 * min(values), 1e3 * max(values)] for name, values in taken.items()}
    brute = f"device by brute force, 1/{STEP} of the levels"
    whole = {name: ms for name, ms in medians.items() if not name.startswith(("part", "device"))}
    whole["whole search on the device by brute force, extrapolated"] = STEP * medians[brute]
    search_share = medians["part: CPU search"] / medians["now: device quantises, pageable copy"]
    return {
        "maps": f"{tuple(maps.shape)} {kind}",
        "same_results": same_results(on_device, search),
        "milliseconds": medians,
        "spread": spread,
        "search_share": search_share,
        "fastest": min(whole, key=lambda name: whole[name]),
        "whole": whole,
    }


def main() -> int:
    """Measure, write, and say what it suggests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    device = torch.device(options.device)
    batch, side, rounds = (64, 224, 10) if device.type == "cuda" else (2, 32, 2)
    generator = torch.Generator().manual_seed(0)
    kinds = {
        "smooth": blobs(batch, side, generator, cells=7),
        "mid": blobs(batch, side, generator, cells=28),
        "noise": torch.rand(batch, side, side, generator=generator),
    }
    results = []
    for kind, maps in kinds.items():
        results.append(compare(kind, maps, device, rounds))
        options.out.write_text(json.dumps(results, indent=1))
    for result in results:
        print(f"{result['maps']}: fastest: {result['fastest']}; the CPU search is "
              f"{result['search_share']:.0%} of the present way")  # fmt: skip
        for name, ms in result["milliseconds"].items():
            print(f"   {name}: {ms:.3f} ms")
    return 0 if all(result["same_results"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
