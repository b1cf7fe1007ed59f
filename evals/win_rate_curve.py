"""Judged win rates along training, on the samples that were drawn at every evaluation point."""

import numpy as np
import pandas as pd
from pydantic import PositiveInt

from plo.data.rows import Row
from plo.evals.answers import THINK_END, split_thought
from plo.evals.findings import Findings, means
from plo.evals.judges import JudgeSession
from plo.evals.prompts import _one_turn, human_message
from plo.evals.registry import EvaluationError, register_evaluation

# The names with an underscore stay as they are: the key of `hh` has them, and evaluations that are recorded would run again.
from plo.evals.win_rates import DIRECTIONS, MEANINGS, Against, _chosen, _judged, _numbers
from plo.subjects import Subject
from plo.subjects.subject import Trajectory

POINTS = "win_rate_curve_points.json"  # table of the values of each prompt at each point


@register_evaluation(
    "win_rate_curve",
    level="model",
    main_score="win_rate_reference",
    higher_is_better=DIRECTIONS,
    meaning=MEANINGS,
    draws=False,
)
def win_rate_curve(
    subject: Subject,
    judging: JudgeSession,
    *,
    prompts: PositiveInt = 16,
    samples: PositiveInt = 1,
    against: Against = ("reference",),
    template: str = "instruction",
) -> Findings:
    """Judge the samples that a training drew at its evaluation points, against the reference's or the chosen responses.

    Nothing is sampled: the texts are those that reward and KL of each point were measured on. The reference's sample of the same
    prompt, number and seed has the same noise. Thoughts at the beginning of a sample are cut. A question is asked in both orders, so that a training takes at most

        2 x points x prompts x samples x opponents

    calls of the judge, which `plo plan` shows; equal texts are ties and not asked.

    Metrics are those of `win_rates` at the last point, and the curve of each over the steps of the training.

    Args:
        prompts: number of held-out prompts of the data set, the first ones.
        samples: number of samples of each.
        against: "reference", and "chosen", the preferred response of the held-out pair.

    Raises:
        EvaluationError: the subject was not trained by a comparison, which draws the samples.
    """
    found: Trajectory | None = subject.trajectory() if hasattr(subject, "trajectory") else None  # pyright: ignore
    if found is None:
        raise EvaluationError(
            f"win_rate_curve reads samples that a comparison drew during training, and {subject.name} has none: run it on a "
            f"recorded comparison, plo eval NAME --suite win_rate_curve."
        )
    kept = found.samples
    kept = kept[kept["prompt_id"].isin(sorted(kept["prompt_id"].unique())[:prompts]) & (kept["sample"] < samples)]
    rows = [found.rows.get(prompt) for prompt in kept["prompt"]]
    place = kept.assign(prompt=[_shown(row, text) for row, text in zip(rows, kept["prompt"], strict=True)])
    place["text"] = [_answer(text, prompt) for text, prompt in zip(kept["text"], kept["prompt"], strict=True)]
    pairs, places = [], list(zip(kept["prompt_id"], kept["sample"], strict=True))
    for opponent in dict.fromkeys(against):
        theirs = (
            [None if row is None else _chosen(row.chosen) for row in rows]
            if opponent == "chosen"
            else [
                _answer(found.reference.get(place), prompt)
                for place, prompt in zip(places, kept["prompt"], strict=True)
            ]
        )
        pairs.append(place.assign(opponent=opponent, opponent_text=theirs).dropna(subset=["opponent_text"]))
    every = pd.concat(pairs, ignore_index=True)
    if every.empty:
        raise EvaluationError(
            f"win_rate_curve: {subject.name} has nothing to compare with: give the other opponent, against=..."
        )
    table = _judged(every, judging, template)
    columns: dict[str, pd.Series] = {"length": place.groupby(["step", "prompt_id"])["text"].agg(_length)}
    lengths = {}
    for opponent, group in table.groupby("opponent", sort=False):
        by_prompt = _numbers(group).groupby([group["step"], group["prompt_id"]]).mean()
        columns |= {f"{number}_{opponent}": values for number, values in by_prompt.items()}
        lengths[f"win_rate_{opponent}"] = ("length", f"length_{opponent}")
    points = pd.DataFrame(columns).sort_index()
    last = points.loc[points.index.get_level_values("step").max()]
    curves = {int(step): means(own) for step, own in points.groupby(level="step")}  # pyright: ignore[reportArgumentType]
    shares = dict(zip(kept["step"], kept["share"], strict=True))
    of_points = points.reset_index().assign(share=lambda frame: frame["step"].map(shares))
    return Findings(
        means(last),
        last.reset_index(),
        found.notes,
        {POINTS: of_points, "win_rate_curve_verdicts.json": table},
        lengths=lengths,
        curves=curves,
    )


def _shown(row: Row | None, prompt: str) -> str:
    """Return the prompt as the judge sees it: the human's message of one turn, or else the prompt as it was rendered."""
    return human_message(row) if row is not None and _one_turn(row) else prompt


def _answer(text: str | None, prompt: str) -> str | None:
    """Return a sample without a thought at its beginning."""
    begun = prompt.rstrip().endswith(THINK_END.replace("/", ""))
    return None if text is None else split_thought(text, begun=begun).text.strip()


def _length(texts: pd.Series) -> float:
    return float(np.mean(texts.str.len()))
