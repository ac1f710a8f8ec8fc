"""What tests and benchmarks share: dtypes and tolerances."""

import torch

FLOATING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Rounding of one result in its dtype, with room for sums in another order.
_TOLERANCE = {
    torch.float32: (1e-5, 1e-6),
    torch.float64: (1e-12, 1e-12),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 1e-2),
}


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """``rtol`` and ``atol`` for ``torch.testing.assert_close`` against an exact result.

    >>> tolerance(torch.float32)
    {'rtol': 1e-05, 'atol': 1e-06}
    """
    rtol, atol = _TOLERANCE[dtype]
    return {"rtol": rtol, "atol": atol}
