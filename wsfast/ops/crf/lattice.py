"""The permutohedral lattice as an object to keep, and linear filtering with it."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..._check import (
    check_choice,
    check_floating,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    out_of_sight,
    type_error,
    value_error,
)
from . import reference
from ._inputs import (
    check_image,
    check_points,
    check_sigmas,
    explain_failure,
    explain_points,
    sigma_list,
)
from .reference import accumulate_dtype


def _for_training_too() -> AbstractContextManager[object]:
    """Where a lattice is made: backward passes cannot keep tensors of inference mode."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


class Lattice:
    r"""Permutohedral lattices of a batch of point clouds, built once and used many times.

    Filtering with it approximates :math:`y_i = \sum_j \exp(-\frac12 \|f_i - f_j\|^2)\, x_j` in
    O(N d^2) (Adams et al. 2010).

    Args:
        features: (B, d, *spatial) in units of sigma, d of 1 to 8, float32 or float64 (half types
            are taken as float32), any strides. Without gradient.

    Attributes:
        vertices: (B, P, d + 1) int32, the simplex of every point, numbered within its image.
        weights: (B, P, d + 1) float32 or float64, barycentric, of sum 1.
        neighbours: (d + 1, 2, M) int32, of all images' vertices one after the other along each axis
            of the blur; -1 where there is none.
        offsets: (B + 1,) int64, where the images' vertices begin among M.
        spatial: shape of the points.

    Raises:
        ValueError: wrong shape, d outside 1-8, features that require grad; on the CPU also features
            that are not finite, span more than 62-bit keys hold or lie further from 0 than lattice
            coordinates of 18 bits reach (30 in float64). Elsewhere such an image filters to NaN.
        TypeError: features not a floating-point tensor.

    Note:
        Deterministic, but for the numbers of vertices on CUDA, which change no result; equal for
        any number of threads, and each image as if it were alone. Keeps
        8 (d + 1) bytes per point and 8 (d + 1) per vertex in float32. Saves the building, of every
        use but the first, and nothing else: see the guide to training for where that pays.

    Example:
        >>> lattice = Lattice(torch.rand(2, 3, 10, 12) * 4)
        >>> lattice.spatial, lattice.dimension
        ((10, 12), 3)
        >>> lattice_filter(torch.ones(2, 1, 10, 12), lattice).shape
        torch.Size([2, 1, 10, 12])
    """

    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    offsets: Tensor
    spatial: tuple[int, ...]

    def __init__(self, features: Tensor) -> None:
        check_tensor("Lattice", "features", features)
        check_floating("Lattice", "features", features)
        if features.dim() < 3 or not 1 <= features.shape[1] <= reference.LARGEST_DIMENSION:
            value_error(
                "Lattice",
                "features",
                "of shape (B, d, *spatial) with d of 1 to 8",
                f"shape {list(features.shape)}",
            )
        if features.requires_grad:
            value_error(
                "Lattice", "features", "without gradient (detach them)", "requires_grad=True"
            )
        points = math.prod(features.shape[2:])
        check_points("Lattice", "features", features, points, features.shape[1] + 1)
        flat = features.flatten(2)
        with _for_training_too():
            tensors = torch.ops.wsfast.build_lattice(flat)
        self._keep(tensors, tuple(features.shape[2:]))
        if self._failed():
            dtype = self.weights.dtype
            scale = reference.elevation_scales(flat.shape[1])
            for n, image in enumerate(flat.to(dtype).transpose(1, 2)):
                if not bool(image.isfinite().all()):
                    value_error("Lattice", "features", "finite", f"NaN or inf in image {n}")
                given = f"{{}} bits in image {n}"
                explain_points("Lattice", "features", "small enough", image, scale, given)

    def _keep(self, tensors: reference.LatticeTensors, spatial: tuple[int, ...]) -> "Lattice":
        self.vertices, self.weights, self.neighbours, self.offsets = tensors
        self.spatial = spatial
        self._degrees: dict[tuple[str, torch.dtype], Tensor] = {}
        return self

    def _failed(self) -> bool:
        if out_of_sight(self.offsets):
            return False
        return bool((self.offsets[1:] == self.offsets[:-1]).any())

    @property
    def dimension(self) -> int:
        """Dimension d of the features."""
        return self.vertices.shape[2] - 1

    @property
    def num_vertices(self) -> Tensor:
        """Vertices of every image, (B,) int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def device(self) -> torch.device:
        """Where the lattice lies."""
        return self.weights.device

    def to(self, *args: Any, **kwargs: Any) -> "Lattice":
        """A lattice on another device or with weights of another dtype, as ``Tensor.to`` takes it.

        >>> Lattice(torch.rand(1, 2, 5)).to(torch.float64).weights.dtype
        torch.float64
        """
        with _for_training_too():
            weights = self.weights.to(*args, **kwargs)
            vertices, neighbours, offsets = (
                kept.to(weights.device) for kept in (self.vertices, self.neighbours, self.offsets)
            )
        if weights.dtype not in (torch.float32, torch.float64):
            type_error("Lattice.to", "dtype", "float32 or float64", f"{weights.dtype}")
        tensors = (vertices, weights, neighbours, offsets)
        return Lattice.__new__(Lattice)._keep(tensors, self.spatial)

    def apply(self, values: Tensor, direction: str) -> Tensor:
        """A, its adjoint (``"transpose"``) or their mean (``"symmetric"``) of (B, K, P) values."""
        return torch.ops.wsfast.lattice_filter(values, *self._tensors(values.dtype), direction)

    def energy(self, values: Tensor, direction: str) -> Tensor:
        """(B, K) energies s' A s of (B, K, P) values s. Their gradient is 2 A s, of the same A."""
        with_filtered = values.requires_grad and torch.is_grad_enabled()
        return torch.ops.wsfast.lattice_energy(
            values, *self._tensors(values.dtype), direction, with_filtered
        )[0]

    def _tensors(self, dtype: torch.dtype) -> reference.LatticeTensors:
        """As operators take them with values of a dtype."""
        weights = self.weights.to(accumulate_dtype(dtype))
        return self.vertices, weights, self.neighbours, self.offsets

    def fits(self, maps: Tensor) -> bool:
        """Whether maps (B, K, *spatial) are of these images and points.

        Maps (B, K, P) of a lattice with more dimensions, and the other way round, go by the number
        of points alone.
        """
        images, points = self.vertices.shape[:2]
        if maps.dim() < 3 or maps.shape[0] != images or math.prod(maps.shape[2:]) != points:
            return False
        return maps.dim() - 2 != len(self.spatial) or tuple(maps.shape[2:]) == self.spatial

    def degree(self, dtype: torch.dtype, direction: str) -> Tensor:
        """(B, 1, P) sums of the rows, kept for the next call."""
        key = (direction, accumulate_dtype(dtype))
        if key not in self._degrees:
            ones = torch.ones(
                (self.vertices.shape[0], 1, self.vertices.shape[1]),
                dtype=key[1],
                device=self.device,
            )
            degree = self.apply(ones, direction)
            if type(degree) is not Tensor:  # fake, of a graph being exported
                return degree
            self._degrees[key] = degree
        return self._degrees[key]

    def __repr__(self) -> str:
        images, points, corners = self.vertices.shape
        return (
            f"Lattice(images={images}, points={points}, dimension={corners - 1}, "
            f"vertices={self.neighbours.shape[2]}, dtype={self.weights.dtype}, "
            f"device={str(self.device)!r})"
        )


