"""Ranges of hyper-parameters, and the largest exponent of a dtype, which several losses share.

A range is the type hint of a hyper-parameter, `beta: Positive = 0.1`. It is checked when the loss is configured.
"""

import math
from typing import Annotated

import torch
from pydantic import Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


def largest_exponent(dtype: torch.dtype, factor: float = 1.0) -> float:
    """Return the largest x for which factor * exp(x) is finite in `dtype`, minus .01 for rounding (88.71 in float32)."""
    return math.log(torch.finfo(dtype).max) - max(0.0, math.log(factor)) - 0.01
