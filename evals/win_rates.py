"""Judged win rates on Anthropic HH and TL;DR, against the chosen response and against the reference model."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeFloat, PositiveInt

from plo.evals.answers import ANSWER_DIRECTIONS, ANSWER_MEANINGS, THINK_END, draw_answers
from plo.evals.findings import Findings, means
from plo.evals.judges import JudgeSession
from plo.evals.judges.session import win
from plo.evals.prompts import PromptSet, load_prompts
from plo.evals.registry import EvaluationError, register_evaluation
from plo.subjects import Subject, SubjectError

Temperatures = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
Evaluate = Callable[..., Findings]
Against = Annotated[tuple[Literal["chosen", "reference"], ...], Field(min_length=1)]

DIRECTIONS = {
    "win_rate*": True,
    "preference_accuracy": True,
    "consistency*": None,  # these describe the judge
    "position_bias*": None,
    "unreadable*": None,
    "length*": None,
    **ANSWER_DIRECTIONS,
}
MEANINGS = {
    "win_rate_chosen*": "share of prompts on which the judge prefers the answer to the data set's chosen one, ties half",
    "win_rate_reference*": "share of prompts on which the judge prefers the answer to the reference model's, ties half",
    "preference_accuracy": "share of held-out pairs that the model ranks as labelled",
    "consistency*": "share of questions that the judge answers alike in both orders of the answers",
    "position_bias*": "share of verdicts for the answer shown first, less 1/2",
    "unreadable*": "share of questions with an order that has no readable verdict",
    "length*": "characters of an answer, mean",
    **ANSWER_MEANINGS,
}
ASKED = {"helpful": "more helpful", "harmless": "less harmful"}
HH = """Run `win_rates` on Anthropic HH: held-out prompts with one human turn; the judge sees the human's message.

    Where the data have helpful and harmless prompts, `hh_helpful` and `hh_harmless` ask about each what it is about.
    """
ONE_KIND = """Run `win_rates` on the {kind} prompts of Anthropic HH alone, with the question which answer is {asked}.

    Args:
        path: folder that contains the folder `{kind}-base`, or a file with rows of that kind; None: as for `hh`.
    """
_CUE = re.compile(r"\s*(\[summary\]|TL;DR):\s*$")
_HEADED = re.compile(r"SUBREDDIT:[^\n]*\s+TITLE:(?P<title>[^\n]*)\s+POST:(?P<body>.*)", re.DOTALL)


def _hh(kind: str | None = None) -> Evaluate:
    """Return the evaluation on Anthropic HH, of all prompts or of one kind alone, with that kind's question."""
    name, subset = (f"hh_{kind}", f"{kind}-base") if kind else ("hh", None)

    def evaluate(
        subject: Subject,
        judging: JudgeSession,
        *,
        prompts: PositiveInt = 200,
        samples: PositiveInt = 1,
        temperatures: Temperatures = (1.0,),
        max_new_tokens: PositiveInt = 256,
        path: Path | None = None,
        template: str = kind or "helpful",
        against: Against = ("chosen", "reference"),
        think_end_token: str | None = THINK_END,
    ) -> Findings:
        asked = load_prompts(subject, "hh", path, prompts, subset)
        settings = {"samples": samples, "max_new_tokens": max_new_tokens, "think_end_token": think_end_token}
        return win_rates(name, subject, judging, asked, asked.messages, temperatures, against, template, **settings)

    evaluate.__name__ = evaluate.__qualname__ = name
    evaluate.__doc__ = HH if kind is None else ONE_KIND.format(kind=kind, asked=ASKED[kind])
    return evaluate


_FACTS = {
    "level": "model",
    "main_score": "win_rate_chosen",
    "higher_is_better": DIRECTIONS,
    "meaning": MEANINGS,
    "license": "MIT",
    "citation": "Bai et al. 2022, arXiv:2204.05862",
}
hh = register_evaluation("hh", **_FACTS)(_hh())
hh_helpful = register_evaluation("hh_helpful", **_FACTS)(_hh("helpful"))
hh_harmless = register_evaluation("hh_harmless", **_FACTS)(_hh("harmless"))


