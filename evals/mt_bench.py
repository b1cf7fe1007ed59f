"""MT-Bench: 80 questions of two turns, each answer graded from 1 to 10 by a judge."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import PositiveInt

from plo.evals.answers import ANSWER_DIRECTIONS, ANSWER_MEANINGS, THINK_END, draw_answers
from plo.evals.files import find_file, read_fields, suite_file
from plo.evals.findings import Findings, means
from plo.evals.judges import JudgeSession, Template
from plo.evals.judges.template import as_rating
from plo.evals.registry import EvaluationError, register_evaluation
from plo.subjects import Subject

REPOSITORY, FOLDER = "lmsys/mt-bench", "data/mt_bench"
QUESTIONS = 80
OFFICIAL_JUDGE = "openai:gpt-4"
REFERENCED = ("math", "reasoning", "coding")  # categories that are graded against a reference answer
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURES |= dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0)
OTHER = 0.7  # temperature of a category that is not among these
# A conversation as MT-Bench's judge prompts show it: what stands between the first question and the second.
BETWEEN = "\n\n### Assistant A:\n{answer}\n\n### User:\n{question}"
REFERENCE = "### User:\n{question_1}\n\n### Reference answer:\n{ref_answer_1}\n\n### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}"


@register_evaluation(
    "mt_bench",
    level="model",
    main_score="score",
    higher_is_better={"score*": True, "unreadable": False, "length": None, **ANSWER_DIRECTIONS},
    bounds={"score*": (1, 10)},
    digits={"score*": 2},
    meaning={
        "score*": "mean grade of the answers by the judge, 1 to 10: of both turns, one turn, or one category",
        "unreadable": "share of answers whose grade could not be read",
        "length": "characters of an answer, mean",
        **ANSWER_MEANINGS,
    },
    texts=2 * QUESTIONS,
    texts_each=2,
    asked_once=True,
    license="Apache-2.0",
    citation="Zheng et al. 2023, arXiv:2306.05685",
)
def mt_bench(
    subject: Subject,
    judging: JudgeSession,
    *,
    questions: PositiveInt | None = None,
    data: Path | None = None,
    official: bool = False,
    template: str = "grade",
    max_new_tokens: PositiveInt = 1024,
    think_end_token: str | None = THINK_END,
) -> Findings:
    """Ask MT-Bench's questions in two turns, and have each answer graded from 1 to 10 on its own.

    `score` is the mean grade over all answers that have one, `score_turn_1` and `score_turn_2` those of each turn, and
    `score_<category>` that of a category. Questions of mathematics, reasoning and coding are graded against GPT-4's reference
    answers. Answers are drawn at MT-Bench's temperatures: 0.7 for writing and roleplay, 0.1 for stem and humanities, 0 for
    the others. The second turn sees the model's own first answer, without its thoughts. A grade outside 1 to 10 is
    unreadable (FastChat takes it as it is).

    Args:
        questions: number of questions, spread evenly; None: all.
        data: a local copy of FastChat's `fastchat/llm_judge` or of the hub's space lmsys/mt-bench; None: the subject's path for
            "mt_bench", or the hub.
        official: use the judge prompts of the folder's `data/judge_prompts.jsonl`, which FastChat has. With all questions and
            the judge openai:gpt-4 this is MT-Bench.
        template: judge prompt of the answer kind "rating", by name or file.
        think_end_token: end of a thought at the beginning of an answer, which is removed first; None: the thought stays.

    Raises:
        EvaluationError: questions, reference answers or official prompts are not available, or the judge reads no prompt.

    Source: Zheng et al. 2023 (arXiv:2306.05685); https://github.com/lm-sys/FastChat/tree/main/fastchat/llm_judge.
    """
    data = data or subject.paths.get("mt_bench")
    asked = _questions(data)
    total = len(asked)
    count = min(questions or total, total)
    asked = asked.iloc[np.arange(count) * total // count]
    references = _references(data) if asked["category"].isin(REFERENCED).any() else {}
    if lacking := [i for i in asked.index[asked["category"].isin(REFERENCED)] if i not in references]:
        raise EvaluationError(
            f"mt_bench: there is no reference answer to {len(lacking)} questions, the first {lacking[0]}."
        )
    prompts = (
        official_templates(data)
        if official
        else dict.fromkeys(((1, False), (1, True), (2, False), (2, True)), template)
    )
    judge = judging.judge(prompts[1, False])
    if judge.template is None or not judge.template.rates:
        raise EvaluationError(
            f"mt_bench needs a judge that grades one answer, and {judge.name} compares two: name openai:MODEL or hf:FOLDER, and "
            f"a judge prompt with `answer: rating`."
        )

    answers, notes = _answers(subject, asked, max_new_tokens, think_end_token)
    grades = []
    for turn in (1, 2):
        for referenced in (False, True):
            chosen = asked[asked["category"].isin(REFERENCED) == referenced]
            if not len(chosen):
                continue
            shown = _shown(chosen, answers, references, turn)
            p = judging.verdicts(shown, prompts[turn, referenced], both=False)["p_ab"]
            grades.append(pd.DataFrame({"question": chosen.index, "turn": turn, "score": as_rating(p.to_numpy())}))
    table = pd.concat(grades).merge(answers, on=["question", "turn"]).sort_values(["question", "turn"])
    table["category"] = asked["category"].reindex(table["question"]).to_numpy()
    items = pd.DataFrame({"prompt_id": [f"{q}/{t}" for q, t in zip(table["question"], table["turn"], strict=True)]})
    items["score"] = table["score"].to_numpy()
    for turn in (1, 2):
        items[f"score_turn_{turn}"] = table["score"].where(table["turn"] == turn).to_numpy()
    for category in dict.fromkeys(asked["category"]):
        items[f"score_{category}"] = table["score"].where(table["category"] == category).to_numpy()
    items["unreadable"] = table["score"].isna().astype(float).to_numpy()
    for column in ("length", "empty", "truncated"):
        items[column] = table[column].to_numpy(dtype=float)
    whole = official and judge.name == OFFICIAL_JUDGE and count == total
    head = f"{'MT-Bench' if whole else f'MT-Bench questions, judge {judge.name}'}: {count} of {total} questions, two turns each."
    metrics = means(items.drop(columns="prompt_id"))
    return Findings(metrics, items, (head, *notes), {"mt_bench_answers.json": table.reset_index(drop=True)})


def official_templates(folder: Path | None) -> dict[tuple[int, bool], Template]:
    """Return the judge prompts of FastChat's `data/judge_prompts.jsonl` by turn and whether there is a reference answer.

    Their slots for questions and answers become plo's: {prompt} is the conversation up to the question, {a} the reference,
    {b} the answer that is graded.

    Raises:
        EvaluationError: there is no such file, or a prompt is missing or has other slots.
    """
    file = find_file(folder, "data/judge_prompts.jsonl") if folder else None
    if file is None:
        raise EvaluationError(
            f"mt_bench(official=True) reads data/judge_prompts.jsonl, which {folder or 'no folder'} does not have: git clone "
            f"https://github.com/lm-sys/FastChat, and set data=FOLDER/fastchat/llm_judge."
        )
    known = {row["name"]: row for row in read_fields(file, "name", "system_prompt", "prompt_template")}
    talk = "{question_1}" + BETWEEN.format(answer="{answer_1}", question="{question_2}")
    made = {}
    for turn, referenced in ((1, False), (1, True), (2, False), (2, True)):
        name = f"single-{'math-' if referenced else ''}v1{'-multi-turn' if turn == 2 else ''}"
        text = known.get(name, {}).get("prompt_template", "")
        slots = {"{ref_answer_1}": "{a}", "{question}": "{prompt}", "{answer}": "{b}"}
        if turn == 2:
            slots = {REFERENCE: "{a}", talk: "{prompt}", "{answer_2}": "{b}"}
        for theirs, ours in slots.items():
            if theirs not in text and not (ours == "{a}" and not referenced):
                raise EvaluationError(
                    f"{file}: the prompt {name} has no {theirs.splitlines()[-1]}: copy FastChat's file again."
                )
            text = text.replace(theirs, ours)
        messages = (("system", known[name]["system_prompt"]), ("user", text))
        digest = hashlib.sha256(repr(messages).encode()).hexdigest()[:16]
        made[turn, referenced] = Template(f"mt_bench_{name}", "1", (), "rating", messages, f"{name} {digest}", (), 2048)
    return made


def _answers(
    subject: Subject, asked: pd.DataFrame, max_new_tokens: int, think_end_token: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Return the answers to both turns: question, turn, text, length, empty, truncated; and notes about them."""
    drawn: list[pd.DataFrame] = []
    said: dict[Any, str] = {}  # in the first turn
    notes: list[str] = []
    for turn in (1, 2):
        temperatures = asked["category"].map(TEMPERATURES).fillna(OTHER)
        for temperature in sorted(set(temperatures)):
            group = asked[temperatures == temperature]
            messages = [_messages(turns, said.get(question), turn) for question, turns in group["turns"].items()]
            settings = {"temperature": temperature, "max_new_tokens": max_new_tokens}
            found, about = draw_answers(f"mt_bench, turn {turn}", subject, messages, think_end_token, **settings)
            found = found.sort_values("prompt_id").set_index(group.index)
            notes += about
            text = found["text"].str.strip()
            said |= {} if turn == 2 else dict(text.items())
            numbers = {name: found[name] for name in ("empty", "truncated")}
            columns = {"question": group.index, "turn": turn, "text": text, "length": text.str.len(), **numbers}
            drawn.append(pd.DataFrame(columns).reset_index(drop=True))
    return pd.concat(drawn, ignore_index=True), notes


