"""Pixel seeds for training, and the proposals that say where to look for them, in batches."""

import torch
from torch import Tensor

from ..._check import (
    check_choice,
    check_count,
    check_floating,
    check_free_of_nan,
    check_range,
    check_rank,
    check_same_device,
    check_tensor,
    check_whole,
    type_error,
    value_error,
)
from ..._integers import is_integer, saturated_int32
from ..._scripting import scripted_as
from . import reference, registration  # noqa: F401
from .proposals import Proposals, blur_outside_boxes, propose_boxes

__all__ = ["Proposals", "blur_outside_boxes", "propose_boxes", "sample_seeds"]


def _check_square(where: str, argument: str, side: int) -> None:
    check_count(where, argument, side, 0)
    if side != 0 and side % 2 == 0:
        value_error(where, argument, "0 or odd", f"{side}")
    if side > 2147483647:
        value_error(where, argument, "below 2^31", f"{side}")


def _check_per_image(where: str, argument: str, tensor: Tensor, cams: Tensor) -> None:
    check_tensor(where, argument, tensor)
    if tensor.dim() != 1 or tensor.shape[0] != cams.shape[0]:
        value_error(where, argument, f"of shape ({cams.shape[0]},)", f"shape {list(tensor.shape)}")


def _checked_roi(where: str, roi: Tensor, cams: Tensor) -> Tensor:
    """A bool mask (N, H, W), as it is or of a uint8 one, or boxes (N, 4) as int32."""
    check_tensor(where, "roi", roi)
    check_same_device(where, "cams", cams, "roi", roi)
    if roi.dim() == 3 and (roi.dtype == torch.bool or roi.dtype == torch.uint8):
        if roi.shape != cams.shape:
            value_error(
                where, "roi", f"of the maps' shape {list(cams.shape)}", f"shape {list(roi.shape)}"
            )
        return roi if roi.dtype == torch.bool else roi != 0
    if not is_integer(roi):
        expected = "integer boxes (N, 4) or a bool or uint8 mask (N, H, W)"
        type_error(where, "roi", expected, f"{roi.dtype}")
    if roi.dim() != 2 or roi.shape[0] != cams.shape[0] or roi.shape[1] != 4:
        value_error(
            where, "roi", f"boxes of shape ({cams.shape[0]}, 4)", f"shape {list(roi.shape)}"
        )
    return saturated_int32(roi)


def _seed_word(seed: int | None, generator: torch.Generator | None, target: Tensor) -> Tensor:
    """One int64; drawn on the CPU (or the generator's device) where no seed is given."""
    if seed is not None:
        check_whole("sample_seeds", "seed", seed)
        return torch.full([1], seed, dtype=torch.int64, device=target.device)
    device = torch.device("cpu")
    if not torch.jit.is_scripting() and generator is not None:
        if not isinstance(generator, torch.Generator):
            expected = "None or a torch.Generator"
            type_error("sample_seeds", "generator", expected, type(generator).__name__)
        device = generator.device
    return torch.randint(
        9223372036854775807, [1], generator=generator, dtype=torch.int64, device=device
    )


def _keys(
    cams: Tensor,
    seed: int | None,
    image_ids: Tensor | None,
    epoch: int,
    generator: torch.Generator | None,
) -> Tensor:
    if image_ids is None:
        ids = torch.arange(cams.shape[0], device=cams.device)
    else:
        _check_per_image("sample_seeds", "image_ids", image_ids, cams)
        if not is_integer(image_ids):
            type_error("sample_seeds", "image_ids", "integers", f"{image_ids.dtype}")
        ids = image_ids.to(device=cams.device, dtype=torch.int64)
    word = _seed_word(seed, generator, cams)
    # Nothing would wait for a copy back to the host. A seed's word is on the device already.
    non_blocking = cams.device.type != "cpu" and seed is None
    if non_blocking and not torch.jit.is_scripting() and not torch.compiler.is_compiling():
        # A CUDA graph would replay the copy from memory that is gone: this way it refuses to.
        capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        non_blocking = not capturing
    word = word.to(cams.device, non_blocking=non_blocking)
    return torch.ops.wsfast.seed_keys(word, ids, epoch)


