"""Intervals: by hand where there is a hand, by simulation where there is not."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from simulated import wins

from plo.statistics import Spread, critical, estimate, p_value, paired, spread, two_way


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


TABLE = pd.DataFrame({"0": [1.0, 3.0, 5.0], "1": [2.0, 6.0, 4.0]}, index=[0, 1, 2])


def test_spread():
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    one, none = spread([4.0]), spread([])
    assert one.mean == 4.0 and math.isnan(one.sd) and math.isnan(none.mean)


def test_two_way_by_hand():
    # prompts' means 1.5, 4.5, 4.5; seeds' 3, 4; MS_p = 2 * 3 = 6, MS_s = 3 * .5 = 1.5,
    # all squares 17.5, so MS_ps = (17.5 - 12 - 1.5) / 2 = 2; SE^2 = (1.5 + 6 - 2) / 6
    mean, se, share = two_way(TABLE.to_numpy())
    assert mean == 3.5
    assert se**2 == pytest.approx(5.5 / 6)
    assert share == pytest.approx(1.5 / 5.5)
    found = estimate(TABLE)
    t1, t2 = 12.706204736, 4.302652730  # of a printed table, for 1 and 2 degrees of freedom
    c = math.sqrt(t2**2 + (t1**2 - t2**2) * (3 / 11) ** 1.5)
    assert found.high - 3.5 == pytest.approx(c * math.sqrt(5.5 / 6))
    assert found.low + found.high == pytest.approx(7.0)
    assert (found.prompts, found.seeds, found.dropped) == (3, 2, 0)


def test_one_seed_is_students_test_over_prompts():
    y = np.random.default_rng(0).normal(0.3, 1, 40)
    found, expected = estimate(pd.Series(y)), stats.ttest_1samp(y, 0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.seeds == 1


def test_all_variance_among_seeds_is_students_test_over_seeds():
    by_seed = np.array([0.1, 0.5, 0.9, 0.2])
    found, expected = estimate(pd.DataFrame(np.tile(by_seed, (50, 1)))), stats.ttest_1samp(by_seed, 0)
    assert found.share == pytest.approx(1.0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_the_interval_ends_at_0_where_p_is_its_level():
    share = np.array([0.0, 0.3, 0.9])
    for alpha in (0.2, 0.05, 1e-4):
        assert p_value(critical(alpha, share, 100, 3), share, 100, 3) == pytest.approx(alpha, rel=1e-9)


def test_p_is_the_root_that_scipy_finds():
    """`p_value` against a root search over `scipy.stats`, both ends of each bracket and what is between."""
    for prompts, seeds in ((64, 5), (100, 3), (805, 2), (4, 9), (50, 1)):
        for share in (0.0, 0.2, 0.7, 1.0) if seeds > 1 else (0.0,):
            for ratio in (0.0, 0.3, 1.9, 4.0, 6.5):

                def lacking(alpha, ratio=ratio, share=share, prompts=prompts, seeds=seeds):
                    of_prompts, of_seeds = (stats.t.isf(alpha / 2, max(n - 1, 1)) ** 2 for n in (prompts, seeds))
                    weight = share**1.5
                    return (1 - weight) * of_prompts + weight * of_seeds - ratio**2

                expected = optimize.brentq(lacking, 1e-12, 1, xtol=1e-15, rtol=1e-13)
                assert float(p_value(ratio, share, prompts, seeds)) == pytest.approx(expected, rel=1e-10, abs=1e-14)
    assert p_value(1e6, 0.5, 100, 3) == pytest.approx(stats.t.sf(1e6 / 0.5**0.75, 2) * 2, rel=1e-6)
    assert p_value(50.0, 0.0, 100, 3) == pytest.approx(1e-12) and p_value(-1.9, 0.2, 100, 3) == p_value(
        1.9, 0.2, 100, 3
    )
    assert np.isnan(p_value(np.array([np.nan, 1.0]), 0.2, 100, 3)).tolist() == [True, False]


def test_a_p_value_asks_scipys_distributions_nothing(monkeypatch):
    """A board of 300 cells has hundreds of them, and each call of a `scipy.stats` quantile checks its arguments anew."""
    calls, isf = [], stats.t.isf
    monkeypatch.setattr(stats.t, "isf", lambda *arguments: calls.append(arguments) or isf(*arguments))
    p_value(1.9, 0.3, 100, 3)
    assert not calls
    estimate(TABLE)  # its interval takes the two quantiles of `critical`
    assert len(calls) == 2


def test_samples_are_averaged_by_prompt_and_incomplete_prompts_dropped():
    table = pd.DataFrame(
        {"0": [1.0, 3.0, 9.0, 4.0, math.nan], "1": [3.0, 3.0, math.nan, 6.0, 1.0]}, index=[7, 7, 8, 9, 9]
    )
    found = estimate(table)  # prompt 7: 2 and 3; 8 lacks a seed, 9 a sample
    assert (found.mean, found.prompts, found.dropped) == (2.5, 1, 2)
    assert math.isnan(found.se) and math.isnan(found.p)
    assert math.isnan(estimate(pd.Series([math.nan])).mean)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_nothing_varies_nothing_is_known(value, seeds):
    """20 wins of 20 in every seed: the mean is 1, and how far the truth may lie below it these data cannot tell."""
    same = estimate(pd.DataFrame(np.full((20, seeds), value)))
    assert same.mean == pytest.approx(value) and (same.prompts, same.seeds) == (20, seeds)
    assert all(math.isnan(part) for part in (same.se, same.share, same.low, same.high, same.p))


def test_prompts_and_seeds_that_agree_in_their_means_alone():
    odd = estimate(pd.DataFrame([[0.0, 1.0], [1.0, 0.0]]))  # cells do not agree: not certain
    assert odd.se == pytest.approx(0.5)  # MS_ps = 1, over 4 cells


def test_an_interval_is_cut_to_the_metrics_bounds():
    wins = pd.DataFrame(np.ones((20, 3)))
    wins.iloc[0, 0] = 0.0
    free, cut = estimate(wins), estimate(wins, bounds=(0.0, 1.0))
    assert free.high > 1 and cut.high == 1.0
    assert (cut.mean, cut.se, cut.low, cut.p) == (free.mean, free.se, free.low, free.p)
    losses = estimate(1 - wins, bounds=(0.0, 1.0))
    assert losses.low == 0.0 and losses.high == pytest.approx(1 - cut.low)


def test_pairs_share_seeds_and_prompts():
    a = pd.DataFrame({"0": [1.0, 3.0, 5.0], "1": [3.0, 3.0, 3.0]}, index=[0, 0, 1])
    b = pd.DataFrame({"2": [9.0, 9.0], "0": [1.0, 1.5]}, index=[1, 0])
    gap = paired(a, b)
    assert gap.to_dict() == {"0": {0: 0.5, 1: 4.0}}
    assert estimate(paired(a, b.loc[[0]])).dropped == 1
    with pytest.raises(ValueError, match=r"no seed in common: \['0', '1'\] and \['2'\]"):
        paired(a, b[["2"]])
    with pytest.raises(ValueError, match=r"no prompt in common: \[0, 1\] and \[5\]"):
        paired(a, pd.DataFrame({"0": [1.0]}, index=[5]))


def coverage(what, seeds, seed_sd, prompts, experiments=1000, kind="binary"):
    """Share of 95% intervals that hold the true mean (.5) or the true paired difference (0) of two losses."""
    rng, hits = np.random.default_rng([seeds, prompts, int(1000 * seed_sd)]), 0
    for _ in range(experiments // 250):
        if kind == "continuous":
            shape = (250, 2, prompts, seeds)
            y = 0.5 + rng.normal(0, 0.2, (*shape[:-1], 1)) + rng.normal(0, seed_sd / np.sqrt(2), (250, 2, 1, seeds))
            y = y + rng.normal(0, 0.3, shape)
        else:
            y = wins(rng, 250, prompts, seeds, seed_sd, losses=1 if what == "mean" else 2, loss_sd=0.1)
        y, truth = (y[:, 0], 0.5) if what == "mean" else (y[:, 1] - y[:, 0], 0.0)
        mean, se, share = two_way(y)
        hits += (np.abs(mean - truth) <= critical(0.05, share, prompts, seeds) * se).sum()
    return hits / experiments


@pytest.mark.parametrize(("what", "seeds", "seed_sd", "prompts"), [
    ("mean", 3, 0.02, 100), ("difference", 3, 0.0, 100), ("difference", 5, 0.02, 100), ("mean", 3, 0.01, 805),
])  # fmt: skip
def test_intervals_hold_the_truth(what, seeds, seed_sd, prompts):
    assert 0.93 <= coverage(what, seeds, seed_sd, prompts) <= 0.97


def test_prompts_alone_would_not_do():
    """The seeds' part is needed: without it these intervals are far too short."""
    rng = np.random.default_rng(0)
    mean, se, share = two_way(wins(rng, 500, 805, 3, 0.02)[:, 0])
    prompts_alone = se * np.sqrt(1 - share)
    assert (np.abs(mean - 0.5) <= 1.96 * prompts_alone).mean() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "continuous"])
@pytest.mark.parametrize("what", ["mean", "difference"])
@pytest.mark.parametrize("prompts", [100, 805])
@pytest.mark.parametrize("seed_sd", [0.0, 0.01, 0.02])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_in_every_setting(what, seeds, seed_sd, prompts, kind):
    found = coverage(
        what, seeds, seed_sd, prompts, experiments=4000, kind=kind
    )  # 1,000 have a standard error of .7 points
    print(f"{what}, {kind}, {seeds} seeds of sd {seed_sd}, {prompts} prompts: {found:.1%}")
    assert 0.93 <= found <= 0.97
