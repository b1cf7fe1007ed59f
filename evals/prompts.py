"""Held-out prompts of a data source for evaluations of a model: the same ones for every loss and seed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from plo.data import DropReport, Row, read_rows
from plo.data.rows import Text, to_chat
from plo.data.split import prompt_key, row_digest
from plo.evals.registry import EvaluationError
from plo.subjects import Subject


@dataclass(frozen=True)
class PromptSet:
    """Held-out rows, one a prompt.

    Attributes:
        ids: prompt_id: the prompt's place among all prompts of the source that could be asked, by sha256. It does not
            depend on what a model was trained on, nor on how many are asked.
        rows: as messages where the subject wants them.
        messages: what the human said, without any markup of the data source.
        notes: what was left out, a sentence each.
    """

    ids: list[int]
    rows: list[Row]
    messages: list[str]
    notes: tuple[str, ...]

    @property
    def prompts(self) -> list[Text]:
        return [row.prompt for row in self.rows]


def load_prompts(subject: Subject, source: str, path: Path | None, count: int) -> PromptSet:
    """The first `count` prompts, by sha256 of their text, with one human turn, of the test split where there is one.

    Of rows with the same prompt the first by its own hash is taken. A prompt that the subject was trained on is left
    out: a training prompt is the same text but for white space or, where the subject has a chat template, holds the
    human's message. That needs no tokenizer, and leaves out rather a prompt too many than one too few.

    Args:
        path: of the source's files; None: where the subject's own experiment has them, else the hub.

    Raises:
        EvaluationError: no prompt is left. DataError: the source cannot be read.
    """
    path = path or subject.paths.get(source)
    report = DropReport(f"{source} ({path})" if path else source)
    rows = read_rows(source, path, {}, report)
    report.enforce()
    test = [row for row in rows if row.split == "eval"]
    by_prompt: dict[str, Row] = {}
    for row in sorted(filter(_one_turn, test or rows), key=row_digest):
        by_prompt.setdefault(hashlib.sha256(prompt_key(row).encode()).hexdigest(), row)
    numbered = list(enumerate(row for _, row in sorted(by_prompt.items())))
    trained = {_collapsed(prompt) for prompt in subject.trained_on}
    everything = "\n".join(trained) if subject.chat else ""
    kept, left_out = [], 0
    for prompt_id, row in numbered:
        if len(kept) == count:
            break
        message = human_message(row)
        if _collapsed(_flat(row.prompt)) in trained or (everything and _collapsed(message) in everything):
            left_out += 1
        else:
            kept.append((prompt_id, to_chat(row) if subject.chat else row, message))
    if not kept:
        raise EvaluationError(
            f"{report.source}: no prompt is left to ask. Of {len(rows)} rows {len(numbered)} prompts are held out with "
            f"one human turn, and {subject.name} was trained on {left_out} of them. Give other rows: path=FILE."
        )
    notes = []
    if left_out:
        notes.append(f"{source}: {left_out} prompts are left out, as {subject.name} was trained on them.")
    if len(kept) < count:
        notes.append(f"{source}: there are {len(kept)} prompts; {count} were asked for.")
    if not test and not subject.trained_on:
        notes.append(f"{source} names no test split, and what {subject.name} was trained on is not known.")
    return PromptSet(*map(list, zip(*kept, strict=True)), tuple(notes))


def human_message(row: Row) -> str:
    """What the human says in a row's prompt; of several turns all, a blank line between."""
    return "\n\n".join(m["content"].strip() for m in to_chat(row).prompt if m["role"] == "user")


def _one_turn(row: Row) -> bool:
    """One human turn: a prompt that is no dialogue is one."""
    if row.conversational:
        return sum(message["role"] == "user" for message in row.prompt) == 1
    return row.prompt.count("\n\nHuman:") <= 1


def _flat(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _collapsed(text: str) -> str:
    return " ".join(text.split())
