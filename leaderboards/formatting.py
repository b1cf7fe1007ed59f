"""Format numbers, tables and arbitrary text as Markdown."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from plo.leaderboards.board import Row
from plo.statistics import Estimate, Spread

UNDEFINED = "-"
LONGEST = 160  # characters of a name in a note
Column = tuple[str, Callable[[Row], str]]  # a title, and the text of a row's cell


def markdown_table(titles: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are Markdown already."""
    lines = [titles, ["---"] * len(titles), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """Return a Markdown table with one line per row of the leaderboard."""
    return markdown_table([title for title, _ in columns], ([text(row) for _, text in columns] for row in rows))


def setting_column(key: str) -> Column:
    """Return the column of the setting `key`, numbers without superfluous digits."""

    def text(row: Row) -> str:
        value = row.settings[key]
        if value is None:
            return UNDEFINED
        try:
            return f"{float(value):g}"
        except ValueError:
            return escape(value)

    return key, text


def format_number(value: float, digits: int, sign: str = "") -> str:
    """Return a number with that many digits after the decimal point, or `UNDEFINED` for NaN."""
    return UNDEFINED if math.isnan(value) else f"{value:{sign}.{digits}f}"


def format_spread(found: Spread | None, digits: int) -> str:
    """Return "mean ± sd", without the sd where there is one seed."""
    if found is None or math.isnan(found.mean):
        return UNDEFINED
    sd = "" if math.isnan(found.sd) else f" ± {found.sd:.{digits}f}"
    return format_number(found.mean, digits) + sd


def format_interval(found: Estimate, digits: int, sign: str = "") -> str:
    """Return "[low, high]"."""
    return f"[{format_number(found.low, digits, sign)}, {format_number(found.high, digits, sign)}]"


def format_range(numbers: Iterable[int]) -> str:
    """Return "least to greatest", or the one number that all are."""
    found = list(numbers)
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"


def format_count(numbers: Iterable[int], thing: str) -> str:
    """Return the numbers as `format_range` does, with the thing they count: "1 seed", "3 seeds", "1 to 3 seeds"."""
    shown = format_range(numbers)
    return f"{shown} {thing}{'' if shown == '1' else 's'}"


def format_estimate(mean: float, found: Estimate | None, digits: int, sign: str = "") -> str:
    """Return "mean [low, high]"; the mean alone where there is no interval."""
    if math.isnan(mean) or found is None:
        return format_number(mean, digits, sign)
    return f"{format_number(mean, digits, sign)} {format_interval(found, digits, sign)}"


def fold(said: Iterable[tuple[str, str]]) -> list[str]:
    """Return a note for each text, with the names of all that it is said of: [("dpo", "No seed"), ("ipo", "No seed")] becomes
    ["No seed: dpo, ipo."]. Texts and names keep their order, and each name is listed once.
    """
    names: dict[str, dict[str, None]] = {}
    for name, text in said:
        names.setdefault(text, {})[name if len(name) <= LONGEST else f"{name[:LONGEST]}…"] = None
    return [f"{text}: {', '.join(found)}." for text, found in names.items()]


_INERT = {ord(character): f"&#{ord(character)};" for character in "&<>|`\\"}
_INERT |= {ord(character): f"\\{character}" for character in "*[]~$#"}


def escape(text: object, limit: int = 160) -> str:
    """Return any text as one line of inert Markdown, for a table cell, a list item or a heading.

    The text is cut to `limit` characters; line ends become ⏎, other control and invisible characters �. What could
    open a cell, a tag, a code span or an escape becomes a numeric entity, which Markdown never reads as
    structure; what could emphasise or link is escaped. A "_" within a word does nothing and stays legible.
    """
    text = str(text)
    more = f" … ({len(text) - limit} more characters)" if len(text) > limit else ""
    text = re.sub(r"\r\n|[\n\r\v\f\x85\u2028\u2029]", " ⏎ ", text[:limit]).replace("\t", " ")
    text = "".join(c if c.isprintable() else "�" for c in text).strip().translate(_INERT)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text).replace("://", "&#58;//")
    return text + more
