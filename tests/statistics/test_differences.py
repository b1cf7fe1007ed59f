"""Holm's correction, its family-wise error, and the minimal detectable difference's power."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated import wins

from plo.statistics import Estimate, differences, holm, minimal_detectable_difference, p_value, two_way


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
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (50, 3))
    base = pd.DataFrame(rng.normal(0, 5, (50, 1)) + noise)  # prompts differ much, in all alike
    far, near = base + 0.4 + rng.normal(0, 0.1, (50, 3)), base + rng.normal(0, 0.1, (50, 3))
    found = differences({"far": far, "near": near}, base)
    assert found["far"].mean == pytest.approx((far - base).to_numpy().mean())
    assert found["far"].resolved and not found["near"].resolved
    assert found["far"].p_holm == pytest.approx(2 * found["far"].p)
    assert found["near"].p_holm == found["near"].p
    assert found["far"].detectable == found["near"].detectable == minimal_detectable_difference(found.values())
    alone = differences({"far": far}, base)["far"]
    assert alone.p_holm == alone.p


def test_a_difference_without_spread_is_no_test():
    """A variant that wins wherever the baseline loses, 20 prompts of 20 in every seed: not "resolved at p 1e-12"."""
    base, always = pd.DataFrame(np.zeros((20, 3))), pd.DataFrame(np.ones((20, 3)))
    other = pd.DataFrame(np.random.default_rng(0).random((20, 3)))
    found = differences({"always": always, "other": other}, base)
    assert found["always"].mean == 1.0 and not found["always"].resolved
    assert math.isnan(found["always"].p) and math.isnan(found["always"].p_holm)
    alone = differences({"other": other}, base)["other"]
    assert (found["other"].p_holm, found["other"].detectable) == (alone.p_holm, alone.detectable)
    assert math.isnan(differences({"always": always}, base)["always"].detectable)


def test_intervals_of_differences_of_rates_end_at_1():
    base, best = pd.DataFrame(np.zeros((20, 2))), pd.DataFrame(np.ones((20, 2)))
    best.iloc[0, 0] = 0.0
    assert differences({"best": best}, base)["best"].high > 1
    found = differences({"best": best}, base, bounds=(0.0, 1.0))["best"]
    assert found.high == 1.0 and found.low > -1
    assert differences({"worst": base}, best, bounds=(0.0, 1.0))["worst"].low == -1.0


@pytest.mark.parametrize("m", [1, 5])
def test_detectable_where_only_prompts_vary(m):
    one = Estimate(0.0, 0.02, 0.0, 0, 0, 1.0, 10_000, 1)
    textbook = (stats.norm.isf(0.025 / m) + stats.norm.ppf(0.8)) * 0.02
    assert minimal_detectable_difference(m * [one]) == pytest.approx(textbook, rel=1e-3)
    assert math.isnan(minimal_detectable_difference([]))


def test_detectable_where_only_seeds_vary():
    """Then it is Student's test over seeds, whose power is the noncentral t's."""
    one = Estimate(0.0, 0.02, 1.0, 0, 0, 1.0, 800, 4)
    found, c = minimal_detectable_difference([one]) / 0.02, stats.t.ppf(0.975, 3)
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


def power(variants, seeds, prompts, experiments, times):
    """{t: shares of experiments in which a true difference of t MDDs is significant after Holm, and in which it is resolved}.

    One variant differs, the others do not. The MDD is that of the design: of the components' means over all experiments.
    """
    rng, parts = np.random.default_rng([variants, seeds, prompts]), []
    for _ in range(experiments // 50):
        parts.append(of_baseline(rng, 50, prompts, seeds, 0.02, variants))
    mean, se, share = (np.concatenate(part) for part in zip(*parts, strict=True))
    square = (se**2).mean()
    of_design = Estimate(0, math.sqrt(square), (share * se**2).mean() / square, 0, 0, 1, prompts, seeds)
    true = minimal_detectable_difference(variants * [of_design])
    families = [
        [Estimate(0, a, b, 0, 0, 1, prompts, seeds) for a, b in zip(*family, strict=True)]
        for family in zip(se, share, strict=True)
    ]
    printed, found = np.array([minimal_detectable_difference(family) for family in families]), {}
    for t in times:
        significant, resolved = [], []
        for one in range(variants):
            shifted = mean + t * true * (np.arange(variants) == one)
            p = [holm(family)[one] for family in p_value(shifted / se, share, prompts, seeds)]
            significant.append(np.array(p) < 0.05)
            resolved.append(significant[-1] & (np.abs(shifted[:, one]) >= printed))
        found[t] = float(np.mean(significant)), float(np.mean(resolved))
    said = ", ".join(f"{t} MDD: p < .05 {a:.1%}, resolved {b:.1%}" for t, (a, b) in found.items())
    tails = np.quantile(printed, [0.1, 0.5, 0.9]) / true
    print(f"{variants} variants, {seeds} seeds, {prompts} prompts: {said}; printed / true MDD {tails.round(2)}")
    return found


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("variants", [1, 5])
def test_power_at_the_minimal_detectable_difference(variants, seeds):
    found = power(variants, seeds, 100, 300, [1.0, 2.0])
    assert 0.75 <= found[1.0][0] <= 0.86
    assert found[2.0][1] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [100, 805])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("variants", [1, 5])
def test_what_the_readme_says_of_the_minimal_detectable_difference(variants, seeds, prompts):
    found = power(variants, seeds, prompts, 2000, [1.0, 1.5, 2.0])
    assert 0.77 <= found[1.0][0] <= 0.83
    assert 0.50 <= found[1.0][1] <= 0.64
    assert found[1.5][1] >= 0.86 and found[2.0][1] >= 0.97


def test_one_seed_does_not_set_the_others_detectable_difference():
    three = Estimate(0.1, 0.05, 0.8, 0, 0.2, 0.1, 100, 3, 0)
    one = Estimate(0.1, 0.05, 0.0, 0, 0.2, 0.1, 100, 1, 0)
    alone = minimal_detectable_difference([three])
    assert minimal_detectable_difference([three, one]) > alone  # one test more, over the same seeds
    assert minimal_detectable_difference([three, one]) == minimal_detectable_difference([three, three])
