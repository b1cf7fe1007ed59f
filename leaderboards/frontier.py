"""Reward against KL (Gao et al. 2023, https://arxiv.org/abs/2210.10760): what each loss reaches within the same KL."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.checks import LeaderboardError
from plo.leaderboards.formatting import UNDEFINED, escape, format_number, format_spread, markdown_table
from plo.statistics import Spread
from plo.tracking import RecordedCell

POINT = ["loss", "variant", "beta", "share"]


def points(board: Leaderboard) -> pd.DataFrame:
    """Return one row per evaluation point of each run of the leaderboard that recorded `reward` and `kl`.

    | column             | meaning                                                                                |
    |--------------------|----------------------------------------------------------------------------------------|
    | loss               | the variant without its beta, with the other settings in which its rows differ         |
    |                    | ("dpo [lr=0.001]"); there is one frontier per loss                                     |
    | variant, beta, seed| as in the leaderboard; beta is NaN where the loss has none                             |
    | share              | share of training, in (0, 1]; 0 for the reference                                      |
    | kl, kl_se          | nats: sequence KL(pi || ref), and its standard error, prompts as clusters              |
    | reward             | mean gold reward                                                                       |
    | reward_se          | its standard error, prompts as clusters, at the last point; NaN at earlier points,     |
    |                    | whose samples are not recorded                                                         |
    | prompts            | number of prompts behind reward_se; 0 where that is NaN                                |

    Raises:
        LeaderboardError: no run of the board has both.
    """
    by_run, suffixes = {cell.run_id: cell for cell in board.cells}, _distinguishing_settings(board.rows)
    rows = [
        {"loss": _without_beta(row.variant) + more, "variant": row.variant + more, "beta": row.settings.get("beta"), "seed": seed, **point}
        for row, more in zip(board.rows, suffixes, strict=True)
        for seed, run in row.runs.items()
        for point in _points_of(by_run[run], board.tables.get(run))
    ]  # fmt: skip
    if not rows:
        raise LeaderboardError(
            f"None of the {len(board.cells)} cells is finished and has both `reward` and `kl`: a frontier needs a task with a gold "
            f"reward (data.source=sentiment, or an evaluation of samples that returns `reward`)."
        )
    frame = pd.DataFrame(rows)
    return frame.assign(beta=pd.to_numeric(frame["beta"], errors="coerce"))


def frontier(board: Leaderboard) -> pd.DataFrame:
    """Return the means of `points` over seeds, a row per variant and share of training, and which are on a frontier.

    `on_frontier`: no other point of the same loss has reward >= and KL <= this one's, one of them strictly.
    `seeds`: their number; `kl_sd`, `reward_sd`: sd over seeds (NaN for one). `kl_se`: mean over seeds, an upper bound of the
    standard error of the mean, since seeds share their prompts. `reward_low`, `reward_high`: 95% t interval over prompts, with
    the standard error bounded in the same way; NaN where it is not known. These intervals say nothing about other seeds.

    Raises:
        LeaderboardError: no run of the board has both.
    """
    by_point = points(board).groupby(POINT, dropna=False, sort=False)
    frame = by_point.agg(
        seeds=("seed", "size"), kl=("kl", "mean"), kl_sd=("kl", "std"), kl_se=("kl_se", _mean), reward=("reward", "mean"),
        reward_sd=("reward", "std"), reward_se=("reward_se", _mean), prompts=("prompts", "min"),
    ).reset_index()  # fmt: skip
    margin = frame.pop("reward_se") * stats.t.ppf(0.975, frame.pop("prompts") - 1)
    frame["reward_low"], frame["reward_high"] = frame["reward"] - margin, frame["reward"] + margin
    frame["on_frontier"] = [
        _undominated(row, frame[frame["loss"] == row["loss"]]) for row in frame.to_dict(orient="records")
    ]
    return frame.sort_values(["loss", "beta", "variant", "share"], ignore_index=True)


def frontier_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `frontier`'s frame that are on a frontier; the reference, one point at KL 0, has none."""
    return frame.loc[frame["on_frontier"] & (frame["share"] > 0)]


def at_matched_kl(frame: pd.DataFrame, budgets: Iterable[float]) -> pd.DataFrame:
    """Return the reward on each loss's frontier at these KLs in nats, [losses, budgets]; NaN outside its range of KLs.

    Between neighbouring points of the frontier the reward is linear in KL. That much is attainable: answering each prompt
    with one of the two policies at random has the mean of their rewards and, KL being convex, at most the mean of their KLs.

    Args:
        frame: the result of `frontier`.
    """
    kls = [float(budget) for budget in budgets]
    rows = {}
    for loss, own in frontier_points(frame).groupby("loss", sort=True):
        own = own.sort_values("kl")
        rows[loss] = np.interp(kls, own["kl"], own["reward"], left=math.nan, right=math.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=kls).rename_axis("loss")


