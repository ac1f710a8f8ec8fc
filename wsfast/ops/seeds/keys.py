"""Random keys that depend on nothing but seed, image and epoch.

Every image has a 64-bit key, hashed from (seed, image id, epoch). All random numbers of an image
are hashes of its key, a purpose and a pixel, so an image's seeds are the same in any batch,
process, thread, device and order. Unsigned words live in int64 tensors: products wrap as in C. The
native kernels do the same at once.
"""

from torch import Tensor

__all__ = ["image_keys", "mix64"]


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift of 64-bit words."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix64(words: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of 64-bit words (Steele et al. 2014)."""
    words = (words ^ _shift_right(words, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    words = (words ^ _shift_right(words, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return words ^ _shift_right(words, 31)


def image_keys(seed: Tensor, image_ids: Tensor, epoch: int) -> Tensor:
    """(N,) int64 keys of images; ``seed`` holds one int64, ``image_ids`` is (N,) int64."""
    golden = -7046029254386353131  # 0x9E3779B97F4A7C15: a seed of 0 is no fixed point
    return mix64(mix64(mix64(seed + golden) + image_ids) + epoch)
