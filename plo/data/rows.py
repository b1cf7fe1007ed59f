"""The canonical row, a prompt and two responses, made from a raw mapping and checked."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from plo.data.errors import EMPTY, HALF_MESSAGES, IDENTICAL, NOT_UNICODE, PROMPTS_DIFFER, BadRow, DataError
from plo.data.messages import Message, are_messages_as_text, read_messages

Text = str | list[Message]

TRAIN_NAMES = {"train", "training"}
EVAL_NAMES = {"eval", "evaluation", "test", "validation", "valid", "val", "dev"}
OWN_KEYS = {"prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt", "where", "split"}
SYSTEM_NAMES = ("system", "system_prompt", "system_message")  # columns that hold a system message
_TURN = re.compile(r"\n\n(Human|Assistant):")


class CellNumber(float):
    """A cell of a CSV file that looks like a number. It keeps its text, because it may be an answer."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> "CellNumber":
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True)
class Row:
    """One preference: `chosen` was preferred to `rejected` as the answer to `prompt`.

    All three are plain text, or all three are lists of messages {"role", "content"}.

    Args:
        columns: the row's other numeric columns, finite values only.
        where: place in the source, `file.jsonl:17` (line) or `name[train][17]` (index).
        split: "train" or "eval" if the source fixes it.
        system: system message that a plain prompt begins with, for `to_chat`; "" if there is none.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    columns: dict[str, float] = field(default_factory=dict)
    where: str = "?"
    split: str | None = None
    system: str = ""

    def __post_init__(self) -> None:
        if len({isinstance(text, str) for text in (self.prompt, self.chosen, self.rejected)}) > 1:
            raise DataError(
                f"{self.where}: prompt and responses are neither all text nor all messages. Give them in one form."
            )

    @property
    def conversational(self) -> bool:
        return isinstance(self.prompt, list)

    @property
    def texts(self) -> tuple[str, str, str] | None:
        """Prompt and responses of a plain row; None for a conversational one."""
        return None if self.conversational else cast(tuple[str, str, str], (self.prompt, self.chosen, self.rejected))

    @property
    def messages(self) -> list[list[Message]]:
        """Prompt, chosen and rejected of a conversational row; empty for a plain one."""
        return cast(list[list[Message]], [self.prompt, self.chosen, self.rejected]) if self.conversational else []

    @property
    def excerpt(self) -> str:
        """The end of the prompt and the beginning of both responses, for error messages."""
        chosen, rejected = _flat(self.chosen), _flat(self.rejected)
        return f"...{_flat(self.prompt)[-40:]!r} chosen {chosen[:40]!r} rejected {rejected[:40]!r}"


def split_of(name: str) -> str | None:
    """Return the split that a word in a name stands for, if any: "harmless-base_test" -> "eval"."""
    words = re.split(r"[^a-z]+", name.lower())
    if any(word in TRAIN_NAMES for word in words):
        return "train"
    return "eval" if any(word in EVAL_NAMES for word in words) else None


def to_row(raw: Mapping[str, Any]) -> Row:
    """Convert a raw mapping to a `Row`, and check its form alone.

    The forms are: `prompt`, `chosen` and `rejected` as texts or as lists of messages; `chosen` and `rejected` as whole
    conversations, with or without `prompt`, which is the messages that both share; and `chosen_prompt` and
    `rejected_prompt`, for a source with a prompt on each side. All other numeric columns are kept.

    Raises:
        BadRow: the prompts of the two sides differ, or a side has no response.
        DataError: a column is missing, or holds neither text nor messages.
    """
    where = str(raw.get("where", "?"))
    if raw.get("tools") or raw.get("chat_template_kwargs"):
        raise DataError(
            f"{where}: the columns 'tools' and 'chat_template_kwargs' are not supported. Remove such rows, or leave the "
            "columns out with data.columns: {tools: null, chat_template_kwargs: null}."
        )
    for name in ("chosen", "rejected"):
        if name not in raw:
            raise _missing(name, raw, where)
    chosen, rejected = _sides(raw, where)
    prompt = _prompt(raw, where)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise _missing("prompt", raw, where)
        if isinstance(prompt, list):
            chosen, rejected = _reply(chosen), _reply(rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _conversation(prompt, chosen, rejected, raw, where)
    prompt, system = _with_system(prompt or "", raw, where)
    return Row(prompt, chosen, rejected, _columns(raw), where, _own_split(raw, where), system)


def names_of(raw: Mapping) -> str:
    """Write the names of a raw row's columns for a message."""
    return ", ".join(repr(name) for name in raw if name not in ("where", "split")) or "none"


