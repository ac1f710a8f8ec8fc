"""The permutohedral lattice and the dense-CRF energy in pure PyTorch: readable, public, slow.

Conventions of Adams et al., "Fast High-Dimensional Filtering Using the Permutohedral Lattice"
(2010), as Kraehenbuehl and Koltun (2011) apply them: blur with (1/2, 1, 1/2) along axes 0..d,
vertices that hold no point count as 0, and the result is scaled by 1 / (1 + 2^-d).

Features are raw values times one coefficient per axis, so that sigmas cost no pass of their own.
Tensors here are those of one image, points first, unless the shape says otherwise.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_DIMENSION = 8
KEY_BITS = 62
QUOTIENT_BITS = {torch.float32: 18, torch.float64: 30}  # more would leave too few for the weights
_BLOCK_PAIRS = 1 << 24  # of points held at once by the exact filter
DENSE_REFINEMENT = 1.5  # rho of the dense vertex method

LatticeTensors = tuple[Tensor, Tensor, Tensor, Tensor]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def elevation_scales(d: int) -> list[float]:
    """Per axis: the factor after which the lattice's blur has unit variance."""
    return [(d + 1) * math.sqrt(2 / 3) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]


def elevate(features: Tensor, scale: Sequence[float]) -> Tensor:
    """(P, d) to (P, d + 1): coordinates in the plane of vectors whose sum is 0."""
    d = features.shape[1]
    total = torch.zeros_like(features[:, 0])
    elevated = [total] * (d + 1)
    for j in range(d, 0, -1):
        scaled = features[:, j - 1] * scale[j - 1]
        elevated[j] = total - scaled * j
        total = total + scaled
    elevated[0] = total
    return torch.stack(elevated, dim=1)


def find_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quotients and ranks (P, d + 1) int64 of the enclosing simplex, and barycentric weights.

    The vertex of colour 0 is (d + 1) times the quotients; the axis with rank r takes part in the
    step from vertex d - r to the next.
    """
    d = elevated.shape[1] - 1
    quotient = (elevated * (1 / (d + 1))).round()
    rest = elevated - quotient * (d + 1)
    order = rest.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1) + quotient.sum(dim=1, keepdim=True).long()
    wrap = (rank < 0).long() - (rank > d).long()
    rank, whole = rank + (d + 1) * wrap, quotient.long() + wrap
    value = (elevated - whole.to(elevated.dtype) * (d + 1)) * (1 / (d + 1))
    by_rank = torch.empty_like(value).scatter_(1, rank, value)
    weights = torch.empty_like(value)
    weights[:, 0] = 1 + by_rank[:, d] - by_rank[:, 0]
    for k in range(1, d + 1):
        weights[:, k] = by_rank[:, d - k] - by_rank[:, d + 1 - k]
    return whole, rank, weights


def corner_coordinates(quotient: Tensor, rank: Tensor) -> Tensor:
    """(P, d + 1, d + 1) int64: the coordinates of the d + 1 vertices of each simplex."""
    d = quotient.shape[1] - 1
    colours = torch.arange(d + 1, device=quotient.device)[:, None]
    step = torch.where(rank[:, None, :] <= d - colours, colours, colours - (d + 1))
    return quotient[:, None, :] * (d + 1) + step


def quotient_bounds(
    bounds: Sequence[tuple[float, float]], scale: Sequence[float]
) -> list[tuple[float, float]]:
    """First and end of the quotients on each of the first d axes, from (low, high) of raw features.

    Margins hold the vertices around the points and their neighbours.
    """
    d = len(bounds)
    lows = [low * c for (low, _), c in zip(bounds, scale, strict=True)]
    highs = [high * c for (_, high), c in zip(bounds, scale, strict=True)]
    found: list[tuple[float, float]] = []
    for j in range(d):
        low = sum(lows[j:]) - (j * highs[j - 1] if j else 0)
        high = sum(highs[j:]) - (j * lows[j - 1] if j else 0)
        if not (math.isfinite(low) and math.isfinite(high)):
            return [(-math.inf, math.inf)]
        found.append((math.floor(low / (d + 1)) - 3, math.ceil(high / (d + 1)) + 4))
    return found


def key_bits(bounds: Sequence[tuple[float, float]], scale: Sequence[float]) -> tuple[float, float]:
    """Bits of the largest packed vertex key, and of the largest quotient in it.

    A key holds the range of the quotients, but the features' type holds the quotients as they are.
    """
    quotients = quotient_bounds(bounds, scale)
    key = math.log2(len(bounds) + 1) + sum(math.log2(end - first) for first, end in quotients)
    return key, math.log2(max(max(-first, end) for first, end in quotients))


def feature_bounds(features: Tensor) -> list[tuple[float, float]]:
    """Lowest and highest value of each axis of (P, d) features."""
    low, high = features.amin(dim=0).tolist(), features.amax(dim=0).tolist()
    return list(zip(low, high, strict=True))


def holds(features: Tensor, scale: Sequence[float]) -> bool:
    """Whether (P, d) features are finite and their vertex keys fit."""
    bounds = feature_bounds(features)
    finite = all(math.isfinite(low) and math.isfinite(high) for low, high in bounds)
    if not finite:
        return False
    key, quotient = key_bits(bounds, scale)
    return key <= KEY_BITS and quotient <= QUOTIENT_BITS[features.dtype]


def _lookup(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Positions of ``wanted`` among unique sorted keys as int32, -1 where absent."""
    at = torch.searchsorted(sorted_keys, wanted).clamp(max=sorted_keys.shape[0] - 1)
    return torch.where(sorted_keys[at] == wanted, at, -1).int()


