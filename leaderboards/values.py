"""Values of single prompts behind a leaderboard, as a table from which others can compute its numbers again."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from plo import store
from plo.leaderboards.board import Leaderboard
from plo.leaderboards.export import inert
from plo.leaderboards.items import values_by_prompt

KEYS = ["row", "seed", "prompt"]


def write_values(board: Leaderboard, path: Path) -> int:
    """Write `values_table` as CSV, compressed if the name ends in .gz, and return its number of lines.

    Numbers have all digits, and equal values make equal bytes. The file is written whole or not at all.
    """
    table = values_table(board)
    table["row"] = table["row"].map(inert)
    data = table.to_csv(index=False, lineterminator="\n").encode()
    store.write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(table)


def values_table(board: Leaderboard, metrics: Sequence[str] = ()) -> pd.DataFrame:
    """Return one line per row of the board, seed and prompt: its name, the seed, the prompt's number and each metric's mean.

    Means are over the prompt's samples. A metric without recorded values of single prompts has no column.

    Args:
        metrics: full names of metrics; none: all of the board.
    """
    names = [name for name in metrics or board.metrics if not board.is_hidden(name)]
    by_metric = values_by_prompt(board.rows, names, board.tables, board.sections)
    columns: dict[str, pd.Series] = {}
    for metric, tables in by_metric.items():
        stacked = {
            (row, seed): table[seed].rename_axis("prompt") for row, table in tables.items() for seed in table.columns
        }
        columns[metric] = pd.concat(stacked, names=KEYS[:2])
    order = {row.name: place for place, row in enumerate(board.rows)}
    frame = pd.DataFrame(columns).rename_axis(KEYS).reset_index()
    frame["place"] = frame["row"].map(order)
    return frame.sort_values(["place", "seed", "prompt"], kind="stable").drop(columns="place").reset_index(drop=True)
