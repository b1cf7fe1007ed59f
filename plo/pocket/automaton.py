"""`Automaton`: a finite process of symbols with rewards, whose values are computed exactly by dynamic programming."""

from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from plo.errors import PloError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class AutomatonError(PloError, ValueError):
    """The transitions of an automaton do not make a process that ends."""


class Automaton:
    """Deterministic weighted automaton: in a state, a symbol has a probability and a reward, and leads to one state.

    A state without transitions is an end, of value 0. Transitions are kept in the order of their layer and source; all
    arrays of length `transitions` below follow that order.

    Args:
        layer: (states,) a number that every transition increases, which is the order of the dynamic programming.
        source, symbol, target: (transitions,) state, symbol and next state.
        probability: (transitions,) probability of the symbol under the reference; those of a state sum to 1. Transitions
            of probability 0 are left out.
        reward: (transitions,) reward of the symbol.

    Raises:
        AutomatonError: the probabilities of a state do not sum to 1, or a transition does not increase the layer.

    Example:
        >>> coin = Automaton([0, 1], source=[0, 0], symbol=[0, 1], target=[1, 1], probability=[.5, .5], reward=[3, -1])
        >>> coin.values()
        array([1., 0.])
    """

    def __init__(self, layer, *, source, symbol, target, probability, reward):
        self.layer = np.asarray(layer)
        possible = np.asarray(probability) > 0
        source, symbol, target, probability, reward = (
            np.asarray(values)[possible] for values in (source, symbol, target, probability, reward)
        )
        if (self.layer[target] <= self.layer[source]).any():
            raise AutomatonError(
                "A transition does not lead to a higher layer. Number the layers in the order of time."
            )
        order = np.lexsort((symbol, source, self.layer[source]))
        self.source, self.symbol, self.target = source[order], symbol[order], target[order]
        self.probability: Floats = probability[order].astype(float)
        self.reward: Floats = reward[order].astype(float)
        self.states, self.symbols = len(self.layer), int(self.symbol.max()) + 1
        # Transitions of one state lie next to each other, and so do the states of one layer.
        self._starts = np.flatnonzero(np.r_[True, self.source[1:] != self.source[:-1]])
        self._owners = self.source[self._starts]
        sums = np.add.reduceat(self.probability, self._starts)
        if (wrong := np.abs(sums - 1) > 1e-9).any():
            state, total = self._owners[wrong][0], sums[wrong][0]
            raise AutomatonError(f"The probabilities of state {state} sum to {total}. Make them sum to 1.")
        layers = self.layer[self._owners]
        cuts = np.flatnonzero(np.r_[True, layers[1:] != layers[:-1], True])
        bounds = np.r_[self._starts, len(self.source)]
        self._layers = [
            (slice(bounds[a], bounds[b]), self._starts[a:b] - bounds[a], self._owners[a:b]) for a, b in pairwise(cuts)
        ]

    def expected(self, reward: Floats, policy: Floats | None = None) -> Floats:
        """Return (states,) the expected sum of a reward (transitions,) from each state on.

        Args:
            policy: (transitions,) probabilities; None: those of the reference.
        """
        policy = self.probability if policy is None else policy
        values = np.zeros(self.states)
        for part, starts, owners in reversed(self._layers):
            values[owners] = np.add.reduceat(policy[part] * (reward[part] + values[self.target[part]]), starts)
        return values

    def values(self) -> Floats:
        """Return (states,) V, the expected sum of rewards from each state on under the reference."""
        return self.expected(self.reward)

    def soft_values(self, beta: float) -> Floats:
        """Return (states,) V*, the maximum of E[sum of rewards] - beta KL(policy || reference) from each state on.

            V*(s) = beta log sum_a ref(a | s) exp((r(s, a) + V*(s')) / beta)

        Args:
            beta: price of a nat of KL in units of reward, > 0.
        """
        values, logs = np.zeros(self.states), np.log(self.probability)
        for part, starts, owners in reversed(self._layers):
            scaled = (self.reward[part] + values[self.target[part]]) / beta + logs[part]
            most = np.maximum.reduceat(scaled, starts)
            sizes = np.diff(np.r_[starts, len(scaled)])
            sums = np.add.reduceat(np.exp(scaled - np.repeat(most, sizes)), starts)
            values[owners] = beta * (most + np.log(sums))
        return values

    def advantages(self, values: Floats) -> Floats:
        """Return (transitions,) r(s, a) + V(s') - V(s) for values (states,) of either kind."""
        return self.reward + values[self.target] - values[self.source]

    def optimum(self, beta: float) -> tuple[Floats, Floats]:
        """Return (states,) expected reward and (states,) KL in nats of the policy that maximises E[reward] - beta KL.

        Args:
            beta: price of a nat of KL in units of reward, > 0.
        """
        values = self.soft_values(beta)
        gold = self.expected(self.reward, self.probability * np.exp(self.advantages(values) / beta))
        return gold, (gold - values) / beta

    @cached_property
    def transition(self) -> Ints:
        """Table (states, symbols): number of the transition, -1 where the symbol is forbidden."""
        table = np.full((self.states, self.symbols), -1)
        table[self.source, self.symbol] = np.arange(len(self.source))
        return table

    def draw(self, state: Ints, noise: Floats) -> Ints:
        """Return (n,) transitions drawn in states (n,), by uniform numbers (n,) in [0, 1). No state may be an end."""
        place, last, cumulative = self._cumulative
        found = np.searchsorted(cumulative, place[state] + noise, side="right")
        return np.minimum(found, last[place[state]])  # place + noise may be rounded up to the next state

    @cached_property
    def _cumulative(self) -> tuple[Ints, Ints, Floats]:
        """Place of each state among those with transitions, the last transition of each, and the sum of all probabilities."""
        place = np.full(self.states, -1)
        place[self._owners] = np.arange(len(self._owners))
        sizes = np.diff(np.r_[self._starts, len(self.source)])
        inside = np.cumsum(self.probability)
        inside -= np.repeat(inside[self._starts] - self.probability[self._starts], sizes)
        last = np.r_[self._starts[1:], len(self.source)] - 1
        return place, last, np.repeat(np.arange(len(self._owners)), sizes) + inside
