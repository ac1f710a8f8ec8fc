"""Connected components, their boxes and Otsu's threshold in pure PyTorch: readable, slow."""

import torch
from torch import Tensor

LEVELS = 256


def _neighbour_minimum(labels: Tensor, connectivity: int) -> Tensor:
    """The smallest label among each pixel and its neighbours; labels (N, H, W)."""
    height, width = labels.shape[1:]
    padded = torch.nn.functional.pad(labels, (1, 1, 1, 1), value=height * width)
    lowest = labels
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            if connectivity == 8 or dy == 1 or dx == 1:
                lowest = torch.minimum(lowest, padded[:, dy : dy + height, dx : dx + width])
    return lowest


def component_roots(mask: Tensor, connectivity: int) -> Tensor:
    """First pixel (raster index) of every pixel's component, H*W for background; (N, H*W).

    Labels sink to the smallest index in the neighbourhood, then jump along the chain of labels;
    the jumps halve the way that is left, so long snakes end in a few rounds.
    """
    n, height, width = mask.shape
    background = height * width
    index = torch.arange(background, device=mask.device).reshape(1, height, width)
    labels = torch.where(mask, index, background)
    while True:
        lowest = torch.where(mask, _neighbour_minimum(labels, connectivity), background)
        chain = torch.cat([lowest.flatten(1), lowest.new_full((n, 1), background)], dim=1)
        chain.scatter_reduce_(1, labels.flatten(1), lowest.flatten(1), "amin")
        for _ in range(4):
            chain = chain.gather(1, chain)
        following = chain[:, :background].reshape(labels.shape)
        if torch.equal(following, labels):
            return labels.flatten(1)
        labels = following


def connected_components(mask: Tensor, *, connectivity: int = 8) -> tuple[Tensor, Tensor]:
    """See :func:`wsfast.connected_components`."""
    mask = mask != 0
    n = mask.shape[0]
    roots = component_roots(mask, connectivity)
    is_root = roots == torch.arange(roots.shape[1], device=mask.device)
    numbers = torch.cat([is_root.cumsum(dim=1), roots.new_zeros(n, 1)], dim=1)
    labels = numbers.gather(1, roots).reshape(mask.shape).int()
    return labels, is_root.sum(dim=1).int()


def _measure_slots(labels: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Area (N, slots) and box (N, slots, 4) of the labels 0..slots-1; labels (N, H, W) int64."""
    n, height, width = labels.shape
    flat = labels.flatten(1)
    y = torch.arange(height, device=labels.device).repeat_interleave(width).expand(n, -1)
    x = torch.arange(width, device=labels.device).repeat(height).expand(n, -1)

    def extreme(start: int, coordinate: Tensor, how: str) -> Tensor:
        return coordinate.new_full((n, slots), start).scatter_reduce(1, flat, coordinate, how)

    area = flat.new_zeros(n, slots).scatter_add(1, flat, torch.ones_like(flat))
    sides = [
        extreme(width, x, "amin"),
        extreme(height, y, "amin"),
        extreme(-1, x, "amax") + 1,
        extreme(-1, y, "amax") + 1,
    ]
    return area, torch.stack(sides, dim=2)


def label_boxes(labels: Tensor, max_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, K, 4) and areas (N, K) of the labels 1..K, -1 where absent; largest labels (N,)."""
    kept = torch.where((labels > 0) & (labels <= max_labels), labels, 0).long()
    area, box = _measure_slots(kept, max_labels + 1)
    area, box = area[:, 1:], box[:, 1:]
    found = area > 0
    return (
        torch.where(found[:, :, None], box, -1).int(),
        torch.where(found, area, -1).int(),
        labels.clamp(min=0).amax(dim=(1, 2)).int(),
    )


def _measure(mask: Tensor, values: Tensor, connectivity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Area (N, K), box (N, K, 4) and sum of values (N, K) of components in raster order."""
    labels, counts = connected_components(mask, connectivity=connectivity)
    slots = int(counts.max()) + 1 if len(mask) else 1  # slot 0 is the background
    labels = labels.long()
    area, box = _measure_slots(labels, slots)
    total = torch.zeros(len(mask), slots, dtype=torch.float64, device=mask.device)
    total = total.scatter_add(1, labels.flatten(1), values.flatten(1).double())
    return area[:, 1:], box[:, 1:], total[:, 1:]


def scored_boxes(
    mask: Tensor, values: Tensor, max_boxes: int, connectivity: int, min_area: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, mean values, areas and counts; area descending, then raster order; -1 pads."""
    area, box, total = _measure(mask != 0, values, connectivity)
    area = torch.where(area >= min_area, area, 0)
    counts = (area > 0).sum(dim=1).int()
    missing = max(0, max_boxes - area.shape[1])
    area = torch.nn.functional.pad(area, (0, missing))
    box = torch.nn.functional.pad(box, (0, 0, 0, missing))
    total = torch.nn.functional.pad(total, (0, missing))
    area, order = area.sort(dim=1, descending=True, stable=True)
    area, order = area[:, :max_boxes], order[:, :max_boxes]
    found = area > 0
    box = box.gather(1, order[:, :, None].expand(-1, -1, 4))
    score = total.gather(1, order) / area
    return (
        torch.where(found[:, :, None], box, -1).int(),
        torch.where(found, score, -1).float(),
        torch.where(found, area, -1).int(),
        counts,
    )


def levels(cams: Tensor) -> Tensor:
    """trunc(255 x) clamped to 0..255, in the map's own precision (half types in float32)."""
    if cams.dtype in (torch.float16, torch.bfloat16):
        cams = cams.float()
    return (cams * 255).nan_to_num(nan=0.0).clamp(0, 255).long()


def _exact_otsu_level(histogram: list[int], start: int) -> int:
    """Python's own integers: maximise (total s1 - n1 sum)^2 / (n1 (total - n1)), first maximum."""
    total = sum(histogram[start:])
    weighted = sum(level * histogram[level] for level in range(start, LEVELS))
    best, best_top, best_bottom = 0, 0, 1
    n1 = s1 = 0
    for level in range(start, LEVELS - 1):
        n1 += histogram[level]
        s1 += level * histogram[level]
        if n1 in (0, total):
            continue
        top, bottom = (total * s1 - n1 * weighted) ** 2, n1 * (total - n1)
        if top * best_bottom > best_top * bottom:
            best, best_top, best_bottom = level, top, bottom
    return best


def otsu_level(cams: Tensor, repeat: int) -> Tensor:
    """(N,) int32 level T of each map; what lies above T is foreground."""
    found = []
    for image in levels(cams):
        histogram = torch.bincount(image.flatten(), minlength=LEVELS).tolist()
        level = _exact_otsu_level(histogram, 0)
        for _ in range(1, repeat):
            level = max(level, _exact_otsu_level(histogram, level + 1))
        found.append(level)
    return torch.tensor(found, dtype=torch.int32, device=cams.device)
