"""Ranks of a table's rows, with intervals that come from tests of all pairs of rows."""

from collections.abc import Collection, Mapping
from itertools import combinations

import pandas as pd

from plo.statistics.comparisons import compare_pairs
from plo.statistics.intervals import RunNoise, Table, estimate


def rank_intervals(
    tables: Mapping[str, Table],
    *,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    apart: Collection[str] = (),
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> pd.DataFrame:
    """Return each row's rank by its mean, and an interval of the rank from tests of all pairs of rows.

        low = 1 + number of rows significantly better,    high = L - number of rows significantly worse

    All L (L - 1) / 2 pairs are tested by `compare_pairs` and are one family for Holm's correction. So with probability
    1 - alpha at least, no two rows that are equal in truth are separated, over new prompts and new seeds.

    Args:
        tables: for each row its values [prompts, seeds], as for `estimate`.
        apart, noise: as for `compare_pairs`.

    Returns:
        One line per row, best first: mean, rank (1 is best; equal means share the better rank), low, high.

    Raises:
        StatisticsError: as `compare_pairs`.
    """
    means = pd.Series({name: estimate(table).mean for name, table in tables.items()}, dtype=float)
    low, high = pd.Series(1, means.index), pd.Series(len(means), means.index)
    for (a, b), one in compare_pairs(tables, combinations(tables, 2), apart=apart, noise=noise).items():
        if one.p_holm < alpha:
            better, worse = (a, b) if (one.mean > 0) == higher_is_better else (b, a)
            low[worse] += 1
            high[better] -= 1
    rank = means.rank(method="min", ascending=not higher_is_better)
    return pd.DataFrame({"mean": means, "rank": rank, "low": low, "high": high}).sort_values("rank")
