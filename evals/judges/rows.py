"""Read rows of texts from files: recorded verdicts, and pairs with gold labels."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from plo.data import DropReport
from plo.data.errors import BadRow, Tie
from plo.data.files import read_path
from plo.data.messages import are_messages_as_text, read_messages
from plo.data.rows import CellNumber, Message, check, to_chat, to_row
from plo.data.shapes import recognise
from plo.evals.judges.judge import JudgeError

MODELS = ("model_a", "model_b")


def read_texts(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .json, .jsonl or .csv file (also .gz), each with its location under "where".

    CSV cells stay text, numbers too, because the answers "4.0" and "4" differ.

    Raises:
        DataError: the file cannot be read.
    """
    for row in read_path(path):
        yield {name: value.text if isinstance(value, CellNumber) else value for name, value in row.items()}


def read_gold(path: Path | str, report: DropReport | None = None) -> pd.DataFrame:
    """Read pairs with gold labels from a file (.json, .jsonl, .csv, .parquet; .gz): columns prompt, a, b, gold.

    Where all rows have prompt, a, b, gold, and name the models of a and b in model_a and model_b, these are columns too.

    Rows are LLMBar's (input, output_1, output_2, label 1 or 2: the better one), or have prompt, a, b, gold, or are
    preferences as in training data: prompt, chosen, rejected as texts or lists of messages, whole conversations
    without a prompt, or one of the formats of `plo.data.shapes` (HH, TL;DR, HelpSteer3, SHP, ...). The order of a
    preference's answers is drawn by a hash of the texts, so that it never changes. A conversation of several turns is
    shown with its speakers, also if it is written as text, as in a CSV file.

    Args:
        report: receives the preferences left out: those with an empty response, equal responses, two prompts or invalid
            Unicode, and ties.

    Raises:
        JudgeError: a row has none of these forms, or all rows are ties.
        DataError: the file cannot be read, a row is malformed, or more than 5% of the rows are left out.
    """
    path, report = Path(path).expanduser(), DropReport(str(path)) if report is None else report
    rows = list(read_texts(path))
    report.rows += len(rows)
    found = [_gold_row(row, report) for row in rows]
    pairs = [pair for pair in found if pair]
    report.enforce()
    if not pairs:
        raise JudgeError(f"{path}: all {len(rows)} rows are ties. Give pairs in which one answer is better.")
    # dtype: pandas' text type refuses lone surrogates
    frame = pd.DataFrame(pairs, columns=["prompt", "a", "b", "gold"], dtype=object).astype({"gold": int})
    named = [row for row, pair in zip(rows, found, strict=True) if pair]
    if all(isinstance(row.get(name), str) and "gold" in row for row in named for name in MODELS):
        frame = frame.assign(**{name: [row[name] for row in named] for name in MODELS})
    return frame


def _gold_row(row: dict[str, Any], report: DropReport) -> tuple[str, str, str, int] | None:
    texts: tuple[Any, ...]
    if "output_1" in row:
        texts = (row.get("input"), row["output_1"], row.get("output_2"))
        gold = {"1": 0, "2": 1}.get(str(row.get("label")))
    elif "chosen" in row or recognise(row):
        return _preference(row, report)
    else:
        texts = (row.get("prompt"), row.get("a"), row.get("b"))
        gold = {"0": 0, "1": 1}.get(str(row.get("gold")).removesuffix(".0"))
    if gold is None or not all(isinstance(text, str) for text in texts):
        raise JudgeError(
            f"{row['where']}: no pair with a gold label. A row has the texts prompt, a, b and gold (1: b is better, "
            f"0: a), or prompt, chosen, rejected (texts or messages; without prompt whole dialogues), or is LLMBar's "
            f"(input, output_1, output_2, label 1 or 2)."
        )
    try:
        prompt, a, b = (
            _as_text(read_messages(t, "text", row["where"])) if are_messages_as_text(t) else t for t in texts
        )
    except BadRow as error:
        report.add(error.reason, row["where"], " | ".join(repr(text[:60]) for text in texts))
        return None
    return prompt, a, b, gold


def _preference(raw: dict[str, Any], report: DropReport) -> tuple[str, str, str, int] | None:
    """Return the pair of a preference; a bad row is added to the report and gives None."""
    shape = recognise(raw)
    try:
        row = to_row(shape.convert(dict(raw)) if shape else raw)
        if reason := check(row):
            raise BadRow(reason)
    except Tie:
        report.ties += 1
        return None
    except BadRow as error:
        report.add(error.reason, raw["where"], f"{str(raw.get('chosen'))[:60]!r} | {str(raw.get('rejected'))[:60]!r}")
        return None
    if row.conversational or str(row.prompt).startswith("\n\nHuman:"):
        row = to_chat(row)
    prompt, chosen, rejected = (_as_text(text) for text in (row.prompt, row.chosen, row.rejected))
    gold = stable_hash(f"{prompt}\0{chosen}\0{rejected}") % 2
    return (prompt, rejected, chosen, 1) if gold else (prompt, chosen, rejected, 0)


def _as_text(text: str | list[Message]) -> str:
    """Return the text that the judge reads: of several messages, each after its speaker."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)


def stable_hash(text: str) -> int:
    """Return 64 bits of a text's sha256, for draws that never change."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
