"""Intervals and spreads: by hand where there is a hand, by simulation where there is not."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest

from plo.evals import Spread, paired_difference, spread


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_spread():
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    one, none = spread([4.0]), spread([])
    assert one.mean == 4.0 and math.isnan(one.sd) and math.isnan(none.mean)


def test_samples_then_seeds_then_prompts():
    a = pd.DataFrame({"seed 0": [1.0, 3.0, 5.0], "seed 1": [3.0, 5.0, 5.0]}, index=[0, 0, 1])
    b = pd.Series([1.0, 1.0], index=[1, 0])
    # prompt 0: seeds 2 and 4, mean 3; prompt 1: 5; differences 2 and 4
    difference = paired_difference(a, b)
    assert difference.mean == 3.0 and difference.prompts == 2
    assert (difference.low, difference.high) == (2.0, 4.0)  # a bootstrap mean of two is 2, 3 or 4


def test_degenerate_input():
    one = paired_difference(pd.Series([2.0]), pd.Series([1.0]))
    assert one.mean == 1.0 and math.isnan(one.low) and math.isnan(one.high)
    equal = paired_difference(pd.Series([2.0] * 5), pd.Series([1.5] * 5))
    assert (equal.mean, equal.low, equal.high) == (0.5, 0.5, 0.5)
    broken = paired_difference(pd.Series([2.0, math.nan]), pd.Series([1.0, 1.0]))
    assert math.isnan(broken.mean) and math.isnan(broken.low)
    with pytest.raises(ValueError, match="2 prompts are in only one of the two, first prompt_id 1"):
        paired_difference(pd.Series([1.0, 2.0], index=[0, 1]), pd.Series([1.0, 2.0], index=[0, 2]))


def test_the_same_twice():
    values = np.random.default_rng(0).normal(size=(2, 50))
    a, b = pd.Series(values[0]), pd.Series(values[1])
    assert paired_difference(a, b) == paired_difference(a.sample(frac=1, random_state=1), b)


def test_coverage_and_clusters():
    """95% intervals hold the truth about 95% of the time, with samples that agree within a prompt."""
    rng = np.random.default_rng(0)
    prompts, samples, runs, hits = 40, 4, 200, 0
    index = np.repeat(np.arange(prompts), samples)
    zero = pd.Series(np.zeros(prompts * samples), index=index)
    for _ in range(runs):
        effect = 0.3 + rng.normal(size=prompts).repeat(samples) + 0.1 * rng.normal(size=prompts * samples)
        found = paired_difference(pd.Series(effect, index=index), zero, resamples=999)
        hits += found.low <= 0.3 <= found.high
    # 200 draws at .95 have sd .015; the percentile bootstrap of 40 is a little narrow (.94).
    # Taking the 160 samples as independent would cover about two thirds.
    assert 0.89 <= hits / runs <= 0.99
