"""Reward against KL (Gao et al. 2023, https://arxiv.org/abs/2210.10760), over beta and over checkpoints, from recorded runs.

A loss that reaches more reward may only have gone further from the reference. What compares losses is the reward that
each reaches within the same KL.
"""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.checks import LeaderboardError
from plo.leaderboards.formatting import UNDEFINED, escape, format_number, markdown_table
from plo.tracking import RecordedCell

POINT = ["loss", "variant", "beta", "share"]


def points(board: Leaderboard) -> pd.DataFrame:
    """A row an evaluation point of each run of the leaderboard that recorded `reward` and `kl`.

    | column             | meaning                                                                                |
    |--------------------|----------------------------------------------------------------------------------------|
    | loss               | the variant without its beta, with the other settings that its rows differ in          |
    |                    | ("dpo [lr=0.001]"): what a frontier is drawn for                                       |
    | variant, beta, seed| as in the leaderboard; beta NaN where the loss has none                                |
    | share              | of training, in (0, 1]; 0 for the reference                                            |
    | kl, kl_se          | nats: sequence KL(pi || ref), and its standard error, prompts as clusters              |
    | reward             | mean gold reward                                                                       |
    | reward_se          | its standard error, prompts as clusters; of the last point only: samples of earlier    |
    |                    | ones are not recorded; else NaN                                                        |
    | prompts            | behind reward_se; 0 where that is NaN                                                  |

    Raises:
        LeaderboardError: no run of the board has both.
    """
    by_run, said = {cell.run_id: cell for cell in board.cells}, _told_apart(board.rows)
    rows = [
        {"loss": _without_beta(row.variant) + more, "variant": row.variant + more, "beta": _beta(row), "seed": seed, **point}
        for row, more in zip(board.rows, said, strict=True)
        for seed, run in row.runs.items()
        for point in _points_of(by_run[run], board.tables.get(run))
    ]  # fmt: skip
    if not rows:
        raise LeaderboardError(
            f"None of the {len(board.cells)} cells is finished and has both `reward` and `kl`: a frontier needs a task with a gold "
            f"reward (data.source=sentiment, or an evaluation of samples that returns `reward`)."
        )
    return pd.DataFrame(rows)


def frontier(board: Leaderboard) -> pd.DataFrame:
    """Seed means of `points`, a row a variant and share of training, and which of them are on their loss's frontier.

    `on_frontier`: no other point of the same loss has reward >= and KL <= this one's, one of them strictly.
    `seeds`: their number; `kl_sd`, `reward_sd`: over seeds (NaN for one). `kl_se`: the seeds' mean, an upper bound for the
    mean's, since seeds share their prompts. `reward_low`, `reward_high`: 95% t interval over prompts, the standard error
    bounded alike; NaN where it is not known. Neither speaks of other seeds: that is the sd.

    Raises:
        LeaderboardError: as `points`.
    """
    by_point = points(board).groupby(POINT, dropna=False, sort=False)
    frame = by_point.agg(
        seeds=("seed", "size"), kl=("kl", "mean"), kl_sd=("kl", "std"), kl_se=("kl_se", _mean), reward=("reward", "mean"),
        reward_sd=("reward", "std"), reward_se=("reward_se", _mean), prompts=("prompts", "min"),
    ).reset_index()  # fmt: skip
    margin = frame.pop("reward_se") * stats.t.ppf(0.975, frame.pop("prompts") - 1)
    frame["reward_low"], frame["reward_high"] = frame["reward"] - margin, frame["reward"] + margin
    frame["on_frontier"] = [_undominated(row, frame[frame["loss"] == row.loss]) for row in frame.itertuples()]
    return frame.sort_values(["loss", "beta", "variant", "share"], ignore_index=True)


def reached(frame: pd.DataFrame) -> pd.DataFrame:
    """The frontiers' points; the reference, one point at KL 0, has no frontier."""
    return frame[frame["on_frontier"] & (frame["share"] > 0)]


def at_matched_kl(frame: pd.DataFrame, budgets: Iterable[float]) -> pd.DataFrame:
    """Reward on each loss's frontier at these KLs in nats, [losses, budgets]; NaN outside the KLs that its frontier spans.

    Linear in KL between neighbouring points of the frontier. That much can be had: answering each prompt with either policy,
    by a coin, has the mean of their rewards, and at most the mean of their KLs, KL being convex.

    Args:
        frame: of `frontier`.
    """
    budgets = [float(budget) for budget in budgets]
    rows = {}
    for loss, own in reached(frame).groupby("loss", sort=True):
        own = own.sort_values("kl")
        rows[loss] = np.interp(budgets, own["kl"], own["reward"], left=math.nan, right=math.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=budgets).rename_axis("loss")


