"""Pooled seed variances: limma's published formulas by another route, the model's algebra by hand and by matrices."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from plo.statistics import compare, estimate, paired, pool
from plo.statistics.contrasts import contrast
from plo.statistics.intervals import StatisticsError
from plo.statistics.moderated import moderate, moderated, seed_variances, trigamma_inverse, variance_prior


def double_centred(m):
    return m - m.mean(-1, keepdims=True) - m.mean(-2, keepdims=True) + m.mean((-2, -1), keepdims=True)


def test_seed_variances_of_a_full_table_by_hand():
    # rows 0 0 0, 1 2 3, 0 0 3: doubly centred 2/3 1/3 -1, -1/3 1/3 0, -1/3 -2/3 1; sums of squares 14/9, 2/9, 14/9
    means = np.array([[0.0, 0, 0], [1, 2, 3], [0, 0, 3]])
    found, degrees, residual = seed_variances(means)
    assert found == pytest.approx(np.array([14, 2, 14]) / 9 / 2 * 3 / 2)
    assert degrees == pytest.approx([2, 2, 2]) and residual == 4


def test_seed_variances_are_unbiased_in_a_ragged_table():
    rng, means = np.random.default_rng(0), np.random.default_rng(1).normal(size=(4000, 6, 5)) * 0.3
    means = means + rng.normal(size=(4000, 1, 5)) + rng.normal(size=(4000, 6, 1))  # seeds and rows have effects
    means[:, 1, 3:] = np.nan
    means[:, 2, 0] = np.nan
    found, degrees, residual = seed_variances(means)
    assert found.mean(0) == pytest.approx(np.full(6, 0.09), rel=0.05)
    assert residual == 27 - (6 + 5 - 1)
    assert degrees.sum() == pytest.approx(residual * 6 / 5)
    assert degrees[1] < degrees[2] < degrees[0] == pytest.approx(degrees[5])


def test_a_row_that_shares_no_seed_has_no_variance_of_its_own():
    means = np.random.default_rng(0).normal(size=(6, 4))
    means[0, :3], means[1:, 3] = np.nan, np.nan
    found, degrees, residual = seed_variances(means)
    assert math.isnan(found[0]) and degrees[0] == 0 and residual == 8
    assert found[1:] == pytest.approx(seed_variances(means[1:, :3])[0])
    assert moderated(found, degrees, 3.0, 0.5)[0] == 0.5


def limma(v, f):
    """d0 and s0^2 of limma's fitFDist, equations solved by bracketing instead of Newton's method."""
    z = np.log(v) - special.digamma(f / 2) + math.log(f / 2)
    excess = np.sum((z - z.mean()) ** 2) / (len(v) - 1) - special.polygamma(1, f / 2)
    if excess <= 0:
        return math.inf, v.mean()
    d0 = optimize.brentq(lambda d: special.polygamma(1, d / 2) - excess, 1e-3, 1e6)
    return d0, math.exp(z.mean() + special.digamma(d0 / 2) - math.log(d0 / 2))


def test_the_prior_is_limmas_where_rows_differ_much():
    rng, agree = np.random.default_rng(0), 0
    for _ in range(200):
        v = 0.01 * rng.chisquare(4, 40) / 4 * 4 / rng.chisquare(4, 40)
        (d0, square), (expected, expected_square) = variance_prior(v, np.full(40, 4.0), 0.0), limma(v, 4)
        assert d0 == pytest.approx(expected, rel=1e-8) and square == pytest.approx(expected_square, rel=1e-8)
        agree += math.isfinite(expected)
    assert agree > 150


def test_rows_that_do_not_differ_share_their_mean_variance():
    v = np.array([1.0, 1.1, 0.9, 1.0, 1.05])  # far closer to each other than chi-square with 3 degrees of freedom
    d0, square = variance_prior(v, np.full(5, 3.0), 0.0)
    assert d0 == math.inf and square == pytest.approx(v.mean())
    assert moderated(v, np.full(5, 3.0), d0, square) == pytest.approx(np.full(5, v.mean()))


def test_squeezing_by_hand():
    # limma's squeezeVar: (d0 s0^2 + f v) / (d0 + f) = (4 * .5 + 2 * v) / 6
    assert moderated(np.array([0.5, 2.0]), np.array([2.0, 2.0]), 4.0, 0.5) == pytest.approx([0.5, 1.0])


def test_trigamma_inverse():
    for y in (1e-3, 0.4, 1.0, 7.0, 1e4):
        assert trigamma_inverse(special.polygamma(1, np.array([y])))[0] == pytest.approx(y, rel=1e-9)


def test_a_metric_without_variance_over_seeds():
    means = np.zeros((6, 3))
    means[:, 0] = np.arange(6)
    found, degrees, _ = seed_variances(np.tile(np.arange(6.0)[:, None], (1, 3)))
    assert variance_prior(found, degrees, 1.0)[1] == 0
    mixed = np.array([0.0, 1.0, 1.0, 2.0, 1.0])  # a row that is the same in every seed counts as 1e-5 of the median
    assert np.isfinite(variance_prior(mixed, np.full(5, 2.0), 1.0)).all()


@pytest.mark.parametrize("seeds", [(3, 0, 0), (3, 0, 6), (2, 1, 4), (0, 3, 5)])
def test_weights_are_those_of_generalised_least_squares(seeds):
    a, b, common = 0.3, 0.7, 0.5
    paired_seeds, only_a, only_b = seeds
    cells = [(0, s) for s in range(paired_seeds + only_a)]
    cells += [(1, s) for s in range(paired_seeds)] + [(1, 100 + s) for s in range(only_b)]
    row, seed = (np.array(values) for values in zip(*cells, strict=True))
    covariance = common * (seed[:, None] == seed) + np.diag(np.where(row == 0, a, b))
    design = np.eye(2)[row]
    precision = np.linalg.inv(covariance)
    estimator = np.linalg.solve(design.T @ precision @ design, design.T @ precision)
    linear = estimator[0] - estimator[1]
    weights, variance = contrast(seeds, a, b, common)
    shared = seed < paired_seeds
    groups = [(row == 0) & shared, (row == 1) & shared, (row == 0) & ~shared, (row == 1) & ~shared]
    assert weights == pytest.approx(np.array([linear[group].sum() for group in groups]))
    assert variance == pytest.approx(linear @ covariance @ linear)
    assert weights[0] + weights[2] == pytest.approx(1) and weights[1] + weights[3] == pytest.approx(-1)


def test_contrast_in_its_limits():
    assert contrast((4, 0, 0), 0.3, 0.7, 9.0)[1] == pytest.approx(1.0 / 4)  # the formula of the paired difference
    assert contrast((3, 0, 6), 0.3, 0.9, 0.0)[1] == pytest.approx(0.3 / 3 + 0.9 / 9)  # all seeds count alike
    assert contrast((3, 0, 6), 0.3, 0.9, 1e9)[1] == pytest.approx(1.2 / 3)  # unpaired seeds do not count
    assert contrast((3, 0, 0), 0.0, 0.0, 0.0)[1] == 0


def rows(rng, losses=6, prompts=40, seeds=3, sd=0.1, names="abcdefghijkl"):
    y = rng.normal(size=(1, prompts, 1)) + 0.2 * rng.normal(size=(losses, prompts, 1))
    y = y + sd * rng.normal(size=(losses, 1, seeds)) + 0.3 * rng.normal(size=(losses, prompts, seeds))
    return {names[i]: pd.DataFrame(y[i]) for i in range(losses)}


def test_standard_error_is_that_of_the_formula():
    tables = rows(np.random.default_rng(3))
    pooled, found = pool(tables), compare(tables, "a")["b"]
    means = np.array([table.mean().to_numpy() for table in tables.values()])
    raw = (double_centred(means) ** 2).sum(-1) / 2 * 6 / 5
    assert found.pooled and list(pooled.variances) == list("abcdef")
    gap = (tables["b"] - tables["a"]).to_numpy()
    ms_p = 3 * gap.mean(1).var(ddof=1)
    ms_s = 40 * gap.mean(0).var(ddof=1)
    ms_ps = (((gap - gap.mean()) ** 2).sum() - 39 * ms_p - 2 * ms_s) / (39 * 2)
    of_seeds = (pooled.variances["a"] + pooled.variances["b"]) / 3
    assert found.se**2 == pytest.approx(of_seeds + max(ms_p - ms_ps, 0) / 120)
    assert found.share == pytest.approx(of_seeds / found.se**2)
    shrunk = (pooled.d0 * pooled.s0**2 + 2 * raw) / (pooled.d0 + 2) if math.isfinite(pooled.d0) else pooled.s0**2
    assert list(pooled.variances.values()) == pytest.approx(np.broadcast_to(shrunk, 6))
    assert found.degrees == pytest.approx(min(pooled.d0 + 2, pooled.residual))
    assert found.mean == pytest.approx(gap.mean()) and found.low < found.mean < found.high
    assert (found.prompts, found.seeds, found.dropped) == (40, 3, 0)


def test_fewer_than_five_rows_have_the_test_of_their_own_differences():
    tables = rows(np.random.default_rng(0), losses=4)
    assert pool(tables) is None
    found, expected = compare(tables, "a")["c"], estimate(paired(tables["c"], tables["a"]))
    assert not found.pooled and found.degrees == 2
    assert (found.mean, found.se, found.share, found.p) == pytest.approx(
        (expected.mean, expected.se, expected.share, expected.p)
    )
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_unpaired_seeds_of_the_baseline_narrow_the_interval():
    rng = np.random.default_rng(0)
    tables = rows(rng, losses=7, seeds=9)
    few = {name: table if name == "a" else table[[0, 1, 2]] for name, table in tables.items()}
    dropped = few | {"a": tables["a"][[0, 1, 2]]}
    used, paired_only = compare(few, "a")["b"], compare(dropped, "a")["b"]
    assert used.se < paired_only.se and used.mean != paired_only.mean
    unpaired = {name: table.set_axis([f"{name}{s}" for s in table], axis=1) for name, table in few.items()}
    assert pool(unpaired) is None  # nothing is shared: no row's variance is known apart from the seeds'
    with pytest.raises(StatisticsError, match="no seed in common"):
        compare(unpaired, "a")


def test_rows_without_items_are_tested_over_seeds():
    rng = np.random.default_rng(0)
    tables = {name: pd.DataFrame([rng.normal(size=4)]) for name in "abcdef"}
    found = compare(tables, "a")["b"]
    pooled = pool(tables)
    assert found.pooled and found.share == 1.0 and found.prompts == 1
    assert found.se**2 == pytest.approx((pooled.variances["a"] + pooled.variances["b"]) / 4)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.mean) / found.se, found.degrees), rel=1e-6)
    two = compare({name: tables[name] for name in "ab"}, "a")["b"]
    expected = stats.ttest_rel(tables["b"].iloc[0], tables["a"].iloc[0])
    assert two.p == pytest.approx(expected.pvalue, rel=1e-6) and two.share == 1.0


def test_prompts_that_a_row_lacks_are_left_out_of_its_own_differences_alone():
    tables = rows(np.random.default_rng(0))
    tables["b"].iloc[:5, 1] = np.nan
    found = compare(tables, "a")
    assert (found["b"].prompts, found["b"].dropped, found["c"].prompts) == (35, 5, 40)
    with pytest.raises(StatisticsError, match="b and a have no prompt in common"):
        compare(tables | {"b": tables["b"].set_axis(range(100, 140))}, "a")


def test_a_row_that_never_differs():
    """The baseline under another name is known to differ by 0 as well as its seeds allow; one that always wins by 1 is not."""
    tables = rows(np.random.default_rng(0))
    same = compare(tables | {"again": tables["a"].copy()}, "a")["again"]
    assert same.mean == 0 and same.se > 0 and same.p == pytest.approx(1)
    always = compare(tables | {"always": tables["a"] + 1}, "a")["always"]
    assert math.isnan(always.se) and math.isnan(always.p_holm)


def test_intervals_end_at_the_metrics_bounds():
    tables = rows(np.random.default_rng(0), sd=3.0)
    found = compare(tables, "a", bounds=(0.0, 1.0))["b"]
    assert found.low >= -1 and found.high <= 1


def test_a_noisy_row_does_not_decide_about_quiet_ones():
    rng = np.random.default_rng(0)
    means = 0.1 * rng.normal(size=(400, 9, 3)) + rng.normal(size=(400, 1, 3))
    quiet = moderate(means[:, :8])
    means[:, 8] += 3 * rng.normal(size=(400, 3))  # 30 times as noisy
    found = moderate(means)
    alone = found.degrees[:, 8] < 2.5
    assert alone.mean() > 0.9  # else its own 3 seeds happen to agree
    assert found.variances[alone, :8] == pytest.approx(quiet.variances[alone])
    assert found.residual[alone] == pytest.approx(quiet.residual[alone])
    assert found.variances[alone, 8].mean() == pytest.approx(9, rel=0.2)


def test_a_noisy_row_is_an_f_test_by_hand():
    # 7 rows whose doubly centred sums of squares are known: the largest against the mean of the others, F(2, 10)
    rng = np.random.default_rng(4)
    for scale in (1.0, 4.0, 6.0, 12.0):
        means = rng.normal(size=(7, 3))
        means[2] *= scale
        raw, *_ = seed_variances(means)
        largest, others = raw.argmax(), np.sort(raw)[:-1].mean()
        flagged = stats.f.sf(raw.max() / others, 2, 12 - 2) < 0.005 / 7
        found = moderate(means)
        assert (found.degrees[largest] < 2.5) == flagged
        if flagged:
            assert found.variances[largest] == pytest.approx(raw.max() * 6 / 5)


def test_five_rows_always_share():
    means = np.random.default_rng(0).normal(size=(5, 3))
    means[0] *= 1000
    assert (moderate(means).degrees > 2).all()


def test_a_row_apart_shares_no_variance():
    rng = np.random.default_rng(0)
    tables = rows(rng, losses=6)
    tables["reference"] = pd.DataFrame(rng.normal(size=(40, 3)))
    found, without = compare(tables, "a", apart=["reference"]), compare(rows(np.random.default_rng(0), losses=6), "a")
    assert found["b"].se == without["b"].se and not found["reference"].pooled
    expected = estimate(paired(tables["reference"], tables["a"]))
    assert (found["reference"].se, found["reference"].p) == pytest.approx((expected.se, expected.p))
