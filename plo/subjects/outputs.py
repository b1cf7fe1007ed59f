"""A file of a model's outputs as a subject of evaluations."""

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from plo.data.rows import Row, Text
from plo.errors import reason
from plo.identity import sha256
from plo.subjects.subject import Sampling, Subject, SubjectError


class Outputs:
    """A file of a model's outputs: JSON or JSON lines (also .gz) with `instruction` or `prompt`, and `output` or `text`.

    Its texts are fixed: settings of sampling and the seed change nothing. See `Subject` for the attributes.

    Raises:
        SubjectError: the file cannot be read, or a row lacks these columns or has no text in them.
    """

    fixed, chat, seed = True, True, 0
    reference: Subject | None = None
    trained_on: Collection[str] = frozenset()
    paths: Mapping[str, Path] = {}

    def __init__(self, path: Path):
        self.path = path
        rows = list(_records(path))
        names = list(rows[0][1]) if rows else []
        asked = next((name for name in ("instruction", "prompt") if name in names), None)
        said = next((name for name in ("output", "text", "response") if name in names), None)
        if asked is None or said is None:
            raise SubjectError(
                f"{path} is not a file of outputs: it has the columns {', '.join(names) or 'none'}, and needs 'instruction' or "
                f"'prompt', and 'output' or 'text'."
            )
        for where, row in rows:
            for column, holds in ((asked, _is_prompt), (said, lambda text: isinstance(text, str))):
                if not holds(row.get(column)):
                    found = json.dumps(row[column])[:40] if column in row else "nothing"
                    raise SubjectError(
                        f"{path}, {where}: {column!r} holds {found} instead of a text. Correct or remove the row."
                    )
        self.name = str(rows[0][1].get("generator") or path.stem.split(".")[0])
        self.identity = sha256([[row[asked], row[said]] for _, row in rows])
        self.texts: dict[str, list[str]] = {}
        for _, row in rows:
            self.texts.setdefault(rendered(row[asked]), []).append(row[said])

    def sample(self, prompts: Sequence[Text], **settings: Any) -> pd.DataFrame:
        found, samples = [], Sampling(**settings).samples
        for number, prompt in enumerate(prompts):
            texts = self.texts.get(rendered(prompt), [])
            if len(texts) < samples:
                raise SubjectError(
                    f"{self.path} has {len(texts)} outputs instead of {samples} for the prompt {rendered(prompt)[:80]!r}."
                )
            for k, text in enumerate(texts[:samples]):
                row = {"prompt_id": number, "sample": k, "prompt": rendered(prompt), "text": text}
                found.append(row | {"tokens": float("nan"), "finished": float("nan")})
        return pd.DataFrame(found)

    def causal_lm(self) -> NoReturn:
        raise SubjectError(
            f"{self.path} gives only texts, and this evaluation needs the model: give its folder or name."
        )

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        self.causal_lm()


def rendered(prompt: Text) -> str:
    """Return a prompt as files of outputs name it: the last message of the human, stripped."""
    if not isinstance(prompt, str):
        return prompt[-1]["content"].strip()
    return prompt.strip().removeprefix("Human:").removesuffix("Assistant:").strip()


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a file after its place, "line 3" or, in a list, "row 3"."""
    try:
        read: Callable = gzip.open if path.suffix == ".gz" else open
        with read(path, "rt", encoding="utf-8") as file:
            text = file.read()
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else text.split("\n")  # splitlines would also split at U+2028, inside texts
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise SubjectError(f"The outputs {path} cannot be read: {reason(error)}.") from None
    for number, row in enumerate(rows, 1):
        where = f"{'row' if whole else 'line'} {number}"
        if not whole and not row.strip():
            continue
        try:
            row = row if whole else json.loads(row, strict=False)  # some writers do not escape control characters
        except (ValueError, RecursionError) as error:
            raise SubjectError(f"The outputs {path} cannot be read: {where}: {error}.") from None
        if not isinstance(row, dict):
            raise SubjectError(f"The outputs {path} are not a list of objects: {where} is {json.dumps(row)[:40]}.")
        yield where, row


def _is_prompt(value: Any) -> bool:
    """Return whether a value is a text or a list of messages."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return isinstance(value[-1].get("content"), str)
    return isinstance(value, str)
