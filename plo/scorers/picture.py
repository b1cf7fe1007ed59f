"""Pictures of token weights: a table for the terminal, and a page in one file for the browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from plo.data.tokenize import Pair
from plo.losses.register import SIDES
from plo.scorers.scorer import Scores

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
    templates = Environment(loader=PackageLoader("plo.scorers"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.globals |= {"visible": visible, "strength": STRENGTH}
    shown = []
    for pair, scores in zip(pairs, weights, strict=True):
        sides = [
            (side, _summary(values), zip(token_texts(ids, tokenizer), values.tolist(), strict=True))
            for side, values, ids in _sides(pair, scores)
        ]
        shown.append((pair, _largest(scores), min(float(values.min()) for values in scores), sides))
    return templates.get_template("weights.html").render(title=title, pairs=shown)


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
