"""Separate a model's answers from the thoughts before them, and report what was removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from plo.data.rows import Text
from plo.subjects import Subject

THINK_END = "</think>"
# Directions of the metrics made of the columns that `extract_answers` adds.
ANSWER_DIRECTIONS = {"empty*": False, "truncated*": False}
ANSWER_MEANINGS = {
    "empty*": "share of answers without a text, thoughts left out",
    "truncated*": "share of answers that the limit of tokens cut",
}


@dataclass(frozen=True)
class SplitText:
    """A text without the thoughts at its beginning.

    Attributes:
        text: the text after the thoughts.
        thought: whether there was a thought.
        open: whether the thought has no end, so that there is no answer.
    """

    text: str
    thought: bool
    open: bool


def split_thought(text: str, end: str | None = THINK_END, *, begun: bool = False) -> SplitText:
    """Split off the thoughts at the beginning of a text.

    A thought is <think> ... </think>, or the text before a first </think> without a <think>, which many chat templates
    write themselves. Only thoughts at the beginning count, so that an answer may quote the marks.

    Args:
        end: the mark that ends a thought; the mark that begins one is the same without "/". None: nothing is a thought.
        begun: the prompt ends with the beginning mark.

    Example:
        >>> split_thought("<think>7 x 8, so 56</think>It is 56.").text
        'It is 56.'
    """
    if not end:
        return SplitText(text, False, False)
    start = end.replace("/", "", 1)
    if start == end:  # the beginning mark is not known
        _, closed, after = text.partition(end)
        return SplitText(after.lstrip(), True, False) if closed else SplitText(text, False, False)
    rest, thought = text.lstrip(), False
    before, closed, _ = rest.partition(end)
    if begun or (closed and start not in before):
        rest = start + rest
    while rest.startswith(start):
        _, closed, after = rest.partition(end)
        if not closed:
            return SplitText("", True, True)
        rest, thought = after.lstrip(), True
    return SplitText(rest if thought else text, thought, False)


def draw_answers(
    evaluation: str, subject: Subject, prompts: Sequence[Text], think_end_token: str | None, **settings: Any
) -> tuple[pd.DataFrame, list[str]]:
    """Sample a subject, and return the result of `extract_answers` and the sentences of `answer_notes`."""
    drawn = extract_answers(subject.sample(prompts, **settings), think_end_token)
    return drawn, answer_notes(f"{evaluation}: {subject.name}", drawn, think_end_token)


def extract_answers(drawn: pd.DataFrame, think_end_token: str | None = THINK_END) -> pd.DataFrame:
    """Return a subject's samples with the answers alone in `text`, and the columns thought, open, empty, truncated (0, 1, NaN).

    `empty`: the answer is white space; so are `content: null` of a server and a thought without an end.
    `truncated`: the token limit ended the answer; NaN where that is unknown (a file of outputs).
    """
    marks = think_end_token.replace("/", "", 1) if think_end_token else None
    begun = [bool(marks) and str(prompt).rstrip().endswith(marks) for prompt in drawn["prompt"]]
    parted = [split_thought(text, think_end_token, begun=b) for text, b in zip(drawn["text"], begun, strict=True)]
    finished = drawn["finished"] if "finished" in drawn else pd.Series(np.nan, drawn.index)
    return drawn.assign(
        text=[part.text for part in parted],
        thought=[float(part.thought) for part in parted],
        open=[float(part.open) for part in parted],
        empty=[float(not part.text.strip()) for part in parted],
        truncated=1 - finished.astype(float),
    )


def answer_notes(what: str, drawn: pd.DataFrame, think_end_token: str | None = THINK_END) -> list[str]:
    """Return a sentence each on removed thoughts, empty, refused and truncated answers, if there are any.

    Args:
        what: the evaluation and the subject, "hh: tiny".
        drawn: the result of `extract_answers`.
    """
    notes, count = [], len(drawn)
    if thoughts := int(drawn["thought"].sum()):
        unended = int(drawn["open"].sum())
        notes.append(
            f"{what}: {thoughts} of {count} answers begin with a thought, which is removed up to {think_end_token} before "
            f"anything is judged or measured (think_end_token=None keeps it)"
            + (f"; {unended} of them end inside it and count as empty: allow more tokens." if unended else ".")
        )
    if empty := int(drawn["empty"].sum()):
        null = int(drawn["null"].sum()) if "null" in drawn else 0
        notes.append(
            f"{what}: {_share(empty, count)} answers are empty"
            + (f", {null} of them `content: null`." if null else ".")
        )
    if refused := int(drawn["refused"].astype(bool).sum()) if "refused" in drawn else 0:
        notes.append(f"{what}: {_share(refused, count)} prompts were refused by the server, as too long or filtered.")
    if truncated := int(drawn["truncated"].sum()):
        notes.append(f"{what}: {_share(truncated, count)} answers were cut at the token limit.")
    if "adapted" in drawn:
        changes = sorted({change for changes in drawn["adapted"] for change in changes})
        notes += [f"{what}: drawn {change}, as the server requires." for change in changes]
    return notes


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})"
