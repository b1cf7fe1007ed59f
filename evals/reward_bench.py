"""RewardBench 2 for the implicit reward of a policy: beta times its log-ratio to the reference."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import PositiveInt

from plo.data.errors import BadRow
from plo.data.rows import Row, check, to_row
from plo.data.sources import read_source
from plo.evals.findings import Findings
from plo.evals.registry import EvaluationError, register_evaluation
from plo.subjects import Subject

DATASET = "allenai/reward-bench-2"
TIES = "ties"
SHARES = {"tied": 0.3, "ref": 0.3, "wider": 0.2, "wider_hard": 0.2, "margin": 0.01}  # of the ties score


@register_evaluation(
    "reward_bench",
    level="model",
    main_score="score",
    higher_is_better={"score": True, "accuracy_*": True, "ties": True, "unscored": False},
    meaning={
        "score": "mean of the subsets' scores, as on RewardBench 2's leaderboard",
        "accuracy_*": "share of prompts whose best of four responses has the greatest implicit reward; of n equal ones 1/n",
        "ties": "score of the ties subset: accuracy 60%, margins 40%",
        "unscored": "share of prompts left out because a response is too long for the model",
    },
    license="ODC-BY-1.0",
    citation="Malik et al. 2025, arXiv:2506.01937",
)
def reward_bench(
    subject: Subject,
    *,
    data: Path | None = None,
    subsets: tuple[str, ...] = (),
    prompts: PositiveInt | None = None,
    against: Literal["reference"] = "reference",
) -> Findings:
    """Score the policy as a reward model on RewardBench 2, by the reward r(x, y) = beta log pi(y|x) / ref(y|x).

    A prompt of the subsets Factuality, Precise IF, Math, Safety and Focus has one right and three wrong responses, and is won
    if the right one has the greatest reward. A prompt of Ties has several right ones, which should be closer to each other
    than to the wrong ones; its `ref:` twin has one. No metric depends on beta > 0, since all compare differences of rewards
    with each other. The untrained model has all rewards equal: accuracy 1/4.

    Ties score, each term a mean over the prompts: 0.3 [right above wrong, tied] + 0.3 [the same, ref] + 0.2 [g > s] + 0.2 [min(g,
    g_ref) > s] + 0.01 tanh(min(g, g_ref) / s - 1), s the spread of the right rewards, g the gap from the least right to the
    greatest wrong one.

    `items` has a row for each prompt of the data. The values of `score` have its mean and the standard error of a mean of
    independent subsets.

    Args:
        data: a local copy: a file or folder of the data set's rows; None: the subject's path for "reward_bench", or the hub.
        subsets: subsets to score, such as Math,Ties; none: all.
        prompts: number of prompts of each subset, spread evenly, for trials; None: all. Ties is taken whole.
        against: always the model that the subject was trained from, or is compared with.

    Raises:
        EvaluationError: there are no such rows, or a row has no responses.
        SubjectError: there is no model or no reference.

    Source: Malik et al. 2025 (arXiv:2506.01937); https://github.com/allenai/reward-bench (`rewardbench/utils.py`).
    """
    data = data or subject.paths.get("reward_bench")
    rows = _rows(data, subsets, prompts)
    pairs, owners, dropped = [], [], {}
    rewards = [
        np.zeros(len(row["chosen"]) + len(row["rejected"])) for row in rows
    ]  # relative to the first right response
    for place, row in enumerate(rows):
        for number, other in enumerate((*row["chosen"], *row["rejected"])):
            if other.strip() == row["chosen"][0].strip():
                continue
            try:
                pairs.append(_pair(row, other))
                owners.append((place, number))
            except BadRow as error:
                rewards[place][number] = np.nan
                dropped[row["id"]] = error.reason
    for (place, number), margin in zip(owners, subject.margins(pairs), strict=True):
        rewards[place][number] = -margin
    scored = [not np.isnan(r).any() for r in rewards]

    subset = np.array([_key(row["subset"]) for row in rows])
    items = pd.DataFrame({"prompt_id": [f"{row['subset']}/{row['id']}" for row in rows]})
    items["unscored"] = 1 - np.array(scored, dtype=float)
    metrics = {"unscored": float(items["unscored"].mean())}
    names = {}
    for name in dict.fromkeys(subset):
        if name == TIES:
            values, column = _ties(rows, rewards, scored), TIES
        else:
            values, column = (
                [best(r) if ok else np.nan for r, ok in zip(rewards, scored, strict=True)],
                f"accuracy_{name}",
            )
        items[column] = np.where(subset == name, values, np.nan)
        metrics[column] = float(items[column].mean())
        names[name] = column
    metrics["score"] = float(np.mean([metrics[column] for column in names.values()]))
    items["score"] = _stratified(items[list(names.values())], metrics["score"])
    return Findings(metrics, items, tuple(_notes(rows, names, scored, dropped, prompts)))


def best(rewards: np.ndarray) -> float:
    """Return 1 if the first reward is the greatest, 1 / n if n are equally great, else 0."""
    return float(rewards[0] == rewards.max()) / int((rewards == rewards.max()).sum())


def ties_terms(rewards: np.ndarray, right: int) -> tuple[float, float]:
    """Return the spread s of the right rewards, the first `right` ones, and the gap g to the greatest wrong one."""
    spread = float(np.ptp(rewards[:right]))
    return spread, float(rewards[:right].min() - rewards[right:].max())


def _ties(rows: Sequence[Mapping[str, Any]], rewards: Sequence[np.ndarray], scored: Sequence[bool]) -> np.ndarray:
    """Return values of the ties rows whose mean is the ties score; NaN for other rows.

    Each term is a mean over its own rows, so a row's value is the sum of its terms, each times (ties rows / rows of the term).
    """
    terms: dict[str, dict[int, float]] = {name: {} for name in SHARES}
    gaps: dict[tuple[str, str], tuple[int, float, float]] = {}
    for place, row in enumerate(rows):
        if _key(row["subset"]) == TIES and scored[place]:
            kind, _, number = str(row["id"]).partition(":")
            spread, gap = ties_terms(rewards[place], len(row["chosen"]))
            kind = "ref" if kind == "ref" else "tied"
            gaps[kind, number] = place, spread, gap
            terms[kind][place] = float(gap > 0)
    for (kind, number), (place, spread, gap) in gaps.items():
        if kind == "tied" and (twin := gaps.get(("ref", number))):
            least = min(gap, twin[2])
            terms["wider"][place] = float(gap > spread)
            terms["wider_hard"][place] = float(least > spread)
            ratio = least / spread if spread > 0 else np.sign(least) * np.inf if least else np.nan
            terms["margin"][place] = 0.0 if np.isnan(ratio) else float(np.tanh(ratio - 1))
    values = np.full(len(rows), np.nan)
    places = [place for place, _, _ in gaps.values()]
    values[places] = 0.0
    for name, found in terms.items():
        for place, value in found.items():
            values[place] += SHARES[name] * value * len(places) / len(found)
    return values


def _stratified(scores: pd.DataFrame, score: float) -> pd.Series:
    """Return values with the mean `score` whose standard error is that of a mean of independent subsets' means."""
    counts, total = scores.notna().sum(), int(scores.notna().to_numpy().sum())
    scaled = (scores - scores.mean()) * total / (counts * scores.shape[1])
    return scaled.sum(axis=1).where(scores.notna().any(axis=1)) + score


