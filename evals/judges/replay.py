"""Recorded verdicts as a judge."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict
from plo.evals.judges.rows import read_texts
from plo.evals.judges.template import Template


class Replay(Judge):
    """The judge `replay:<file>`, which repeats recorded verdicts. No judge prompt is used.

    Files (.json, .jsonl, .csv, also .gz) have rows with prompt, a, b and p, P(b better) with a shown first, empty for an
    unreadable answer; or LLMBar's results, rows with input, output_1, output_2 and results[0]["swap = False"]
    and ["swap = True"], whose `winner` "1" or "2" is output_1 or output_2 in both orders (under swap output_2 was shown
    first).

    Raises:
        JudgeError: a row has neither form, or a question has two verdicts; when asked: a question is not recorded.
        DataError: the file cannot be read.
    """

    cached = False
    recorded = True
    repeatable = False

    def __init__(self, argument: str, template: Template):
        path = Path(argument).expanduser()
        self.name, self.record = f"replay:{argument}", {}
        for row in read_texts(path):
            for question, p in _recorded(row):
                if self.record.setdefault(question, p) != p:
                    raise JudgeError(
                        f"{row['where']}: the question {question.prompt[:60]!r}... has another verdict in an earlier "
                        f"row. Keep one of the two."
                    )
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        for q in questions:
            if q not in self.record:
                order = " in this order (it is in the other)" if q.swapped() in self.record else ""
                raise JudgeError(
                    f"The judge {self.name} has no verdict on the prompt {q.prompt[:60]!r}..., a {q.a[:40]!r}..., "
                    f"b {q.b[:40]!r}...{order}. Ask it only recorded questions, or name the judge itself."
                )
        return [Verdict(self.record[q]) for q in questions]


def _recorded(row: Mapping[str, Any]) -> Iterator[tuple[Question, float | None]]:
    try:
        if "results" in row:
            question, record = Question(row["input"], row["output_1"], row["output_2"]), row["results"][0]
            says = {"1": 0.0, "2": 1.0}
            yield question, says.get(record["swap = False"]["winner"])
            if swapped := record.get("swap = True"):
                second = says.get(swapped["winner"])
                yield question.swapped(), None if second is None else 1 - second
        else:
            p = row["p"]
            yield Question(row["prompt"], row["a"], row["b"]), None if p in (None, "") else float(p)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise JudgeError(
            f"{row['where']}: no recorded verdict ({type(error).__name__}: {error}). A row has prompt, a, b and p, or "
            f"is one of LLMBar's results (input, output_1, output_2, results)."
        ) from error
