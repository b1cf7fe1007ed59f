"""Where the variance of a comparison's outcomes comes from."""

import math
from itertools import product

import numpy as np
import pandas as pd

from plo.statistics.intervals import StatisticsError

EFFECTS = (("loss",), ("seed",), ("prompt",), ("loss", "prompt"), ("loss", "seed"))


def variance_components(frame: pd.DataFrame, value: str = "value") -> pd.Series:
    """Variance of the loss, seed, prompt, loss x prompt, loss x seed and the rest; with judges, of judge and text too.

    y = m + loss + seed + prompt + loss x prompt + loss x seed + rest, all random and independent; the rest, "residual", is
    all that is left, seed x prompt in it. Where several judges saw the same texts, one a loss, seed and prompt,

        y = m + loss + seed + prompt + loss x prompt + loss x seed + text + judge + rest:

    "text" is what a text has for all judges alike (else in the residual), the residual what they disagree in. Method of
    moments: the mean squares of the analysis of variance of the balanced table, of the judges' means where there are some, are
    set equal to their expectations, for an effect A of N observations

        E MS_A = residual + sum over effects B that contain A's factors of N / (levels of B) * var_B.

    Args:
        frame: one row an observation, columns loss, seed, prompt, `value`, maybe judge. Samples of one combination are averaged
            first. Prompts that a combination lacks are dropped; their number is in `attrs["dropped"]`.

    Returns:
        By component ("loss x prompt"), squared units of the metric. A negative estimate is shown as 0; NaN: one level of
        a factor, or one observation a combination, tells nothing of it (its variance is in text, else in the residual).

    Raises:
        StatisticsError: no prompt is there for every combination of the others.

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


def _crossed(y: np.ndarray) -> dict[str, float]:
    """The components of [loss, seed, prompt], unbiased and so maybe negative; NaN where not known."""
    factors = ("loss", "seed", "prompt")
    levels = dict(zip(factors, y.shape, strict=True))

    def per_level(effect: tuple[str, ...]) -> float:
        return y.size / math.prod(levels[factor] for factor in effect)

    known = [e for e in EFFECTS if per_level(e) > 1 and all(levels[factor] > 1 for factor in e)]
    squares, degrees = {}, {}
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


def _of_judges(y: np.ndarray, of_means: float) -> dict[str, float]:
    """judge, text and residual of [loss, seed, prompt, judge]; `of_means`: the residual of the judges' means, which is
    text + residual / judges."""
    texts, judges = y[..., 0].size, y.shape[3]
    if judges < 2 or texts < 2:
        return {"judge": math.nan, "text": math.nan, "residual": of_means}
    rest = y - y.mean(3, keepdims=True) - y.mean((0, 1, 2)) + y.mean()
    residual = float((rest**2).sum()) / ((texts - 1) * (judges - 1))
    judge = float(y.mean((0, 1, 2)).var(ddof=1)) - residual / texts
    return {"judge": judge, "text": of_means - residual / judges, "residual": residual}


def _balanced(frame: pd.DataFrame, factors: list[str], value: str) -> tuple[np.ndarray, int]:
    """[loss, seed, prompt(, judge)] of the prompts with a finite value in every combination, and how many have not."""
    others = [factor for factor in factors if factor != "prompt"]
    wide = frame.groupby(factors)[value].mean().unstack("prompt")
    every = list(product(*(frame[factor].unique() for factor in others)))
    wide = wide.reindex(pd.MultiIndex.from_tuples(every, names=others))
    complete = np.isfinite(wide).all()
    if not complete.any():
        raise StatisticsError(f"No prompt has a value in every combination of {', '.join(others)}.")
    shape = [frame[factor].nunique() for factor in others]
    y = wide.loc[:, complete].to_numpy().reshape(*shape, -1)
    return np.moveaxis(y, -1, 2), int((~complete).sum())


def _sum_of_squares(y: np.ndarray, axes: list[int]) -> tuple[float, int]:
    """Sum of squares and degrees of freedom of a main effect, or of an interaction beyond its main effects."""
    effect = y - y.mean()
    for axis in axes:  # leaves only what varies with every one of these factors
        effect = effect - effect.mean(axis, keepdims=True)
    effect = effect.mean(tuple(axis for axis in range(y.ndim) if axis not in axes), keepdims=True)
    return float((effect**2).sum()) * y.size / effect.size, math.prod(y.shape[axis] - 1 for axis in axes)