def _sample_seeds(
    cams: Tensor,
    foreground: int = 1,
    background: int = 1,
    region: str = "otsu",
    foreground_share: float = 0.1,
    background_share: float = 0.3,
    foreground_weights: str = "uniform",
    erode: int = 0,
    dilate: int = 3,
    roi: Tensor | None = None,
    background_outside_roi: bool = False,
    background_only: Tensor | None = None,
    seed: int | None = None,
    image_ids: Tensor | None = None,
    epoch: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    where = "sample_seeds"
    check_tensor(where, "cams", cams)
    check_floating(where, "cams", cams)
    check_rank(where, "cams", cams, 3)
    if cams.shape[1] == 0 or cams.shape[2] == 0:
        value_error(where, "cams", "maps with H, W >= 1", f"shape {list(cams.shape)}")
    check_count(where, "foreground", foreground, 0)
    check_count(where, "background", background, 0)
    check_choice(where, "region", region, ["otsu", "top"])
    check_range(where, "foreground_share", foreground_share, 0.0, 1.0)
    check_range(where, "background_share", background_share, 0.0, 1.0)
    check_choice(where, "foreground_weights", foreground_weights, ["uniform", "activation"])
    _check_square(where, "erode", erode)
    _check_square(where, "dilate", dilate)
    if roi is None and background_outside_roi:
        value_error(where, "background_outside_roi", "False without a roi", "True")
    checked_roi = roi
    if roi is not None:
        checked_roi = _checked_roi(where, roi, cams)
    if background_only is not None:
        _check_per_image(where, "background_only", background_only, cams)
        check_same_device(where, "cams", cams, "background_only", background_only)
        if background_only.dtype != torch.bool:
            type_error(where, "background_only", "bool", f"{background_only.dtype}")
    check_count(where, "epoch", epoch, 0)
    keys = _keys(cams, seed, image_ids, epoch, generator)
    seeds, valid = torch.ops.wsfast.sample_seeds(
        cams.detach().to(torch.float32),
        keys,
        checked_roi,
        background_only,
        foreground,
        background,
        region == "top",
        float(foreground_share),
        float(background_share),
        foreground_weights == "activation",
        background_outside_roi,
        erode,
        dilate,
    )
    check_free_of_nan(where, "cams", valid)
    return seeds


@scripted_as(_sample_seeds)
def sample_seeds(
    cams: Tensor,
    *,
    foreground: int = 1,
    background: int = 1,
    region: str = "otsu",
    foreground_share: float = 0.1,
    background_share: float = 0.3,
    foreground_weights: str = "uniform",
    erode: int = 0,
    dilate: int = 3,
    roi: Tensor | None = None,
    background_outside_roi: bool = False,
    background_only: Tensor | None = None,
    seed: int | None = None,
    image_ids: Tensor | None = None,
    epoch: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw a few foreground and background pixels of every map, as labels for a pixel loss.

    .. math:: \Omega' = \mathcal{U}(TOP^+(C)) \cup \mathcal{U}(TOP^-(C))

    F-CAM eq. 1-2 with ``region="otsu"``; DiPS eq. 3-4 with ``region="top"``,
    ``foreground_weights="activation"`` and the proposal's box as ``roi``. Per image:

    1. A map that is constant in 8 bits, trunc(255 c), has no seeds, but in images of
       ``background_only``.
    2. Foreground region: the pixels of the ROI above Otsu's level (kept within 1-254), or the
       int(``foreground_share`` · pixels of the ROI) highest ones of the ROI; then eroded.
    3. ``foreground`` pixels of it without replacement, all of it where it is smaller.
    4. Background region: the int(``background_share`` · pixels) lowest of all pixels, or of those
       outside the ROI. ``background`` pixels of it, uniformly without replacement.
    5. Both sets are dilated; pixels that both claim are ignored.

    Where a share cuts through pixels of equal value, the choice among them is random too.

    Args:
        cams: maps in 0-1, (N, H, W), float32, float64, float16 or bfloat16, any strides. Values
            outside are clamped, float64 is rounded to float32.
        foreground: pixels to draw per image, before dilation.
        background: pixels to draw per image, before dilation.
        region: ``"otsu"`` or ``"top"``.
        foreground_share: share of the ROI's pixels for ``"top"``, 0-1.
        background_share: share of lowest pixels, 0-1 (n⁻ of F-CAM).
        foreground_weights: ``"uniform"``, or ``"activation"`` to draw in proportion to the map
            (pixels of value 0 are never drawn).
        erode: side of the square that shrinks the foreground region, odd; 0 or 1 for none. Pixels
            outside the image do not count; a region that would vanish stays whole.
        dilate: side of the square that grows the seeds, odd; 0 or 1 for none.
        roi: where foreground may be: (N, 4) integer boxes (x0, y0, x1, y1), half-open, or an
            (N, H, W) bool or uint8 mask, inside where it is not 0. An empty box leaves an image
            without foreground seeds.
        background_outside_roi: draw background outside the ROI only.
        background_only: (N,) bool, images without the object: no foreground, and background from
            all pixels of the image, whatever the map, the share and the ROI say, for a high
            activation there is an error to be unlearned.
        seed: any signed 64-bit integer; None draws one from ``generator``.
        image_ids: (N,) integers, what the seeds of each image hang on; default 0 to N-1.
        epoch: a count that gives new seeds to the same images.
        generator: for ``seed=None``; default: torch's own, on the CPU. ``torch.compile`` takes no
            generators, a CUDA graph no draw on the host: give a seed there.

    Returns:
        (N, H, W) int64 on the maps' device: 1 foreground, 0 background, -255 ignored.

    Raises:
        ValueError: wrong shapes, numbers out of range, even squares, mixed devices,
            ``background_outside_roi`` without ``roi``; on the CPU also NaN in a map. Elsewhere NaN
            counts as 0.
        TypeError: wrong dtypes.

    Note:
        Not differentiable. Random numbers are hashes of (seed, image id, epoch, pixel), so an
        image's seeds are the same in any batch, order, process, thread and device. Cost is linear
        in pixels; nothing is sorted and nothing waits for the device.

    Example:
        >>> cam = torch.tensor([[[0.0, 0.0, 0.0], [0.1, 0.2, 0.9]]])
        >>> sample_seeds(cam, background_share=0.2, dilate=0, seed=1)
        tensor([[[-255,    0, -255],
                 [-255, -255,    1]]])
    """
    return _sample_seeds(
        cams,
        foreground,
        background,
        region,
        foreground_share,
        background_share,
        foreground_weights,
        erode,
        dilate,
        roi,
        background_outside_roi,
        background_only,
        seed,
        image_ids,
        epoch,
        generator,
    )