def to_markdown(frame: pd.DataFrame, budgets: Sequence[float] | None = None) -> str:
    """Every point, and below them the reward at matched KL.

    Args:
        frame: of `frontier`.
        budgets: KLs in nats; None: the quartiles of the KLs on all frontiers.
    """
    if budgets is None:
        budgets = reached(frame)["kl"].quantile([0.25, 0.5, 0.75])
    lines = [
        [
            escape(row.variant), f"{row.share:.0%}", str(row.seeds), _plus_minus(row.kl, row.kl_sd),
            _plus_minus(row.reward, row.reward_sd), _interval(row), "yes" if row.on_frontier else "",
        ]
        for row in frame.itertuples()
    ]  # fmt: skip
    matched = at_matched_kl(frame, budgets)
    titles = ["variant", "trained", "seeds", "KL (nats)", "reward", "[95%]", "on its loss's frontier"]
    parts = [
        "# Reward against KL",
        "Mean ± sd over seeds; [95%] over prompts, known of the last point. On the frontier: no other point of the loss has at "
        "least this reward within this KL. Points were picked on these very prompts, so a frontier flatters.",
        markdown_table(titles, lines),
        "## Reward at matched KL",
        f"Linear between neighbours on each loss's frontier; `{UNDEFINED}`: a KL that the loss's frontier does not span.",
        markdown_table(
            ["loss", *(f"{budget:.3g} nats" for budget in matched.columns)],
            [
                [escape(loss), *(format_number(reward, 3) for reward in rewards)]
                for loss, *rewards in matched.itertuples()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _points_of(cell: RecordedCell, samples: pd.DataFrame | None) -> list[dict[str, object]]:
    reward, kl, kl_se = (cell.history(name) for name in ("reward", "kl", "kl_se"))
    last, found = max(reward, default=0), []
    for step in sorted(reward.keys() & kl.keys()):
        se, prompts = _reward_se(samples) if step == last else (math.nan, 0)
        measured = {"kl": kl[step], "kl_se": kl_se.get(step, math.nan), "reward": reward[step]}
        found.append({"share": round(step / max(1, last), 3), **measured, "reward_se": se, "prompts": prompts})
    return found


def _told_apart(rows: Sequence[Row]) -> list[str]:
    """For each row, the settings but beta in which those of its loss differ: " [lr=0.001]"; "" where there are none."""
    of_loss: dict[str, dict[str, set]] = {}
    for row in rows:
        seen = of_loss.setdefault(_without_beta(row.variant), {})
        for key, value in row.settings.items():
            seen.setdefault(key, set()).add(value)
    said = []
    for row in rows:
        seen = of_loss[_without_beta(row.variant)]
        own = [f"{key}={value}" for key, value in row.settings.items() if key != "beta" and len(seen[key]) > 1]
        said.append(f" [{', '.join(own)}]" if own else "")
    return said


def _beta(row: Row) -> float:
    try:
        return float(row.settings.get("beta") or "nan")
    except ValueError:  # a word
        return math.nan


def _reward_se(samples: pd.DataFrame | None) -> tuple[float, int]:
    """sd of the prompts' mean rewards / sqrt(prompts), as `kl_se` is made; and the number of prompts."""
    if samples is None or "reward" not in samples:
        return math.nan, 0
    by_prompt = samples["reward"].astype(float).groupby(samples["prompt_id"]).mean()
    return float(by_prompt.std() / math.sqrt(len(by_prompt))), len(by_prompt)


def _without_beta(variant: str) -> str:
    """ "dpo(beta=0.3)" as "dpo", "bpo(beta=1, generator=sba)" as "bpo(generator=sba)"; sums of losses alike."""
    bare = re.sub(r"\bbeta=[^,()]+(, )?", "", variant)
    return bare.replace(", )", ")").replace("()", "")


def _mean(values: pd.Series) -> float:
    return values.mean(skipna=False)


def _undominated(row, others: pd.DataFrame) -> bool:
    as_good = (others["reward"] >= row.reward) & (others["kl"] <= row.kl)
    return not (as_good & ((others["reward"] > row.reward) | (others["kl"] < row.kl))).any()


def _plus_minus(mean: float, sd: float) -> str:
    return format_number(mean, 3) + ("" if math.isnan(sd) else f" ± {sd:.3f}")


def _interval(row) -> str:
    return UNDEFINED if math.isnan(row.reward_low) else f"[{row.reward_low:.3f}, {row.reward_high:.3f}]"
