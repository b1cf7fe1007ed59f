"""Judged win rates of recorded cells, corrected by human labels of a few of the judged pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from plo.errors import PloError
from plo.leaderboards.export import inert
from plo.statistics.corrected import Corrected, prediction_powered, rogan_gladen, with_draws
from plo.statistics.intervals import StatisticsError
from plo.tracking import RecordedCell, TrackingError

ENOUGH = 20  # labelled prompts of a row with which its own labels correct it
COLUMNS = ["variant", "seed", "prompt_id", "prompt", "text", "opponent", "opponent_text", "win"]


class LabelError(PloError, ValueError):
    """Labels or judged pairs are missing. The message says where, and what to give."""


@dataclass(frozen=True)
class CorrectedRow:
    """A row's win rate against an opponent: by the judge, and as people would give it.

    Attributes:
        found: the corrected rate; None: see `reason`.
        reason: why there is none, or "".
    """

    variant: str
    opponent: str
    found: Corrected | None
    reason: str = ""


def judged_pairs(cells: Sequence[RecordedCell], evaluation: str) -> pd.DataFrame:
    """Return the judged pairs of an evaluation, of its newest finding in each cell: variant, seed, texts and the judge's win.

    The pairs are those of the table's rate: of the first temperature, and of the last point of a training.

    Raises:
        LabelError: no cell has recorded verdicts of that evaluation with their texts.
    """
    found = []
    for cell in cells:
        finding = next((one for one in cell.findings if one.evaluation == evaluation), None)
        if finding is None:
            continue
        try:
            table = finding.table(f"{evaluation}_verdicts.json")
        except TrackingError:
            continue
        if "temperature" in table:
            table = table[table["temperature"] == table["temperature"].iloc[0]]
        if "step" in table:
            table = table[table["step"] == table["step"].max()]
        found.append(table.assign(variant=cell.tags["plo.variant"], seed=cell.tags.get("plo.seed", "-")))
    if not found:
        known = sorted({one.evaluation for cell in cells for one in cell.findings})
        raise LabelError(
            f"No cell has verdicts of {evaluation!r} with their texts, as hh and tldr record them. Recorded evaluations: "
            f"{', '.join(known) or 'none'}."
        )
    return pd.concat(found, ignore_index=True)[COLUMNS]


def sheet(pairs: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return pairs to be labelled by people: prompt, a, b and an empty column gold; equal texts are left out.

    `count` prompts are drawn for each variant and opponent, the same ones for all, and one pair of each. Which answer is shown
    as a is drawn, and nothing shows whose it is.
    """
    unlike = pairs[pairs["text"].str.strip() != pairs["opponent_text"].str.strip()]
    generator = np.random.default_rng(0)
    prompts = pd.Series(unlike["prompt_id"].unique()).sample(frac=1, random_state=generator)[:count]
    mixed = unlike[unlike["prompt_id"].isin(prompts)].sample(frac=1, random_state=generator)
    one = mixed.drop_duplicates(["variant", "opponent", "prompt_id"]).drop_duplicates(
        ["prompt", "text", "opponent_text"]
    )
    second = generator.random(len(one)) < 0.5
    a, b = one["text"].where(second, one["opponent_text"]), one["opponent_text"].where(second, one["text"])
    texts = {"prompt": one["prompt"].map(inert), "a": a.map(inert), "b": b.map(inert)}  # for a spreadsheet
    return pd.DataFrame(texts | {"gold": ""}).reset_index(drop=True)


def correct(pairs: pd.DataFrame, labels: pd.DataFrame) -> list[CorrectedRow]:
    """Return the corrected win rate of each variant against each opponent.

    With 20 labelled prompts or more of its own, a row is corrected by `prediction_powered`. With fewer it is corrected by
    `rogan_gladen` from the labels of all rows, which assumes that the judge errs alike on all of them. Pairs of equal texts are
    draws, for people as for the judge, and count as such in both rates.

    Args:
        pairs: the result of `judged_pairs`; pairs without a readable verdict are left out.
        labels: prompt, a, b, gold (1: b is better, 0: a is), as `sheet` writes them with gold filled in.

    Raises:
        LabelError: no label belongs to any of the pairs.
    """
    pairs = pairs.dropna(subset=["win"]).assign(human=_human(pairs, labels))
    if pairs["human"].isna().all():
        raise LabelError(
            f"None of the {len(labels)} labels belongs to a judged pair: prompt, a and b must be the texts of a sheet of this "
            f"comparison and evaluation."
        )
    pairs["equal"] = pairs["text"].str.strip() == pairs["opponent_text"].str.strip()
    unlike = pairs[~pairs["equal"]]
    # A prompt is one item: its answers by several models are judged alike.
    wins, losses = (
        unlike[unlike["human"] == human].groupby("prompt_id")["win"].mean().to_numpy(float) for human in (1, 0)
    )
    rows = []
    for (variant, opponent), own in pairs.groupby(["variant", "opponent"], sort=False):
        draws, prompts = float(own["equal"].mean()), own["prompt_id"].nunique()
        try:
            if draws == 1:
                raise StatisticsError("All its texts equal the opponent's: every pair is a draw.")
            found = with_draws(_corrected(own[~own["equal"]], wins, losses), draws, prompts)
            rows.append(CorrectedRow(str(variant), str(opponent), found))
        except StatisticsError as error:
            rows.append(CorrectedRow(str(variant), str(opponent), None, str(error)))
    return rows


def _human(pairs: pd.DataFrame, labels: pd.DataFrame) -> list[float]:
    """Return the human win of each pair's text; NaN without a label."""
    known: dict[tuple[str, ...], float] = {}
    for prompt, a, b, gold in labels[["prompt", "a", "b", "gold"]].itertuples(index=False):
        known[_key(prompt, b, a)] = float(gold)
        known[_key(prompt, a, b)] = 1 - float(gold)
    texts = pairs[["prompt", "text", "opponent_text"]].itertuples(index=False)
    return [known.get(_key(*row), np.nan) for row in texts]


def _key(*texts: str) -> tuple[str, ...]:
    """Return texts as a sheet has them, without what a spreadsheet may change: line ends and outer white space."""
    return tuple(" ".join(inert(text).split()) for text in texts)


def _corrected(own: pd.DataFrame, wins: np.ndarray, losses: np.ndarray) -> Corrected:
    """Return the corrected rate of one row; a prompt is one item, a mean over its samples, seeds and repeats."""
    labelled = own.dropna(subset=["human"]).groupby("prompt_id")[["win", "human"]].mean()
    by_prompt = own.groupby("prompt_id")["win"].mean()
    if len(labelled) >= ENOUGH:
        others = by_prompt.drop(labelled.index).to_numpy(float)
        return prediction_powered(others, labelled["win"].to_numpy(float), labelled["human"].to_numpy(float))
    return rogan_gladen(float(by_prompt.mean()), len(by_prompt), wins, losses)


def table(rows: Sequence[CorrectedRow]) -> list[Mapping[str, str]]:
    """Return the rows as texts, for a table."""
    return [
        {
            "variant": row.variant,
            "against": row.opponent,
            "judged": f"{one.judged:.3f}" if (one := row.found) else "-",
            "corrected [95%]": f"{one.rate:.3f} [{one.low:.3f}, {one.high:.3f}]" if one else "-",
            "labels": str(one.labels) if one else "-",
            "method": one.method if one else row.reason,
        }
        for row in rows
    ]
