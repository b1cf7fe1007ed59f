"""Find the characters of an answer that each response token covers, from how the text was rendered, never by search."""

from dataclasses import dataclass, replace
from typing import Any

from plo.data.errors import DataError
from plo.data.messages import Message
from plo.data.rows import Row, Text
from plo.data.tokenize import Pair, common_prefix, render
from plo.paths import text_digest

Span = tuple[int, int]  # characters [start, end)


@dataclass(frozen=True)
class Answer:
    """The text of one response that training sees, and the characters of each token.

    Attributes:
        text: the rendered answer without template and EOS, truncated as the tokens are; may be empty.
        spans: characters in `text` of each response token; (0, 0) for a token outside of it (template, EOS).
    """

    text: str
    spans: tuple[Span, ...]


def answers(pair: Pair, tokenizer: Any) -> tuple[Answer, Answer]:
    """Render and tokenise the chosen and the rejected answer of a pair again, as for training.

    Raises:
        DataError: the pair has no texts, the tokenizer gives no offsets, or its ids are not those of the pair.
    """
    row = pair.row
    if row is None:
        raise DataError(f"{pair.where or 'A pair'} was made of token ids: it has no texts.")
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} gives no offsets of its tokens: use a fast tokenizer.")
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
    """Intersect a span with [start, end), relative to `start`; (0, 0) if the intersection is empty."""
    first, last = max(span[0], start), min(span[1], end)
    return (first - start, last - start) if first < last else (0, 0)


def stand_in(*texts: str) -> str:
    """Make a word that occurs in none of the texts, to find where a template puts a text that it replaces."""
    word = text_digest(*texts)
    while any(word in text for text in texts):
        word = text_digest(word)
    return word


def _answer(rendered: str, place: Span, offsets: list[Span]) -> Answer:
    start, end = place
    kept = max(start, min(end, max(last for _, last in offsets)))
    return Answer(rendered[start:kept], tuple(clipped_span(span, start, kept) for span in offsets))


def _places(row: Row, texts: tuple[str, str, str], tokenizer: Any) -> list[Span]:
    """Find the characters of both answers in the rendered texts; several messages count from the first to the last."""
    if not row.conversational:  # `render` puts EOS at the end of each
        return [(len(row.prompt), len(text) - len(tokenizer.eos_token)) for text in texts[1:]]
    _, chosen, rejected = row.messages
    word = stand_in(*texts)
    dummy = replace(row, chosen=_stood_in(chosen, word), rejected=_stood_in(rejected, word))
    places = []
    for text, other in zip(texts[1:], render(dummy, tokenizer)[1:], strict=True):
        before, *_, after = other.split(word)
        # Words of the template that depend on the text count as part of the answer.
        start = common_prefix(before, text)
        places.append((start, len(text) - common_prefix(after[::-1], text[start:][::-1])))
    return places


def _stood_in(messages: list[Message], word: str) -> Text:
    edges = (0, len(messages) - 1)
    return [{**m, "content": word} if i in edges else m for i, m in enumerate(messages)]
