"""Text for the page: what models, data and users wrote is shown as it is, cut to a length, and never interpreted."""

import json
from typing import Any

from markupsafe import Markup

from plo.leaderboards.board import Leaderboard
from plo.terminal import plain

NAME = 60  # characters of a name in a table
LABEL = 26  # characters of a name in a figure
_INERT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def visible(text: object, limit: int = 2000) -> str:
    r"""Return text with control characters as escapes, ESC as `\x1b`, cut to `limit` characters.

    The result may hold any mark-up, which is escaped where it is put on the page.
    """
    text = str(text)
    more = f" … ({len(text) - limit:,} more characters)" if len(text) > limit else ""
    return plain(text[:limit]) + more


def label(text: object, limit: int = LABEL) -> str:
    """Return text on one line with at most `limit` characters, for a figure."""
    text = " ".join(plain(str(text)[: 4 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def embed(value: Any) -> Markup:
    """Return JSON for a `<script type="application/json">`: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(plain(text).translate(_INERT))


def short_names(board: Leaderboard) -> dict[str, str]:
    """Return {row's name: a short unique name}: its loss, or the whole variant where several rows have that loss."""
    losses = [row.loss for row in board.rows]
    titles = {row.name: row.loss if losses.count(row.loss) == 1 else board.title(row) for row in board.rows}
    taken = list(titles.values())
    return {name: short if taken.count(short) == 1 else name for name, short in titles.items()}
