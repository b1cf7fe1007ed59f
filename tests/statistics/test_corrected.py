"""Corrected win rates: by hand, against the authors' figures, and in simulations with a judge that errs."""

import numpy as np
import pytest

from plo.statistics import prediction_powered, rogan_gladen
from plo.statistics.corrected import Corrected, with_draws
from plo.statistics.intervals import StatisticsError

AUTHORS = (0.05635072484160894, 0.2627330257859588)  # their confidence_interval(.4, .7, .9, 1000, 200, 200)


def test_prediction_powered_by_hand():
    # f' = 1 1 0 0, y = 1 0 0 0, f = 1 1 1 0: var of all f' and f is .2679 (5 of 8), cov(y, f') = 1/6
    own, human, others = np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 0, 0]), np.array([1.0, 1, 1, 0])
    weight = (1 / 6) / (2 * (5 * 3 / 8 / 7))
    rest = [1 - weight, -weight, 0, 0]
    found = prediction_powered(others, own, human, level=0.5)
    assert found.rate == pytest.approx(weight * 0.75 + np.mean(rest)) and found.judged == 5 / 8
    se = np.sqrt(weight**2 * 0.25 / 4 + np.var(rest, ddof=1) / 4)
    half = 0.7648923284043542 * se  # the quartile of t with 3 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.rate - half, found.rate + half))
    assert prediction_powered(others, own, human).low == 0
    # A judge that always says the same is not counted: the rate is that of the labels.
    alone = prediction_powered(np.ones(9), np.ones(4), human)
    assert alone.rate == 0.25 and alone.judged == 1.0
    with pytest.raises(StatisticsError, match="2 labels at least, and there are 1"):
        prediction_powered(others, own[:1], human[:1])


def test_rogan_gladen_against_the_authors_example():
    """p .4 of 1000, q0 .7 and q1 .9 of 200 each: their README's example, computed with their released code."""
    wins, losses = np.repeat([1.0, 0.0], [180, 20]), np.repeat([1.0, 0.0], [60, 140])
    found = rogan_gladen(0.4, 1000, wins, losses)
    assert found.rate == pytest.approx((0.4 + 0.7 - 1) / (0.7 + 0.9 - 1))
    assert (found.low, found.high) == pytest.approx(AUTHORS, abs=1e-12)
    assert found.labels == 400 and found.judged == 0.4


def test_rogan_gladen_needs_a_judge_that_is_better_than_chance():
    with pytest.raises(StatisticsError, match="wins and losses"):
        rogan_gladen(0.4, 100, np.ones(5), np.ones(0))
    with pytest.raises(StatisticsError, match="50% of the wins and 40% of the losses, no more than by chance"):
        rogan_gladen(0.4, 100, np.array([1.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize(("truth", "q1", "q0"), [(0.5, 0.9, 0.7), (0.3, 0.75, 0.8), (0.8, 0.95, 0.6)])
def test_a_judge_that_errs_is_corrected(truth, q1, q0):
    """800 items, 100 of them labelled: both intervals hold the truth about 95 times of 100, the judge's rate hardly ever."""
    rng, covered, rates, naive, labels_alone = np.random.default_rng(1), [], [], [], []
    for _ in range(400):
        human = (rng.random(800) < truth).astype(float)
        judged = np.where(human == 1, rng.random(800) < q1, rng.random(800) > q0).astype(float)
        powered = prediction_powered(judged[100:], judged[:100], human[:100])
        labels = human[:100] == 1
        gladen = rogan_gladen(judged.mean(), 800, judged[:100][labels], judged[:100][~labels])
        covered.append([one.low <= truth <= one.high for one in (powered, gladen)])
        rates.append([powered.rate, gladen.rate])
        labels_alone.append(human[:100].mean())
        half = 1.96 * np.sqrt(judged.mean() * (1 - judged.mean()) / 800)
        naive.append(abs(judged.mean() - truth) <= half)
    assert np.mean(covered, 0).min() > 0.92
    assert np.abs(np.mean(rates, 0) - truth).max() < 0.01
    assert np.std(rates, 0)[0] < np.std(labels_alone)  # the judge's verdicts are worth something
    assert np.mean(naive) < 0.6


def test_draws_that_nobody_judges_count_half():
    """A quarter of 64 items are draws, and of the others .7 are won, judged as .9."""
    found = with_draws(Corrected(0.9, 0.7, 0.6, 0.75, 30, "prediction-powered"), 0.25, 64)
    assert (found.judged, found.rate) == pytest.approx((0.125 + 0.675, 0.125 + 0.525)) and found.labels == 30
    error = 1.959963984540054 * 0.2 * np.sqrt(0.25 * 0.75 / 64)  # of the share of draws
    ends = (0.65 - np.hypot(0.075, error), 0.65 + np.hypot(0.0375, error))
    assert (found.low, found.high) == pytest.approx(ends)
    same = Corrected(0.9, 0.7, 0.6, 0.75, 30, "prediction-powered")
    assert vars(with_draws(same, 0.0, 64)) == pytest.approx(vars(same))
