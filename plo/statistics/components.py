"""Variance components: where the variance of a comparison's outcomes comes from."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from plo.statistics.intervals import Array, StatisticsError

EFFECTS = (("loss",), ("seed",), ("prompt",), ("loss", "prompt"), ("loss", "seed"))


def variance_components(frame: pd.DataFrame, value: str = "value") -> pd.Series:
    """Return the variance of loss, seed, prompt, loss x prompt, loss x seed and the rest; with judges, of judge and text too.

    The model is y = m + loss + seed + prompt + loss x prompt + loss x seed + rest, all random and independent; the rest,
    "residual", includes seed x prompt. Where several judges saw the same texts, one per loss, seed and prompt,

        y = m + loss + seed + prompt + loss x prompt + loss x seed + text + judge + rest:

    "text" is what all judges share about a text (otherwise part of the residual), the residual their disagreement. By the
    method of moments, the mean squares of the analysis of variance of the balanced table (with judges, of their means) are
    set equal to their expectations, for an effect A of N observations

        E MS_A = residual + sum over effects B that contain A's factors of N / (levels of B) * var_B.

    Args:
        frame: one row per observation, with columns loss, seed, prompt, `value` and optionally judge. Samples of one
            combination are averaged first. Prompts that a combination lacks are dropped; `attrs["dropped"]` counts them.

    Returns:
        Variances by component ("loss x prompt"), in squared units of the metric. A negative estimate becomes 0. NaN: a factor
        has one level, or there is one observation per combination (the variance is then in text or the residual).

    Raises:
        StatisticsError: no prompt has a value in every combination of the other factors.

    Source: Searle, Casella, McCulloch, Variance Components (1992), ch. 4.
    """
    judged = "judge" in frame
    y, dropped = _balanced(frame, ["loss", "seed", "prompt", *(["judge"] if judged else [])], value)
    found = _crossed(y.mean(3) if judged else y)
    if judged:
        found |= _of_judges(y, found.pop("residual"))
    result = pd.Series(found).clip(lower=0.0)
    result.attrs["dropped"] = dropped
    return result


def _crossed(y: Array) -> dict[str, float]:
    """Return the components of [loss, seed, prompt], unbiased and so possibly negative; NaN where unknown."""
    factors: list[str] = ["loss", "seed", "prompt"]
    levels = dict(zip(factors, y.shape, strict=True))

    def per_level(effect: tuple[str, ...]) -> float:
        return y.size / math.prod(levels[factor] for factor in effect)

    known = [e for e in EFFECTS if per_level(e) > 1 and all(levels[factor] > 1 for factor in e)]
    squares: dict[tuple[str, ...], float] = {}
    degrees: dict[tuple[str, ...], int] = {}
    for effect in sorted(known, key=len):
        squares[effect], degrees[effect] = _sum_of_squares(y, [factors.index(factor) for factor in effect])
    rest = ((y - y.mean()) ** 2).sum() - sum(squares.values())
    free = y.size - 1 - sum(degrees.values())
    residual = max(float(rest), 0.0) / free if free else math.nan
    variances: dict[tuple[str, ...], float] = {}
    for effect in sorted(known, key=len, reverse=True):
        above = sum(per_level(b) * variances[b] for b in variances if set(effect) < set(b))
        variances[effect] = (squares[effect] / degrees[effect] - residual - above) / per_level(effect)
    return {" x ".join(effect): variances.get(effect, math.nan) for effect in EFFECTS} | {"residual": residual}


def _of_judges(y: Array, of_means: float) -> dict[str, float]:
    """Return the components judge, text and residual of [loss, seed, prompt, judge].

    Args:
        of_means: the residual of the judges' means, which is text + residual / judges.
    """
    texts, judges = y[..., 0].size, y.shape[3]
    if judges < 2 or texts < 2:
        return {"judge": math.nan, "text": math.nan, "residual": of_means}
    rest = y - y.mean(3, keepdims=True) - y.mean((0, 1, 2)) + y.mean()
    residual = float((rest**2).sum()) / ((texts - 1) * (judges - 1))
    judge = float(y.mean((0, 1, 2)).var(ddof=1)) - residual / texts
    return {"judge": judge, "text": of_means - residual / judges, "residual": residual}


def _balanced(frame: pd.DataFrame, factors: list[str], value: str) -> tuple[Array, int]:
    """Return [loss, seed, prompt(, judge)] of the prompts with a finite value in every combination, and the others' number."""
    others = [factor for factor in factors if factor != "prompt"]
    wide = frame.groupby(factors)[[value]].mean()[value].unstack("prompt")
    every = list(product(*(frame[factor].unique() for factor in others)))
    wide = wide.reindex(pd.MultiIndex.from_tuples(every, names=others))
    values = wide.to_numpy(dtype=float)
    complete = np.isfinite(values).all(axis=0)
    if not complete.any():
        raise StatisticsError(f"No prompt has a value in every combination of {', '.join(others)}.")
    shape = [frame[factor].nunique() for factor in others]
    y = values[:, complete].reshape(*shape, -1)
    return np.moveaxis(y, -1, 2), int((~complete).sum())


def _sum_of_squares(y: Array, axes: Sequence[int]) -> tuple[float, int]:
    """Return sum of squares and degrees of freedom of a main effect, or of an interaction beyond its main effects."""
    effect = y - y.mean()
    for axis in axes:  # leaves only what varies with every one of these factors
        effect = effect - effect.mean(axis, keepdims=True)
    effect = effect.mean(tuple(axis for axis in range(y.ndim) if axis not in axes), keepdims=True)
    return float((effect**2).sum()) * y.size / effect.size, math.prod(y.shape[axis] - 1 for axis in axes)
