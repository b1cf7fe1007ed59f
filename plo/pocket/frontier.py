"""The exact frontier of reward and KL: the best mean reward that any policy reaches at a KL to the reference."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plo.pocket.automaton import Automaton, Floats, Ints
from plo.pocket.language import Prompt, language

BETAS = tuple(np.geomspace(0.2, 40, 40).tolist())  # prices of a nat, in units of reward


@dataclass(frozen=True)
class Frontier:
    """Points of the frontier, in the order of KL; between them it is interpolated.

    Attributes:
        kl: (points,) nats per response.
        reward: (points,) expected reward of the optimum, in units of reward; its slope in KL is beta.
        beta: (points,) price of a nat for which the point is the optimum.
    """

    kl: Floats
    reward: Floats
    beta: Floats

    @classmethod
    def of(cls, automaton: Automaton, starts: Sequence[int] | Ints, betas: Sequence[float] = BETAS) -> "Frontier":
        """Compute the frontier of policies that begin in the states `starts`, all equally often."""
        prices = np.array(sorted(betas, reverse=True))
        means = [[values[starts].mean() for values in automaton.optimum(beta)] for beta in prices]
        reward, kl = np.array(means).T
        start = automaton.values()[starts].mean()
        return cls(np.r_[0, kl], np.r_[start, reward], np.r_[np.inf, prices])

    def gold(self, kl: float) -> float:
        """Return the best mean reward at a KL (nats per response).

        The square root of the KL is about linear in the reward near 0, so that both are interpolated linearly in it. Beyond
        the last point it is that point's reward.
        """
        return float(np.interp(np.sqrt(max(kl, 0.0)), np.sqrt(self.kl), self.reward))


def frontier(prompts: Sequence[Prompt]) -> Frontier:
    """Return the frontier of the pocket task on prompts; it is computed once for each list of moods (0.5 s)."""
    return _frontier(tuple(prompt.mood for prompt in prompts))


@functools.lru_cache(maxsize=8)
def _frontier(moods: tuple[int, ...]) -> Frontier:
    return Frontier.of(language().automaton, language().grammar.start(np.array(moods)))
