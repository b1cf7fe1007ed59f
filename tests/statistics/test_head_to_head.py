"""Schedules of direct comparisons, and Bradley-Terry ratings by hand and beside evalica."""

import math
from collections import Counter
from itertools import combinations, islice

import numpy as np
import pytest

from plo.statistics import bradley_terry, schedule


@pytest.mark.parametrize(("players", "blocks"), [(2, 1), (3, 2), (4, 6), (5, 7), (6, 10)])
def test_every_beginning_of_a_schedule_is_balanced(players, blocks):
    games = list(schedule(players, blocks))
    pairs = [frozenset(pair) for pair in combinations(range(players), 2)]
    assert len(games) == len({(block, frozenset(met)) for block, *met in games}) == blocks * len(pairs)
    met, used = Counter(dict.fromkeys(pairs, 0)), Counter(dict.fromkeys(range(blocks), 0))
    for block, *pair in games:
        met[frozenset(pair)] += 1
        used[block] += 1
        assert max(met.values()) - min(met.values()) <= 1 and max(used.values()) - min(used.values()) <= 1


def test_consecutive_games_of_four_players_share_none():
    first, second = islice(schedule(4, 9), 2)
    assert not set(first[1:]) & set(second[1:])


def test_ten_wins_of_eleven_are_400_points():
    n = 11_000  # the prior weighs as little as one part in ten thousand
    first, second = np.zeros(n, dtype=int), np.ones(n, dtype=int)
    wins = (np.arange(n) % 11 > 0).astype(float)
    assert bradley_terry(first, second, wins, 2) == pytest.approx([200, -200], abs=0.1)
    assert np.isfinite(bradley_terry(first, second, np.ones(n), 2)).all()  # a player that won all games
    draws = bradley_terry(first, second, np.full(n, 0.5), 2)
    assert draws == pytest.approx([0, 0], abs=1e-6)


def test_ratings_are_evalicas():
    evalica = pytest.importorskip("evalica")
    random = np.random.default_rng(0)
    strength = np.array([0.0, 0.4, 1.0, -0.7])
    first, second = random.integers(0, 4, 4000), random.integers(0, 4, 4000)
    first, second = first[first != second], second[first != second]
    wins = (random.random(len(first)) < 1 / (1 + np.exp(strength[second] - strength[first]))).astype(float)
    names = list("abcd")
    winners = [evalica.Winner.X if win else evalica.Winner.Y for win in wins]
    found = evalica.bradley_terry(
        [names[i] for i in first], [names[j] for j in second], winners, tolerance=1e-12
    ).scores
    theirs = 400 / math.log(10) * np.log(found[names].to_numpy())
    assert bradley_terry(first, second, wins, 4) == pytest.approx(theirs - theirs.mean(), abs=0.05)
