"""Ranges of hyper-parameters, written as type hints (`beta: Positive = 0.1`), the largest exponent of a dtype, and what rounding makes of 0."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, relu

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Portion = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]

ROUNDING = 1e-3  # nats: a smaller log-ratio may differ from 0 by rounding alone, as all of them do in the first step


def positive_part(log_ratio: Tensor) -> Tensor:
    """Return max(0, x) of log-ratios, with gradient 0 up to 1e-3 nats: where training starts, rounding would decide about it."""
    return torch.where(log_ratio > ROUNDING, log_ratio, relu(log_ratio).detach())


def largest_exponent(dtype: torch.dtype, factor: float = 1.0) -> float:
    """Return the largest x for which factor * exp(x) is finite in `dtype`, minus .01 for rounding (88.71 in float32)."""
    return math.log(torch.finfo(dtype).max) - max(0.0, math.log(factor)) - 0.01