def check(row: Row) -> str | None:
    """Return why a row is bad, or None. Responses that differ only in outer white space are identical."""
    chosen, rejected = _flat(row.chosen).strip(), _flat(row.rejected).strip()
    try:
        for text in (_flat(row.prompt), chosen, rejected):
            text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no tokenizer can read
        return NOT_UNICODE
    if not chosen or not rejected:
        return EMPTY
    return IDENTICAL if chosen == rejected else None


def to_chat(row: Row) -> Row:
    """Convert a plain row to messages. A prompt "\\n\\nHuman: ... \\n\\nAssistant:" becomes a dialogue.

    Consecutive turns of one speaker are joined (HH has some, and many templates refuse them), and outer white space is
    removed.
    """
    if row.texts is None:
        return row
    text, chosen, rejected = row.texts
    text = text.removeprefix(row.system)
    prompt = [{"role": "user", "content": text.strip()}]
    if text.startswith("\n\nHuman:") and text.rstrip().endswith("\n\nAssistant:"):
        _, *parts = _TURN.split(text.rstrip().removesuffix("\n\nAssistant:"))
        prompt = []
        for speaker, said in zip(parts[::2], parts[1::2], strict=True):
            role = "user" if speaker == "Human" else "assistant"
            if prompt and prompt[-1]["role"] == role:
                prompt[-1]["content"] += "\n\n" + said.strip()
            else:
                prompt.append({"role": role, "content": said.strip()})
    if row.system:
        prompt.insert(0, {"role": "system", "content": row.system.strip()})
    return Row(prompt, _reply(chosen.strip()), _reply(rejected.strip()), row.columns, row.where, row.split)


def _conversation(prompt: Text | None, chosen: list, rejected: list, raw: Mapping, where: str) -> tuple:
    """Return prompt and responses of a row whose sides are lists of messages: responses, or whole conversations."""
    if not chosen or not rejected:
        raise BadRow(EMPTY)
    whole = [side[0]["role"] != "assistant" for side in (chosen, rejected)]
    if not any(whole):
        if prompt is None:
            raise _missing("prompt", raw, where)
        return ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), chosen, rejected
    if chosen == rejected:
        raise BadRow(IDENTICAL)
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    implicit, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not all(whole) or not implicit or any(message["role"] == "user" for message in chosen + rejected):
        raise BadRow(PROMPTS_DIFFER)
    if isinstance(prompt, str) and prompt.strip() not in [message["content"].strip() for message in implicit]:
        raise BadRow(PROMPTS_DIFFER)
    if isinstance(prompt, list) and prompt != implicit:
        raise BadRow(PROMPTS_DIFFER)
    return implicit, chosen, rejected


def _prompt(raw: Mapping, where: str) -> Text | None:
    if "prompt" in raw:
        return _text(raw["prompt"], "prompt", where)
    if "chosen_prompt" in raw and "rejected_prompt" in raw:
        sides = [_text(raw[name], name, where) for name in ("chosen_prompt", "rejected_prompt")]
        if sides[0] != sides[1]:
            raise BadRow(PROMPTS_DIFFER)
        return sides[0]
    return None