@register_evaluation(
    "tldr",
    level="model",
    main_score="win_rate_chosen",
    higher_is_better=DIRECTIONS,
    meaning=MEANINGS,
    citation="Stiennon et al. 2020, arXiv:2009.01325",
)
def tldr(
    subject: Subject,
    judging: JudgeSession,
    *,
    prompts: PositiveInt = 200,
    samples: PositiveInt = 1,
    temperatures: Temperatures = (1.0,),
    max_new_tokens: PositiveInt = 64,
    path: Path | None = None,
    template: str = "summary",
    against: Against = ("chosen", "reference"),
    think_end_token: str | None = THINK_END,
) -> Findings:
    """Run `win_rates` of summaries on TL;DR: held-out posts; the judge sees the post without subreddit and cue."""
    asked = load_prompts(subject, "tldr", path, prompts)
    posts = [post_of(message) for message in asked.messages]
    settings = {"samples": samples, "max_new_tokens": max_new_tokens, "think_end_token": think_end_token}
    return win_rates("tldr", subject, judging, asked, posts, temperatures, against, template, **settings)


def post_of(message: str) -> str:
    """Return the post of a TL;DR prompt, its title first if there is one, without the cue to summarise it."""
    post = _CUE.sub("", message).strip()
    if headed := _HEADED.fullmatch(post):
        return f"{headed['title'].strip()}\n\n{headed['body'].strip()}"
    return post


def win_rates(
    name: str,
    subject: Subject,
    judging: JudgeSession,
    asked: PromptSet,
    shown: Sequence[str],
    temperatures: Sequence[float],
    against: Sequence[str],
    template: str,
    *,
    samples: int,
    max_new_tokens: int,
    think_end_token: str | None,
) -> Findings:
    """Judge the subject's samples against each opponent in both orders; all questions are asked in one batch.

    Every metric is a mean over the samples of a prompt, then over the prompts. Questions with an unreadable order are left
    out of win rate and consistency; a pair of equal texts is a tie and is not asked. Temperatures after the first have
    metrics of their own, with the suffix `_t0.7`.

    Metrics, for each opponent:
        win_rate_<opponent>: the subject's wins, mean of both orders, each 1 (P(subject better) > 1/2), 1/2 (= 1/2) or 0;
        consistency_<opponent>: share of the questions on which both orders agree;
        position_bias_<opponent>: P(the answer shown first is preferred) - 1/2 over readable verdicts;
        unreadable_<opponent>: share of the questions asked that have an unreadable order;
        length, length_<opponent>: characters of the subject's and the opponent's texts, without outer white space;
        empty, truncated, and for the reference's samples empty_reference, truncated_reference: shares of answers without
            text, and of answers cut at the token limit.
    Once: preference_accuracy, the share of the prompts' rows with an implicit reward margin above 0, ties half.

    Args:
        name: name of the evaluation and of the table of verdicts, `<name>_verdicts.json`: one row per pair, in which
            p_ab and p_ba are P(subject better), shown second and shown first.
        shown: the prompt as the judge sees it, for each of `asked`.
        against: "chosen", the row's preferred response, and "reference", samples of `subject.reference` drawn alike.
        think_end_token: end of a thought at the beginning of a sample, which is removed first; None: the thought stays.

    Raises:
        EvaluationError: a file of outputs is given with several temperatures.
    """
    notes, columns, lengths, tables, pairs = list(asked.notes), {}, {}, {}, []
    models = {"": subject}  # by the end of their metrics' names
    if "reference" in against and subject.reference is not None:
        models["_reference"] = subject.reference
    elif "reference" in against:
        notes.append(f"{name}: {subject.name} has no reference, so there is no win rate against it.")
    if len(set(temperatures)) > 1 and (fixed := [model.name for model in models.values() if model.fixed]):
        raise EvaluationError(
            f"{name}: the texts of {fixed[0]} are given, so they cannot be sampled at {len(set(temperatures))} temperatures: set "
            f"one, {name}.temperatures=[{temperatures[0]:g}], or give the model itself."
        )
    ids = np.repeat(asked.ids, samples)
    place = {"prompt_id": ids, "prompt": [prompt for prompt in shown for _ in range(samples)]}
    texts = {"_chosen": [_chosen(row.chosen) for row in asked.rows for _ in range(samples)]}
    for temperature in dict.fromkeys(temperatures):
        suffix = _suffix(temperature, temperatures)
        settings = {"samples": samples, "temperature": temperature, "max_new_tokens": max_new_tokens}
        for whose, model in models.items():
            drawn, about_answers = draw_answers(name, model, asked.prompts, think_end_token, **settings)
            notes += about_answers
            texts[whose] = drawn["text"].str.strip().tolist()
            for number in ("empty", "truncated"):
                columns[f"{number}{whose}{suffix}"] = drawn[number].groupby(ids).mean()
        numbers = np.tile(range(samples), len(asked.ids))
        ours = pd.DataFrame(place | {"temperature": temperature, "sample": numbers, "text": texts[""]})
        columns[f"length{suffix}"] = ours["text"].str.len().groupby(ids).mean()
        for opponent in dict.fromkeys(against):
            if (theirs := texts.get(f"_{opponent}")) is not None:
                pairs.append(ours.assign(opponent=opponent, opponent_text=theirs))
    if pairs:
        table = tables[f"{name}_verdicts.json"] = _judged(pd.concat(pairs, ignore_index=True), judging, template)
        for (opponent, temperature), group in table.groupby(["opponent", "temperature"], sort=False):
            by_prompt = _numbers(group).groupby(group["prompt_id"]).mean()
            suffix = _suffix(temperature, temperatures)
            for number, values in by_prompt.items():
                columns[f"{number}_{opponent}{suffix}"] = values
            lengths[f"win_rate_{opponent}{suffix}"] = (f"length{suffix}", f"length_{opponent}{suffix}")
        if equal := int(table["equal"].sum()):
            notes.append(
                f"{name}: {equal} of {len(table)} pairs of {subject.name} are equal texts and count as ties without asking."
            )
    try:
        margins = np.asarray(subject.margins(asked.rows), dtype=float)
        columns["preference_accuracy"] = pd.Series((1 + np.sign(margins)) / 2, asked.ids)  # ties half
        if too_long := int(np.isnan(margins).sum()):
            notes.append(f"{name}: {too_long} rows are too long for the model and are left out of preference_accuracy.")
    except SubjectError as error:
        notes.append(f"{name}: no preference_accuracy: {error}")
    items = pd.DataFrame(columns).rename_axis("prompt_id").sort_index()
    return Findings(means(items), items.reset_index(), tuple(notes), tables, lengths=lengths)