def bilateral_lattice(
    image: Tensor, *, sigma_rgb: float | Sequence[float], sigma_xy: float
) -> Lattice:
    r"""The lattice of an image's pixels, by position and colour.

    .. math:: f_i = (x_i / \sigma_{xy},\; y_i / \sigma_{xy},\; I_i / \sigma_{rgb})

    Args:
        image: (B, C, H, W), one to six channels of any meaning, uint8 or floating-point, any
            strides. Without gradient.
        sigma_rgb: > 0, in the image's units; a number or one per channel.
        sigma_xy: > 0, in pixels.

    Returns:
        :class:`Lattice` in float32, in float64 for a float64 image.

    Raises:
        ValueError: wrong shape, sigmas not above 0, an image that requires grad; on the CPU also
            an image that is not finite, or sigmas so small that vertex keys leave 62 bits or
            lattice coordinates 18 (30 in float64), which an offset of the image adds to.
        TypeError: an image neither uint8 nor floating-point.

    Note:
        Not differentiable. Linear in pixels. Deterministic, equal for any number of threads. For
        one use, :func:`wsfast.dense_crf_loss` with the image is faster and needs less memory.

    Example:
        >>> image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        >>> bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=100.0).num_vertices
        tensor([16])
    """
    where = "bilateral_lattice"
    check_image(where, image)
    sigmas = sigma_list(where, image.shape[1], sigma_rgb)
    check_sigmas(where, image, sigmas, sigma_xy)
    in_double = image.dtype == torch.float64
    with _for_training_too():
        tensors = torch.ops.wsfast.build_bilateral_lattice(
            image, sigmas, float(sigma_xy), in_double
        )
    lattice = Lattice.__new__(Lattice)._keep(tensors, (image.shape[2], image.shape[3]))
    if lattice._failed():
        explain_failure(where, image, sigmas, sigma_xy, lattice.weights.dtype)
    return lattice