def _rows(data: Path | None, subsets: Sequence[str], prompts: int | None) -> list[dict[str, Any]]:
    raw = list(
        read_source("hub", None, {"name": DATASET, "split": "test"}) if data is None else read_source("file", data, {})
    )
    for row in raw:
        right, wrong = row.get("chosen"), row.get("rejected")
        fine = all(
            isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in (right, wrong)
        )
        if not fine or not isinstance(row.get("prompt"), str) or not row.get("subset") or row.get("id") is None:
            raise EvaluationError(
                f"{row['where']}: no row of RewardBench 2. It has id, subset, prompt, and the lists of texts chosen and rejected."
            )
    known = {_key(row["subset"]): row["subset"] for row in raw}
    if unknown := [name for name in subsets if _key(name) not in known]:
        raise EvaluationError(f"reward_bench has no subset {unknown[0]!r}: it has {', '.join(sorted(known.values()))}.")
    wanted = {_key(name) for name in subsets} or known.keys()
    kept = []
    for name in known:
        if name in wanted:
            group = [row for row in raw if _key(row["subset"]) == name]
            count = len(group) if prompts is None or name == TIES else min(prompts, len(group))
            kept += [group[i * len(group) // count] for i in range(count)]
    return kept


def _pair(row: Mapping[str, Any], other: str) -> Row:
    """Return the pair of the first right response and another one."""
    pair = to_row({"prompt": row["prompt"], "chosen": row["chosen"][0], "rejected": other, "where": row["where"]})
    if reason := check(pair):
        raise BadRow(reason)
    return pair


def _key(subset: str) -> str:
    return re.sub(r"\W+", "_", str(subset).strip().lower())


def _notes(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    scored: Sequence[bool],
    dropped: Mapping[Any, str],
    prompts: int | None,
) -> list[str]:
    notes = [f"RewardBench 2: {len(rows)} prompts of {len(names)} subsets, rewards by log-ratios to the reference."]
    if prompts is not None:
        notes.append(f"Only {prompts} prompts of each subset, so not comparable with published figures.")
    if lost := len(rows) - sum(scored):
        why = f", {len(dropped)} of them because of their texts ({next(iter(dropped.values()))})" if dropped else ""
        notes.append(
            f"reward_bench: {lost} of {len(rows)} prompts are left out: a response is too long for the model{why}."
        )
    return notes