def _sides(raw: Mapping, where: str) -> tuple[Text, Text]:
    """Return both responses, with lists of messages that became text parsed.

    If one response is such a text, the other must be one too, or messages, or empty: a text answer may quote messages.
    """
    values = [raw["chosen"], raw["rejected"]]
    if any(map(are_messages_as_text, values)):
        values = [None if isinstance(value, str) and value.strip() in ("", "[]") else value for value in values]
        if any(isinstance(value, str) and not are_messages_as_text(value) for value in values):
            raise BadRow(HALF_MESSAGES)
    chosen, rejected = (_text(value, name, where) for value, name in zip(values, ("chosen", "rejected"), strict=True))
    if type(chosen) is not type(rejected):
        if not chosen or not rejected:
            raise BadRow(EMPTY)
        raise DataError(f"{where}: 'chosen' is text and 'rejected' messages, or the reverse. Give both in one form.")
    return chosen, rejected


def _text(value: Any, name: str, where: str) -> Text:
    """Return a value as text or as a list of messages; null is an empty text."""
    if value is None:
        return ""
    if isinstance(value, CellNumber):
        return value.text
    if isinstance(value, str) and not are_messages_as_text(value):
        return value
    return read_messages(value, name, where)


def _with_system(prompt: Text, raw: Mapping, where: str) -> tuple[Text, str]:
    """Return the prompt with the row's system message before it, and that message if the prompt is plain text."""
    for name in SYSTEM_NAMES:
        system = raw.get(name)
        if not isinstance(system, str) or not system.strip():
            continue
        if isinstance(prompt, str):
            return system.rstrip() + ("" if prompt.startswith("\n\n") else "\n\n") + prompt, system.rstrip()
        first = prompt[0] if prompt and prompt[0]["role"] == "system" else None
        if first and first["content"].strip() != system.strip():
            raise DataError(
                f"{where}: the column {name!r} and the system message of the prompt differ: {system[:40]!r} and "
                f"{first['content'][:40]!r}. Leave the column out with data.columns: {{{name}: null}}."
            )
        return (prompt if first else [{"role": "system", "content": system}, *prompt]), ""
    return prompt, ""


def _columns(raw: Mapping) -> dict[str, float]:
    """Return the finite numeric columns: a loss that needs a column raises for the rows without it."""
    columns = {}
    for name, value in raw.items():
        if name in OWN_KEYS or not isinstance(value, int | float):
            continue
        try:
            number = float(value)
        except OverflowError:
            continue
        if math.isfinite(number):
            columns[name] = number
    return columns


def _own_split(raw: Mapping, where: str) -> str | None:
    value = raw.get("split")
    if value is None or value == "":
        return None
    split = split_of(value) if isinstance(value, str) else None
    if split is None:
        raise DataError(
            f"{where}: the column 'split' is {value!r}. Write 'train' or 'eval', or leave the column out with "
            "data.columns: {split: null}."
        )
    return split


def _missing(name: str, raw: Mapping, where: str) -> DataError:
    if {"response", "helpfulness"} <= set(raw):
        return DataError(
            f"{where}: a row of HelpSteer holds one response, and a pair takes two. Read the file with "
            "data: {source: helpsteer, path: ...}, which pairs the responses to one prompt."
        )
    free = [key for key in raw if key not in OWN_KEYS]
    wanted = [key for key in ("prompt", "chosen", "rejected") if key not in raw]
    names = {key: next(iter(difflib.get_close_matches(key, free, n=1, cutoff=0.5)), "NAME") for key in wanted}
    hint = (
        f"Say which columns they are with data.columns: {{{', '.join(f'{k}: {v}' for k, v in names.items())}}}, or "
        "register a reader of your own with plo.data.register_source."
    )
    if name == "prompt":
        hint += " Without a prompt 'chosen' and 'rejected' must be whole conversations: lists of messages."
    return DataError(f"{where}: the column {name!r} is missing; there are {names_of(raw)}. {hint}")


def _reply(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _flat(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)
