"""Jackknife, reward at matched KL, fragility and common length: closed forms, enumeration, simulation."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from errorbars.compare import paired_compare
from scipy.special import expit

from plo.statistics import compare, cut_to_common_length, fragility, pseudo_values, reward_at_kl
from plo.statistics.intervals import StatisticsError


def test_one_seed_is_the_paired_test_of_errorbars():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 60), rng.normal(0, 1, 60)
    found = compare({"a": pd.DataFrame({0: a}), "b": pd.DataFrame({0: b})}, "b")["a"]
    expected = paired_compare(a, b)
    assert (found.mean, found.se, found.p) == pytest.approx((expected.mean_diff, expected.se_paired, expected.p_value))
    assert (found.low, found.high) == pytest.approx((expected.ci_low, expected.ci_high))


def test_pseudo_values_of_a_mean_are_the_groups_means():
    y = np.random.default_rng(0).normal(size=(805, 2))
    values = pseudo_values(lambda kept: y[kept].mean(0), 805)
    assert values.shape == (35, 2) and values.mean(0) == pytest.approx(y.mean(0))
    of_groups = values.std(0, ddof=1) / math.sqrt(35)
    assert of_groups == pytest.approx(y.std(0) / math.sqrt(805), rel=0.3)
    for groups in (1, 806):
        with pytest.raises(StatisticsError, match="2 to 805 groups"):
            pseudo_values(lambda kept: y[kept].mean(0), 805, groups=groups)


def test_pseudo_values_of_a_smooth_statistic_have_its_standard_error():
    rng, se, truth = np.random.default_rng(0), [], []
    for _ in range(200):
        y = rng.normal(0.5, 1, 350)
        values = pseudo_values(lambda kept, y=y: expit(y[kept].mean()) ** 2, 350)
        se.append(values.std(ddof=1) / math.sqrt(35))
        truth.append(expit(y.mean()) ** 2)
    assert np.mean(se) == pytest.approx(np.std(truth), rel=0.15)


def test_reward_at_matched_kl_by_hand():
    seeds = ["0", "1"]
    start = pd.DataFrame([[0.0, 0.0], [0.0, 0.0]], columns=seeds), pd.DataFrame([[0.0, 0.0], [2.0, 2.0]], columns=seeds)
    end = pd.DataFrame([[3.0, 1.0], [5.0, 1.0]], columns=seeds), pd.DataFrame([[2.0, 9.0], [4.0, 9.0]], columns=seeds)
    found = reward_at_kl([start, end], 1.0)
    # seed 0: from (KL 0, reward 1) to (4, 3): w = 1/4, slope 1/2. Prompt 0: 0.5 - (.75 - 1) / 2, prompt 1: 2.5 - (1.25 - 1) / 2
    assert found["0"].tolist() == pytest.approx([0.625, 2.375])
    assert found["0"].mean() == pytest.approx(1.5)
    assert found["1"].tolist() == pytest.approx([9.0, 9.0])  # the end point itself
    assert list(reward_at_kl([start, end], 2.0)) == ["0"]  # seed 1 never goes so far
    assert reward_at_kl([start, end], 9.0).shape == (2, 0)


def test_reward_at_matched_kl_has_the_variance_of_its_mean():
    """KL and reward of a prompt go together, so ignoring the KL's noise would give a wrong standard error."""
    rng, found, printed, naive = np.random.default_rng(0), [], [], []
    for _ in range(400):
        noise = rng.normal(size=(100, 2, 2))
        kl = [pd.DataFrame(k + noise[:, i, :1]) for i, k in enumerate((2.0, 6.0))]
        reward = [pd.DataFrame(r + 0.8 * noise[:, i, :1] + 0.3 * noise[:, i, 1:]) for i, r in enumerate((1.0, 3.0))]
        table = reward_at_kl(list(zip(kl, reward, strict=True)), 4.0)
        found.append(table[0].mean())
        printed.append(table[0].std() / 10)
        naive.append(((reward[0] + reward[1]) / 2)[0].std() / 10)
    assert np.mean(printed) == pytest.approx(np.std(found), rel=0.1)
    assert np.mean(naive) > 1.5 * np.std(found)


