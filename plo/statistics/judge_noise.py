"""Noise of a judge: how far its verdicts on the same texts differ when it is asked again."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from plo.statistics.intervals import Array, RunNoise


@dataclass(frozen=True)
class JudgeNoise:
    """Variance components of a judge that saw the texts of every cell r times, in squared units of the metric.

    Attributes:
        repeats: r, how often every question was asked.
        prompt: variance, from one repeat to the next, of one prompt's value, beyond what `run` moves.
        run: variance, from one repeat to the next, of a cell's mean that is not the noise of its prompts.
        cells: number of cells behind the estimates.
    """

    repeats: int
    prompt: float
    run: float
    cells: int

    @property
    def of_mean(self) -> RunNoise:
        """The part of a cell's mean over r repeats that the spread of its prompts does not show: run / r."""
        return RunNoise(self.run / self.repeats, self.cells * (self.repeats - 1))

    def sd_of_mean(self, prompts: int, repeats: int) -> float:
        """Return the judge's part of the standard error of a cell's mean over so many prompts and repeats."""
        return math.sqrt((self.prompt / prompts + self.run) / repeats)


def judge_noise(cells: Iterable[Array]) -> JudgeNoise | None:
    """Return the noise of a judge from the values of every cell, [prompts, repeats]; None with fewer than two of either.

    In a cell, y_pk = m + prompt_p + run_k + e_pk. With its mean squares of the two-way analysis of variance,

        prompt = mean over the cells of MS_pk, weighted by degrees of freedom
        run    = mean over the cells of (MS_k - MS_pk) / P, or 0 if that is negative.

    A new repeat draws a new run and a new e in each cell: cells are judged at different times, so neither is shared by them.

    Args:
        cells: NaN for a value that could not be read: the prompt is left out.

    Source: Searle, Casella, McCulloch, Variance Components (1992), ch. 4.
    """
    squares, degrees, repeats = 0.0, 0, 0
    runs: list[float] = []
    for values in cells:
        y = values[np.isfinite(values).all(1)]
        prompts, repeats = len(y), values.shape[1]
        if prompts < 2 or repeats < 2:
            continue
        rest = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
        free = (prompts - 1) * (repeats - 1)
        square = float((rest**2).sum())
        squares, degrees = squares + square, degrees + free
        runs.append(float(y.mean(0).var(ddof=1)) - square / free / prompts)
    if not runs:
        return None
    return JudgeNoise(repeats, squares / degrees, max(float(np.mean(runs)), 0.0), len(runs))
