"""Formats of public preference data, recognised by their columns and converted to prompt, chosen and rejected."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plo.data.errors import BadRow, DataError, Tie
from plo.data.messages import are_messages_as_text, parse, read_messages
from plo.data.rows import CellNumber, names_of
from plo.data.scores import best_and_last

Raw = dict[str, Any]  # a row as its source gave it, with "where" added


@dataclass(frozen=True)
class Shape:
    """A format of preference data.

    Args:
        name: name of the format.
        columns: columns that a row must have; "a|b" means one of the two.
        how: what becomes of the columns, for the report.
        fits: returns whether a row with these columns has the format.
        convert: converts a raw row to a form of `to_row`, and keeps the columns that it does not use.
    """

    name: str
    columns: list[str]
    how: str
    fits: Callable[[Raw], bool]
    convert: Callable[[Raw], Raw]

    def __str__(self) -> str:
        return f"{self.name}: {self.how}"


SHAPES: list[Shape] = []  # a row has the first that fits


def _shape(
    name: str, columns: str, how: str, fits: Callable[[Raw], bool] = lambda raw: True
) -> Callable[[Callable[[Raw], Raw]], Callable[[Raw], Raw]]:
    """Add the format that a function converts; see `Shape`."""

    def add(convert: Callable[[Raw], Raw]) -> Callable[[Raw], Raw]:
        SHAPES.append(Shape(name, columns.split(), how, fits, convert))
        return convert

    return add


def recognise(raw: Raw) -> Shape | None:
    """Return the first of `SHAPES` that a row has; None for a row in plo's own form or an unknown one."""
    has_pair = "chosen" in raw and "rejected" in raw
    if has_pair and ("prompt" in raw or "chosen_prompt" in raw or _is_conversation(raw["chosen"])):
        return None
    for shape in SHAPES:
        if all(any(name in raw for name in names.split("|")) for names in shape.columns) and shape.fits(raw):
            return shape
    return None


@_shape(
    "HH",
    "chosen rejected",
    "the prompt ends at the last 'Assistant:' of the dialogues",
    lambda raw: isinstance(raw["chosen"], str) and raw["chosen"].startswith("\n\nHuman:"),
)
def hh(raw: Raw) -> Raw:
    """Convert Anthropic/hh-rlhf: `chosen` and `rejected` are dialogues, whose prompt ends at the last "Assistant:"."""
    cut = {}
    for side in ("chosen", "rejected"):
        text = raw.get(side)
        if not isinstance(text, str) or are_messages_as_text(text):
            found = f"{type(text).__name__} {str(text)[:40]!r}, not a dialogue as text" if side in raw else "missing"
            raise DataError(
                f"{raw['where']}: {side!r} is {found}; there are {names_of(raw)}. Give the file or folder itself as "
                "data.source, which reads lists of messages too, with data.columns: {prompt: ..., chosen: ..., "
                "rejected: ...} for columns of other names."
            )
        before, mark, response = text.rpartition("\n\nAssistant:")
        cut |= {side: response, f"{side}_prompt": before + mark} if mark else {side: "", f"{side}_prompt": text}
    return raw | cut


@_shape(
    "TL;DR comparisons",
    "input_text candidate_0 candidate_1 choice",
    "prompt from input_text, chosen the candidate that choice names",
)
def tldr(raw: Raw) -> Raw:
    """Convert openai/summarize_from_feedback as exported: `choice` names the better of `candidate_0` and `candidate_1`."""
    better = _one_of(raw, "choice", {0: 0, 1: 1})
    return _oriented(raw, "input_text", ("candidate_0", "candidate_1"), better, "choice")


@_shape(
    "OpenAI's preference format",
    "input preferred_output non_preferred_output",
    "prompt from input.messages, chosen from preferred_output, rejected from non_preferred_output",
)
def openai(raw: Raw) -> Raw:
    """Convert OpenAI's preference format: `input` holds the messages (and tools), the two outputs are messages."""
    given = raw["input"] if isinstance(raw["input"], Mapping) else _parsed(raw, "input")
    if not isinstance(given, Mapping) or "messages" not in given:
        raise DataError(f"{raw['where']}: 'input' has no messages. Write {{\"messages\": [...]}}.")
    sides = {"chosen": raw["preferred_output"], "rejected": raw["non_preferred_output"]}
    tools = {"tools": given["tools"]} if given.get("tools") else {}  # which `to_row` refuses
    used = {"input", "preferred_output", "non_preferred_output"}
    return _others(raw, used) | tools | {"prompt": given["messages"]} | sides