def test_reward_at_matched_kl_takes_the_first_crossing():
    def point(kl, reward):
        return pd.DataFrame({0: [kl, kl]}), pd.DataFrame({0: [reward, reward]})

    path = [point(0, 0), point(4, 2), point(1, 5), point(8, 9)]
    assert reward_at_kl(path, 2.0)[0].tolist() == [1.0, 1.0]


def by_force(a, b):
    """Least number of verdicts 0 or 1 to change for b's mean to exceed a's, trying all subsets."""
    cells = [(0, i) for i in range(len(a))] + [(1, i) for i in range(len(b))]
    for k in range(len(cells) + 1):
        for subset in itertools.combinations(cells, k):
            x, y = a.copy(), b.copy()
            for side, i in subset:
                (x, y)[side][i] = side  # the best change: a's verdict to 0, b's to 1
            if y.mean() > x.mean() + 1e-12:
                return k


def test_fragility_by_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = np.sort(rng.integers(0, 2, (2, 7)).astype(float), axis=0)[::-1]
        found = fragility({"a": pd.DataFrame({0: a}), "b": pd.DataFrame({0: b})})
        assert found.flips == by_force(a, b)
        d = a - b
        least = next(
            (k for k in range(7) for left in itertools.combinations(range(7), 7 - k) if d[list(left)].sum() < 0), None
        )
        assert found.drops == least


def test_fragility_names_the_nearest_rival():
    ones = {"a": [1, 1, 1, 1, 0.0], "b": [1, 1, 1, 0, 0.0], "c": [0, 0, 0, 0, 1.0]}
    tables = {name: pd.DataFrame({0: values}) for name, values in ones.items()}
    # a leads b by one verdict: one change ties, two move the first place; c wins a prompt, without the other four it is first
    assert fragility(tables) == ("a", "b", 2, 10, 4)
    assert fragility(tables, higher_is_better=False).first == "c"
    assert fragility({"x": tables["a"], "y": tables["a"]}).flips == 1
    with pytest.raises(StatisticsError, match="two rows"):
        fragility({"a": tables["a"]})
    with pytest.raises(StatisticsError, match="finite bounds"):
        fragility(tables, bounds=(-math.inf, 1.0))


def test_common_length():
    a = {0: [list("abcd"), list("abc")], 1: [list("ab"), list("abcdef")], 2: [list("abcdefg")]}
    b = {0: [list("xyzxyz")], 1: [list("xyz")], 2: [list("x")], 9: [list("xyz")]}
    tokens, cut = cut_to_common_length({"a": a, "b": b}, 3)  # shortest: 3, 2, 1
    assert (tokens, cut) == (3, {"a": {0: [list("abc"), list("abc")]}, "b": {0: [list("xyz")]}})
    tokens, cut = cut_to_common_length({"a": a, "b": b})  # two of three prompts stay
    assert tokens == 2 and list(cut["a"]) == list(cut["b"]) == [0, 1] and cut["a"][1] == [["a", "b"], ["a", "b"]]
    with pytest.raises(StatisticsError, match="the longest common length is 3"):
        cut_to_common_length({"a": a, "b": b}, 4)
    with pytest.raises(StatisticsError, match="No prompt is common"):
        cut_to_common_length({"a": {0: []}, "b": {1: []}})


def test_diversity_at_common_length_does_not_see_length():
    """The same sampler, once cut short: distinct-1 differs as it is, not on the common length."""
    rng = np.random.default_rng(0)
    long = {p: [rng.integers(0, 300, 120).tolist() for _ in range(4)] for p in range(30)}
    short = {p: [rng.integers(0, 300, 30).tolist() for _ in range(4)] for p in range(30)}

    def distinct(by_prompt):
        return np.mean([len({t for x in texts for t in x}) / sum(map(len, texts)) for texts in by_prompt.values()])

    assert distinct(short) - distinct(long) > 0.2
    tokens, cut = cut_to_common_length({"long": long, "short": short})
    assert tokens == 30 and abs(distinct(cut["short"]) - distinct(cut["long"])) < 0.03
