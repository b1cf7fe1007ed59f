"""Arena-Hard v2: a model's answers to hard prompts of Chatbot Arena, judged against a baseline's answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from plo.evals.answers import ANSWER_DIRECTIONS, ANSWER_MEANINGS, THINK_END, draw_answers
from plo.evals.arena_hard_official import (
    VERDICTS,
    equal_style_rate,
    markdown_of,
    official_template,
    scores,
    style_differences,
    style_of,
)
from plo.evals.files import read_fields, suite_file
from plo.evals.findings import Findings, means
from plo.evals.judges import JudgeSession
from plo.evals.registry import EvaluationError, register_evaluation
from plo.statistics import pseudo_values
from plo.subjects import Subject

REPOSITORY, FOLDER = "lmarena-ai/arena-hard-auto", "data/arena-hard-v2.0"
BASELINES = {"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"}
OFFICIAL_JUDGES = ("openai:gpt-4.1", "openai:gemini-2.5")
ENOUGH = 50  # readable questions; style control fits five numbers
DIRECTIONS = {
    "win_rate": True,
    "unweighted_win_rate": True,
    "style_controlled_win_rate": True,
    "length": None,
    "unreadable": False,
    "consistency": None,
    **ANSWER_DIRECTIONS,
}
MEANINGS = {
    "win_rate": "share of games won against the baseline, draws half; a verdict that is much better counts as three games",
    "unweighted_win_rate": "share of games won against the baseline, draws half",
    "style_controlled_win_rate": "win rate as if both answers had one length and one density of markdown, by a logistic regression",
    "length": "length of an answer, mean; in tokens with the official settings, else in characters",
    "unreadable": "share of prompts with an unreadable verdict",
    "consistency": "share of prompts with the same winner in both orders of the answers",
    **ANSWER_MEANINGS,
}
DOC = """Judge one answer to each {what} of Arena-Hard v2 against the answer of {baseline}, in both orders.

    The judge gives one of five verdicts. `win_rate` is Arena-Hard's score: the share of wins, draws half, where a verdict
    "significantly better" counts as three games. In `unweighted_win_rate` every game counts once; equal texts are draws
    without asking. `style_controlled_win_rate` is the rate as if both answers had one length and one density of
    headers, lists and bold text, by the logistic regression of style control on this model's games; it is NaN, with a note,
    for fewer than 50 readable questions. Arena-Hard's own table fits the models of the table together: write
    `arena_hard_answers.jsonl` and `arena_hard_judgments.jsonl` of each model into its folders, and
    `plo.evals.arena_hard_official.official_rates` or its script computes it. Questions with an unreadable verdict are left
    out; `unreadable` is their share. A judge without a prompt (reward:, gold:) gives probabilities, which count once.
    The items of the style-controlled rate are pseudo-values of up to 35 groups of questions, in the rows of the first ones.

    Args:
        prompts: number of prompts, spread evenly; None: all.
        baseline: another baseline's answers, in the format of `model_answer/*.jsonl`.
        data: a local copy of github.com/lmarena/arena-hard-auto or of the hub's {repository}; None: the subject's path for
            "arena_hard", or the hub.
        official: use the judge prompt of the clone `data`, and lengths in tokens of GPT-4o, for which tiktoken loads its
            vocabulary once, online. Otherwise lengths are in characters and the judge prompt is `template`.
        template: judge prompt, by name or file.
        think_end_token: end of a thought at the beginning of an answer, which is removed first; None: the thought stays.

    Raises:
        EvaluationError: questions, baseline or official prompts are not available.

    Source: Li et al. 2024 (arXiv:2406.11939); https://github.com/lmarena/arena-hard-auto.
    """


def _arena_hard(name: str, category: str) -> Callable[..., Findings]:
    """Return the evaluation on the prompts of one category."""

    def evaluate(
        subject: Subject,
        judging: JudgeSession,
        *,
        prompts: PositiveInt | None = None,
        baseline: Path | None = None,
        data: Path | None = None,
        official: bool = False,
        template: str = "arena_hard",
        max_new_tokens: PositiveInt = 4096,
        temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
        think_end_token: str | None = THINK_END,
    ) -> Findings:
        data = data or subject.paths.get("arena_hard")
        prompt = official_template(data, category) if official else template
        length_of = _tokens() if official else len
        asked = _questions(data, category)
        theirs, opponent = _answers(baseline or _file(data, f"model_answer/{BASELINES[category]}.jsonl"))
        if lacking := [uid for uid in asked.index if uid not in theirs]:
            raise EvaluationError(
                f"{name}: {opponent} has no answer to {len(lacking)} questions, the first {lacking[0]}."
            )
        total = len(asked)
        count = min(prompts or total, total)
        asked = asked.iloc[np.arange(count) * total // count]
        messages = [[{"role": "user", "content": text}] for text in asked]
        settings = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        drawn, about_answers = draw_answers(name, subject, messages, think_end_token, **settings)
        drawn = drawn.sort_values("prompt_id").set_index(asked.index)
        rows = pd.DataFrame({"prompt": asked, "a": [theirs[uid] for uid in asked.index], "b": drawn["text"]})
        styles = {column: [_metadata(text, length_of) for text in rows[column]] for column in ("a", "b")}
        judge = judging.judge(prompt)
        verdicts = judging.verdicts(rows, prompt)
        verdicts.loc[rows["a"] == rows["b"], "consistent"] = np.nan  # a draw without asking

        items = pd.DataFrame(
            {
                "unweighted_win_rate": verdicts["win"],
                "length": [float(style["token_len"]) for style in styles["b"]],
                "base_length": [float(style["token_len"]) for style in styles["a"]],
                "unreadable": verdicts["p"].isna().astype(float),
                "consistency": verdicts["consistent"],
                "empty": drawn["empty"],
                "truncated": drawn["truncated"],
            }
        )
        x = style_differences(*([style_of(style) for style in styles[column]] for column in ("b", "a")))
        rates, notes = _rates(verdicts, x, judge.template is not None)
        items = items.join(rates)
        metrics = means(items.drop(columns="base_length"))
        whole = official and judge.name in OFFICIAL_JUDGES and opponent == BASELINES[category] and count == total
        label = "Arena-Hard v2" if whole else f"Arena-Hard v2 prompts, judge {judge.name}"
        unit = "tokens" if official else "characters"
        head = f"{label}: {count} of {total} prompts of {category} against {opponent}, lengths in {unit}."
        if known := int(drawn["prompt"].isin(set(subject.trained_on)).sum()):
            notes.append(f"{known} of the prompts are among the model's training prompts.")
        files = {
            "arena_hard_answers.jsonl": _lines(_answer_rows(subject.name, rows, styles["b"] if official else None)),
            "arena_hard_judgments.jsonl": _lines(
                _judgment_rows(
                    verdicts, {"category": category, "judge": judge.name, "model": subject.name, "baseline": opponent}
                )
            ),
        }
        lengths = {"unweighted_win_rate": ("length", "base_length")}
        items = items.rename_axis("prompt_id").reset_index()
        return Findings(metrics, items, (head, *notes, *about_answers), files=files, lengths=lengths)

    evaluate.__name__ = evaluate.__qualname__ = name
    what = category.replace("_", " ") if category == "hard_prompt" else f"{category.replace('_', ' ')} prompt"
    evaluate.__doc__ = DOC.format(what=what, baseline=BASELINES[category], repository=REPOSITORY)
    return evaluate


_FACTS = {
    "level": "model",
    "main_score": "win_rate",
    "higher_is_better": DIRECTIONS,
    "meaning": MEANINGS,
    "license": "Apache-2.0",
    "citation": "Li et al. 2024, arXiv:2406.11939",
}
arena_hard = register_evaluation("arena_hard", texts=500, **_FACTS)(_arena_hard("arena_hard", "hard_prompt"))
arena_hard_creative = register_evaluation("arena_hard_creative", texts=250, **_FACTS)(
    _arena_hard("arena_hard_creative", "creative_writing")
)


def _rates(verdicts: pd.DataFrame, x: np.ndarray, states_verdicts: bool) -> tuple[pd.DataFrame, list[str]]:
    """Return items of the weighted and the style-controlled rate, whose means are the rates, and notes about them."""
    readable = verdicts["p"].notna().to_numpy()
    p = verdicts.loc[readable, ["p_ab", "p_ba"]].to_numpy()
    outcome, weight = scores(p) if states_verdicts else (p, np.ones_like(p))
    index, notes = verdicts.index[readable], []
    if unread := len(verdicts) - len(index):
        notes.append(f"{unread} of {len(verdicts)} questions have a verdict that could not be read, and are left out.")
    won, games = (outcome * weight).sum(1), weight.sum(1)
    rate = won.sum() / games.sum() if len(index) else np.nan
    # A ratio of sums; these have its mean and, to first order, its standard error.
    items = pd.DataFrame({"win_rate": rate + (won - rate * games) / games.mean() if len(index) else won}, index)
    style = np.full(len(index), np.nan)
    items["style_controlled_win_rate"] = style
    if len(index) < ENOUGH:
        notes.append(
            f"No style-controlled win rate: its fit needs {ENOUGH} readable questions, and there are {len(index)}."
        )
        return items.reindex(verdicts.index), notes
    x = x[readable]

    def controlled(kept: Any) -> np.ndarray:
        both = np.concatenate([kept, kept])
        return np.array(equal_style_rate(outcome[kept].T.ravel(), weight[kept].T.ravel(), x[both]))

    values = pseudo_values(controlled, len(index), groups=min(35, len(index)))
    values += float(controlled(np.arange(len(index)))) - values.mean()
    style[: len(values)] = values
    items["style_controlled_win_rate"] = style
    return items.reindex(verdicts.index), notes


def _file(data: Path | None, name: str) -> Path:
    return suite_file("arena_hard", data, f"{FOLDER}/{name}", REPOSITORY)


def _questions(data: Path | None, category: str) -> pd.Series:
    """Return the prompts of a category by uid, in the order of the file."""
    file = _file(data, "question.jsonl")
    found = {
        row["uid"]: row["prompt"]
        for row in read_fields(file, "uid", "category", "prompt")
        if row["category"] == category
    }
    if not found:
        raise EvaluationError(f"{file} has no questions of the category {category!r}: copy the file again.")
    return pd.Series(found, dtype=object)


def _answers(file: Path) -> tuple[dict[str, str], str]:
    """Return the answers of a file of `model_answer` by uid, and the model's name."""
    rows = read_fields(file, "uid", "model", "messages")
    try:
        return {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows}, rows[0]["model"]
    except (KeyError, IndexError, TypeError) as error:
        raise EvaluationError(
            f"The answers in {file} cannot be read ({type(error).__name__}: {error}). A row's last message has the text in "
            f'{{"content": {{"answer": ...}}}}, as in Arena-Hard\'s model_answer.'
        ) from None