@_shape(
    "ShareGPT",
    "conversations|messages chosen rejected",
    "prompt from the turns of conversations or messages",
)
def sharegpt(raw: Raw) -> Raw:
    """Convert ShareGPT with a chosen and a rejected turn (hiyouga/DPO-En-Zh-20k, LLaMA-Factory), or with `messages`."""
    return _renamed(raw, "conversations" if "conversations" in raw else "messages")


@_shape(
    "Nectar",
    "prompt answers",
    "chosen the answer of the best rank, rejected that of the last, margin the ranks between them",
    lambda raw: not {"chosen", "rejected"} & set(raw),
)
def nectar(raw: Raw) -> Raw:
    """Convert berkeley-nest/Nectar: `answers` with ranks, 1 the best; the best is chosen, the last rejected.

    The prompt ends in "Assistant: ". Its blank moves to the answers, as in HH, where it belongs to their first token.
    """
    answers = raw["answers"] if isinstance(raw["answers"], list) else _parsed(raw, "answers")
    try:
        ranked = sorted(((float(answer["rank"]), answer["answer"]) for answer in answers), key=lambda pair: pair[0])
    except (TypeError, KeyError, ValueError):
        ranked = []
    if len(ranked) < 2:
        raise DataError(
            f'{raw["where"]}: \'answers\' holds no two answers with ranks. Write [{{"answer": text, "rank": 1}}, ...].'
        )
    (best, chosen), (last, rejected) = ranked[0], ranked[-1]
    if best == last:
        raise Tie
    prompt = raw["prompt"]
    if isinstance(prompt, str) and prompt.endswith("\n\nAssistant: "):
        prompt, chosen, rejected = prompt[:-1], f" {chosen}", f" {rejected}"
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": last - best}
    return _others(raw, {"answers"}) | pair


@_shape(
    "HelpSteer3",
    "context response1 response2 overall_preference",
    "prompt from context, chosen by the sign of overall_preference, margin its size",
)
@_shape(
    "HelpSteer2",
    "prompt response_1 response_2 preference_strength",
    "chosen by the sign of preference_strength, margin its size",
)
def helpsteer(raw: Raw) -> Raw:
    """Convert nvidia/HelpSteer3 and HelpSteer2: from -3 (the first response is much better) to 3 (the second is)."""
    third = "overall_preference" in raw
    label, prompt = ("overall_preference", "context") if third else ("preference_strength", "prompt")
    strength = _number(raw, label)
    if strength == 0:
        raise Tie
    sides = ("response1", "response2") if third else ("response_1", "response_2")
    return _oriented(raw, prompt, sides, int(strength > 0), label) | {"margin": abs(strength)}


@_shape(
    "SHP",
    "history human_ref_A human_ref_B labels",
    "prompt from history, chosen human_ref_A where labels is 1, else human_ref_B",
)
def shp(raw: Raw) -> Raw:
    """Convert stanfordnlp/SHP and SHP-2: `labels` is 1 if human_ref_A scored better, by the factor `score_ratio`."""
    better = _one_of(raw, "labels", {1: 0, 0: 1})
    return _oriented(raw, "history", ("human_ref_A", "human_ref_B"), better, "labels")


@_shape(
    "PKU-SafeRLHF",
    "prompt response_0 response_1 better_response_id",
    "chosen by better_response_id; for the safer one set data.columns: {better_response_id: safer_response_id}",
)
def safe_rlhf(raw: Raw) -> Raw:
    """Convert PKU-SafeRLHF: `better_response_id` is the more helpful of two responses, `safer_response_id` the safer."""
    better = _one_of(raw, "better_response_id", {0: 0, 1: 1})
    return _oriented(raw, "prompt", ("response_0", "response_1"), better, "better_response_id", "safer_response_id")


@_shape(
    "Alpaca",
    "instruction output",
    "prompt from instruction and input, output is [chosen, rejected]",
    lambda raw: not isinstance(raw["output"], str) or raw["output"].lstrip().startswith("["),
)
@_shape("Alpaca", "instruction chosen rejected", "prompt from instruction, and from input below it")
def alpaca(raw: Raw) -> Raw:
    """Convert Alpaca: an `instruction` with an optional `input` below it, and earlier turns in `history`.

    The answers are `chosen` and `rejected`, or the `output` is a list of the two (LLaMA-Factory, old and new).
    """
    row = _others(raw, {"instruction", "input", "history"})
    row["prompt"] = "\n".join(text for text in (_string(raw, "instruction"), _string(raw, "input")) if text)
    if turns := raw.get("history"):
        turns = turns if isinstance(turns, list) else _parsed(raw, "history")
        try:
            texts = [text for question, answer in turns for text in (question, answer)] + [row["prompt"]]
        except (TypeError, ValueError):
            raise DataError(
                f"{raw['where']}: 'history' holds no turns. Write [[question, answer], ...], or leave the column out "
                "with data.columns: {history: null}."
            ) from None
        row["prompt"] = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if "chosen" not in raw:
        output = raw["output"] if isinstance(raw["output"], list) else _parsed(raw, "output")
        if not isinstance(output, list) or len(output) != 2:
            raise DataError(f"{raw['where']}: 'output' holds no two answers. Write [chosen, rejected].")
        row = _others(row, {"output"}) | {"chosen": output[0], "rejected": output[1]}
    return row


