"""Samples for the page's browser: prompts with the texts of all rows, as many as a budget of bytes allows."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.checks import natural_key
from plo.leaderboards.page.text import NAME, visible

BUDGET = 2_500_000  # bytes of JSON, of which texts of models take a third when they are packed
TEXT = 4000  # characters of one text


def browser_data(board: Leaderboard, names: Mapping[str, str], budget: int = BUDGET) -> dict[str, Any] | None:
    """Return what the browser shows, as JSON values; None where no samples were recorded.

    A draw is a seed and the number of a sample. The first draw of all prompts comes before the second of any, and prompts
    come in an order that spreads them evenly, so that a cut leaves an even selection.

    Returns:
        `rows`, `prompts` and `draws`: what is numbered from 0. `units`: [prompt, draw, texts by row, scores by row]. `metric`:
        what the scores are, or "". `about`: how many of the recorded samples these are.
    """
    rows = [row for row in board.rows if any(run in board.tables for run in row.runs.values())]
    if not rows:
        return None
    seeds = [seed for seed in _seeds(rows, board) if all(row.runs.get(seed) in board.tables for row in rows)]
    first = _frames(board, rows, seeds[0] if seeds else None)
    common = sorted(
        set.intersection(*(set(frame["prompt_id"]) for frame in first)), key=lambda one: natural_key(str(one))
    )
    numbers = sorted({number for frame in first for number in frame["sample"].unique().tolist()})
    name = board.primary_metric
    metric = name if name is not None and name in first[0] and not board.is_hidden(name) else None
    units, used, draws = [], 0, [(seed, number) for number in numbers for seed in seeds or [None]]
    order = [common[place] for place in _spread(len(common))]
    asked = {
        prompt: visible(text, TEXT) for prompt, text in zip(first[0]["prompt_id"], first[0]["prompt"], strict=True)
    }
    for draw, prompt, texts, scores in _units(board, rows, draws, order, metric):
        own = [texts, scores, "" if draw else asked[prompt]]  # a prompt is written once
        used += len(json.dumps(own, ensure_ascii=False).encode())
        if units and used > budget:
            break
        units.append((prompt, draw, texts, scores))
    kept = [prompt for prompt in common if any(unit[0] == prompt for unit in units)]
    place = {prompt: i for i, prompt in enumerate(kept)}
    total = sum(len(board.tables[run]) for row in rows for run in row.runs.values() if run in board.tables)
    shown = sum(text is not None for unit in units for text in unit[2])
    used_draws = sorted({unit[1] for unit in units})
    return {
        "rows": [visible(names[row.name], NAME) for row in rows],
        "prompts": [asked[prompt] for prompt in kept],
        "draws": [_title(*draws[draw]) for draw in used_draws],
        "units": sorted(
            [place[prompt], used_draws.index(draw), texts, scores] for prompt, draw, texts, scores in units
        ),
        "metric": metric or "",
        "about": f"{shown:,} of {total:,} recorded samples, on {len(kept):,} of {len(common):,} common prompts",
    }


def _seeds(rows: Sequence[Row], board: Leaderboard) -> list[str]:
    return sorted({seed for row in rows for seed, run in row.runs.items() if run in board.tables}, key=natural_key)


def _frames(board: Leaderboard, rows: Sequence[Row], seed: str | None) -> list[pd.DataFrame]:
    """Return the samples of each row with that seed; None: with its first seed."""
    of_row = [[run for run in row.runs.values() if run in board.tables] for row in rows]
    runs = [own[0] if seed is None else row.runs[seed] for row, own in zip(rows, of_row, strict=True)]
    return [board.tables[run] for run in runs]


def _units(
    board: Leaderboard,
    rows: Sequence[Row],
    draws: Sequence[tuple[str | None, int]],
    prompts: list[Any],
    metric: str | None,
):
    """Yield (draw, prompt, texts, scores) of every prompt, one draw after another; a text that is not recorded is None."""
    for draw, (seed, number) in enumerate(draws):
        drawn = []
        for frame in _frames(board, rows, seed):
            own = frame[frame["sample"] == number]
            values = own[metric].astype(float).tolist() if metric in own else [math.nan] * len(own)
            drawn.append(dict(zip(own["prompt_id"], zip(own["text"], values, strict=True), strict=True)))
        for prompt in prompts:
            found = [own.get(prompt) for own in drawn]
            texts = [None if one is None else visible(one[0], TEXT) for one in found]
            yield (
                draw,
                prompt,
                texts,
                [None if one is None or not math.isfinite(one[1]) else round(one[1], 4) for one in found],
            )


def _spread(count: int) -> list[int]:
    """Return 0 to count - 1 in an order of which every beginning is spread evenly: by their bits, reversed."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda place: int(f"{place:0{width}b}"[::-1], 2))


def _title(seed: str | None, number: int) -> str:
    return f"{'first seed' if seed is None else f'seed {visible(seed, 20)}'}, sample {number + 1}"
