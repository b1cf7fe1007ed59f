"""Reward at matched KL, with intervals: what each variant has reached when all have moved equally far from the reference."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from plo.leaderboards.board import Matched, Row
from plo.statistics import compare, estimate, reward_at_kl
from plo.statistics.intervals import StatisticsError
from plo.tracking import RecordedCell, tables

POINTS = "points.json"


def match_kl(
    rows: Sequence[Row], base: Row, cells: Mapping[str, RecordedCell], samples: Mapping[str, pd.DataFrame]
) -> Matched | None:
    """Return the rewards at a KL that most rows reach; None where reward and KL of the evaluation points are not recorded.

    Between the evaluation points, of which the reference at KL 0 is the first, rewards are interpolated for each prompt and
    seed (`reward_at_kl`).

    Args:
        cells: {run id: cell}.
        samples: {run id: samples}, for the reference's rewards.
    """
    reference = next((row for row in rows if row.loss == "reference"), None)
    kept = [cell for cell in cells.values() if cell.has_table(POINTS)]
    if reference is None or not kept or base is reference:
        return None
    start = {
        seed: samples[run].groupby("prompt_id")["reward"].mean()
        for seed, run in reference.runs.items()
        if run in samples and "reward" in samples[run]
    }
    recorded = tables(kept, POINTS)
    points = {row.name: _points(row, recorded, start) for row in rows if row is not reference and not row.is_ceiling}
    points = {name: found for name, found in points.items() if found}
    if base.name not in points:
        return None
    reach = {
        name: min(max(float(kl[s].mean()) for kl, _ in found) for s in found[0][0]) for name, found in points.items()
    }
    budget = min(float(np.quantile(list(reach.values()), 0.25)), reach[base.name])
    at = {name: reward_at_kl(points[name], budget) for name in points if reach[name] >= budget}
    try:
        gaps = compare(at, base.name)
    except StatisticsError:
        gaps = {}
    return Matched(budget, {name: estimate(table) for name, table in at.items()}, gaps) if budget > 0 else None


def _points(
    row: Row, recorded: Mapping[str, pd.DataFrame], start: Mapping[str, pd.Series]
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return (KL, reward) [prompts, seeds] of each point, the reference first; none where a seed lacks a point."""
    frames = {seed: recorded[run] for seed, run in row.runs.items() if run in recorded and seed in start}
    if not frames:
        return []
    shares = sorted(set.union(*(set(frame["share"]) for frame in frames.values())))
    first = pd.DataFrame({seed: start[seed] for seed in frames})
    found = [(first * 0.0, first)]
    for share in shares:
        of_share = {seed: frame[frame["share"] == share].set_index("prompt_id") for seed, frame in frames.items()}
        kl, reward = (pd.DataFrame({s: one[name] for s, one in of_share.items()}) for name in ("kl", "reward"))
        if any(math.isnan(float(kl[seed].mean())) for seed in kl):
            return []
        found.append((kl, reward))
    return found
