"""The section on tuning: what was searched and chosen for each variant, and how far its score holds on other prompts."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.formatting import UNDEFINED, Column, format_number
from plo.statistics import expected_best, optimism, robustness

BEST_OF = (1, 2, 4, 8)
EXPLAINED = (
    "Scores on the tuning prompts, at the settings that the experiment gives and at the chosen ones; score of the chosen ones "
    "on the test prompts with fresh seeds; optimism, how much better the tuning prompts made it look [95%, without the part of the "
    "trial's one seed]. Expected best score of n "
    "first trials, which are short; share of them that beat the baseline's best. Edge: the chosen value is at the border of its "
    "range."
)


def tuning_facts(board: Leaderboard, row: Row) -> dict[str, Any]:
    """Return the row's tuning as JSON values; {}: untuned. A score that diverged, or was not recorded, is None."""
    record = row.tuning
    if record is None:
        return {}
    name = str(record["metric"])
    sign = _sign(board, name)
    test, first = row.metrics.get(name), _utilities(record, sign)
    base = board.baseline.tuning if board.baseline is not None and board.baseline is not row else None
    rival = (
        max((value for value in _utilities(base, sign) if math.isfinite(value)), default=math.nan) if base else math.nan
    )
    best = best_of(board, row)
    score, interval = record.get("score"), None
    if (shown := row.estimates.get(name)) is not None and score is not None and record.get("score_se") is not None:
        interval = optimism(score, record["score_se"], shown)
        interval = sorted([sign * interval.low, sign * interval.high])
    return {
        **record,
        "test": test and test.mean,
        "optimism": None if test is None or score is None else sign * (score - test.mean),
        "optimism_interval": interval if interval and all(map(math.isfinite, interval)) else None,
        "expected_best": {n: best[n - 1] for n in BEST_OF if n <= len(best)},
        "robustness": robustness(first, rival) if first and math.isfinite(rival) else None,
    }


def best_of(board: Leaderboard, row: Row) -> list[float]:
    """Return the expected best score of the first 1, 2, ... trials of the row's tuning; empty: untuned."""
    record = row.tuning or {"metric": ""}
    sign = _sign(board, str(record["metric"]))
    first = _utilities(record, sign)
    return (sign * expected_best(first)).tolist() if first else []


def tuning_columns(board: Leaderboard) -> list[Column]:
    """Return the columns of the section, for its tuned rows. Texts are plain, without Markdown."""
    facts = {row.name: tuning_facts(board, row) for row in board.rows if row.tuning}
    columns: list[Column] = []

    def add(title: str, text: Callable[[Mapping[str, Any], int], str]) -> None:
        columns.append((title, lambda row: text(facts[row.name], _digits(board, facts[row.name]))))

    add("chosen", lambda one, _: _chosen(one))
    add("as given", lambda one, digits: _number(one.get("default"), digits))
    add("tuned", lambda one, digits: _number(one.get("score"), digits))
    add("test", lambda one, digits: _number(one["test"], digits))
    add("optimism", _optimism)
    expected = [n for n in BEST_OF if any(n in one["expected_best"] for one in facts.values())]
    add(
        f"best of {', '.join(map(str, expected))}",
        lambda one, digits: ", ".join(_number(one["expected_best"].get(n), digits) for n in expected),
    )
    add("beat the baseline", lambda one, _: UNDEFINED if one["robustness"] is None else f"{one['robustness']:.0%}")
    add("edge", lambda one, _: ", ".join(one.get("edges") or ()) or UNDEFINED)
    add("seconds", lambda one, _: _number(one.get("seconds"), 0))
    add("space", lambda one, _: ", ".join(f"{k} {low:.3g} to {high:.3g}" for k, (low, high) in one["space"].items()))
    return columns


def _chosen(one: Mapping[str, Any]) -> str:
    point = ", ".join(f"{name}={value:.3g}" for name, value in one["point"].items()) or "as given"
    return point if one.get("within_kl", True) else f"{point} (no trial within the largest KL)"


def _optimism(one: Mapping[str, Any], digits: int) -> str:
    text, ends = _number(one["optimism"], digits, "+"), one["optimism_interval"]
    return f"{text} [{', '.join(_number(end, digits, '+') for end in ends)}]" if ends else text


def _sign(board: Leaderboard, name: str) -> float:
    return -1.0 if name in board.descriptions and board.descriptions[name].better == "↓" else 1.0


def _utilities(record: Mapping[str, Any], sign: float) -> list[float]:
    return [math.nan if value is None else sign * value for value in record.get("first") or ()]


def _digits(board: Leaderboard, record: Mapping[str, Any]) -> int:
    return board.descriptions[record["metric"]].digits if record["metric"] in board.descriptions else 3


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return UNDEFINED if value is None else format_number(value, digits, sign)
