"""Lines of a section about its judge: the noise between repeats, and the time and money that verdicts took."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from plo.prices import price_line
from plo.statistics import JudgeNoise, judge_noise
from plo.tracking import Finding, allowed_name

REPEATS = "{}_repeats.json"  # table of an evaluation's items by repeat


def noise_of(found: Sequence[Finding]) -> dict[str, JudgeNoise]:
    """Return the noise of the judge in each metric that differs between its repeats, from findings judged several times."""
    tables = [one.table(REPEATS.format(one.evaluation)).rename(columns=allowed_name) for one in found]
    numeric = dict.fromkeys(str(name) for table in tables for name in table.select_dtypes("number"))
    metrics = [name for name in numeric if name not in ("repeat", "prompt_id")]
    noises = {metric: judge_noise(_values(table, metric) for table in tables if metric in table) for metric in metrics}
    return {metric: one for metric, one in noises.items() if one is not None and one.prompt + one.run > 0}


def _values(table: pd.DataFrame, metric: str) -> np.ndarray:
    """Return a cell's values, [prompts, repeats]."""
    return table.groupby(["prompt_id", "repeat"])[metric].mean().unstack("repeat").to_numpy(dtype=float)


def judge_lines(noise: Mapping[str, JudgeNoise], prompts: int, usages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the noise of a judge in its rates, and on the time and money that 1,000 of its verdicts took.

    Args:
        prompts: number of prompts of a cell.
        usages: what was asked for each cell, see `price_line`.
    """
    lines = [
        f"{metric}, asked {one.repeats} times: from one repeat to the next a prompt's value moves by an sd of {one.prompt**0.5:.3g} "
        f"and a cell's mean, beyond that, by {one.run**0.5:.3g}. The judge's part of the standard error of a cell's mean over "
        f"{prompts} prompts is {one.sd_of_mean(prompts, one.repeats):.2g}; asked once, it would be "
        f"{one.sd_of_mean(prompts, 1):.2g}. Intervals contain it."
        for metric, one in noise.items()
    ]
    price = price_line(usages)
    return [*lines, price] if price else lines
