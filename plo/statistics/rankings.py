"""How well a judge ranks models: rank correlation with people, and the distance between ratings, by the number of verdicts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from plo.statistics.head_to_head import bradley_terry
from plo.statistics.intervals import Array, StatisticsError

DRAWS = 200  # random subsets of pairs
Numbers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Ranking:
    """Agreement of a judge's ratings with people's, if the judge sees so many pairs, drawn at random.

    Attributes:
        budget: number of pairs.
        models: number of models.
        correlation: Spearman's rank correlation of the ratings: median of the draws, and the 2.5% and 97.5% quantiles.
        gap: mean distance between a model's ratings by the judge and by people, in Elo points, likewise.
    """

    budget: int
    models: int
    correlation: tuple[float, float, float]
    gap: tuple[float, float, float]

    def __str__(self) -> str:
        (rank, *ranks), (gap, *gaps) = self.correlation, self.gap
        return (
            f"{self.budget} pairs of {self.models} models: rank correlation {rank:.2f} [{ranks[0]:.2f}, {ranks[1]:.2f}], ratings "
            f"{gap:.0f} [{gaps[0]:.0f}, {gaps[1]:.0f}] Elo points from those by the labels"
        )


def rank_agreement(
    first: Numbers, second: Numbers, human: Array, judged: Array, budgets: tuple[int, ...] = (), *, seed: int = 0
) -> list[Ranking]:
    """Return how a judge's ranking of models agrees with people's at each budget of pairs.

    Ratings are Bradley-Terry's. People's are those of all pairs. The judge's are those of a random subset of `budget` pairs,
    with replacement where that is all of them, so that the spread is the one of new pairs.

    Args:
        first, second: numbers of the models of each pair, from 0.
        human, judged: wins of the second model by people and by the judge, 1, 1/2 or 0; NaN where it could not be read.
        budgets: numbers of pairs; default: a tenth, a third, and all of them.

    Raises:
        StatisticsError: there are fewer than three models, whose ranks say nothing.
    """
    kept = np.isfinite(human) & np.isfinite(judged)
    first, second, human, judged = first[kept], second[kept], human[kept], judged[kept]
    models = int(max(first.max(initial=-1), second.max(initial=-1))) + 1
    if models < 3 or len(np.unique(np.concatenate([first, second]))) < 3:
        raise StatisticsError("A ranking needs 3 models at least: name them in the columns model_a and model_b.")
    pairs, target = len(human), bradley_terry(second, first, human, models)
    generator, found = np.random.default_rng(seed), list[Ranking]()
    for budget in budgets or tuple(sorted({max(pairs // 10, 3), max(pairs // 3, 3), pairs})):
        correlations: list[float] = []
        gaps: list[float] = []
        for _ in range(DRAWS):
            drawn = generator.choice(pairs, min(budget, pairs), replace=budget >= pairs)
            own = bradley_terry(second[drawn], first[drawn], judged[drawn], models)
            correlations.append(_spearman(own, target))
            gaps.append(float(np.abs(own - target).mean()))
        found.append(Ranking(min(budget, pairs), models, _quantiles(correlations), _quantiles(gaps)))
    return found


def _spearman(a: Array, b: Array) -> float:
    """Return Spearman's rank correlation; 0 where one has no ranks, as all its values are equal."""
    ranks = np.array([pd.Series(values).rank().tolist() for values in (a, b)])
    return float(np.corrcoef(ranks)[0, 1]) if (np.ptp(ranks, 1) > 0).all() else 0.0


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = np.quantile(values, [0.025, 0.5, 0.975]).tolist()
    return median, low, high
