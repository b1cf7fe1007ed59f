"""Four words, against statsmodels' tests; looks, with numbers by hand; ranks."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from plo.statistics import (
    Comparison,
    chance_to_settle,
    compare,
    equivalence_p,
    look_levels,
    rank_intervals,
    settled,
    stop,
    verdict,
    verdicts,
)
from plo.statistics.intervals import StatisticsError


def seed_means(*rows):
    return {name: pd.DataFrame([values]) for name, values in zip("abcdefgh", rows, strict=False)}


def one(mean=0.1, se=0.02, share=1.0, p_holm=0.01, degrees=10.0, seeds=3):
    return Comparison(mean, se, share, mean - 0.05, mean + 0.05, p_holm, 100, seeds, 0, degrees, p_holm, True)


def test_words():
    assert verdict(one()) == "better" and verdict(one(), higher_is_better=False) == "worse"
    assert verdict(one(mean=-0.1)) == "worse" and verdict(one(mean=-0.1), higher_is_better=False) == "better"
    assert verdict(one(), alpha=0.01) == "undecided"
    near = one(mean=0.001, p_holm=0.9)
    assert verdict(near) == "undecided" and verdict(near, margin=0.05) == "equivalent"
    assert verdict(near, margin=0.03) == "undecided"  # .029 / .02 = 1.45 < 1.88, the 95.5% point with 10 degrees
    assert [verdict(near, margin=0.001 + 0.02 * t) for t in (1.86, 1.89)] == ["undecided", "equivalent"]
    assert verdict(one(), margin=1.0) == "better"  # significant comes first
    assert verdict(one(p_holm=math.nan, se=math.nan), margin=1.0) == "undecided"
    assert verdicts({"x": near, "y": one()}, margin=0.05) == {"x": "equivalent", "y": "better"}


@pytest.mark.parametrize("margin", [0.05, 0.3, 1.0])
def test_equivalence_is_statsmodels_two_one_sided_tests(margin):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 0.3, 6), rng.normal(0.05, 0.3, 6)
    found = compare(seed_means(a, b), "a")["b"]
    assert equivalence_p(found, margin) == pytest.approx(ttost_paired(b, a, -margin, margin)[0], rel=1e-6)


def test_the_family_is_all_variants():
    rng = np.random.default_rng(0)
    found = compare(seed_means(*rng.normal(0, 1, (7, 5)) + np.arange(7)[:, None] * 0.4), "a")
    expected = multipletests([x.p for x in found.values()], method="holm")[1]
    assert [x.p_holm for x in found.values()] == pytest.approx(expected)


def test_levels_of_looks_add_up():
    assert look_levels([3, 5, 8]) == pytest.approx({3: 0.010, 5: 0.015, 8: 0.025})
    assert sum(look_levels([2, 4]).values()) == pytest.approx(0.05)
    assert look_levels([5]) == {5: 0.05}
    for wrong in ([], [3, 3], [5, 3], [0, 2]):
        with pytest.raises(StatisticsError, match="increasing numbers of seeds"):
            look_levels(wrong)


def test_what_an_earlier_look_settled_stays():
    first = {"x": "better", "y": "undecided"}
    assert settled(first, {"x": "undecided", "y": "worse", "z": "equivalent"}) == {
        "x": "better", "y": "worse", "z": "equivalent",
    }  # fmt: skip


def test_chance_to_settle_by_simulation():
    """Seeds' variance known (many degrees of freedom), 3 of 8 seeds seen: predicted = simulated."""
    rng, sigma, d = np.random.default_rng(0), 0.1, 0.05
    now = one(mean=d, se=sigma / math.sqrt(3), degrees=1e6)
    mean = (3 * d + 5 * rng.normal(rng.normal(d, sigma / math.sqrt(3), 400_000), sigma / math.sqrt(5))) / 8
    se = sigma / math.sqrt(8)
    significant = np.abs(mean) > stats.norm.isf(0.0125) * se
    inside = ~significant & (np.abs(mean) < 0.08 - stats.norm.isf(0.9 * 0.025) * se)
    assert chance_to_settle(now, 8, 0.025) == pytest.approx(significant.mean(), abs=0.003)
    assert chance_to_settle(now, 8, 0.025, margin=0.08) == pytest.approx((significant | inside).mean(), abs=0.003)


def test_when_to_stop():
    looks, wide = [3, 5, 8], one(mean=0.0, se=0.02, share=0.0, p_holm=1.0)  # all variance among prompts
    assert stop({"x": one()}, {"x": "better"}, looks, 3) == "settled"
    assert stop({"x": one(p_holm=0.2)}, {"x": "undecided"}, looks, 8) == "last"
    assert stop({"x": one(p_holm=0.2)}, {"x": "undecided"}, looks, 3) is None
    assert stop({"x": wide}, {"x": "undecided"}, looks, 3) == "futile"  # more seeds change nothing
    assert stop({"x": wide, "y": one()}, {"x": "undecided", "y": "worse"}, looks, 3) == "futile"
    assert stop({"x": one(mean=0.0, p_holm=1.0)}, {"x": "undecided"}, looks, 3, margin=0.05) is None
    with pytest.raises(StatisticsError, match="4 seeds are not among the looks"):
        stop({"x": wide}, {"x": "undecided"}, looks, 4)


def test_ranks_by_hand():
    rng = np.random.default_rng(0)
    tables = seed_means(*(rng.normal(level, 0.05, 5) for level in (0, 0, 0, 1, 1, 2)))
    found = rank_intervals(tables)
    assert found.loc["f", ["rank", "low", "high"]].tolist() == [1, 1, 1]
    assert (found.loc[["d", "e"], "low"] == 2).all() and (found.loc[["d", "e"], "high"] == 3).all()
    assert (found.loc[["a", "b", "c"], "low"] == 4).all() and (found.loc[["a", "b", "c"], "high"] == 6).all()
    turned = rank_intervals(tables, higher_is_better=False)
    assert turned.loc["f", ["rank", "low", "high"]].tolist() == [6, 6, 6]
    assert list(found["rank"]) == sorted(found["rank"])


def test_equal_rows_are_not_separated():
    found = rank_intervals(seed_means(*np.random.default_rng(1).normal(0, 0.1, (6, 3))))
    assert (found["low"] == 1).all() and (found["high"] == 6).all()
