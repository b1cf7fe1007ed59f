"""Rankings of models by a judge: agreement with people in simulations."""

import numpy as np
import pytest

from plo.statistics.intervals import StatisticsError
from plo.statistics.rankings import rank_agreement


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