def _messages(turns: list[str], first: str | None, turn: int) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": turns[0]}]
    if turn == 2:
        messages += [{"role": "assistant", "content": first or ""}, {"role": "user", "content": turns[1]}]
    return messages


def _shown(asked: pd.DataFrame, answers: pd.DataFrame, references: Mapping[Any, list[str]], turn: int) -> pd.DataFrame:
    """Return the questions to the judge: prompt (the conversation), a (the reference or empty), b (the answer)."""
    text = dict(zip(zip(answers["question"], answers["turn"], strict=True), answers["text"], strict=True))
    rows = []
    for question, turns, category in zip(asked.index, asked["turns"], asked["category"], strict=True):
        prompt, reference = turns[0], references.get(question, [""])[0]
        if turn == 2:
            prompt += BETWEEN.format(answer=text[question, 1], question=turns[1])
            if question in references:
                first, second = references[question]
                slots = {"question_1": turns[0], "ref_answer_1": first, "question_2": turns[1], "ref_answer_2": second}
                reference = REFERENCE.format(**slots)
        reference = reference if category in REFERENCED else ""
        rows.append((prompt, reference, text[question, turn]))
    return pd.DataFrame(rows, asked.index, ["prompt", "a", "b"], dtype=object)


def _questions(data: Path | None) -> pd.DataFrame:
    """Return category and turns by the question's number."""
    file = _file(data, "question.jsonl")
    rows = read_fields(file, "question_id", "category", "turns")
    for row in rows:
        if not isinstance(row["turns"], list) or len(row["turns"]) != 2:
            raise EvaluationError(
                f"{row['where']}: `turns` is {json.dumps(row['turns'])[:60]} instead of two questions."
            )
    index = pd.Index([row["question_id"] for row in rows])
    return pd.DataFrame([{"category": row["category"], "turns": row["turns"]} for row in rows], index)


def _references(data: Path | None) -> dict[Any, list[str]]:
    """Return GPT-4's answers to both turns by the question's number."""
    file = _file(data, "reference_answer/gpt-4.jsonl")
    try:
        return {row["question_id"]: row["choices"][0]["turns"] for row in read_fields(file, "question_id", "choices")}
    except (KeyError, IndexError, TypeError) as error:
        raise EvaluationError(f"{file}: a row has no choices[0].turns ({error}): copy MT-Bench's file again.") from None


def _file(data: Path | None, name: str) -> Path:
    return suite_file("mt_bench", data, f"{FOLDER}/{name}", REPOSITORY, kind="space")