def build_image(features: Tensor, scale: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """The lattice of one image.

    Args:
        features: (P, d) raw features, float32 or float64.
        scale: per axis, 1 / sigma times the elevation scale.

    Returns:
        Vertices (P, d + 1) int32, weights (P, d + 1), neighbours (d + 1, 2, M) int32 with -1 where
        there is none. Vertices are numbered by key.
    """
    d = features.shape[1]
    quotient, rank, weights = find_simplex(elevate(features, scale))
    corners = corner_coordinates(quotient, rank)[:, :, :d]
    cells = corners.div(d + 1, rounding_mode="floor")  # and the colour: coordinates modulo d + 1
    low = cells.amin(dim=(0, 1)) - 1
    ranges = (cells.amax(dim=(0, 1)) - low + 2).tolist()
    strides = [(d + 1) * math.prod(ranges[:i]) for i in range(d)]
    stride = torch.tensor(strides, device=features.device)
    colours = torch.arange(d + 1, device=features.device)
    keys, vertices = torch.unique(
        ((cells - low) * stride).sum(dim=2) + colours, return_inverse=True
    )
    return vertices.int(), weights, _find_neighbours(keys, strides)


def _find_neighbours(keys: Tensor, strides: list[int]) -> Tensor:
    """(d + 1, 2, M): one step changes all coordinates by -1 and the axis' own by +d, or back."""
    d = len(strides)
    colour = keys % (d + 1)
    wrap = d - sum(strides)  # from colour 0 to colour d: all cells one lower
    forth = keys + torch.where(colour == 0, wrap, -1)
    back = keys - torch.where(colour == d, wrap, -1)
    return torch.stack(
        [
            torch.stack([_lookup(keys, forth + stride), _lookup(keys, back - stride)])
            for stride in [*strides, 0]
        ]
    )


def _build(raw: Sequence[Tensor], coefficients: Sequence[float]) -> LatticeTensors:
    """The lattices of several images of (P, d) raw features; see :func:`build_lattice`."""
    d = len(coefficients)
    scale = [c * s for c, s in zip(coefficients, elevation_scales(d), strict=True)]
    like = raw[0]
    vertices = like.new_zeros((len(raw), like.shape[0], d + 1), dtype=torch.int32)
    weights = like.new_zeros((len(raw), like.shape[0], d + 1))
    neighbours = [like.new_empty((d + 1, 2, 0), dtype=torch.int32)]
    counts = [0]
    for n, features in enumerate(raw):
        if holds(features, scale):
            vertices[n], weights[n], found = build_image(features, scale)
            neighbours.append(found)
        counts.append(neighbours[-1].shape[2] if holds(features, scale) else 0)
    offsets = torch.tensor(counts, device=like.device).cumsum(dim=0)
    return vertices, weights, torch.cat(neighbours, dim=2), offsets


def build_lattice(features: Tensor) -> LatticeTensors:
    """Lattices of (B, d, P) features in units of sigma.

    Returns:
        Vertices (B, P, d + 1) int32 and weights (B, P, d + 1) of every point's simplex, neighbours
        (d + 1, 2, M) int32 of all images one after the other (-1: none), offsets (B + 1,) int64 of
        the images in M. Vertices are numbered within their image. An image whose features are not
        finite or leave the range of keys has no vertices.
    """
    points = features.to(accumulate_dtype(features.dtype)).transpose(1, 2)
    if points.shape[0] == 0:
        return _empty_lattice(points)
    return _build(list(points), [1.0] * features.shape[1])


def _empty_lattice(points: Tensor) -> LatticeTensors:
    count, d = points.shape[1:]
    corners = points.new_empty((0, count, d + 1))
    neighbours = points.new_empty((d + 1, 2, 0), dtype=torch.int32)
    return corners.int(), corners, neighbours, points.new_zeros(1, dtype=torch.int64)


def raw_bilateral_features(image: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) to (B, P, 2 + C): column, row and colours of every pixel."""
    b, _, height, width = image.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=image.device, dtype=dtype),
        torch.arange(width, device=image.device, dtype=dtype),
        indexing="ij",
    )
    grid = torch.stack([x, y]).expand(b, 2, height, width)
    return torch.cat([grid, image.to(dtype)], dim=1).flatten(2).transpose(1, 2)


def bilateral_coefficients(sigma_rgb: Sequence[float], sigma_xy: float) -> list[float]:
    """1 / sigma of every axis."""
    return [1 / sigma_xy, 1 / sigma_xy, *(1 / sigma for sigma in sigma_rgb)]


def build_bilateral_lattice(
    image: Tensor, sigma_rgb: Sequence[float], sigma_xy: float, in_double: bool
) -> LatticeTensors:
    """:func:`build_lattice` of pixels: position / sigma_xy and colour / sigma_rgb."""
    points = raw_bilateral_features(image, torch.float64 if in_double else torch.float32)
    if points.shape[0] == 0:
        return _empty_lattice(points)
    return _build(list(points), bilateral_coefficients(sigma_rgb, sigma_xy))


def splat(values: Tensor, vertices: Tensor, weights: Tensor, count: int) -> Tensor:
    """(P, K) values to (count, K) sums on the vertices."""
    spread = (weights[:, :, None] * values[:, None, :]).flatten(0, 1)
    out = values.new_zeros(count, values.shape[1])
    return out.index_add_(0, vertices.flatten().long(), spread)


def blur(values: Tensor, neighbours: Tensor, *, transpose: bool = False) -> Tensor:
    """(M, K) through (1/2, 1, 1/2) along every axis of (d + 1, 2, M); the adjoint goes backwards.

    The blurs of two axes do not commute, as vertices without points are missing.
    """
    axes = range(neighbours.shape[0])
    for axis in reversed(axes) if transpose else axes:
        padded = torch.cat([values, torch.zeros_like(values[:1])])  # row -1: no neighbour
        one, other = neighbours[axis].long()
        values = values + 0.5 * (padded[one] + padded[other])
    return values


def blur_direction(values: Tensor, neighbours: Tensor, direction: str) -> Tensor:
    """B, its adjoint or the mean of both, by ``direction``, scaled to a peak of about 1."""
    alpha = 1 / (1 + 2.0 ** (1 - neighbours.shape[0]))
    if direction == "symmetric":
        both = blur(values, neighbours) + blur(values, neighbours, transpose=True)
        return both * (0.5 * alpha)
    return blur(values, neighbours, transpose=direction == "transpose") * alpha


def slice_back(values: Tensor, vertices: Tensor, weights: Tensor) -> Tensor:
    """(M, K) on vertices to (P, K) on points: the adjoint of :func:`splat`."""
    return (weights[:, :, None] * values[vertices.long()]).sum(dim=1)


def lattice_filter(
    values: Tensor,
    vertices: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    offsets: Tensor,
    direction: str,
) -> Tensor:
    """Filter (B, K, P) values; NaN for images without vertices."""
    ends = offsets.tolist()
    filtered = []
    for n, points in enumerate(values.to(weights.dtype).transpose(1, 2)):
        first, last = ends[n], ends[n + 1]
        if first == last:
            filtered.append(torch.full_like(points, math.nan))
            continue
        on_vertices = splat(points, vertices[n], weights[n], last - first)
        on_vertices = blur_direction(on_vertices, neighbours[:, :, first:last], direction)
        filtered.append(slice_back(on_vertices, vertices[n], weights[n]))
    if not filtered:
        return torch.empty_like(values)
    return torch.stack(filtered).transpose(1, 2).to(values.dtype).contiguous()


def lattice_energy(
    values: Tensor,
    vertices: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    offsets: Tensor,
    direction: str,
    with_filtered: bool,
) -> tuple[Tensor, Tensor]:
    """Energies s' A s of (B, K, P) values s, (B, K), and A s where asked for."""
    wide = values.to(weights.dtype)
    filtered = lattice_filter(wide, vertices, weights, neighbours, offsets, direction)
    energy = (wide * filtered).sum(dim=2)
    return energy, filtered.to(values.dtype) if with_filtered else values.new_empty(0)


def dense_crf_energy(
    image: Tensor,
    values: Tensor,
    roi: Tensor | None,
    sigma_rgb: Sequence[float],
    sigma_xy: float,
    direction: str,
    with_filtered: bool,
) -> tuple[Tensor, Tensor]:
    """Energies s' A s of every image and channel, and A s where asked for.

    Args:
        image: (B, C, H, W).
        values: (B, K, H, W).
        roi: (B, H, W) factors of the values, on both sides of A, or None.
        sigma_rgb: per channel.
        sigma_xy: in pixels.
        direction: of A: ``"symmetric"``, ``"forward"`` or ``"transpose"``.
        with_filtered: False leaves the second result empty.

    Returns:
        (B, K) in float32, or float64 for float64 values; (B, K, H, W) like ``values`` or (0,).
    """
    dtype = accumulate_dtype(values.dtype)
    masked = values.to(dtype)
    if roi is not None:
        masked = masked * roi[:, None].to(dtype)
    lattice = build_bilateral_lattice(image, sigma_rgb, sigma_xy, dtype == torch.float64)
    energy, filtered = lattice_energy(masked.flatten(2), *lattice, direction, with_filtered)
    if not with_filtered:
        return energy, values.new_empty(0)
    filtered = filtered.view_as(masked)
    if roi is not None:
        filtered = filtered * roi[:, None].to(dtype)
    return energy, filtered.to(values.dtype)


def gaussian_matvec(features: Tensor, values: Tensor, variance: float = 1.0) -> Tensor:
    """Rows sum_j exp(-|f_i - f_j|^2 / (2 variance)) x_j of (P, d) and (P, K), block by block."""
    scaled = features / math.sqrt(variance)
    scaled = scaled - scaled.mean(dim=0)  # shorter vectors cancel less
    half_norms = 0.5 * scaled.square().sum(dim=1)
    count = features.shape[0]
    rows = max(1, _BLOCK_PAIRS // max(1, count))
    blocks = []
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        exponent = scaled[part] @ scaled.T - half_norms[part, None] - half_norms
        blocks.append(exponent.clamp_(max=0).exp_() @ values)
    return torch.cat(blocks) if blocks else torch.zeros_like(values)


def vertex_positions(features: Tensor, vertices: Tensor, count: int) -> Tensor:
    """(M, d) positions of vertices in the space of (P, d) features."""
    d = features.shape[1]
    scale = elevation_scales(d)
    quotient, rank, _ = find_simplex(elevate(features, scale))
    corners = corner_coordinates(quotient, rank).to(features.dtype)
    coordinates = features.new_empty(count, d + 1)
    coordinates[vertices.flatten().long()] = corners.flatten(0, 1)
    position = features.new_empty(count, d)
    total = torch.zeros_like(position[:, 0])  # the inverse of elevate, from the last axis on
    for j in range(d, 0, -1):
        scaled = (total - coordinates[:, j]) / j
        position[:, j - 1] = scaled / scale[j - 1]
        total = total + scaled
    return position


def gaussian_filter(values: Tensor, features: Tensor, method: str) -> Tensor:
    """Filter (B, K, P) by the Gaussian of (B, d, P) features, ``"exact"`` or ``"dense"``.

    Dense: points are splat on a lattice refined by rho, and the exact Gaussian acts between its
    vertices. Splat and slice each carry 1 / (8 rho^2) of the variance, which it leaves out.
    """
    dtype = accumulate_dtype(values.dtype)
    filtered = []
    pairs = zip(features.to(dtype).transpose(1, 2), values.to(dtype).transpose(1, 2), strict=True)
    for points, x in pairs:
        if not bool(points.isfinite().all()):
            filtered.append(torch.full_like(x, math.nan))
        elif method == "exact":
            filtered.append(gaussian_matvec(points, x))
        else:
            filtered.append(_dense_filter(points * DENSE_REFINEMENT, x))
    if not filtered:
        return torch.empty_like(values)
    return torch.stack(filtered).transpose(1, 2).to(values.dtype).contiguous()


def _dense_filter(refined: Tensor, values: Tensor) -> Tensor:
    d = refined.shape[1]
    scale = elevation_scales(d)
    if not holds(refined, scale):
        return torch.full_like(values, math.nan)
    vertices, weights, neighbours = build_image(refined, scale)
    count = neighbours.shape[2]
    variance = 1 - 0.25 / DENSE_REFINEMENT**2
    positions = vertex_positions(refined, vertices, count) / DENSE_REFINEMENT
    on_vertices = splat(values, vertices, weights, count)
    blurred = gaussian_matvec(positions, on_vertices, variance) * variance ** (-d / 2)
    return slice_back(blurred, vertices, weights)
