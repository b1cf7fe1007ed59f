"""Holm's correction, its family-wise error, and power at the detectable difference."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated import wins

from plo.statistics import compare, detectable_difference, holm, p_value, two_way


def test_holm_by_hand():
    # sorted .005 * 4, .01 * 3, .03 * 2, then .04 * 1, never less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    first, nan = holm([0.04, math.nan])
    assert first == 0.04 and math.isnan(nan)


def test_holm_equals_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    p = np.random.default_rng(0).random(20) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_differences_to_a_baseline():
    """With two rows against a third each difference has a variance of its own; Holm doubles the smaller p."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (50, 3))
    base = pd.DataFrame(rng.normal(0, 5, (50, 1)) + noise)  # prompts differ much, in all alike
    far, near = base + 0.4 + rng.normal(0, 0.1, (50, 3)), base + rng.normal(0, 0.1, (50, 3))
    found = compare({"far": far, "near": near, "base": base}, "base")
    assert found["far"].mean == pytest.approx((far - base).to_numpy().mean())
    assert found["far"].p_holm == pytest.approx(2 * found["far"].p) and found["far"].p_holm < 0.05
    assert found["near"].p_holm == found["near"].p > 0.05
    alone = compare({"far": far, "base": base}, "base")["far"]
    assert alone.p_holm == alone.p


def test_a_difference_without_spread_is_no_test():
    """A variant that wins wherever the baseline loses, 20 prompts of 20 in every seed: not "better at p 1e-12"."""
    base, always = pd.DataFrame(np.zeros((20, 3))), pd.DataFrame(np.ones((20, 3)))
    other = pd.DataFrame(np.random.default_rng(0).random((20, 3)))
    found = compare({"always": always, "other": other, "base": base}, "base")
    assert found["always"].mean == 1.0
    assert math.isnan(found["always"].p) and math.isnan(found["always"].p_holm)
    assert found["other"].p_holm == compare({"other": other, "base": base}, "base")["other"].p_holm


def test_intervals_of_differences_of_rates_end_at_1():
    base, best = pd.DataFrame(np.zeros((20, 2))), pd.DataFrame(np.ones((20, 2)))
    best.iloc[0, 0] = 0.0
    tables = {"base": base, "best": best}
    assert compare(tables, "base")["best"].high > 1
    found = compare(tables, "base", bounds=(0.0, 1.0))["best"]
    assert found.high == 1.0 and found.low > -1
    assert compare(tables, "best", bounds=(0.0, 1.0))["base"].low == -1.0


@pytest.mark.parametrize("m", [1, 5])
def test_detectable_where_only_prompts_vary(m):
    textbook = (stats.norm.isf(0.025 / m) + stats.norm.ppf(0.8)) * 0.02
    assert detectable_difference(0.0, 0.02**2, 10_000, 0, m) == pytest.approx(textbook, rel=1e-3)


def test_detectable_where_only_seeds_vary():
    """Then it is Student's test over seeds, whose power is the noncentral t's."""
    found, c = detectable_difference(0.02**2, 0.0, 800, 3, 1) / 0.02, stats.t.ppf(0.975, 3)
    power = stats.nct.sf(c, 3, found) + stats.nct.cdf(-c, 3, found)
    assert power == pytest.approx(0.8, abs=0.003)


def of_baseline(rng, experiments, prompts, seeds, seed_sd, losses=6):
    """[experiments, losses]: mean, standard error and share of the losses' differences to one more, all alike in truth."""
    y = wins(rng, experiments, prompts, seeds, seed_sd, losses=losses + 1, loss_sd=0.1)
    return two_way(y[:, 1:] - y[:, :1])


@pytest.mark.parametrize(("seeds", "prompts", "experiments"), [
    (3, 100, 1000), pytest.param(3, 805, 1000, marks=pytest.mark.slow), pytest.param(5, 805, 1000, marks=pytest.mark.slow),
])  # fmt: skip
def test_family_wise_error(seeds, prompts, experiments):
    rng, wrong = np.random.default_rng(seeds), 0
    for _ in range(experiments // 50):
        mean, se, share = of_baseline(rng, 50, prompts, seeds, 0.02)
        wrong += sum(min(holm(family)) < 0.05 for family in p_value(mean / se, share, prompts, seeds))
    print(f"{seeds} seeds, {prompts} prompts: family-wise error {wrong / experiments:.1%}")
    assert wrong / experiments <= 0.064


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("variants", [1, 5])
def test_power_at_the_detectable_difference(variants, seeds):
    """Of the design's components, known from all experiments, it is found in 80% of them: Holm's first step is the strictest."""
    rng, parts, prompts = np.random.default_rng([variants, seeds, 100]), [], 100
    for _ in range(6):
        parts.append(of_baseline(rng, 50, prompts, seeds, 0.02, variants))
    mean, se, share = (np.concatenate(part) for part in zip(*parts, strict=True))
    of_seeds, of_prompts = (share * se**2).mean(), ((1 - share) * se**2).mean()
    shift = detectable_difference(of_seeds, of_prompts, prompts, seeds - 1, variants) * (np.arange(variants) == 0)
    p = [holm(family)[0] for family in p_value((mean + shift) / se, share, prompts, seeds)]
    assert 0.74 <= np.mean(np.array(p) < 0.05) <= 0.87
