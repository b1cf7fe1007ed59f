"""Pictures of token weights: a table for the terminal, and a page in one file for the browser."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from plo.data.tokenize import Pair
from plo.scorers.scorer import Scores

SIDES = ("chosen", "rejected")
STRENGTH = 0.85  # opacity of the largest weight


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text that each token adds; of several tokens that make one character, the first one has it.

    Bytes that make no character stay U+FFFD.
    """
    # A token is decoded among its neighbours: by itself it loses its space with some tokenizers, and its character
    # where that has several tokens. Decoding all beginnings would be quadratic; a few tokens are enough.
    texts, start = [], 0
    while start < len(ids):
        for end in range(start + 1, min(start + 8, len(ids)) + 1):
            before = tokenizer.decode(ids[max(0, start - 4) : start], skip_special_tokens=False)
            piece = tokenizer.decode(ids[max(0, start - 4) : end], skip_special_tokens=False)[len(before) :]
            if not piece.endswith("\ufffd"):
                break
        texts += [piece] + [""] * (end - start - 1)
        start = end
    return texts


def visible(text: str) -> str:
    """Make white space and control characters visible: · space, ↵ line end, → tab, others as \\x.. or \\u...."""
    shown = {" ": "·", "\n": "↵", "\t": "→"}
    return "".join(shown.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def to_tables(pairs: Sequence[Pair], tokenizer: Any, weights: Sequence[Scores]) -> list[Group]:
    """Make a table per response: token, weight, and a bar as long as the weight's share of the pair's largest."""
    tables = []
    for pair, scores in zip(pairs, weights, strict=True):
        largest = _largest(scores)
        for side, values, ids in _sides(pair, scores):
            table = Table("token", "weight", "", box=None, pad_edge=False)
            table.columns[1].justify = "right"
            for text, value in zip(token_texts(ids, tokenizer), values.tolist(), strict=True):
                bar = Text("█" * round(20 * abs(value) / largest), style="red" if value < 0 else "blue")
                table.add_row(Text(visible(text) or "⋯"), f"{value:.3f}", bar)  # Text: [..] in a token is not markup
            tables.append(Group(Text(f"{pair.where}: {side}, {_summary(values)}", style="bold"), table))
    return tables


def to_html(pairs: Sequence[Pair], tokenizer: Any, weights: Sequence[Scores], title: str = "Token weights") -> str:
    """Make a self-contained page of both responses of each pair, tokens shaded by weight, with one scale per pair.

    Blue is positive, red negative, no shade 0; a token's weight shows where the pointer rests on it. Texts are escaped.
    """
    sections = []
    for pair, scores in zip(pairs, weights, strict=True):
        largest = _largest(scores)
        responses = "".join(
            f"<h3>{side} <small>{_summary(values)}</small></h3><p class=tokens>{_tokens(ids, values, largest, tokenizer)}</p>"
            for side, values, ids in _sides(pair, scores)
        )
        sections.append(
            f"<section><h2>{html.escape(pair.where)}</h2><pre class=prompt>{html.escape(pair.prompt)}</pre>"
            f"{_legend(scores, largest)}<div class=both>{responses}</div></section>"
        )
    name = html.escape(title)
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{name}</title><style>{STYLE}</style><h1>{name}</h1>{''.join(sections)}</html>\n"
    )


def write_html(path: Path, pairs: Sequence[Pair], tokenizer: Any, weights: Sequence[Scores], title: str) -> None:
    """Write the page of `to_html` to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate cannot be written as UTF-8; everything else can.
    path.write_text(to_html(pairs, tokenizer, weights, title), encoding="utf-8", errors="backslashreplace")


def _sides(pair: Pair, scores: Scores) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    return list(zip(SIDES, scores, (pair.chosen_ids, pair.rejected_ids), strict=True))


def _largest(scores: Scores) -> float:
    """Return the scale of a pair: its largest absolute weight; 1 where all are 0."""
    return max(float(values.abs().max()) for values in scores) or 1.0


def _summary(values: Tensor) -> str:
    return f"{len(values)} tokens, weights sum to {float(values.sum()):.4g}"


def _tokens(ids: Sequence[int], values: Tensor, largest: float, tokenizer: Any) -> str:
    spans = []
    for number, (text, value) in enumerate(zip(token_texts(ids, tokenizer), values.tolist(), strict=True)):
        shown = html.escape(visible(text) or "⋯")
        line_end = "<br>" * text.count("\n")
        about = html.escape(f"token {number}: {value:.4g}", quote=True)
        spans.append(f'<span style="{_shade(value, largest)}" title="{about}">{shown}</span>{line_end}')
    return "<wbr>".join(spans)


def _shade(value: float, largest: float) -> str:
    colour = "var(--negative)" if value < 0 else "var(--positive)"
    return f"background:rgb({colour} / {STRENGTH * abs(value) / largest:.3f})"


def _legend(scores: Scores, largest: float) -> str:
    least = min(float(values.min()) for values in scores)
    marks = [largest * i / 4 for i in range(-4 if least < 0 else 0, 5)]
    boxes = "".join(f'<span style="{_shade(mark, largest)}">{mark:.3g}</span>' for mark in marks)
    return f"<p class=legend>weight {boxes}</p>"


STYLE = """
:root { color-scheme: light dark; --positive: 38 120 230; --negative: 220 60 40; --edge: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem } h3 { font-size: .95rem; margin: .4rem 0 }
small { font-weight: normal; opacity: .75 }
section { border-top: 1px solid var(--edge); padding: .5rem 0 1.2rem }
.prompt { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 14rem; overflow-y: auto; opacity: .8;
  border-left: 3px solid var(--edge); padding-left: .8rem }
.both { display: grid; grid-template-columns: 1fr 1fr; grid-template-rows: auto auto; grid-auto-flow: column; gap: 0 1.5rem }
@media (max-width: 50rem) { .both { display: block } }
.tokens { font: 14px/1.9 ui-monospace, monospace; overflow-wrap: anywhere; margin: 0 }
.tokens span, .legend span { border-radius: 3px; padding: .15em .05em; outline: 1px solid #8883; unicode-bidi: isolate }
.legend span { padding: .15em .6em; margin-left: .3em; font-variant-numeric: tabular-nums }
"""
