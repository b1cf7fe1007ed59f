"""Tokenise rows to the same ids as TRL's `DPOTrainer`, in training, sampling and evaluation."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from plo.data.errors import EMPTY, IDENTICAL, BadRow, DataError
from plo.data.rows import Row, Text
from plo.data.scores import with_scores
from plo.data.token_cache import kept
from plo.identity import sha256

TRUNCATED_EMPTY = "truncation leaves a response empty"
TRUNCATED_IDENTICAL = "truncation leaves identical responses"
NO_PROMPT = "no prompt token before the response"
TRUNCATIONS = ("keep_start", "keep_end")
COUNTS = (
    "truncated_prompts",
    "truncated_responses",
    "responses_without_eos",
    "merged_boundaries",
    "rewritten_prompts",
    "rewritten_tokens",  # tokens of such prompts that are gone
    "rows_with_special_tokens",
)
BATCH = 256  # rows per call of the tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenised row. Its sequences are `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`, without padding.

    Args:
        prompt_ids: at least one id; training, sampling and evaluation start from them.
        chosen_ids: at least one id, with EOS if the text has it and truncation left it.
        rejected_ids: likewise.
        prompt: the rendered prompt as text. If its last characters and the response's first form one token,
            `prompt_ids` end before them, as in TRL.
        where: the row's place in the source.
        columns: the row's numeric columns, with `score_chosen`, `score_rejected` and `margin` where they follow from others.
        row: the texts that were tokenised; None for a pair made by hand.
    """

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    prompt: str
    where: str
    columns: Mapping[str, float]
    row: Row | None = None

    @property
    def responses(self) -> tuple[Ids, ...]:
        """Both responses, chosen before rejected."""
        return self.chosen_ids, self.rejected_ids


def render(row: Row, tokenizer: Any) -> tuple[str, str, str]:
    """Return the texts to tokenise: prompt, prompt + chosen, prompt + rejected.

    Plain rows get the EOS text after a response that does not end in it. Conversational rows go through the
    chat template, the prompt with the generation prompt; the template alone says how a turn ends, and
    nothing is added.

    Raises:
        DataError: the tokenizer lacks EOS or a chat template, or the template refuses the row.
    """
    check_tokenizer(tokenizer, row.conversational)
    if row.texts:
        prompt, *responses = row.texts
        eos = tokenizer.eos_token
        chosen, rejected = (prompt + text + ("" if text.endswith(eos) else eos) for text in responses)
        return prompt, chosen, rejected
    messages, *answers = row.messages
    try:
        chosen, rejected = (_apply(tokenizer, messages + answer) for answer in answers)
        return _apply(tokenizer, messages, add_generation_prompt=True), chosen, rejected
    except Exception as error:  # a template may raise anything
        raise DataError(
            f"{row.where}: the chat template of {_name(tokenizer)} refuses the row: {type(error).__name__}: "
            f"{error}. Remove or mend such rows, or choose a template that takes the roles {_roles(row)}; a column of "
            "system messages is left out with data.columns: {system: null}."
        ) from error


def tokenize_prompt(prompt: Text, tokenizer: Any) -> Ids:
    """Tokenise a prompt without responses (text or messages), as the prompt of a `Pair`.

    Raises:
        DataError: the tokenizer lacks EOS or a chat template, or cannot tokenise the prompt, as a small vocabulary without a
            token for unknown words cannot.
    """
    check_tokenizer(tokenizer, not isinstance(prompt, str))
    text = prompt if isinstance(prompt, str) else _apply(tokenizer, prompt, add_generation_prompt=True)
    try:
        return tuple(_encode([text], tokenizer, not isinstance(prompt, str))[0])
    except Exception as error:
        raise DataError(
            f"{_name(tokenizer)} cannot tokenise the prompt {text[:80]!r}: {type(error).__name__}: {error}. Give prompts of "
            "its vocabulary, or another model."
        ) from error


def tokenize_rows(
    rows: Iterable[Row], tokenizer: Any, max_length: int, truncation: str, ends: Collection[int] = ()
) -> Iterator[tuple[Row, Pair | str, Counter[str]]]:
    """Tokenise rows, and yield each with its `Pair` or the reason to drop it, and counts of what happened to it.

    Prompt and response are tokenised jointly. The response starts where the prompt's own ids and those of
    either side part, so that both sides have one prompt. `max_length` holds for prompt and response
    together: "keep_start" cuts the ends of the responses; "keep_end" cuts the start of the prompt, by what
    the longer response needs. (TRL cuts each side alone there, which gives the two responses of a pair
    different prompts.)

    Args:
        ends: ids that end a response in addition to the tokenizer's EOS, such as those of `generation_config`.

    Yields:
        row, pair or reason, and the counts of `COUNTS`.
    """
    numbers = list(range(len(tokenizer)))  # one object per id instead of one per occurrence takes a fifth of the memory
    special = re.compile("|".join(map(re.escape, sorted(set(tokenizer.all_special_tokens)))) or "(?!)")
    rows = iter(rows)
    while chunk := list(islice(rows, BATCH)):
        texts = [render(row, tokenizer) for row in chunk]
        encoded = _encode_rows(chunk, texts, tokenizer)
        for row, (prompt, *sides), ids in zip(chunk, texts, encoded, strict=True):
            counts = Counter(rows_with_special_tokens=int(_has_special(row, special, tokenizer.eos_token)))
            try:
                cut = _cut(ids, max_length, truncation, {tokenizer.eos_token_id, *ends}, counts)
            except BadRow as error:
                yield row, error.reason, counts
                continue
            changed = counts.pop("changed_tokens")
            # A prompt that is not rewritten can only have its last characters joined to a response's token.
            rewritten = not all(text.startswith(prompt) for text in sides)
            counts["merged_boundaries"] = int(changed > 0 and not rewritten)
            counts["rewritten_prompts"] = int(changed > 0 and rewritten)
            counts["rewritten_tokens"] = changed if rewritten else 0
            own, chosen, rejected = (tuple(map(numbers.__getitem__, part)) for part in cut)
            columns = with_scores(row.columns)
            yield row, Pair(own, chosen, rejected, prompt, row.where, columns, row), counts


