"""Scores of sampled answers by an evaluation and by a judge, worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from plo.evals import EvaluationError, register_evaluation
from plo.evals.judges import JudgeSession
from plo.evals.scoring import Scorer, Tournament

ANSWERS = pd.DataFrame(
    {"prompt_id": [0, 0, 0, 1, 1, 1], "asked": ["p"] * 3 + ["q"] * 3, "text": ["a", "bb", "ccc", "dd", "dd", "d"]}
)


def longer(prompt, a, b):
    """The longer answer wins; whichever is shown second has a bonus of .1."""
    return 0.1 + 0.8 * (0.5 if len(a) == len(b) else float(len(b) > len(a)))


def test_a_judge_lets_every_answer_meet_every_other_one_in_both_orders(tmp_path):
    oracle = Tournament(JudgeSession(longer, cache=tmp_path / "verdicts.db"))
    scores, queries = oracle.score(ANSWERS)
    # The bonus cancels over the orders: the longer answer wins with .9 - .0 = mean of .9 and .9, equal ones with .5.
    assert np.allclose(scores, [0.1, 0.5, 0.9, 0.7, 0.7, 0.1])
    assert queries == 2 * (3 + 1)  # of prompt q two answers are equal, and the other two meetings are one question


def test_a_verdict_that_cannot_be_read_is_left_out_and_an_answer_without_any_has_no_score(tmp_path):
    def shy(prompt, a, b):
        return None if "bb" in (a, b) else longer(prompt, a, b)

    scores, _ = Tournament(JudgeSession(shy, cache=tmp_path / "verdicts.db")).score(ANSWERS)
    assert np.isnan(scores[1]) and np.allclose(scores[[0, 2]], [0.1, 0.9])


def test_a_scorer_gives_its_main_score_and_turns_it_where_lower_is_better():
    @register_evaluation("length", main_score="size", higher_is_better={"other": True, "size": False})
    def length(samples):
        return pd.DataFrame({"other": 0.0, "size": samples["text"].str.len()})

    scores, queries = Scorer("length").score(ANSWERS)
    assert scores.tolist() == [-1, -2, -3, -2, -2, -1] and queries == 6


@pytest.mark.parametrize("name", ["ngram_diversity", "alpaca_eval"])
def test_an_evaluation_that_scores_no_single_answer_is_refused(name):
    with pytest.raises(EvaluationError, match=r"name one that does in data.sample.scorer, or a judge"):
        Scorer(name)
