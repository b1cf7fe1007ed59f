"""Rankings of models by a judge: ratings by hand and in closed form, and agreement with people in simulations."""

import numpy as np
import pytest

from plo.statistics.intervals import StatisticsError
from plo.statistics.rankings import ELO, PRIOR, rank_agreement, ratings


def test_ratings_of_two_models_in_closed_form():
    # 30 wins of 40 for the second: without the half ties log(3) apart; with them the score equation is
    # 30 - 40 s(d) + PRIOR (1/2 - s(d/2)) = 0 for d = r2 - r1 = 2 r2.
    first, second = np.zeros(40), np.ones(40)
    wins = np.repeat([1.0, 0.0], [30, 10])
    r = ratings(first, second, wins, 2)
    assert r.sum() == pytest.approx(0) and abs((r[1] - r[0]) / ELO - np.log(3)) < 0.03
    d = (r[1] - r[0]) / ELO
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    assert 30 - 40 * sigmoid(d) + PRIOR * (0.5 - sigmoid(d / 2)) == pytest.approx(0, abs=1e-8)
    assert np.isfinite(ratings(first, second, np.ones(40), 2)).all()  # a model that never loses
    assert ratings(first, second, np.full(40, 0.5), 2) == pytest.approx([0, 0])


def simulated(noise, pairs=1500, models=8, seed=0):
    rng = np.random.default_rng(seed)
    strength = np.linspace(-1.5, 1.5, models)
    first = rng.integers(0, models, pairs)
    second = (first + rng.integers(1, models, pairs)) % models
    better = 1 / (1 + np.exp(strength[first] - strength[second]))
    human = (rng.random(pairs) < better).astype(float)
    judged = np.where(rng.random(pairs) < noise, rng.random(pairs) < 0.5, human).astype(float)
    return first, second, human, judged


def test_a_judge_that_says_what_people_say_and_one_that_guesses():
    same, noisy, guess = (rank_agreement(*simulated(noise), budgets=(100, 1500)) for noise in (0.0, 0.5, 1.0))
    assert same[1].correlation[0] > 0.95 and same[1].gap[0] < 40
    assert same[0].gap[0] > same[1].gap[0] and same[0].correlation[0] <= same[1].correlation[0]  # fewer pairs say less
    assert noisy[1].gap[0] > 2 * same[1].gap[0]  # half of its verdicts say nothing: differences shrink, ranks stay
    assert noisy[1].correlation[0] > 0.8
    assert guess[1].correlation[1] < 0.7 and guess[1].gap[0] > noisy[1].gap[0]
    assert [one.budget for one in rank_agreement(*simulated(0.0, pairs=90))] == [9, 30, 90]


def test_two_models_have_no_ranking():
    with pytest.raises(StatisticsError, match="3 models at least"):
        rank_agreement(*simulated(0.0, models=2))
    first, second, human, judged = simulated(0.0, pairs=30)
    unread = rank_agreement(first, second, human, np.where(np.arange(30) < 3, np.nan, judged), budgets=(30,))
    assert unread[0].budget == 27
