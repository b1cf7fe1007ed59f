"""Holm's correction, its family-wise error, and the minimal detectable difference's power."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated import wins

from plo.statistics import Estimate, critical, differences, holm, minimal_detectable_difference, p_value, two_way


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


def test_detectable_where_only_prompts_vary():
    one = Estimate(0.0, 0.02, 0.0, 0, 0, 1.0, 10_000, 1)
    textbook = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.02
    assert minimal_detectable_difference([one]) == pytest.approx(textbook, rel=1e-3)
    assert math.isnan(minimal_detectable_difference([]))


def test_detectable_where_only_seeds_vary():
    """Then it is Student's test over seeds, whose power is the noncentral t's."""
    one = Estimate(0.0, 0.02, 1.0, 0, 0, 1.0, 800, 4)
    found, c = minimal_detectable_difference([one]) / 0.02, stats.t.ppf(0.975, 3)
    power = stats.nct.sf(c, 3, found) + stats.nct.cdf(-c, 3, found)
    assert power == pytest.approx(0.8, abs=0.003)


def of_baseline(rng, experiments, prompts, seeds, seed_sd):
    """[experiments, 6]: mean, standard error and share of six losses' differences to a seventh, all alike in truth."""
    y = wins(rng, experiments, prompts, seeds, seed_sd, losses=7, loss_sd=0.1)
    return two_way(y[:, 1:] - y[:, :1])


@pytest.mark.parametrize(("seeds", "prompts", "experiments"), [
    (3, 100, 1000), pytest.param(3, 805, 1000, marks=pytest.mark.slow), pytest.param(5, 805, 1000, marks=pytest.mark.slow),
])  # fmt: skip
def test_family_wise_error_and_power(seeds, prompts, experiments):
    rng, wrong, detectable, parts = np.random.default_rng(seeds), 0, [], []
    for _ in range(experiments // 50):
        mean, se, share = of_baseline(rng, 50, prompts, seeds, 0.02)
        p = p_value(mean / se, share, prompts, seeds)
        wrong += sum(min(holm(family)) < 0.05 for family in p)
        for ses, shares in zip(se, share, strict=True):
            family = [Estimate(0, a, b, 0, 0, 1, prompts, seeds) for a, b in zip(ses, shares, strict=True)]
            detectable.append(minimal_detectable_difference(family))
        parts.append((mean, se, share))
    mean, se, share = (np.concatenate(part) for part in zip(*parts, strict=True))
    power = (np.abs(mean + np.mean(detectable)) > critical(0.05, share, prompts, seeds) * se).mean()
    print(f"{seeds} seeds, {prompts} prompts: family-wise error {wrong / experiments:.1%}, power {power:.1%}")
    assert wrong / experiments <= 0.064
    assert 0.75 <= power <= 0.85
