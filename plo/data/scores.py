"""Scores of responses: the columns in which data sets keep them, under one pair of names, and pairs of scored responses."""

import math
from collections.abc import Mapping
from typing import Any

from plo.data.errors import DataError, Tie

SCORES = ("score_chosen", "score_rejected")
MARGIN = "margin"
# How data sets name the scores of the chosen and of the rejected response; the first pair that a row has counts.
NAMES = (
    SCORES,  # HuggingFaceH4/ultrafeedback_binarized
    ("chosen-rating", "rejected-rating"),  # argilla/ultrafeedback-binarized-preferences-cleaned
    ("chosen_rating", "rejected_rating"),  # argilla/dpo-mix-7k
    ("rating_chosen", "rating_rejected"),  # argilla/distilabel-capybara-dpo-7k-binarized
    ("chosen_avg_rating", "rejected_avg_rating"),  # argilla/ultrafeedback-binarized-preferences
    ("chosen_score", "rejected_score"),
)
# The score of a completion, the first that it has. UltraFeedback's overall_score has a known fault: 1 became 10 in some rows.
OF_COMPLETIONS = ("score", "fine-grained_score", "overall_score")


def with_scores(columns: Mapping[str, float]) -> dict[str, float]:
    """Return a row's columns with `score_chosen`, `score_rejected` and `margin`, their difference, where it has scores.

    Columns of these names that the row has already are kept as they are.

    Example:
        >>> with_scores({"chosen-rating": 4.5, "rejected-rating": 3.0})["margin"]
        1.5
    """
    found = next((names for names in NAMES if all(name in columns for name in names)), None)
    if found is None:
        return dict(columns)
    chosen, rejected = (columns[name] for name in found)
    return {SCORES[0]: chosen, SCORES[1]: rejected, MARGIN: chosen - rejected, **columns}


def best_and_last(completions: Any, where: str) -> dict[str, Any]:
    """Return the completion of the best score as chosen and that of the last as rejected, with the numbers of both.

    A number `helpfulness` of a completion becomes `helpfulness_chosen` or `helpfulness_rejected`, and its score
    `score_chosen` or `score_rejected`.

    Args:
        completions: mappings with `response` and a score: `score`, else `fine-grained_score`, else `overall_score`.
        where: place of the row, for messages.

    Raises:
        Tie: all scores are equal.
        DataError: there are no two completions with scores.
    """
    scored = [
        (score, one) for one in _mappings(completions) if (score := _score(one)) is not None and "response" in one
    ]
    if len(scored) < 2:
        raise DataError(
            f'{where}: \'completions\' holds no two responses with scores. Write [{{"response": text, "score": 4.5}}, ...].'
        )
    last, worst = min(scored, key=lambda pair: pair[0])
    best, first = max(scored, key=lambda pair: pair[0])
    if best == last:
        raise Tie
    row: dict[str, Any] = {"chosen": first["response"], "rejected": worst["response"]}
    for one, score, side in ((first, best, "chosen"), (worst, last, "rejected")):
        numbers = {
            name.replace("-", "_"): value for name, value in one.items() if name != "score" and _is_number(value)
        }
        row |= {f"{name}_{side}": value for name, value in numbers.items()} | {f"score_{side}": score}
    return row


def _mappings(completions: Any) -> list[Mapping[str, Any]]:
    return [one for one in completions if isinstance(one, Mapping)] if isinstance(completions, list) else []


def _score(completion: Mapping[str, Any]) -> float | None:
    return next((float(completion[name]) for name in OF_COMPLETIONS if _is_number(completion.get(name))), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
