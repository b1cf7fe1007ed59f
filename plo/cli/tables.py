"""Tables of the command line."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from plo.cli.shared import console
from plo.terminal import line, say

WIDEST = 32  # characters on one line of a column that folds last: two of them, and what is between, fit in 80
FOLDED_LAST = ("defaults", "setting")


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, title: str = "", gap: int = 2) -> None:
    """Print rows that have the same columns as a table, or as JSON, in which NaN and infinities are texts.

    A line end in a cell is kept. In a narrow window the columns between fold before the first one and those in
    `FOLDED_LAST`. Nothing is cut.

    Args:
        gap: number of spaces between columns.
    """
    if as_json:
        print(json.dumps(finite(rows), indent=2, default=str))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, gap - 1), header_style="bold")
    for number, key in enumerate(rows[0]):
        widest = max(cell_len(text) for row in rows for text in [key, *str(row[key]).split("\n")])
        kept = number == 0 or key in FOLDED_LAST
        table.add_column(key, width=min(widest, WIDEST) if kept else None, overflow="fold")
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else line(str(value)) for value in row.values()))
    if title:
        say(console, f"\n{title}\n", style="bold")
    console.print(table)


def finite(value: Any) -> Any:
    """Return a JSON value in which NaN and infinities are texts."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
