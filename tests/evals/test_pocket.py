"""Gold reward and efficiency on the pocket task, by hand on a few sentences."""

import numpy as np
import pandas as pd
import pytest

from plo.evals import EvaluationError, evaluate
from plo.pocket import Prompt, frontier, language

GOOD, BAD = "happy anna on the beach :", "angry ben on the inn :"


def samples(rows, kl=1.0):
    """A samples frame of (prompt_id, prompt, text) rows, all of which ended."""
    made = pd.DataFrame(rows, columns=["prompt_id", "prompt", "text"])
    numbers = {"sample": 0, "tokens": 6, "finished": True, "kl": kl, "entropy": 1.0, "ref_nll": 1.0}
    return made.assign(**numbers)


FRAME = [
    (0, GOOD, "the water was superb ."),  # 2
    (0, GOOD, "the water was very hot ."),  # bad in a place to walk: -2 * 1.5
    (1, BAD, "the room was quiet ! the room room was bad ."),  # good in a place to stay: 2; forbidden: -1; -1
]


def test_reward_and_forbidden_tokens_by_hand():
    result = evaluate(samples(FRAME), ["pocket"])
    assert result.samples["reward"].tolist() == pytest.approx([2, -3, 0])
    assert result.samples["forbidden"].tolist() == [0, 0, 1]
    assert result.metrics["reward"] == pytest.approx((-0.5 + 0) / 2)  # every prompt counts once


def test_a_sample_that_was_cut_is_rewarded_as_far_as_it_went():
    cut = samples([(0, GOOD, "the water was"), (0, GOOD, "")]).assign(finished=False)
    assert evaluate(cut, ["pocket"]).samples["reward"].tolist() == [0, 0]
    ended = samples([(0, GOOD, "the water was"), (0, GOOD, "")])
    assert evaluate(ended, ["pocket"]).samples["reward"].tolist() == [
        -1,
        -1,
    ]  # EOS in the middle, and at the very start


def test_efficiency_is_the_gain_over_the_best_gain_at_this_kl():
    result = evaluate(samples(FRAME, kl=0.7), ["pocket", "efficiency"])
    prompts = [Prompt.read(GOOD), Prompt.read(BAD)]
    values = language().values[language().start(prompts)]
    best = frontier(prompts)
    gains = np.array([-0.5, 0.0]) - values

    assert best.gold(0) == pytest.approx(values.mean())
    assert result.prompts["efficiency"].tolist() == pytest.approx(list(gains / (best.gold(0.7) - values.mean())))
    assert result.metrics["efficiency"] == pytest.approx(gains.mean() / (best.gold(0.7) - best.gold(0)))


def test_the_reference_has_no_efficiency():
    assert np.isnan(evaluate(samples(FRAME, kl=0.0), ["pocket", "efficiency"]).metrics["efficiency"])


def test_samples_of_another_task_are_refused():
    with pytest.raises(EvaluationError, match="not of the pocket task: 'hello' is none of the 132 words.*data=pocket"):
        evaluate(samples([(0, GOOD, "hello room")]), ["pocket"])
    with pytest.raises(EvaluationError, match="not of the pocket task: 'A table' is no prompt"):
        evaluate(samples([(0, "A table", "the water was superb .")]), ["pocket"])
