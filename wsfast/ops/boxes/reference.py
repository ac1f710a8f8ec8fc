"""Otsu thresholds, connected components and boxes in pure PyTorch: readable, public, slow."""

import torch
from torch import Tensor

LEVELS = 256


# --- Otsu ------------------------------------------------------------------------------------


def levels(cams: Tensor) -> Tensor:
    """``trunc(255 x)`` clamped to 0..255, int64; half types are widened to float32 first."""
    wide = accumulate(cams)
    return (wide * 255).clamp(0, LEVELS - 1).nan_to_num().long()


def level_edges(dtype: torch.dtype) -> Tensor:
    """The smallest number of each level 0..256: ``x >= edge[L]`` says ``trunc(255 x) >= L``."""
    whole = torch.arange(LEVELS + 1, dtype=dtype)
    edge = whole / 255
    up, down = torch.tensor(torch.inf, dtype=dtype), torch.tensor(-torch.inf, dtype=dtype)
    edge = torch.where(edge * 255 < whole, torch.nextafter(edge, up), edge)
    below = torch.nextafter(edge, down)
    return torch.where(below * 255 >= whole, below, edge)


def otsu_level(histogram: list[int], above: int, otherwise: int) -> int:
    """Otsu's level of the levels after ``above``, ``otherwise`` if there are fewer than two.

    The first T of the highest ``(n2 s1 - n1 s2)^2 / (n1 n2)`` (Otsu 1979, eq. 18) over the splits
    into n1 pixels up to T and n2 beyond, with sums s1 and s2; whole numbers, so ties are exact.
    """
    kept = [(level, n) for level, n in enumerate(histogram) if level > above and n > 0]
    count = sum(n for _, n in kept)
    total = sum(level * n for level, n in kept)
    found, numerator, denominator = otherwise, 0, 1
    n1 = s1 = 0
    for level, n in kept[:-1]:
        n1, s1 = n1 + n, s1 + level * n
        n2, s2 = count - n1, total - s1
        square = (n2 * s1 - n1 * s2) ** 2
        if square * denominator > numerator * n1 * n2:
            found, numerator, denominator = level, square, n1 * n2
    return found


def otsu_threshold(cams: Tensor, *, repeat: int = 1) -> Tensor:
    """See :func:`wsfast.otsu_threshold`."""
    n = cams.shape[0]
    index = levels(cams).flatten(1) + LEVELS * torch.arange(n, device=cams.device)[:, None]
    histograms = index.flatten().bincount(minlength=n * LEVELS).reshape(n, LEVELS)
    found = []
    for histogram in histograms.tolist():
        level = otsu_level(histogram, -1, 0)
        for _ in range(repeat - 1):
            level = otsu_level(histogram, level, level)
        found.append(level + 1)
    wide = accumulate(cams)
    edges = level_edges(wide.dtype)[torch.tensor(found, dtype=torch.long)].to(cams.device)
    return torch.where(cams.isnan().flatten(1).any(1), torch.nan, edges)


def accumulate(cams: Tensor) -> Tensor:
    """Half types are compared and summed in float32."""
    return cams.float() if cams.dtype in (torch.float16, torch.bfloat16) else cams


# --- connected components --------------------------------------------------------------------


def _lowest_neighbour(values: Tensor, foreground: Tensor, connectivity: int) -> Tensor:
    """The smallest value of the foreground pixels around each pixel and of the pixel itself."""
    nothing = values.numel()
    outside = torch.where(foreground, values, nothing)
    padded = torch.nn.functional.pad(outside, (1, 1, 1, 1), value=nothing)
    lowest = outside
    _, height, width = values.shape
    for dy in range(3):
        for dx in range(3):
            if connectivity == 8 or dy == 1 or dx == 1:
                lowest = torch.minimum(lowest, padded[:, dy : dy + height, dx : dx + width])
    return lowest


def _roots(foreground: Tensor, connectivity: int) -> Tensor:
    """For every foreground pixel the lowest linear index of its component (FastSV hooking)."""
    parent = torch.arange(foreground.numel(), device=foreground.device)
    inside = foreground.flatten()
    while True:
        grandparent = parent[parent]
        lowest = _lowest_neighbour(grandparent.view_as(foreground), foreground, connectivity)
        lowest = torch.where(inside, lowest.flatten(), parent)
        following = parent.scatter_reduce(0, parent, lowest, "amin")  # hook the trees' roots
        following = torch.minimum(torch.minimum(following, lowest), grandparent)
        following = following[following]  # jump half the way up
        if torch.equal(following, parent):
            return parent
        parent = following