@_shape(
    "UltraFeedback",
    "instruction completions",
    "prompt from instruction, chosen the completion of the best score, rejected that of the last, their numbers as columns",
)
def ultrafeedback(raw: Raw) -> Raw:
    """Convert openbmb/UltraFeedback: the best and the last of the `completions`, by their fine-grained score."""
    completions = raw["completions"] if isinstance(raw["completions"], list) else _parsed(raw, "completions")
    return (
        _others(raw, {"instruction", "completions"})
        | {"prompt": raw["instruction"]}
        | best_and_last(completions, raw["where"])
    )


@_shape(
    "Argilla's UltraFeedback",
    "instruction chosen_response rejected_response",
    "prompt from instruction, chosen and rejected from chosen_response and rejected_response",
)
def argilla(raw: Raw) -> Raw:
    """Convert argilla/ultrafeedback-binarized-preferences, whose average ratings are kept as columns."""
    sides = {"chosen": raw["chosen_response"], "rejected": raw["rejected_response"]}
    return (
        _others(raw, {"instruction", "chosen_response", "rejected_response"}) | {"prompt": raw["instruction"]} | sides
    )


@_shape("Orca", "question|input chosen rejected", "prompt from question or input")
def orca(raw: Raw) -> Raw:
    """Convert Intel/orca_dpo_pairs (`question`) and argilla/distilabel-intel-orca-dpo-pairs (`input`), each with a `system`."""
    return _renamed(raw, "question" if "question" in raw else "input")


def _is_conversation(value: Any) -> bool:
    """Return whether a side is a list of turns that begins before the answer does."""
    try:
        turns = read_messages(value, "chosen", "?") if not isinstance(value, str) or are_messages_as_text(value) else []
    except (BadRow, DataError):
        return False
    return bool(turns) and turns[0]["role"] != "assistant"


def _others(raw: Raw, used: set[str]) -> Raw:
    return {name: value for name, value in raw.items() if name not in used}


def _renamed(raw: Raw, prompt: str) -> Raw:
    return _others(raw, {prompt}) | {"prompt": raw[prompt]}


def _oriented(raw: Raw, prompt: str, sides: tuple[str, str], better: int, *labels: str) -> Raw:
    """Convert a row of two numbered responses, and name their other columns after chosen and rejected too.

    A number of one response, such as `score_A` or `is_response_0_safe`, means nothing once the order is gone.
    """
    chosen, rejected = sides[better], sides[1 - better]
    if sides[0].startswith("response"):
        marks = [(re.escape(side), name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
    else:  # SHP's score_A belongs to human_ref_A
        marks = [(f"(?<=_){side[-1]}$", name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
    row = {}
    for column, value in _others(raw, {prompt, *sides, *labels}).items():
        for mark, name in marks:
            column = re.sub(mark, name, column)
        row[column] = value
    return row | {"prompt": raw[prompt], "chosen": raw[chosen], "rejected": raw[rejected]}


def _parsed(raw: Raw, name: str) -> Any:
    """Parse a cell that a CSV file holds as text; None if that is impossible."""
    try:
        return parse(raw[name]) if isinstance(raw[name], str) else None
    except ValueError:
        return None


def _string(raw: Raw, name: str) -> str:
    value = raw.get(name)
    value = value.text if isinstance(value, CellNumber) else value
    if value is not None and not isinstance(value, str):
        raise DataError(f"{raw['where']}: {name!r} is {type(value).__name__} {str(value)[:40]!r}. Give text.")
    return value or ""


def _number(raw: Raw, name: str) -> float:
    try:
        number = float(raw[name])
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise DataError(f"{raw['where']}: {name!r} is {raw[name]!r}. Write a number, or remove the row.")
    return number


def _one_of(raw: Raw, name: str, meanings: Mapping[int, int]) -> int:
    """Return the response, 0 or 1, that a label names."""
    value = raw[name]
    if isinstance(value, str) and value.strip() in map(str, meanings):
        value = int(value)
    if not isinstance(value, int | float) or value not in meanings:
        allowed = " or ".join(map(str, sorted(meanings)))
        raise DataError(f"{raw['where']}: {name!r} is {value!r}. It names the better response: {allowed}.")
    return meanings[int(value)]
