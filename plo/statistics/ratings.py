"""Bradley-Terry ratings from head-to-head comparisons."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import evalica
import numpy as np
import numpy.typing as npt
import pandas as pd

from plo.statistics.intervals import Array, StatisticsError


@dataclass(frozen=True)
class Ratings:
    """Ratings of the contestants, best first.

    Attributes:
        table: by contestant: `rating` (Elo points, mean 0), `rank` (1 is best), `low`, `high` (the rank's interval), `wins`
            (share of comparisons won, a tie as half).
        cycle_rate: share of intransitive triples (a beats b, b beats c, c beats a) among those whose three pairs all have a
            majority; NaN if there are none. Where it is high, one number per contestant misleads.
        prompts: number of prompts, the clusters of the bootstrap.
    """

    table: pd.DataFrame
    cycle_rate: float
    prompts: int


def head_to_head(scores: Iterable[pd.DataFrame], *, higher_is_better: bool = True) -> pd.DataFrame:
    """Compare every pair of contestants on every prompt: the better score wins, equal scores tie.

    Args:
        scores: one frame per seed, indexed by prompt_id, with one column per contestant; a pair that lacks a score is left
            out.

    Returns:
        A frame with columns prompt_id, a, b, win (1: a wins, 0: b wins, .5: a tie).
    """
    frames: list[pd.DataFrame] = []
    for one in scores:
        names, values = one.columns.to_numpy(), one.to_numpy(dtype=float) * (1 if higher_is_better else -1)
        a, b = np.triu_indices(len(names), 1)
        left, right = values[:, a], values[:, b]
        equal = np.isclose(left, right, rtol=1e-12, atol=1e-15)  # means of the same numbers in another order
        prompt, pair = np.nonzero(~np.isnan(left) & ~np.isnan(right))
        win = np.where(equal, 0.5, left > right)[prompt, pair]
        frames.append(
            pd.DataFrame({"prompt_id": one.index[prompt], "a": names[a[pair]], "b": names[b[pair]], "win": win})
        )
    empty = pd.DataFrame(columns=["prompt_id", "a", "b", "win"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def ratings(games: pd.DataFrame, *, rounds: int = 200, level: float = 0.95, seed: int = 0) -> Ratings:
    """Return Bradley-Terry ratings, P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)), with intervals of the ranks.

    A tie is half a win for each. One tie is added to every pair, without which a contestant that never loses would have an
    infinite rating; with two contestants the rating is then the log odds with Haldane's half. Rank intervals are percentiles
    over `rounds` bootstrap draws of whole prompts. They show what other prompts might give, not what other seeds might.

    Args:
        games: columns prompt_id, a, b, win (a's share of the win, in [0, 1]).

    Raises:
        StatisticsError: fewer than two contestants, or a `win` outside [0, 1].

    Source: Bradley and Terry (1952); computed by evalica.
    """
    names = sorted({*games["a"], *games["b"]})
    if len(names) < 2:
        raise StatisticsError(f"Ratings need two contestants; there is {', '.join(names) or 'none'}.")
    if not games["win"].between(0, 1).all():
        raise StatisticsError("A column `win` must be a's share of the win: 1, 0, .5 for a tie, or between.")
    place = {name: number for number, name in enumerate(names)}
    prompt, prompts = pd.factorize(games["prompt_id"])
    a, b, win = games["a"].map(place), games["b"].map(place), games["win"].astype(float)
    wins = np.zeros((len(prompts), len(names), len(names)))  # [prompt, winner, loser]
    np.add.at(wins, (prompt, a, b), win)
    np.add.at(wins, (prompt, b, a), 1 - win)

    total = wins.sum(0)
    rating = _bradley_terry(total)
    draws = np.random.default_rng(seed).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), rounds)
    by_prompt = wins.reshape(len(prompts), -1)
    drawn = np.stack([_ranks(_bradley_terry((draw @ by_prompt).reshape(total.shape))) for draw in draws])
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(drawn, tails, axis=0, method="nearest")
    played = total + total.T
    share = total.sum(1) / np.maximum(played.sum(1), 1e-300)
    columns = {"rating": rating, "rank": _ranks(rating), "low": low, "high": high, "wins": share}
    table = pd.DataFrame(columns, index=pd.Index(names, name="contestant"))
    table = table.astype({"rank": int, "low": int, "high": int}).sort_values("rating", ascending=False)
    return Ratings(table, _cycle_rate(total), len(prompts))


def _bradley_terry(wins: Array) -> Array:
    """Return Elo points with mean 0 from the wins [winner, loser]."""
    winner, loser = np.nonzero(~np.eye(len(wins), dtype=bool))
    result = evalica.bradley_terry(
        winner.tolist(), loser.tolist(), [evalica.Winner.X] * len(winner),
        weights=(wins[winner, loser] + 0.5).tolist(), tolerance=1e-9, limit=10_000,
    )  # fmt: skip
    points = 400 * np.log10(result.scores.sort_index().to_numpy(dtype=float))
    return points - points.mean()


def _ranks(rating: Array) -> npt.NDArray[np.int_]:
    """Return ranks, 1 for the best; equal ratings share the better rank."""
    rounded = np.round(rating, 6)  # smaller differences are within the solver's tolerance
    return 1 + (rounded[None, :] > rounded[:, None]).sum(1)


def _cycle_rate(wins: Array) -> float:
    majority = np.sign(wins - wins.T)
    decided = cycles = 0
    for a, b, c in combinations(range(len(wins)), 3):
        signs = majority[a, b], majority[b, c], majority[c, a]
        decided += all(signs)
        cycles += abs(sum(signs)) == 3
    return cycles / decided if decided else math.nan
