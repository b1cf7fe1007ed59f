"""Split rows into training and held-out ones by hash: the same on every machine, no prompt in both."""

import json
from collections.abc import Iterable
from dataclasses import replace

from plo.data.rows import Row
from plo.paths import text_digest


def prompt_key(row: Row) -> str:
    """Return the prompt as one text. Prompts that differ only in white space have the same key."""
    messages = [{"content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
    return "\n".join(f"{m.get('role', '')}:{' '.join(m['content'].split())}" for m in messages)


def row_digest(row: Row) -> str:
    """Return the sha256 of a row's prompt, responses and columns; its place does not count."""
    return _digest(row.prompt, row.chosen, row.rejected, row.columns)


def _digest(*values: object) -> str:
    return text_digest(json.dumps(values, sort_keys=True, separators=(",", ":")))


def split_rows(rows: Iterable[Row], eval_fraction: float) -> tuple[list[Row], list[Row], int]:
    """Return training rows, held-out rows and the number of rows left out, in the order of their hashes.

    A prompt is held out when its sha256, as a number in [0, 1), is below `eval_fraction`. If the source fixes both a
    train and an eval split, that is kept instead; rows without a split of their own then follow their prompt, or the
    hash, and training rows whose prompt is also held out are left out. The order of the rows in the source does not
    matter, so that a limit takes the same rows everywhere.
    """
    # The texts come first, so that more columns change neither order nor limit.
    rows = sorted(rows, key=lambda row: (_digest(row.prompt, row.chosen, row.rejected), row_digest(row)))
    if split_is_fixed(rows):
        held_out = {prompt_key(row) for row in rows if row.split == "eval"}
        fixed = {prompt_key(row) for row in rows if row.split == "train"}
    else:  # files or splits of one kind only say nothing about what to hold out
        rows = [replace(row, split=None) for row in rows]
        held_out, fixed = set(), set()
    train, held, left_out = [], [], 0
    for row in rows:
        prompt = prompt_key(row)
        if row.split == "train" and prompt in held_out:
            left_out += 1
        elif row.split == "eval" or (
            row.split is None and (prompt in held_out or (prompt not in fixed and _fraction(prompt) < eval_fraction))
        ):
            held.append(row)
        else:
            train.append(row)
    return train, held, left_out


def split_is_fixed(rows: Iterable[Row]) -> bool:
    """Return whether the source marks some rows for training and others as held out."""
    return {"train", "eval"} <= {row.split for row in rows}


def is_for_tuning(prompt: str) -> bool:
    """Return whether a held-out prompt serves tuning alone, as half of them do, by a hash of their own."""
    return _fraction(prompt, "tune") < 0.5


def _fraction(text: str, salt: str = "split") -> float:
    """Return a number in [0, 1) from a hash of the text, independent of the hash that orders rows."""
    return int(text_digest(f"{salt}:{text}")[:13], 16) / 16**13
