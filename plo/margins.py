"""Preference of a policy by the sign of a margin; a margin that is zero within rounding is a tie.

If policy and reference are the same model, as before the first step, every margin is 0 in exact arithmetic. In floating
point the order of additions puts it above or below 0 by chance, and an accuracy that counts signs would be noise.
"""

import torch
from torch import Tensor

# Rounding errors of one token's log-ratio, in units of the dtype's epsilon. Products of half precision add up in float32 and
# are rounded once; those of full precision are rounded at every addition. Measured as the spread of margins between
# batches of other shapes: 4.3 for SmolLM2-135M in bfloat16, 3 to 25 for random Llamas in float32.
HALF, FULL = 10.0, 100.0


def rounding(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the size in nats below which a sum of log-ratios cannot be told from 0.

    The errors of single tokens are independent, so the error of a sum grows with the square root of their number. For a
    pair of responses of 100 tokens each it is 1.1 nats in bfloat16, 1.7e-4 in float32 and 3e-13 in float64.

    Args:
        tokens: (n,) number of log-ratios in each sum.
        dtype: dtype of the model's matrix products.
    """
    info = torch.finfo(dtype)
    return (HALF if info.bits < 32 else FULL) * info.eps * tokens.double().sqrt()


def without_rounding(sums: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n,) sums of log-ratios in nats, with exactly 0 for those within `rounding` of it."""
    return sums.masked_fill(sums.abs() <= rounding(tokens, dtype), 0.0)


def wins(margins: Tensor) -> Tensor:
    """Return 1 for a margin above 0, 1/2 for a tie at 0, and 0 below; nan stays nan."""
    return (1 + margins.sign().masked_fill(margins.isnan(), torch.nan)) / 2
