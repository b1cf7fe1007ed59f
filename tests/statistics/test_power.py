"""Designs: against the noncentral t, statsmodels' and errorbars' power formulas, and simulated tables."""

import math

import numpy as np
import pandas as pd
import pytest
from errorbars.power import minimum_detectable_effect
from scipy import stats
from statsmodels.stats.power import TTestPower

from plo.statistics import (
    Comparison,
    cheapest_design,
    compare,
    design_detectable,
    detectable_difference,
    family_detectable,
    sample_variance,
)
from plo.statistics.intervals import StatisticsError

COMPONENTS = {"loss x seed": 0.0004, "loss x prompt": 0.04, "residual": 0.16}


def test_only_prompts_vary():
    # the textbook formula of errorbars: a normal approximation, 400 prompts of a rate at .5, correlation .3
    found = detectable_difference(0.0, 2 * 0.25 * (1 - 0.3) / 400, 400, 0, 1)
    expected = minimum_detectable_effect(400, baseline_accuracy=0.5, rho=0.3)
    assert found == pytest.approx(expected, rel=0.005)


def test_only_seeds_vary():
    # then 4 rows are tested by paired t tests over 5 seeds, at .05 / 3
    only = {"loss x seed": 0.02, "loss x prompt": 0.0, "residual": 0.0}
    found = design_detectable(only, rows=4, seeds=5, prompts=100)
    size = TTestPower().solve_power(nobs=5, alpha=0.05 / 3, power=0.8)
    assert found == pytest.approx(size * math.sqrt(2 * 0.02), rel=0.003)


def test_pooled_degrees_of_freedom():
    # 8 rows, 3 seeds, seeds alone: rho = 1, so min(10 + 2, 6 * 2) = 12 degrees of freedom
    only = {"loss x seed": 0.02, "loss x prompt": 0.0, "residual": 0.0}
    d = design_detectable(only, rows=8, seeds=3, prompts=100) / math.sqrt(2 * 0.02 / 3)
    c = stats.t.isf(0.025 / 7, 12)
    assert stats.nct.sf(c, 12, d) + stats.nct.cdf(-c, 12, d) == pytest.approx(0.8, abs=0.003)


def test_more_of_anything_detects_less():
    base = design_detectable(COMPONENTS, rows=8, seeds=3, prompts=200)
    assert design_detectable(COMPONENTS, rows=8, seeds=5, prompts=200) < base
    assert design_detectable(COMPONENTS, rows=8, seeds=3, prompts=400) < base
    assert design_detectable(COMPONENTS, rows=20, seeds=3, prompts=200) > base * 0.95
    assert design_detectable(COMPONENTS, rows=8, seeds=3, prompts=200, samples=4) == base  # nothing is known of samples
    known = COMPONENTS | {"sample": 0.16}
    assert design_detectable(known, rows=8, seeds=3, prompts=200, samples=4) < base
    # all residual is sampling noise: 4 samples of a quarter of the prompts, where prompts do not differ
    alike = known | {"loss x prompt": 0.0}
    few, many = (design_detectable(alike, rows=8, seeds=3, prompts=p, samples=k) for p, k in ((5000, 4), (20000, 1)))
    assert few == pytest.approx(many, rel=0.01)


def test_components_measured_with_several_samples():
    # residual .16 = text + .24 / 3, so text = .08; with 6 samples .08 + .04
    six = design_detectable(COMPONENTS | {"sample": 0.24}, rows=8, seeds=3, prompts=200, samples=6, measured_samples=3)
    assert six == pytest.approx(design_detectable(COMPONENTS | {"residual": 0.12}, rows=8, seeds=3, prompts=200))


def test_the_cheapest_design_is_the_best_of_a_search():
    wanted, costs = 0.1, {"cell_cost": 60.0, "sample_cost": 0.05}
    found = cheapest_design(COMPONENTS, wanted, rows=8, seeds=range(2, 7), samples=(1,), most_prompts=600, **costs)
    best = min(
        8 * s * (60 + 0.05 * p)
        for s in range(2, 7) for p in range(20, 600, 1 if s == found.seeds else 10)
        if design_detectable(COMPONENTS, rows=8, seeds=s, prompts=p) <= wanted
    )  # fmt: skip
    assert found.cost == pytest.approx(best) and found.detectable <= wanted
    assert design_detectable(COMPONENTS, rows=8, seeds=found.seeds, prompts=found.prompts - 1) > wanted
    with pytest.raises(StatisticsError, match=r"No design with at most 600 prompts .* the least is 0\.0"):
        cheapest_design(COMPONENTS, 0.01, rows=8, seeds=(2, 3), most_prompts=600, **costs)


def test_what_is_missing_is_named():
    with pytest.raises(StatisticsError, match="lack loss x seed"):
        design_detectable(COMPONENTS | {"loss x seed": math.nan}, rows=8, seeds=3, prompts=200)
    with pytest.raises(StatisticsError, match="1 seeds"):
        design_detectable(COMPONENTS, rows=8, seeds=1, prompts=200)


def test_variance_between_samples():
    frame = pd.DataFrame({"loss": "a", "seed": 0, "prompt": [0, 0, 0, 1, 1, 2], "value": [1.0, 2, 3, 5, 7, 9]})
    assert sample_variance(frame) == pytest.approx((1 + 1 + 1 + 1) / 3)  # 2 + 2 over 2 + 1 degrees of freedom
    assert math.isnan(sample_variance(frame.iloc[[0, 3]]))
    rng = np.random.default_rng(0)
    many = pd.DataFrame({"loss": "a", "seed": 0, "prompt": np.repeat(range(2000), 3), "value": rng.normal(0, 2, 6000)})
    assert sample_variance(many) == pytest.approx(4, rel=0.05)


def test_detectable_difference_of_a_family():
    rng = np.random.default_rng(0)
    tables = {name: pd.DataFrame([rng.normal(0, 0.1, 4)]) for name in "abcdefgh"}
    found = compare(tables, "a")
    one = next(iter(found.values()))
    d = family_detectable(found.values()) / math.sqrt(np.median([x.se**2 for x in found.values()]))
    c, df = stats.t.isf(0.025 / 7, one.degrees), one.degrees  # shared by all
    assert stats.nct.sf(c, df, d) + stats.nct.cdf(-c, df, d) == pytest.approx(0.8, abs=0.003)
    assert math.isnan(family_detectable([]))


def test_a_noisy_variant_does_not_change_what_the_design_detects():
    """Of eight differences one is replaced by another of ten times their error and few degrees of freedom."""
    quiet = [Comparison(0.0, 0.1, 1.0, -0.2, 0.2, 1.0, 50, 5, 0, 20.0, 1.0, True) for _ in range(8)]
    noisy = Comparison(0.0, 1.0, 1.0, -2.0, 2.0, 1.0, 50, 5, 0, 4.0, 1.0, True)
    assert family_detectable([*quiet[1:], noisy]) == family_detectable(quiet)