def _tokens() -> Callable[[str], int]:
    """Return the function that counts tokens as Arena-Hard does."""
    try:
        import tiktoken

        encoder = tiktoken.encoding_for_model("gpt-4o")
    except Exception as error:  # it is not installed, or its vocabulary cannot be downloaded
        raise EvaluationError(
            f"Arena-Hard's lengths are tokens of GPT-4o, and tiktoken cannot count them ({type(error).__name__}: "
            f"{str(error)[:200]}): pip install tiktoken and load its vocabulary once online, or leave out official=true."
        ) from error
    return lambda text: len(encoder.encode(text, disallowed_special=()))


def _metadata(answer: str, length_of: Callable[[str], int]) -> dict[str, Any]:
    return {"token_len": length_of(answer), **markdown_of(answer)}


def _answer_rows(model: str, rows: pd.DataFrame, metadata: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the answers in the format of `model_answer`; without metadata, the official script adds it."""
    found = []
    for place, (uid, row) in enumerate(rows.iterrows()):
        said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": {"answer": row["b"]}}]
        found.append(
            {"uid": uid, "model": model, "messages": said, **({"metadata": metadata[place]} if metadata else {})}
        )
    return found


def _judgment_rows(verdicts: pd.DataFrame, about: dict[str, str]) -> list[dict[str, Any]]:
    """Return the verdicts in the format of `model_judgment`: in the second game the model is shown first."""
    stated = {value: label for label, value in VERDICTS.items()}

    def game(p: float) -> dict[str, str] | None:
        return None if np.isnan(p) else {"score": stated[round(4 * p) / 4]}

    pairs = zip(verdicts.index, verdicts["p_ab"], verdicts["p_ba"], strict=True)
    return [{"uid": uid, **about, "games": [game(ab), game(1 - ba)]} for uid, ab, ba in pairs]


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
