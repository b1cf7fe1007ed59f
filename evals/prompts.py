"""Held-out prompts of a data source for evaluations of a model, the same ones for every loss and seed."""

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
    """Held-out rows, one per prompt.

    Attributes:
        ids: prompt_id, the prompt's position by sha256 among all candidate prompts of the source. It depends neither on a
            model's training data nor on the number of prompts asked.
        rows: the rows, as messages where the subject needs them.
        messages: text of the human's message, without markup of the data source.
        notes: sentences about prompts that were left out.
    """

    ids: list[int]
    rows: list[Row]
    messages: list[str]
    notes: tuple[str, ...]

    @property
    def prompts(self) -> list[Text]:
        return [row.prompt for row in self.rows]


def load_prompts(subject: Subject, source: str, path: Path | None, count: int, subset: str | None = None) -> PromptSet:
    """Return the first `count` prompts with one human turn, by sha256 of their text, from the test split if there is one.

    Of rows with the same prompt the first by its own hash is taken. A prompt that the subject was trained on is left
    out: a training prompt has the same text up to white space or, where the subject has a chat template, contains the
    human's message. This needs no tokenizer, and errs on the side of leaving a prompt out.

    Args:
        path: path of the source's files; None: that of the subject's own experiment, else the hub.
        subset: subset that the source is asked for; a path that is a file has its rows already.

    Raises:
        EvaluationError: no prompt is left.
        DataError: the source cannot be read.
    """
    path = path or subject.paths.get(source)
    report = DropReport(f"{source} ({path})" if path else source)
    options = {"subset": subset} if subset and not (path and path.is_file()) else {}
    rows = read_rows(source, path, options, report)
    report.enforce()
    test = [row for row in rows if row.split == "eval"]
    by_prompt: dict[str, Row] = {}
    for row in sorted(filter(_one_turn, test or rows), key=row_digest):
        by_prompt.setdefault(hashlib.sha256(prompt_key(row).encode()).hexdigest(), row)
    numbered = list(enumerate(row for _, row in sorted(by_prompt.items())))
    trained = {_collapsed(prompt) for prompt in subject.trained_on}
    everything = "\n".join(trained) if subject.chat else ""
    kept: list[tuple[int, Row, str]] = []
    left_out = 0
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
            f"{report.source}: no prompt is left. {len(rows)} rows have {len(numbered)} held-out prompts with one human "
            f"turn, and {subject.name} was trained on {left_out} of them. Give other rows: path=FILE."
        )
    notes = []
    if left_out:
        notes.append(f"{source}: {left_out} prompts are left out because {subject.name} was trained on them.")
    if len(kept) < count:
        notes.append(f"{source} has {len(kept)} prompts instead of {count}.")
    if not test and not subject.trained_on:
        notes.append(f"{source} has no test split, and the training data of {subject.name} are unknown.")
    ids, kept_rows, messages = map(list, zip(*kept, strict=True))
    return PromptSet(ids, kept_rows, messages, tuple(notes))


def human_message(row: Row) -> str:
    """Return the text of all human turns of a row's prompt, separated by blank lines."""
    return "\n\n".join(
        m["content"].strip() for m in to_chat(row).prompt if not isinstance(m, str) and m["role"] == "user"
    )


def _one_turn(row: Row) -> bool:
    """Return whether a prompt has one human turn; a prompt that is no dialogue has."""
    if isinstance(row.prompt, str):
        return row.prompt.count("\n\nHuman:") <= 1
    return sum(message["role"] == "user" for message in row.prompt) == 1


def _flat(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _collapsed(text: str) -> str:
    return " ".join(text.split())
