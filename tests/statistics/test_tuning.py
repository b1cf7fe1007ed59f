"""Tuning: coordinates, selection and expected best by hand and by enumeration."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from plo.statistics import edges, expected_best, optimism, robustness, search_points, select_trial
from plo.statistics.intervals import Estimate, StatisticsError

SPACE = {"lr": (1e-6, 1.6e-5), "beta": (0.025, 0.4)}


def unit(points, name, low, high):
    return np.array([math.log(point[name] / low) / math.log(high / low) for point in points])


def test_points_fill_the_space_evenly_and_are_the_same_for_every_loss():
    points = search_points(SPACE, 8, seed=3)
    u = {name: unit(points, name, *ends) for name, ends in SPACE.items()}
    for values in u.values():
        assert sorted(np.floor(8 * values)) == list(range(8))  # a trial in each eighth
    other = search_points({"lr": (1.0, 16.0), "alpha": (1.0, 2.0), "tau": (3.0, 4.0)}, 8, seed=3)
    assert unit(other, "lr", 1.0, 16.0) == pytest.approx(u["lr"])
    assert unit(other, "alpha", 1.0, 2.0) == pytest.approx(u["beta"])
    assert search_points(SPACE, 8, seed=3) == points != search_points(SPACE, 8, seed=4)
    assert search_points(SPACE, 5, seed=3) == points[:5]
    assert all(point["lr"] == 0.3 for point in search_points({"lr": (0.3, 0.3)}))
    for wrong in ({"lr": (0.0, 1.0)}, {"lr": (2.0, 1.0)}, {str(i): (1.0, 2.0) for i in range(9)}):
        with pytest.raises(StatisticsError, match="A search needs"):
            search_points(wrong)


def test_selection_by_hand():
    trials = pd.DataFrame(
        {"utility": [1.0, 0.95, 0.8, 9.0, math.nan], "se": [0.1] * 5, "kl": [10.0, 5.0, 1.0, 99.0, 0.1]},
        index=list("abcde"),
    )
    assert select_trial(trials, most_kl=20) == "b"  # within .1 of the best that is allowed, at half its KL
    assert select_trial(trials) == "d"
    assert select_trial(trials.assign(se=0.0), most_kl=20) == "a"
    assert select_trial(trials.assign(se=math.nan), most_kl=20) == "a"
    assert select_trial(trials.assign(se=0.3), most_kl=20) == "c"
    assert select_trial(trials, most_kl=0.5) is None


def test_expected_best_by_enumeration():
    values = [0.3, -1.0, 2.0, 0.5]
    for n in range(1, 5):
        draws = [max(draw) for draw in itertools.product(values, repeat=n)]
        assert expected_best(values)[n - 1] == pytest.approx(np.mean(draws))
    assert expected_best([1.0, math.nan, 2.0])[0] == pytest.approx((1 + 1 + 2) / 3)
    assert expected_best([1.0, math.nan, 2.0], diverged=0.0)[0] == pytest.approx(1.0)
    assert np.isnan(expected_best([math.nan, math.nan])).all()


def test_optimism():
    """.5 - .2 = .3, and 1.959964 sqrt(.03^2 + .04^2) = .0979982."""
    test = Estimate(0.2, 0.04, 1.0, 0.1, 0.3, 0.01, 80, 3, 0)
    assert optimism(0.5, 0.03, test) == pytest.approx((0.3, 0.3 - 0.0979982, 0.3 + 0.0979982))


def test_robustness_counts_diverged_trials():
    assert robustness([1.0, 2.0, 3.0, math.nan], 1.5) == 0.5


def test_edges():
    ends = {"x": (1.0, 256.0)}  # the first eighth of log x ends at 2, the last begins at 128
    assert edges(ends, {"x": 1.9}) == edges(ends, {"x": 128.0}) == ["x"]
    assert edges(ends, {"x": 2.1}) == edges(ends, {"x": 127.0}) == []
    assert edges({"x": (3.0, 3.0)}, {"x": 3.0}) == []
    points = search_points(SPACE, 8)
    assert sum("lr" in edges(SPACE, point) for point in points) == 2  # one at each end
