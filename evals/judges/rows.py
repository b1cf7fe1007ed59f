"""Rows of texts from files: recorded verdicts, and pairs with gold labels."""

import csv
import gzip
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from plo.data.files import read_path
from plo.evals.judges.judge import JudgeError


def read_texts(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .json, .jsonl or .csv file (also .gz), each with its place under "where".

    CSV cells stay text: `read_path` makes numbers of them, and the answer "4.0" would be another than "4".

    Raises:
        DataError: the file cannot be read.
    """
    rows = list(read_path(path))  # checks a CSV file too
    if not path.name.lower().removesuffix(".gz").endswith(".csv"):
        yield from rows
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        for row, text in zip(rows, csv.DictReader(file), strict=True):
            yield {**text, "where": row["where"]}


def read_gold(path: Path | str) -> pd.DataFrame:
    """Pairs with gold labels from a file (.json, .jsonl, .csv, also .gz): columns prompt, a, b, gold.

    Rows are LLMBar's (input, output_1, output_2, label 1 or 2: the better one), or have prompt, a, b, gold, or prompt,
    chosen, rejected. The last are shown in an order that a hash of the texts draws, so that it is always the same.

    Raises:
        JudgeError: a row has none of these forms. DataError: the file cannot be read.
    """
    return pd.DataFrame(
        [_gold_row(row) for row in read_texts(Path(path).expanduser())],
        columns=["prompt", "a", "b", "gold"],
        dtype=object,  # pandas' own text type refuses lone surrogates
    ).astype({"gold": int})


def _gold_row(row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    if "output_1" in row:
        texts = (row.get("input"), row["output_1"], row.get("output_2"))
        gold = {"1": 0, "2": 1}.get(str(row.get("label")))
    elif "chosen" in row:
        prompt, chosen, rejected = row.get("prompt"), row["chosen"], row.get("rejected")
        gold = digest(f"{prompt}\0{chosen}\0{rejected}") % 2
        texts = (prompt, rejected, chosen) if gold else (prompt, chosen, rejected)
    else:
        texts = (row.get("prompt"), row.get("a"), row.get("b"))
        gold = {"0": 0, "1": 1}.get(str(row.get("gold")).removesuffix(".0"))
    if gold is None or not all(isinstance(text, str) for text in texts):
        raise JudgeError(
            f"{row['where']}: no pair with a gold label. A row has the texts prompt, a, b and gold (1: b is better, "
            f"0: a), or prompt, chosen, rejected, or is LLMBar's (input, output_1, output_2, label 1 or 2)."
        )
    return (*texts, gold)


def digest(text: str) -> int:
    """64 bits of a text's sha256, to draw by: the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
