"""The dense-CRF loss of weakly supervised segmentation."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._check import (
    check_choice,
    check_number,
    check_rank,
    check_reverse_mode,
    check_same_device,
    check_tensor,
    out_of_sight,
    type_error,
    value_error,
)
from ..._scripting import scripted_as
from ._inputs import (
    check_image,
    check_maps,
    check_positive,
    check_sigmas,
    explain_failure,
    rescale,
    sigma_list,
    warn_of_scaled_image,
)
from .lattice import Lattice
from .reference import accumulate_dtype


def _check_options(form: str, normalize: str | None, method: str, reduction: str) -> str:
    """The name of the normalisation, ``"none"`` for None."""
    check_choice("dense_crf_loss", "form", form, ["rloss", "paper"])
    check_choice("dense_crf_loss", "method", method, ["lattice", "dense", "exact"])
    check_choice("dense_crf_loss", "reduction", reduction, ["batchmean", "sum", "none"])
    if normalize is None:
        return "none"
    check_choice("dense_crf_loss", "normalize", normalize, ["pixels", "affinity"])
    return normalize


def _check_roi(prob: Tensor, roi: Tensor) -> Tensor:
    """The ROI as (B, H, W)."""
    check_tensor("dense_crf_loss", "roi", roi)
    check_reverse_mode("dense_crf_loss", "roi", roi)
    check_same_device("dense_crf_loss", "prob", prob, "roi", roi)
    if roi.dim() == 4 and roi.shape[1] == 1:
        roi = roi[:, 0]
    check_rank("dense_crf_loss", "roi", roi, 3)
    if roi.shape[0] != prob.shape[0] or roi.shape[1:] != prob.shape[2:]:
        value_error(
            "dense_crf_loss",
            "roi",
            f"(B, H, W) or (B, 1, H, W) of prob's shape {list(prob.shape)}",
            f"shape {list(roi.shape)}",
        )
    if roi.dtype == torch.uint8:
        roi = roi != 0
    return roi.to(accumulate_dtype(prob.dtype))


def _warn_of_one_channel(prob: Tensor, form: str) -> None:
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return  # which takes no warnings
    if prob.shape[1] == 1 and form == "rloss":
        warnings.warn(
            "wsfast.dense_crf_loss: with one channel the rloss form is degenerate (it pushes every "
            "pixel to 1); pass cat([1 - p, p], dim=1) or form='paper'",
            stacklevel=4,
        )


def _resized(maps: Tensor, scale_factor: float, mode: str) -> Tensor:
    """By ``scale_factor``; ROIs (B, H, W) too."""
    if scale_factor == 1.0:
        return maps
    # No int() of a product, which torch.export would take for a constant.
    if maps.shape[-2] * scale_factor < 1 or maps.shape[-1] * scale_factor < 1:
        value_error(
            "dense_crf_loss",
            "scale_factor",
            f"large enough to leave a pixel of {maps.shape[-2]} x {maps.shape[-1]}",
            f"{scale_factor}",
        )
    if mode == "bilinear":  # its sums are not rounded to half types
        maps = maps.to(accumulate_dtype(maps.dtype))
    if maps.dim() == 3:
        return rescale(maps.unsqueeze(1), scale_factor, mode).squeeze(1)
    return rescale(maps, scale_factor, mode)


def _quadratic_channels(prob: Tensor, roi: Tensor | None, form: str, normalize: str) -> Tensor:
    """The channels s, times ``roi``, whose energies s' W s make up the loss.

    The paper's form needs t' W 1 with t the sum of the channels: it is the energy of (t + 1) / 2
    minus that of (t - 1) / 2. A last channel of ones gives 1' W 1. Half types are widened: they
    hold neither t nor W s, which is the gradient.
    """
    prob = prob.to(accumulate_dtype(prob.dtype))
    channels = [prob]
    if form == "paper":
        total = prob.sum(dim=1, keepdim=True)
        channels = [prob, (total + 1) * 0.5, (total - 1) * 0.5]
    if normalize == "affinity":
        channels.append(torch.ones_like(prob[:, :1]))
    values = torch.cat(channels, dim=1) if len(channels) > 1 else prob
    return values if roi is None else values * roi.unsqueeze(1)


def _combine(
    energy: Tensor,
    classes: int,
    pixels: Tensor | None,
    form: str,
    normalize: str,
    reduction: str,
) -> Tensor:
    """The loss from (B, channels) energies; ``pixels`` (B,) are those of the ROI."""
    loss = -energy[:, :classes].sum(dim=1)
    if form == "paper":
        loss = loss + energy[:, classes] - energy[:, classes + 1]
    if pixels is not None:
        loss = loss / pixels
    if normalize == "affinity":
        whole = energy[:, -1]
        empty = whole == 0  # an ROI of nothing: 0; NaN stays NaN
        share = (loss / whole.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)
        loss = share + (~empty).to(share.dtype) if form == "rloss" else share
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    images = torch.ones_like(loss).sum()  # not a number: a captured graph takes empty batches, too
    return loss.sum() / images.clamp(min=1)


def _finite(energy: Tensor, prob: Tensor, roi: Tensor | None) -> bool:
    """Whether the energies are, with an error where the maps are not.

    True out of sight: on the CPU alone, looking costs no device sync.
    """
    if torch.jit.is_scripting() or out_of_sight(energy) or bool(energy.isfinite().all()):
        return True
    for name, maps in (("prob", prob), ("roi", roi)):
        if maps is None:
            continue
        finite = maps.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            value_error("dense_crf_loss", name, "finite", f"NaN or inf in image {bad}")
    return False


def _gaussian_energy(
    image: Tensor, values: Tensor, sigma_rgb: list[float], sigma_xy: float, method: str
) -> Tensor:
    """(B, channels) energies by the exact or the dense-vertex Gaussian."""
    flat = values.flatten(2)
    features = _bilateral_features(image, sigma_rgb, sigma_xy, flat.dtype)
    return (flat * torch.ops.wsfast.gaussian_filter(flat, features, method)).sum(dim=2)


def _bilateral_features(
    image: Tensor, sigma_rgb: list[float], sigma_xy: float, dtype: torch.dtype
) -> Tensor:
    """(B, 2 + C, P) features in units of sigma."""
    b, _, height, width = image.shape
    x = torch.arange(width, device=image.device, dtype=dtype) / sigma_xy
    y = torch.arange(height, device=image.device, dtype=dtype) / sigma_xy
    sigmas = torch.tensor(sigma_rgb, dtype=dtype, device=image.device)
    colours = image.to(dtype) / sigmas[:, None, None]
    grid = torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)])
    return torch.cat([grid.expand(b, 2, height, width), colours], dim=1).flatten(2)


def _loss_of_sigmas(
    image: Tensor,
    prob: Tensor,
    sigma_rgb: list[float],
    sigma_xy: float,
    scale_factor: float,
    roi: Tensor | None,
    form: str,
    normalize: str | None,
    method: str,
    symmetric: bool,
    reduction: str,
) -> Tensor:
    scale = _check_options(form, normalize, method, reduction)
    check_image("dense_crf_loss", image)
    check_sigmas("dense_crf_loss", image, sigma_rgb, sigma_xy)
    check_maps("dense_crf_loss", "prob", prob, image)
    check_positive("dense_crf_loss", "scale_factor", scale_factor)
    _warn_of_one_channel(prob, form)
    if not torch.jit.is_scripting() and not out_of_sight(image):
        warn_of_scaled_image("dense_crf_loss", image, sigma_rgb)
    soft = False
    if roi is not None:
        mask = _check_roi(prob, roi)
        soft = roi.is_floating_point()
        roi = _resized(mask, scale_factor, "nearest")
    image = _resized(image, scale_factor, "nearest")
    prob = _resized(prob, scale_factor, "bilinear")
    inside = method == "lattice" and not soft  # the op takes a mask, and no gradient of one
    values = _quadratic_channels(prob, None if inside else roi, form, scale)
    reach = sigma_xy * scale_factor
    if method == "lattice":
        direction = "symmetric" if symmetric else "forward"
        with_filtered = values.requires_grad and torch.is_grad_enabled()
        energy = torch.ops.wsfast.dense_crf_energy(
            image, values, roi if inside else None, sigma_rgb, reach, direction, with_filtered
        )[0]
    else:
        energy = _gaussian_energy(image, values, sigma_rgb, reach, method)
    if not _finite(energy, prob, roi):
        explain_failure("dense_crf_loss", image, sigma_rgb, reach, energy.dtype, method)
    pixels = _pixels(prob, roi, energy) if scale == "pixels" else None
    return _combine(energy, prob.shape[1], pixels, form, scale, reduction)


def _pixels(prob: Tensor, roi: Tensor | None, like: Tensor) -> Tensor:
    """(B,) pixels of the ROI, at least 1."""
    if roi is None:
        size = prob.shape[2] * prob.shape[3]  # no float() of it, which a trace would keep
        return torch.full([prob.shape[0]], size, dtype=like.dtype, device=like.device)
    return roi.sum(dim=2).sum(dim=1).clamp(min=1).to(like.dtype)


def _loss_of_lattice(
    prob: Tensor,
    lattice: Lattice,
    scale_factor: float,
    roi: Tensor | None,
    form: str,
    normalize: str | None,
    symmetric: bool,
    reduction: str,
) -> Tensor:
    scale = _check_options(form, normalize, "lattice", reduction)
    check_positive("dense_crf_loss", "scale_factor", scale_factor)
    check_maps("dense_crf_loss", "prob", prob, prob)
    _warn_of_one_channel(prob, form)
    roi = None if roi is None else _resized(_check_roi(prob, roi), scale_factor, "nearest")
    prob = _resized(prob, scale_factor, "bilinear")
    check_same_device("dense_crf_loss", "lattice", lattice.weights, "prob", prob)
    if not lattice.fits(prob):
        images = lattice.vertices.shape[0]
        value_error(
            "dense_crf_loss",
            "prob",
            f"of the lattice's {images} images of {list(lattice.spatial)} pixels (scaled)",
            f"shape {list(prob.shape)}",
        )
    values = _quadratic_channels(prob, roi, form, scale)
    energy = lattice.energy(values.flatten(2), "symmetric" if symmetric else "forward")
    _finite(energy, prob, roi)
    pixels = _pixels(prob, roi, energy) if scale == "pixels" else None
    return _combine(energy, prob.shape[1], pixels, form, scale, reduction)


def _dense_crf_loss(
    image: Tensor,
    prob: Tensor,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale_factor: float = 1.0,
    roi: Tensor | None = None,
    form: str = "rloss",
    normalize: str | None = None,
    method: str = "lattice",
    symmetric: bool = True,
    reduction: str = "batchmean",
) -> Tensor:
    check_image("dense_crf_loss", image)
    return _loss_of_sigmas(
        image,
        prob,
        [sigma_rgb] * image.shape[1],
        sigma_xy,
        scale_factor,
        roi,
        form,
        normalize,
        method,
        symmetric,
        reduction,
    )


@scripted_as(_dense_crf_loss)
def dense_crf_loss(
    image: Tensor | None,
    prob: Tensor,
    *,
    sigma_rgb: float | Sequence[float] = 15.0,
    sigma_xy: float = 100.0,
    scale_factor: float = 1.0,
    roi: Tensor | None = None,
    form: str = "rloss",
    normalize: str | None = None,
    method: str = "lattice",
    symmetric: bool = True,
    reduction: str = "batchmean",
    lattice: Lattice | None = None,
) -> Tensor:
    r"""How far a segmentation disagrees with the image's edges (Tang et al., ECCV 2018).

    .. math:: -\sum_k (r \odot s_k)^T W (r \odot s_k) \quad\text{(rloss; F-CAM eq. 3, DiPS eq. A1)},
              \qquad \sum_k (r \odot s_k)^T W\, (r \odot (1 - s_k)) \quad\text{(paper)}

    with W the Gaussian of position and colour. Where channels sum to 1, both forms differ by a
    constant. The rloss form is negative and grows with the square of the pixels: at half the
    resolution it is about a sixteenth. The weights that people use (2e-9) belong to it.

    Args:
        image: (B, C, H, W), one to six channels, uint8 or floating-point, in the units of
            ``sigma_rgb`` (0-255 for 15). Without gradient. May be None with ``lattice``.
        prob: (B, K, H, W) float32, float64, float16 or bfloat16, usually a softmax; any strides.
        sigma_rgb: > 0; a number or one per channel.
        sigma_xy: > 0, in pixels before scaling.
        scale_factor: > 0; the image and the ROI are resized by it to the nearest pixel, ``prob``
            bilinearly (half-pixel), and ``sigma_xy`` is multiplied by it.
        roi: (B, H, W) or (B, 1, H, W), bool, uint8 (inside where it is not 0) or number, r above;
            None for the whole image. Masked pixels carry no mass, but still connect others in the
            lattice. A floating-point one may be soft and require grad.
        form: ``"rloss"`` or ``"paper"``.
        normalize: None; ``"pixels"`` divides by the pixels of the (scaled) ROI; ``"affinity"``
            gives 1 - sum s'Ws / r'Wr (the paper's form: its value over r'Wr), which is free of
            the resolution.
        method: ``"lattice"`` as in rloss, F-CAM and DiPS (W is about 0.6 of the exact Gaussian);
            ``"dense"``, a Gaussian between the vertices of a finer lattice, within 3 per cent but
            for flat images;
            ``"exact"``, brute force. The latter two cost O(M^2) in vertices and O(N^2) in pixels.
        symmetric: False gives the gradient -2 A s of the known implementations, whose A is not
            self-adjoint, in place of the value's own, -(A + A') s. The value is the same.
        reduction: ``"batchmean"`` (sum over images / B), ``"sum"`` or ``"none"``.
        lattice: of the (scaled) images, from :func:`wsfast.bilateral_lattice`, in place of one
            built from ``image``; sigmas and ``method`` are then those of the lattice. For images
            that stay: it saves the building, little of the work where there are many classes.

    Returns:
        A scalar, (B,) with ``reduction="none"``; float32, float64 for float64 ``prob``. An empty
        batch gives 0.

    Raises:
        ValueError: wrong shapes, mixed devices, sigmas or scale factor not above 0, unknown
            options, an image that requires grad; on the CPU also an image, map or ROI that is
            not finite, or sigmas so small that vertex keys leave 62 bits or lattice coordinates
            18 (30 in float64), which an offset of the image adds to. Elsewhere such an image gives
            NaN.
        TypeError: ``prob`` not floating-point, an image neither uint8 nor floating-point.

    Note:
        Warns of one channel with the rloss form, and of an image of 0-1 with a sigma for 0-255.
        Differentiable in ``prob`` and ``roi`` any number of times. The lattice is built, used and
        forgotten image by image: the gradient is found in the forward pass, and without one its
        part is left out; a graph exported or traced without one filters again where it is
        differentiated. Half types are computed in float32, the gradient too, and rounded once;
        autocast runs it in float32. Deterministic (on CUDA the gradient with a ``scale_factor``
        above 0.5 other than 1 by ``torch.use_deterministic_algorithms`` alone), and each image as
        if it were alone; equal for
        any number of threads, but for torch's own products and sums of ``method="exact"`` and
        ``"dense"``.

        Extra memory on the CPU, for two classes of float32 and d = C + 2: about 140 bytes per
        pixel for one colour image of noise, a tenth of that in a batch of natural ones. At worst,
        with sigmas so small that no two pixels share a vertex, 4 (d + 1)(d + 11) for one image.

    Example:
        >>> image = torch.zeros(1, 3, 8, 8)
        >>> image[..., 4:] = 255.0
        >>> edge = torch.stack([image[:, 0], 255.0 - image[:, 0]], dim=1) / 255
        >>> shifted = edge.roll(2, dims=3)
        >>> bool(dense_crf_loss(image, edge) < dense_crf_loss(image, shifted))
        True
    """
    check_number("dense_crf_loss", "scale_factor", scale_factor)
    check_number("dense_crf_loss", "sigma_xy", sigma_xy)
    scale_factor, sigma_xy = float(scale_factor), float(sigma_xy)
    if lattice is not None:
        if not isinstance(lattice, Lattice):
            type_error("dense_crf_loss", "lattice", "a wsfast.Lattice", type(lattice).__name__)
        return _loss_of_lattice(
            prob, lattice, scale_factor, roi, form, normalize, symmetric, reduction
        )
    if image is None:
        value_error("dense_crf_loss", "image", "a tensor where lattice is None", "None")
    assert image is not None
    check_image("dense_crf_loss", image)
    sigmas = sigma_list("dense_crf_loss", image.shape[1], sigma_rgb)
    return _loss_of_sigmas(
        image,
        prob,
        sigmas,
        sigma_xy,
        scale_factor,
        roi,
        form,
        normalize,
        method,
        symmetric,
        reduction,
    )