def connected_components(mask: Tensor, *, connectivity: int = 8) -> tuple[Tensor, Tensor]:
    """See :func:`wsfast.connected_components`."""
    foreground = mask != 0
    n = mask.shape[0]
    root = _roots(foreground, connectivity)
    first = foreground.flatten() & (root == torch.arange(root.numel(), device=mask.device))
    number = first.reshape(n, -1).cumsum(dim=1)
    counts = first.reshape(n, -1).sum(dim=1)
    labels = torch.where(foreground.flatten(), number.flatten()[root], 0)
    return labels.view_as(mask).int(), counts.int()


# --- boxes -----------------------------------------------------------------------------------


def _column_and_row(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates of every pixel of the batch, flat."""
    _, height, width = labels.shape
    y = torch.arange(height, device=labels.device)[:, None].expand_as(labels)
    x = torch.arange(width, device=labels.device).expand_as(labels)
    return x.flatten(), y.flatten()


def _measure(labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Areas (N, M+1) and boxes (N, M+1, 4) of the labels 0..M of each map, int64."""
    n = labels.shape[0]
    size = n * (most + 1)
    key = _label_key(labels, most)
    x, y = _column_and_row(labels)
    areas = key.bincount(minlength=size)
    sides = []
    for values, how in ((x, "amin"), (y, "amin"), (x + 1, "amax"), (y + 1, "amax")):
        side = areas.new_zeros(size)
        sides.append(side.scatter_reduce(0, key, values, how, include_self=False))
    return areas.reshape(n, -1), torch.stack(sides, dim=-1).reshape(n, most + 1, 4)


def _label_key(labels: Tensor, most: int) -> Tensor:
    """One number per map and label, flat."""
    offset = (most + 1) * torch.arange(labels.shape[0], device=labels.device)
    return (labels + offset[:, None, None]).flatten()


def _most(counts: Tensor) -> int:
    return int(counts.max()) if counts.numel() > 0 else 0


def _largest(areas: Tensor, max_boxes: int, min_area: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (N, K) of the largest components, which of them exist, and the counts."""
    candidate = areas >= max(min_area, 1)
    candidate[:, 0] = False  # the background
    order = torch.where(candidate, areas, -1).sort(dim=1, descending=True, stable=True).indices
    chosen = torch.nn.functional.pad(order, (0, max_boxes))[:, :max_boxes]
    counts = candidate.sum(dim=1)
    kept = torch.arange(max_boxes, device=areas.device) < counts[:, None]
    return chosen, kept, counts


def _boxes(
    labels: Tensor, most: int, max_boxes: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, areas, counts and the label in each place (0 where padded)."""
    areas, boxes = _measure(labels, most)
    chosen, kept, counts = _largest(areas, max_boxes, min_area)
    picked = boxes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
    picked = torch.where(kept.unsqueeze(-1), picked, -1)
    picked_areas = torch.where(kept, areas.gather(1, chosen), -1)
    return picked.int(), picked_areas.int(), counts.int(), torch.where(kept, chosen, 0)


def component_boxes(
    mask: Tensor, *, max_boxes: int = 64, connectivity: int = 8, min_area: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`wsfast.component_boxes`."""
    labels, counts = connected_components(mask, connectivity=connectivity)
    return _boxes(labels, _most(counts), max_boxes, min_area)[:3]


def cam_boxes(
    cams: Tensor,
    thresholds: Tensor,
    *,
    max_boxes: int = 64,
    connectivity: int = 8,
    min_area: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`wsfast.cam_boxes`; one threshold per map, (N,)."""
    wide = accumulate(cams)
    invalid = wide.isnan().flatten(1).any(dim=1) | thresholds.isnan()
    mask = (wide >= thresholds[:, None, None]) & ~invalid[:, None, None]
    labels, found = connected_components(mask, connectivity=connectivity)
    most = _most(found)
    boxes, areas, counts, chosen = _boxes(labels, most, max_boxes, min_area)
    sums = torch.zeros(cams.shape[0] * (most + 1), dtype=torch.float64, device=cams.device)
    sums.index_add_(0, _label_key(labels, most), wide.flatten().double())
    scores = sums.reshape(-1, most + 1).gather(1, chosen) / areas
    scores = torch.where(chosen > 0, scores, 0).float()
    return boxes, scores, areas, torch.where(invalid, -1, counts)
