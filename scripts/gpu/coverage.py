"""Which check of kernels.py launches which CUDA kernel, and whether it did.

``LAUNCHED_BY`` names every ``__global__`` function of csrc; a test of the default suite compares it
with the sources. On a GPU the profiler's names of what was launched are compared with it, and with
the template instances in ptxas_budget.json.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGET = ROOT / "scripts" / "ptxas_budget.json"
DECLARATION = re.compile(
    r"(?:WS_GLOBAL|__global__)\s+(?:inline\s+)?void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\("
)

LAUNCHED_BY: dict[str, dict[str, tuple[str, ...]]] = {
    "truncation": {
        "truncation": (
            "select_short_row_kernel", "select_row_kernel", "interpolate_kernel",
            "map_weight_kernel", "weighted_cam_kernel", "kept_product_cam_kernel",
        ),
        "truncation_long": (
            "count_digits_kernel", "pick_digit_kernel", "keep_kernel", "look_below_kernel",
            "interpolate_long_kernel",
        ),
    },
    "fusion": {
        "fusion": ("layer_stats_kernel", "reduce_kernel", "normalize_kernel"),
        "fusion_gradient": (
            "finite_kernel", "output_sums_kernel", "output_gradient_kernel",
            "resize_gradient_kernel", "layer_gradient_kernel",
        ),
    },
    "boxes": {
        "components": (
            "pack_kernel", "join_kernel", "flatten_kernel", "scan_rows_kernel", "number_kernel",
            "label_kernel",
        ),
        "boxes": (
            "size_kernel", "select_kernel", "box_kernel", "begin_maps_kernel", "sum_kernel",
            "score_kernel",
        ),
        "otsu": ("begin_histograms_kernel", "histogram_kernel", "otsu_kernel"),
    },
    "crf": {
        "lattice": (
            "begin_kernel", "widen_kernel", "space_kernel", "embed_kernel", "number_kernel",
            "offset_kernel", "settle_kernel", "neighbour_kernel",
        ),
        "crf": (
            "begin_exponents_kernel", "exponent_kernel", "clear_kernel", "splat_kernel",
            "settle_sums_kernel", "blur_kernel", "energy_kernel", "slice_kernel",
        ),
    },
    "seeds": {
        "seeds": (
            "region_kernel", "erode_rows_kernel", "erode_columns_kernel", "draw_kernel",
            "claim_rows_kernel", "write_seeds_kernel", "keys_kernel",
        ),
    },
}  # fmt: skip


def declared_kernels(root: Path = ROOT) -> set[str]:
    """Every ``__global__`` function of csrc, as ``room::kernel``."""
    found: set[str] = set()
    for path in (*root.glob("csrc/ops/*/*.cuh"), *root.glob("csrc/ops/*/*.cu")):
        found |= {f"{path.parent.name}::{name}" for name in DECLARATION.findall(path.read_text())}
    return found


def table_kernels() -> set[str]:
    """Every kernel of ``LAUNCHED_BY``, as ``room::kernel``."""
    return {
        f"{room}::{kernel}"
        for room, checks in LAUNCHED_BY.items()
        for kernels in checks.values()
        for kernel in kernels
    }


def readable(name: str) -> str:
    """A profiler's kernel name as the budget writes it: no return type, arguments or wsfast::."""
    depth, end = 0, len(name)
    for place, sign in enumerate(name):
        depth += (sign == "<") - (sign == ">")
        if sign == "(" and depth == 0:
            end = place
            break
    return name[:end].removeprefix("void ").replace("wsfast::", "").strip()


def nothing_seen(launched: Iterable[str]) -> bool:
    """Whether the profile holds no kernel at all, not even torch's: it tells nothing of ours."""
    return not any("::" in name for name in launched)


def compare(launched: Iterable[str]) -> dict[str, list[str]]:
    """What was not launched: kernels of the sources, and instances of the budget."""
    names = {readable(name) for name in launched if "wsfast::" in name}
    kernels = {name.split("<", 1)[0] for name in names}
    instances = set(json.loads(BUDGET.read_text())["kernels"])
    return {
        "launched": sorted(names),
        "missing_kernels": sorted((declared_kernels() | table_kernels()) - kernels),
        "missing_instances": sorted(instances - names),
    }
