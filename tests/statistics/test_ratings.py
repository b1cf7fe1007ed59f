"""Bradley-Terry ratings: closed forms of two contestants, an independent fit of four, ranks, cycles."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from plo.statistics import head_to_head, ratings


def games(*rows):
    return pd.DataFrame(rows, columns=["prompt_id", "a", "b", "win"])


def test_head_to_head():
    first = pd.DataFrame({"x": [1.0, 2.0], "y": [0.0, 2.0], "z": [3.0, math.nan]}, index=[4, 5])
    found = head_to_head([first])
    expected = {(4, "x", "y", 1.0), (5, "x", "y", 0.5), (4, "x", "z", 0.0), (4, "y", "z", 0.0)}
    assert set(found.itertuples(index=False, name=None)) == expected
    assert set(head_to_head([first], higher_is_better=False)["win"]) == {0.0, 0.5, 1.0}
    assert len(head_to_head([first, first])) == 8
    assert head_to_head([]).empty


def test_scores_that_differ_by_rounding_tie():
    """.1 + .2 is not .3 in floating point: means of the same rewards in another order."""
    seed = pd.DataFrame({"x": [0.1 + 0.2, 0.3, 1.0], "y": [0.3, 0.1 + 0.2, 1.0 + 1e-9]})
    assert head_to_head([seed])["win"].tolist() == [0.5, 0.5, 0.0]


def test_two_contestants_are_the_log_odds():
    found = ratings(
        games(*[(i, "x", "y", 1.0) for i in range(7)], *[(i, "y", "x", 1.0) for i in range(2)], (9, "x", "y", 0.5))
    )
    # 7.5 wins to 2.5, and half a win to each
    gap = found.table["rating"]["x"] - found.table["rating"]["y"]
    assert gap == pytest.approx(400 * math.log10(8 / 3), abs=1e-3)
    assert found.table["wins"].to_dict() == {"x": 0.75, "y": 0.25}
    assert found.table["rating"].sum() == pytest.approx(0) and math.isnan(found.cycle_rate)


def test_four_contestants_equal_a_maximised_likelihood():
    rng, strength, names = np.random.default_rng(0), np.array([0.8, 0.3, 0.0, -0.6]), list("wxyz")
    rows = []
    for prompt in range(60):
        for i in range(4):
            for j in range(i):
                win = float(rng.random() < 1 / (1 + np.exp(strength[j] - strength[i])))
                rows.append((prompt, names[i], names[j], win))
    found = ratings(games(*rows), rounds=50)
    place = {name: number for number, name in enumerate(names)}

    def minus_log_likelihood(free):
        r = np.append(free, 0.0)
        total = -sum(np.log1p(np.exp(-(r[place[a]] - r[place[b]]) * (2 * win - 1))) for _, a, b, win in rows)
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        return -(total - sum(0.5 * np.log1p(np.exp(r[j] - r[i])) for i, j in pairs))

    r = np.append(optimize.minimize(minus_log_likelihood, np.zeros(3)).x, 0.0)
    expected = (r - r.mean()) * 400 / math.log(10)
    assert found.table["rating"].loc[names].to_numpy() == pytest.approx(expected, abs=0.1)
    assert (found.table["low"] <= found.table["rank"]).all() and (found.table["rank"] <= found.table["high"]).all()


def test_rank_intervals_tell_apart_what_differs():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({"good": rng.normal(2, 1, 100), "a": rng.normal(0, 1, 100), "b": rng.normal(0, 1, 100)})
    table = ratings(head_to_head([scores])).table
    assert table.loc["good", ["rank", "low", "high"]].tolist() == [1, 1, 1]
    assert table.loc["a", ["low", "high"]].tolist() == table.loc["b", ["low", "high"]].tolist() == [2, 3]


def test_prompts_are_the_clusters():
    """Ten equal games on each prompt tell no more than one."""
    rng = np.random.default_rng(0)
    one = pd.DataFrame({"a": rng.normal(0.15, 1, 60), "b": rng.normal(0, 1, 60)})
    once, ten = ratings(head_to_head([one])), ratings(head_to_head([one] * 10))
    assert once.prompts == ten.prompts == 60
    assert once.table["high"].max() == 2 and once.table["low"].min() == 1
    assert ten.table[["low", "high"]].to_numpy().tolist() == once.table[["low", "high"]].to_numpy().tolist()


def test_cycles():
    circle = games((0, "x", "y", 1.0), (0, "y", "z", 1.0), (0, "z", "x", 1.0))
    assert ratings(circle).cycle_rate == 1.0
    assert set(ratings(circle).table["rank"]) == {1}
    line = games((0, "x", "y", 1.0), (0, "y", "z", 1.0), (0, "x", "z", 1.0))
    found = ratings(line)
    assert found.cycle_rate == 0.0 and found.table.index.tolist() == ["x", "y", "z"]
    # w loses to all of the circle: four triples, one of them a cycle
    four = pd.concat([circle, games(*[(0, name, "w", 1.0) for name in "xyz"])])
    assert ratings(four).cycle_rate == 0.25
    assert math.isnan(ratings(games((0, "x", "y", 0.5), (0, "y", "z", 1.0), (0, "z", "x", 1.0))).cycle_rate)


def test_refusals():
    with pytest.raises(ValueError, match="two contestants; there is none"):
        ratings(games())
    with pytest.raises(ValueError, match="a's share of the win"):
        ratings(games((0, "x", "y", 2.0)))