def _cut(
    ids: Sequence[list[int]], max_length: int, truncation: str, ends: set[int], counts: Counter[str]
) -> tuple[list[int], list[int], list[int]]:
    """Cut the ids of the two whole sequences into those of prompt and responses, and truncate them."""
    prompt, *sides = ids
    start = min(common_prefix(prompt, side) for side in sides)
    counts["changed_tokens"] = len(prompt) - start
    prompt, sides = prompt[:start], [side[start:] for side in sides]
    if any(all(token in ends for token in side) for side in sides):
        raise BadRow(EMPTY)
    if sides[0] == sides[1]:
        raise BadRow(IDENTICAL)
    if not prompt:  # nothing would predict the first response token
        raise BadRow(NO_PROMPT)
    if truncation == "keep_start":
        room = max_length - len(prompt)
        counts["truncated_prompts"] = int(room < 0)
        counts["truncated_responses"] = sum(len(side) > room for side in sides)
        if room <= 0:
            raise BadRow(TRUNCATED_EMPTY)
        sides = [side[:room] for side in sides]
        if sides[0] == sides[1]:
            raise BadRow(TRUNCATED_IDENTICAL)
    else:
        room = max_length - max(map(len, sides))
        counts["truncated_prompts"] = int(room < len(prompt))
        if room < 1:
            raise BadRow(NO_PROMPT)
        prompt = prompt[-room:]
    counts["responses_without_eos"] = sum(ends.isdisjoint(side) for side in sides)
    return prompt, sides[0], sides[1]


def common_prefix(a: Sequence, b: Sequence) -> int:
    """Return the number of elements (ids, characters) that two sequences begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _encode_rows(chunk: list[Row], texts: list[tuple[str, str, str]], tokenizer: Any) -> Iterable[Sequence[list[int]]]:
    conversational, together = chunk[0].conversational, [text for three in texts for text in three]
    try:
        flat = kept(together, tokenizer, not conversational, lambda: _encode(together, tokenizer, conversational))
    except Exception:  # find the row that the tokenizer cannot read
        flat = []
        for row, three in zip(chunk, texts, strict=True):
            try:
                flat += _encode(list(three), tokenizer, conversational)
            except Exception as error:
                raise DataError(
                    f"{row.where}: {_name(tokenizer)} cannot tokenise the row: {type(error).__name__}: {error}. "
                    "Remove or mend it."
                ) from error
    return zip(flat[::3], flat[1::3], flat[2::3], strict=True)


def _encode(texts: list[str], tokenizer: Any, conversational: bool) -> list[list[int]]:
    # A template writes its special tokens itself; plain text gets those that the tokenizer adds (BOS).
    return tokenizer(texts, add_special_tokens=not conversational, verbose=False)["input_ids"]


def _apply(tokenizer: Any, messages: list, **arguments: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **arguments)


def check_tokenizer(tokenizer: Any, conversational: bool) -> None:
    """Check that the tokenizer has what the rows need.

    Raises:
        DataError: no EOS token, or no chat template for conversational rows.
    """
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise DataError(
            f"{_name(tokenizer)} has no EOS token, so that no response could end. Set eos_token in its "
            "tokenizer_config.json to the token that the model ends its answers with."
        )
    if conversational and template_of(tokenizer) is None:
        raise DataError(
            f"{_name(tokenizer)} has no chat template, and the rows are conversational. Take the tokenizer of a chat "
            "model, set chat_template in its tokenizer_config.json, or give rows of plain text."
        )


def template_of(tokenizer: Any) -> str | None:
    """Return the text of the chat template, or None."""
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError:  # it has several templates, and no default
        return None


def _has_special(row: Row, special: re.Pattern, eos: str) -> bool:
    """Return whether a text contains a special token's text, which becomes that token: a forged turn or end."""
    if row.texts is None:
        return any(special.search(message["content"]) for part in row.messages for message in part)
    prompt, chosen, rejected = row.texts
    return any(special.search(text) for text in (prompt, chosen.removesuffix(eos), rejected.removesuffix(eos)))


def _name(tokenizer: Any) -> str:
    return f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}"


def _roles(row: Row) -> str:
    return ", ".join(message["role"] for part in row.messages[:2] for message in part)


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash everything that decides a text's ids: vocabulary, rules, special tokens and chat template."""
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for state in ("truncation", "padding"):  # they are of the last call
            rules.pop(state, None)
    else:
        rules = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256([type(tokenizer).__name__, rules, special, tokenizer.model_max_length, tokenizer.chat_template])


def context_of(model: Any, tokenizer: Any) -> int:
    """Return the maximum number of tokens that the model takes."""
    longest = getattr(model.config, "max_position_embeddings", None) or 10**9
    return min(longest, tokenizer.model_max_length)
