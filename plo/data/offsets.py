"""Where in the text of an answer each response token stands: by how the text was put together, never by searching for it."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from plo.data.errors import DataError
from plo.data.rows import Row, Text
from plo.data.tokenize import Pair, common_prefix, render

Span = tuple[int, int]  # characters [start, end)


@dataclass(frozen=True)
class Answer:
    """What training sees of one response.

    Attributes:
        text: the answer as rendered, without template and EOS, cut where truncation cut it; may be empty.
        spans: per response token its characters in `text`; (0, 0) for a token that is none of it (template, EOS).
    """

    text: str
    spans: tuple[Span, ...]


def answers(pair: Pair, tokenizer: Any) -> tuple[Answer, Answer]:
    """The chosen and the rejected answer of a pair, rendered and tokenised again as they were for training.

    Raises:
        DataError: the pair has no texts, the tokenizer gives no offsets, or its ids are not those of the pair.
    """
    row = pair.row
    if row is None:
        raise DataError(f"{pair.where or 'A pair'} was made of token ids: it has no texts to be read.")
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} does not say where its tokens stand: take a fast tokenizer.")
    texts = render(row, tokenizer)
    encoded = tokenizer(
        list(texts), add_special_tokens=not row.conversational, return_offsets_mapping=True, verbose=False
    )
    prompt, *sides = encoded["input_ids"]
    start = min(common_prefix(prompt, side) for side in sides)
    places = _places(row, texts, tokenizer)
    found = []
    for i, kept in enumerate((pair.chosen_ids, pair.rejected_ids)):
        if tuple(sides[i][start : start + len(kept)]) != tuple(kept):
            raise DataError(f"{pair.where}: its texts do not give its token ids. Was it made by another tokenizer?")
        offsets = encoded["offset_mapping"][1 + i][start : start + len(kept)]
        found.append(_answer(texts[1 + i], places[i], offsets))
    return found[0], found[1]


def clipped_span(span: Span, start: int, end: int) -> Span:
    """The part of a span that lies in [start, end), counted from `start`; (0, 0) where there is none."""
    first, last = max(span[0], start), min(span[1], end)
    return (first - start, last - start) if first < last else (0, 0)


def stand_in(*texts: str) -> str:
    """A word that none of the texts has: put in a text's place it shows where a template puts it."""
    word = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    while any(word in text for text in texts):
        word = hashlib.sha256(word.encode()).hexdigest()
    return word


def _answer(rendered: str, place: Span, offsets: list[Span]) -> Answer:
    start, end = place
    kept = max(start, min(end, max(last for _, last in offsets)))
    return Answer(rendered[start:kept], tuple(clipped_span(span, start, kept) for span in offsets))


def _places(row: Row, texts: tuple[str, str, str], tokenizer: Any) -> list[Span]:
    """Characters of both answers in the rendered texts; of a response of several messages, from the first to the last."""
    if not row.conversational:  # `render` puts EOS at the end of each
        return [(len(row.prompt), len(text) - len(tokenizer.eos_token)) for text in texts[1:]]
    word = stand_in(*texts)
    dummy = replace(row, chosen=_stood_in(row.chosen, word), rejected=_stood_in(row.rejected, word))
    places = []
    for text, other in zip(texts[1:], render(dummy, tokenizer)[1:], strict=True):
        before, *_, after = other.split(word)
        # Equal but where a template changes what stands around a text by the text: that is then part of the answer.
        start = common_prefix(before, text)
        places.append((start, len(text) - common_prefix(after[::-1], text[start:][::-1])))
    return places


def _stood_in(messages: Text, word: str) -> Text:
    edges = (0, len(messages) - 1)
    return [{**m, "content": word} if i in edges else m for i, m in enumerate(messages)]
