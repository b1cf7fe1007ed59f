"""Values, soft values and the frontier of a toy automaton against enumeration of all its strings, done by hand."""

import math

import numpy as np
import pytest

from plo.pocket import Automaton, AutomatonError, Frontier

# State 0: `a` (.5, pays 1) to state 1, `b` (.5, pays 0) to state 2. State 1: `c` (.25, pays 4) or `d` (.75, pays 0), both
# to the end. State 2: `c` (1, pays -2) to the end. So there are three strings:
STRINGS = {"ac": (0.125, 5.0), "ad": (0.375, 1.0), "bc": (0.5, -2.0)}  # probability and reward


@pytest.fixture
def toy() -> Automaton:
    return Automaton(
        [0, 1, 1, 2],
        source=[0, 0, 1, 1, 2],
        symbol=[0, 1, 2, 3, 2],
        target=[1, 2, 3, 3, 3],
        probability=[0.5, 0.5, 0.25, 0.75, 1.0],
        reward=[1.0, 0.0, 4.0, 0.0, -2.0],
    )


def test_values_by_hand(toy):
    # V(1) = 4 / 4 = 1; V(2) = -2; V(0) = (1 + 1) / 2 - 2 / 2 = 0.
    assert toy.values() == pytest.approx([0, 1, -2, 0])


def test_advantages_by_hand(toy):
    # a: 1 + V(1) - V(0) = 2; b: V(2) = -2; c in 1: 4 - V(1) = 3; d: -1; c in 2: -2 - V(2) = 0, as nothing else may follow.
    assert toy.advantages(toy.values()) == pytest.approx([2, -2, 3, -1, 0])


@pytest.mark.parametrize("beta", [0.3, 1.0, 7.0])
def test_the_optimum_is_the_tilted_distribution_of_whole_strings(toy, beta):
    tilted = {text: p * math.exp(r / beta) for text, (p, r) in STRINGS.items()}
    total = sum(tilted.values())
    reward = sum(tilted[text] / total * r for text, (_, r) in STRINGS.items())
    kl = sum(tilted[text] / total * math.log(tilted[text] / total / p) for text, (p, _) in STRINGS.items())

    gold, divergence = toy.optimum(beta)

    assert toy.soft_values(beta)[0] == pytest.approx(beta * math.log(total))
    assert (gold[0], divergence[0]) == pytest.approx((reward, kl))


def test_no_policy_lies_above_the_frontier(toy):
    frontier = Frontier.of(toy, [0], np.geomspace(0.1, 100, 400))
    grid = np.linspace(0.001, 0.999, 60)
    best = -np.inf
    for first in grid:  # every policy has two probabilities: of `a`, and of `c` after it
        for second in grid:
            policy = {"ac": first * second, "ad": first * (1 - second), "bc": 1 - first}
            kl = sum(q * math.log(q / STRINGS[text][0]) for text, q in policy.items())
            reward = sum(q * STRINGS[text][1] for text, q in policy.items())
            assert reward <= frontier.gold(kl) + 1e-3
            best = max(best, reward if kl < 0.5 else -np.inf)
    assert frontier.gold(0.5) == pytest.approx(best, abs=0.15)  # the grid is coarse


def test_the_frontier_begins_at_the_reference(toy):
    assert Frontier.of(toy, [0]).gold(0.0) == pytest.approx(0.0)  # V(0) by hand


def test_draws_have_the_probabilities(toy):
    drawn = toy.draw(np.zeros(20000, dtype=int), np.random.default_rng(0).random(20000))

    assert np.bincount(drawn, minlength=5) / 20000 == pytest.approx([0.5, 0.5, 0, 0, 0], abs=0.02)
    assert set(toy.draw(np.array([0, 1, 2]), np.full(3, 1 - 1e-16))) == {1, 3, 4}


def test_a_table_of_forbidden_symbols(toy):
    assert toy.transition.tolist() == [[0, 1, -1, -1], [-1, -1, 2, 3], [-1, -1, 4, -1], [-1] * 4]


def test_probabilities_and_layers_are_checked():
    one = {"source": [0], "symbol": [0], "target": [1], "reward": [0.0]}
    with pytest.raises(AutomatonError, match="state 0 sum to 0.5"):
        Automaton([0, 1], probability=[0.5], **one)
    with pytest.raises(AutomatonError, match="higher layer"):
        Automaton([1, 1], probability=[1.0], **one)
