"""Digests of what a run recorded, in a canonical form: of each sample, of each step of a training, of tables of numbers."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

VOLATILE = frozenset(
    {"tokens_per_second", "peak_memory_gb", "seconds"}
)  # what differs from run to run, whatever is equal
SHORT = 6  # hexadecimal digits of the digest of a sample or a step
TEXTS = ("prompt_id", "sample", "prompt", "text")

History = Mapping[str, Mapping[int, float]]  # {metric: {step: value}}


def exact(value: Any) -> Any:
    """Return a value as JSON that keeps every number: NaN and infinities are the texts "nan", "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): exact(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [exact(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def digest(value: Any) -> str:
    """Return the sha256 of a value's JSON, with keys in order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=lambda one: one.item())
    return hashlib.sha256(text.encode()).hexdigest()


def samples(frame: pd.DataFrame, *, each: bool) -> dict[str, Any]:
    """Return the digests of a cell's samples.

    Args:
        frame: table of the samples, one a row, as a cell records it.
        each: whether to return the digest of each sample too.

    Returns:
        `count`; `texts`, the sha256 over all prompts and responses in order of prompt and sample; `numbers`, that over all
        that was measured on them; and `each`, the first `SHORT` digits of the sha256 of each, one after the other.
    """
    frame = frame.sort_values([name for name in TEXTS[:2] if name in frame], kind="stable")
    rows = zip(*(frame[name].tolist() for name in TEXTS if name in frame), strict=True)
    single = [digest(row) for row in rows]
    numbers = table(frame.drop(columns=list(TEXTS[2:]), errors="ignore"))
    found = {"count": len(frame), "texts": digest(single), "numbers": numbers}
    return found | {"each": "".join(one[:SHORT] for one in single)} if each else found


def table(frame: pd.DataFrame) -> str:
    """Return the sha256 of a table, its columns in order of their names."""
    columns = sorted(frame.columns)
    return digest([[name, frame[name].tolist()] for name in columns])


def curve(histories: History, but: Collection[str] = ()) -> dict[str, Any]:
    """Return the digests of a training: `steps`, and `each`, the digest of what was logged at each, one after the other.

    Args:
        but: metrics that are not of the training.
    """
    by_step: dict[int, dict[str, float]] = {}
    for name, history in histories.items():
        for step, value in history.items() if name not in but and name not in VOLATILE else ():
            by_step.setdefault(step, {})[name] = value
    steps = sorted(by_step)
    return {"steps": steps, "each": "".join(digest(by_step[step])[:SHORT] for step in steps)}


def split(each: str) -> list[str]:
    """Return the digests in a text of many."""
    return [each[start : start + SHORT] for start in range(0, len(each), SHORT)]
