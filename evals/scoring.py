"""Scores of sampled answers by an evaluation of samples or by a judge, from which preference pairs are made."""

import json
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd

from plo.evals.judges import JudgeSession
from plo.evals.judges.judge import kind_property
from plo.evals.registry import EVALUATIONS, EvaluationError
from plo.identity import code_identity


class Scorer:
    """Evaluation of samples as an oracle of answers: its main score, negated where lower is better.

    Args:
        name: registered name of the evaluation.

    Attributes:
        version: hash of its code.

    Raises:
        EvaluationError: it is no evaluation of single samples, or its main score has no direction.
    """

    def __init__(self, name: str):
        entry = EVALUATIONS[name]
        self.name, self.main = entry.name, entry.facts.main_score
        better = entry.facts.higher_is_better.get(self.main)
        if entry.facts.level != "sample" or better is None:
            raise EvaluationError(
                f"The evaluation {name!r} gives no score of a single answer whose higher or lower values are better: name one "
                f"that does in data.sample.scorer, or a judge in data.sample.judge."
            )
        self.function, self.sign = entry.load(), 1 if better else -1
        self.version = code_identity(self.function)

    def score(self, answers: pd.DataFrame) -> tuple[np.ndarray, int]:
        """Return the score of each answer, higher is better, and the number of queries: one an answer.

        Args:
            answers: columns prompt_id, sample, prompt, text, tokens and finished.
        """
        values = self.function(answers)[self.main].to_numpy(dtype=float)
        return self.sign * values, len(answers)


class Tournament:
    """Judge as an oracle of answers: each answer meets every other one of its prompt, in both orders.

        score(y) = mean over y' of P(y beats y')

    A verdict that cannot be read is left out of the mean; an answer without any has no score (NaN).

    Args:
        judging: the judge, its cache and its budget.

    Attributes:
        version: hash of what its verdicts depend on.
    """

    def __init__(self, judging: JudgeSession):
        judge = judging.judge()
        self.judging, self.name, self.version = judging, judge.name, f"{judge.name} {judge.version}"
        if judging.repeats > 1:
            self.version += f" {judging.repeats} times"

    def score(self, answers: pd.DataFrame) -> tuple[np.ndarray, int]:
        """Return the score of each answer in [0, 1], and the number of questions, whether cached or asked.

        Args:
            answers: columns prompt_id, asked (the prompt as the judge reads it) and text.

        Raises:
            JudgeError: the budget is too small, or the judge cannot be asked.
        """
        meetings = [pair for rows in answers.groupby("prompt_id").indices.values() for pair in combinations(rows, 2)]
        first, second = np.array(meetings).T
        texts, asked = answers["text"].to_numpy(), answers["asked"].to_numpy()
        questions = pd.DataFrame({"prompt": asked[first], "a": texts[first], "b": texts[second]})
        self.judging.begin()
        beaten = self.judging.verdicts(questions)["p"].to_numpy()  # P(second beats first)
        self.judging.enforce_read()
        shares = pd.Series(np.r_[1 - beaten, beaten]).groupby(np.r_[first, second]).mean()
        distinct = questions[questions["a"].str.strip() != questions["b"].str.strip()].drop_duplicates()
        return shares.reindex(range(len(answers))).to_numpy(), len(distinct) * (
            1 if self._once else 2
        ) * self.judging.repeats

    @property
    def _once(self) -> bool:
        return self.judging.judge().pointwise


Oracle = Scorer | Tournament


@cache
def judge_version(spec: str) -> str | None:
    """Return what the verdicts of a judge depend on besides its name; None if its weights would have to be loaded for that.

    Args:
        spec: its specification as JSON; see `plo.evals.judges.get_judge`.
    """
    judging = JudgeSession(json.loads(spec))
    return judging.judge().version if kind_property(judging.spec, "light") else None
