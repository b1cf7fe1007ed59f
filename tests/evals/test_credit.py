"""`credit`: what it says of policies whose credit is known, and the spread of its items."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from plo.evals import EvaluationError, get_model_evaluation
from plo.evals.credit import _correlation, _mean, draw
from plo.pocket import prompt_sets
from plo.pocket.words import ID
from plo.subjects import SubjectError
from plo.subjects.policy import Policy


class Known(Policy):
    """A policy whose log-ratios are a function of the truth, and whose reference has log-probs of 0."""

    def __init__(self, rule, reference=None):
        self.rule, self.reference, self.name = rule, reference, "known"
        self.tokenizer = SimpleNamespace(get_vocab=lambda: ID)

    def logps(self, pairs):
        truth = draw(prompt_sets()["test"], 6, 1.0)
        ratios = torch.tensor(self.rule(truth))
        lengths = [len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
        parts = ratios.split(lengths)
        return SimpleNamespace(logps=list(zip(parts[::2], parts[1::2], strict=True)))


def credit_of(rule):
    reference = Known(lambda truth: np.zeros(len(truth.ids)))
    return get_model_evaluation("credit")(Known(rule, reference))


def test_the_true_advantage_has_perfect_credit():
    found = credit_of(lambda truth: 0.3 * truth.advantage).metrics
    for name in ("r_A", "r_A0", "r_not", "r_promiser", "r_sum", "sign"):
        assert found[name] == pytest.approx(1), name
    assert found["exclamation"] == pytest.approx(0, abs=1e-9)


def test_the_sign_turned_round_has_negative_credit():
    found = credit_of(lambda truth: -2.0 * truth.advantage).metrics
    assert found["r_A"] == pytest.approx(-1) and found["sign"] == 0 and found["r_A0"] == pytest.approx(-1)


def test_the_soft_advantage_has_perfect_credit_against_itself_alone():
    found = credit_of(lambda truth: truth.soft).metrics
    assert found["r_soft"] == pytest.approx(1) and 0.6 < found["r_A"] < 0.99


def test_credit_for_style_is_seen_in_units_of_reward():
    # 1 is added at every `!`: the scale, sd(A) / sd(log-ratio), is a little below 1.
    found = credit_of(lambda truth: truth.advantage + (truth.ids == ID["!"])).metrics
    assert 0.8 < found["exclamation"] < 1


def test_reward_on_the_spot_is_no_planning():
    found = credit_of(lambda truth: truth.own).metrics
    assert found["r_A"] > 0.7 and found["r_A0"] == 0 and found["r_promiser"] == 0


def test_the_reference_gives_no_credit():
    found = credit_of(lambda truth: np.zeros(len(truth.ids))).metrics
    assert found["r_A"] == 0 and found["sign"] == 0.5 and found["exclamation"] == 0


def test_items_have_the_mean_of_the_metric_and_its_spread():
    noise = np.random.default_rng(0)
    found = credit_of(lambda truth: truth.advantage + np.random.default_rng(1).normal(size=len(truth.ids)))
    for name, value in found.metrics.items():
        assert found.items[name].mean() == pytest.approx(value), name
    # The standard error from the items against that of a bootstrap over prompts.
    prompt = np.repeat(np.arange(200), 20)
    x = noise.normal(size=4000) + noise.normal(size=200)[prompt]
    y = x + 2 * noise.normal(size=4000)
    items = _correlation(x, y, prompt)
    assert items.mean() == pytest.approx(np.corrcoef(x, y)[0, 1])
    means = []
    for _ in range(400):
        rows = np.concatenate([np.arange(20 * p, 20 * p + 20) for p in noise.integers(200, size=200)])
        means.append(np.corrcoef(x[rows], y[rows])[0, 1])
    assert items.std(ddof=1) / np.sqrt(200) == pytest.approx(np.std(means), rel=0.15)


def test_means_of_some_tokens_by_hand():
    # Prompt 0 has the values 1 and 3, prompt 1 has 5 and one that does not count: the mean is 3.
    items = _mean(np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 1, 1]), np.array([True, True, True, False]))
    assert items.tolist() == pytest.approx([3 + (-2 + 0) * 2 / 3, 3 + 2 * 2 / 3])


def test_what_cannot_be_compared_is_refused():
    evaluation = get_model_evaluation("credit")
    with pytest.raises(SubjectError, match="gives no log-probs"):
        evaluation(SimpleNamespace(name="texts", reference=None))
    with pytest.raises(EvaluationError, match="even number, not each=3"):
        get_model_evaluation("credit", {"each": 3})(Known(lambda truth: truth.own))
    other = Known(lambda truth: truth.own, Known(lambda truth: truth.own))
    other.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    with pytest.raises(EvaluationError, match="does not read the 132 words"):
        evaluation(other)
