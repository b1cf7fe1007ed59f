"""Direct comparisons: which pairs of players meet in which block, and Bradley-Terry ratings of their games."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from plo.statistics.intervals import Array
from plo.statistics.logistic import logistic

ELO = 400 / math.log(10)  # points a unit of log-odds
PRIOR = 0.01  # precision of the normal prior of a rating, in log-odds: a standard deviation of 10


def schedule(players: int, blocks: int) -> Iterator[tuple[int, int, int]]:
    """Yield all games (block, first player, second player), so that every beginning of the list is balanced.

    A block is what the players of a game have in common, such as a prompt with a seed. After any number of games the numbers
    of games of two pairs differ by at most 1, and so do those of two blocks: a balanced incomplete block design, as far as
    the numbers allow.

    Example:
        >>> list(schedule(3, 2))[:4]
        [(0, 1, 2), (1, 0, 2), (0, 0, 1), (1, 1, 2)]
    """
    pairs = _pairs(players)
    cycle = math.lcm(blocks, len(pairs)) if blocks and pairs else 1  # games until block and pair meet again
    for game in range(blocks * len(pairs)):
        first, second = pairs[(game + game // cycle) % len(pairs)]
        yield game % blocks, first, second


def _pairs(players: int) -> list[tuple[int, int]]:
    """Return all pairs in the rounds of a round robin, in which consecutive pairs share no player where possible."""
    circle = [*range(players), *([-1] if players % 2 else [])]
    found: list[tuple[int, int]] = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        met = zip(circle[:half], reversed(circle[half:]), strict=True)
        found += [pair for pair in met if -1 not in pair]
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def bradley_terry(
    first: npt.NDArray[np.integer[Any]],
    second: npt.NDArray[np.integer[Any]],
    wins: Array,
    players: int,
    weights: Array | None = None,
) -> Array:
    """Return Bradley-Terry ratings in Elo points, whose mean is 0: P(first wins) = 1 / (1 + 10^((r_2 - r_1) / 400)).

    A weak normal prior (standard deviation 10 in log-odds) keeps the rating of a player that won or lost all games finite.

    Args:
        first, second: [games] numbers of the players.
        wins: [games] 1 if the first player won, 0 if the second did, 1/2 for a draw.
        weights: [games], default 1.

    Returns:
        [players].

    Source: Bradley and Terry (1952).
    """
    games = np.arange(len(wins))
    features = np.zeros((len(wins), players))
    features[games, first] += 1
    features[games, second] -= 1
    ratings = logistic(features, wins, weights, ridge=PRIOR)
    return ELO * (ratings - ratings.mean())