def lattice_filter(
    values: Tensor, lattice: Lattice, *, normalize: str = "none", symmetric: bool = True
) -> Tensor:
    r"""Filter values on the points of a lattice.

    .. math:: y = W x, \quad D^{-1} W x \quad\text{or}\quad D^{-1/2} W D^{-1/2} x, \qquad D = W 1

    with :math:`A = \alpha\, S^T B_d \cdots B_0\, S` (splat, blur along d + 1 axes, slice;
    :math:`\alpha = 1 / (1 + 2^{-d})`) and :math:`W = \frac12 (A + A^T)`, or :math:`W = A` without
    ``symmetric``, as permutohedral filters elsewhere. The blurs of two axes do not commute, as
    vertices that hold no point are missing, so A itself is not symmetric.

    Args:
        values: (B, K, *spatial) or (B, K, P), float32, float64, float16 or bfloat16, any strides.
        lattice: of the same B and points, on the same device.
        normalize: ``"none"``, ``"after"`` (constants stay) or ``"symmetric"``.
        symmetric: whether W is self-adjoint.

    Returns:
        A tensor like ``values``. W x is about 0.6 of the exact Gaussian's for colour images
        (d = 5); the normalised filters are within a few per cent of the exact ones.

    Raises:
        ValueError: other images or points than the lattice's, mixed devices, unknown options.
        TypeError: values not floating-point, ``lattice`` not a Lattice.

    Note:
        Linear and differentiable any number of times: its backward is its adjoint. Half types are
        summed in float32; autocast runs it in float32, which ``normalize="none"`` then returns.
        Deterministic, equal for any number of threads.

    Example:
        >>> lattice = bilateral_lattice(torch.rand(1, 3, 6, 6) * 255, sigma_rgb=30.0, sigma_xy=4.0)
        >>> smooth = lattice_filter(torch.ones(1, 1, 6, 6), lattice, normalize="after")
        >>> bool((smooth - 1).abs().max() < 1e-5)
        True
    """
    where = "lattice_filter"
    if not isinstance(lattice, Lattice):
        type_error(where, "lattice", "a wsfast.Lattice", type(lattice).__name__)
    check_tensor(where, "values", values)
    check_floating(where, "values", values)
    check_reverse_mode(where, "values", values)
    check_choice(where, "normalize", normalize, ["none", "after", "symmetric"])
    check_same_device(where, "lattice", lattice.weights, "values", values)
    if not lattice.fits(values):
        value_error(
            where,
            "values",
            f"of shape ({lattice.vertices.shape[0]}, K, *{list(lattice.spatial)})",
            f"shape {list(values.shape)}",
        )
    direction = "symmetric" if symmetric else "forward"
    flat = values.flatten(2)
    if normalize == "none":
        return lattice.apply(flat, direction).view(values.shape)
    flat = flat.to(accumulate_dtype(values.dtype))  # half types do not hold W x
    degree = lattice.degree(values.dtype, direction).clamp(min=torch.finfo(torch.float32).tiny)
    if normalize == "after":
        return (lattice.apply(flat, direction) / degree).to(values.dtype).view(values.shape)
    share = degree.rsqrt()
    return (lattice.apply(flat * share, direction) * share).to(values.dtype).view(values.shape)
