"""Reward at matched KL: what each loss has reached when it has moved equally far from the reference."""

from collections.abc import Hashable, Sequence
from itertools import pairwise

import pandas as pd

from plo.statistics.intervals import Table, complete


def reward_at_kl(points: Sequence[tuple[Table, Table]], budget: float) -> pd.DataFrame:
    """Return each prompt's reward at a KL of `budget` nats, interpolated between evaluation points, for each seed.

    In each seed, a and b are the first two successive points whose mean KLs k_a <= budget <= k_b enclose the budget. With
    w = (budget - k_a) / (k_b - k_a) and the slope c = (r_b - r_a) / (k_b - k_a) of the mean reward, prompt p has

        (1 - w) r_ap + w r_bp - c [(1 - w) k_ap + w k_bp - budget].

    The bracket averages 0 over the prompts: the mean is the linear interpolation. Answering each prompt with one of the two
    policies at random attains that reward. The bracket carries the noise of the measured KLs, so the table goes into
    `compare` as it is.

    Args:
        points: (KL, reward) of each evaluation point in order of training, each [prompts, seeds] with the same seeds. The
            reference is a first point with KL 0, if its rewards are given.

    Returns:
        [prompts, seeds] for the prompts that all points have. A seed that never reaches the budget has no column.

    Source: the delta method for the ratio (budget - k_a) / (k_b - k_a).
    """
    tables = [(complete(kl), complete(reward)) for kl, reward in points]
    prompts = tables[0][0].index
    for pair in tables:
        for table in pair:
            prompts = prompts.intersection(table.index)
    tables = [(kl.reindex(prompts), reward.reindex(prompts)) for kl, reward in tables]
    columns: dict[Hashable, pd.Series] = {}
    for seed in tables[0][0]:
        for (kl_a, reward_a), (kl_b, reward_b) in pairwise(tables):
            low, high = float(kl_a[seed].mean()), float(kl_b[seed].mean())
            if low <= budget <= high and low < high:
                w = (budget - low) / (high - low)
                slope = float((reward_b[seed] - reward_a[seed]).mean()) / (high - low)
                off = (1 - w) * kl_a[seed] + w * kl_b[seed] - budget
                columns[seed] = (1 - w) * reward_a[seed] + w * reward_b[seed] - slope * off
                break
    return pd.DataFrame(columns, index=prompts)