def to_markdown(frame: pd.DataFrame, budgets: Sequence[float] | None = None) -> str:
    """Return a table of all points, and below it the reward at matched KL.

    Args:
        frame: the result of `frontier`.
        budgets: KLs in nats; None: the quartiles of the KLs on all frontiers.
    """
    if budgets is None:
        kls = frontier_points(frame)["kl"]
        budgets = np.quantile(kls, [0.25, 0.5, 0.75]).tolist() if len(kls) else []
    lines = [
        [
            escape(row["variant"]), f"{row['share']:.0%}", str(row["seeds"]), _mean_and_sd(row, "kl"),
            _mean_and_sd(row, "reward"), _interval(row), "yes" if row["on_frontier"] else "",
        ]
        for row in frame.to_dict(orient="records")
    ]  # fmt: skip
    matched = at_matched_kl(frame, budgets or ())
    titles = ["variant", "trained", "seeds", "KL (nats)", "reward", "[95%]", "on its loss's frontier"]
    parts = [
        "# Reward against KL",
        "Mean ± sd over seeds; [95%] over prompts, at the last point. A point is on the frontier if no other point of its "
        "loss has at least its reward within its KL. Points were selected on these same prompts, so frontiers are optimistic.",
        markdown_table(titles, lines),
        "## Reward at matched KL",
        f"Linear between neighbouring points of each loss's frontier; `{UNDEFINED}`: a KL outside the frontier's range.",
        markdown_table(
            ["loss", *(f"{budget:.3g} nats" for budget in matched.columns)],
            [[escape(loss), *(format_number(reward, 3) for reward in rewards)] for loss, *rewards in matched.itertuples()],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _points_of(cell: RecordedCell, samples: pd.DataFrame | None) -> list[dict[str, object]]:
    reward, kl, kl_se = (cell.history(name) for name in ("reward", "kl", "kl_se"))
    last, found = max(reward, default=0), []
    for step in sorted(reward.keys() & kl.keys()):
        se, prompts = _reward_se(samples if step == last else None)
        measured = {"kl": kl[step], "kl_se": kl_se.get(step, math.nan), "reward": reward[step]}
        found.append({"share": round(step / max(1, last), 3), **measured, "reward_se": se, "prompts": prompts})
    return found


def _distinguishing_settings(rows: Sequence[Row]) -> list[str]:
    """Return, for each row, the settings but beta in which the rows of its loss differ: " [lr=0.001]", or ""."""
    values: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for row in rows:
        for key, value in row.settings.items():
            values[_without_beta(row.variant), key].add(value)
    suffixes = []
    for row in rows:
        differing = [key for key in row.settings if key != "beta" and len(values[_without_beta(row.variant), key]) > 1]
        own = ", ".join(f"{key}={row.settings[key]}" for key in differing)
        suffixes.append(f" [{own}]" if own else "")
    return suffixes


def _reward_se(samples: pd.DataFrame | None) -> tuple[float, int]:
    """Return sd of the prompts' mean rewards / sqrt(prompts), as for `kl_se`, and the number of prompts."""
    if samples is None or "reward" not in samples:
        return math.nan, 0
    by_prompt = samples["reward"].astype(float).groupby(samples["prompt_id"]).mean().to_numpy()
    sd = float(by_prompt.std(ddof=1)) if len(by_prompt) > 1 else math.nan
    return sd / math.sqrt(len(by_prompt)), len(by_prompt)


def _without_beta(variant: str) -> str:
    """Return "dpo(beta=0.3)" as "dpo", "bpo(beta=1, generator=sba)" as "bpo(generator=sba)"; sums of losses likewise."""
    bare = re.sub(r"\bbeta=[^,()]+(, )?", "", variant)
    return bare.replace(", )", ")").replace("()", "")


def _mean(values: pd.Series) -> float:
    return values.mean(skipna=False)


def _undominated(row: Mapping[Any, Any], others: pd.DataFrame) -> bool:
    reward, kl = others["reward"].to_numpy(), others["kl"].to_numpy()
    as_good = (reward >= row["reward"]) & (kl <= row["kl"])
    return not (as_good & ((reward > row["reward"]) | (kl < row["kl"]))).any()


def _mean_and_sd(row: Mapping[Any, Any], name: str) -> str:
    return format_spread(Spread(row[name], row[f"{name}_sd"], row["seeds"]), 3)


def _interval(row: Mapping[Any, Any]) -> str:
    return UNDEFINED if math.isnan(row["reward_low"]) else f"[{row['reward_low']:.3f}, {row['reward_high']:.3f}]"
