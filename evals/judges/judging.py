"""Asking a judge: both orders, once for each question."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from plo.evals.judges.judge import Judge, Question, get_judge


class Judging:
    """A judge with its cache and its budget, shared by all evaluations of a run.

    Args:
        spec: see `get_judge`.
    """

    def __init__(self, spec: str | Mapping[str, Any] | Callable | Judge):
        self.spec = spec

    def judge(self, template: str = "instruction") -> Judge:
        """The judge with this prompt."""
        return get_judge(self.spec, template)

    def verdicts(self, questions: pd.DataFrame, template: str = "instruction", *, both: bool = True) -> pd.DataFrame:
        """What the judge says of each question.

        Args:
            questions: columns prompt, a, b (texts).
            both: ask in both orders; else only with `a` shown first. A pointwise judge is always asked once.

        Returns:
            With the index of `questions`:
            p_ab: P(b better) with a shown first; NaN where it could not be read;
            p_ba: P(b better) with b shown first;
            win: of b, the mean over the orders of 1 (p > 1/2), 1/2 (p = 1/2), 0; NaN where an order could not be read;
            p: mean of p_ab and p_ba, likewise;
            consistent: both orders say the same, 1 or 0; NaN where one could not be read or only one was asked.
        """
        judge = self.judge(template)
        asked = [Question(*map(str, row)) for row in questions[["prompt", "a", "b"]].itertuples(index=False)]
        forward = _numbers(judge.judge(asked))
        backward = forward if judge.pointwise or not both else 1 - _numbers(judge.judge([q.swapped() for q in asked]))
        won = [np.where(np.isnan(p), np.nan, (p > 0.5) + 0.5 * (p == 0.5)) for p in (forward, backward)]
        same = np.where(np.isnan(forward + backward), np.nan, won[0] == won[1]) if both else np.nan
        columns = {"p_ab": forward, "p_ba": backward, "win": (won[0] + won[1]) / 2, "p": (forward + backward) / 2}
        return pd.DataFrame(columns | {"consistent": same}, index=questions.index, dtype=float)


def _numbers(verdicts) -> np.ndarray:
    return np.array([np.nan if v.p is None else v.p for v in verdicts], dtype=float)