def _judged(table: pd.DataFrame, judging: JudgeSession, template: str) -> pd.DataFrame:
    """Return the table with the verdicts on each pair: p_ab, p_ba, win, consistent; equal texts are ties."""
    table["equal"] = table["text"] == table["opponent_text"]
    table["length"], table["length_opponent"] = table["text"].str.len(), table["opponent_text"].str.len()
    verdicts = judging.verdicts(table.rename(columns={"opponent_text": "a", "text": "b"}), template)
    table = table.join(verdicts[["p_ab", "p_ba", "win", "consistent"]])
    table.loc[table["equal"], ["p_ab", "p_ba", "consistent"]] = np.nan
    return table


def _numbers(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics against an opponent, one row per pair; NaN where the pair does not count."""
    first = pd.DataFrame({"ab": 1 - win(pairs["p_ab"]), "ba": win(pairs["p_ba"])}, pairs.index)  # first one preferred
    return pd.DataFrame(
        {
            "win_rate": pairs["win"],
            "consistency": pairs["consistent"],
            "position_bias": first.mean(axis=1) - 0.5,
            "unreadable": pairs["win"].isna().where(~pairs["equal"]).astype(float),
            "length": pairs["length_opponent"],
        }
    )


def _suffix(temperature: float, temperatures: Sequence[float]) -> str:
    return "" if temperature == temperatures[0] else f"_t{temperature:g}"


def _chosen(response: Any) -> str:
    return response.strip() if isinstance(response, str) else "\n\n".join(m["content"] for m in response).strip()
