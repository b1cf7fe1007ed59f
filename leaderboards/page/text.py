"""Text for the page: what models, data and users wrote is shown as it is, cut to a length, and never interpreted."""

import re

from markupsafe import Markup, escape

from plo.leaderboards.board import Leaderboard, Row
from plo.terminal import plain

NAME = 60  # characters of a name in a table
LABEL = 26  # characters of a name in a figure
# Controls, halves of characters, line ends that are no line end in HTML, and marks that reverse the reading direction.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
CONTROL = re.compile(f"[{_CONTROLS}]")


def visible(text: object, limit: int = 2000) -> str:
    r"""Return text with control characters as escapes, ESC as `\x1b`, cut to `limit` characters.

    The result may hold any mark-up, which is escaped where it is put on the page.
    """
    text = str(text)
    more = f" … ({len(text) - limit:,} more characters)" if len(text) > limit else ""
    return plain(text[:limit]) + more


def label(text: object, limit: int = LABEL) -> str:
    """Return text on one line with at most `limit` characters, for a figure.

    A longer text loses its middle, because variants of one loss have their beginnings in common.
    """
    text = str(text)
    text = text if len(text) <= 8 * limit else text[: 4 * limit] + text[-4 * limit :]
    text, head = " ".join(plain(text).split()), limit // 2
    return text if len(text) <= limit else text[:head] + "…" + text[head + 1 - limit :]


def breakable(text: object) -> Markup:
    """Return text escaped for HTML, with places for line breaks where a variant's name has punctuation."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[(=,_])", str(text))))


def capital(text: str) -> str:
    """Return text with a capital first letter, the others as they are; a metric of an evaluation, "hh.win rate", stays."""
    return text if "." in text.partition(" ")[0] else text[:1].upper() + text[1:]


def without_controls(page: str) -> str:
    """Return the page with the control characters that are left in it, such as those of a metric's label, as escapes."""
    return CONTROL.sub(lambda found: plain(found[0]), page)


def short_names(board: Leaderboard) -> dict[str, str]:
    """Return {row's name: a short unique name}: its loss, or what was given of it, or the variant with all settings.

    What was given is the variant without the settings that its tuning chose.
    """
    names = {row.name: row.name for row in board.rows}
    for short in (board.title, untuned, lambda row: row.loss):
        shown = [short(row) for row in board.rows]
        names |= {row.name: one for row, one in zip(board.rows, shown, strict=True) if shown.count(one) == 1}
    return {name: one if list(names.values()).count(one) == 1 else name for name, one in names.items()}


def untuned(row: Row) -> str:
    """Return the row's variant without the settings that its tuning chose."""
    loss, _, training = row.variant.partition(" @ ")
    for name, value in ((row.tuning or {}).get("point") or {}).items():
        shown = re.escape(f"{name.removeprefix('train.')}={value:.3g}")
        alone = rf"(?:, {shown}(?=[,)]|$)|(?<=\(){shown}(?:, |(?=\)))|^{shown}(?:, |$))"
        loss, training = (re.sub(alone, "", text, count=1) for text in (loss, training))
    return " @ ".join(filter(None, (loss.removesuffix("()"), training)))
