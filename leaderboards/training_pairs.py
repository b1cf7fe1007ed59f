"""Training pairs of the rows, where they are not all the data source's own: the column of the table, and the notes."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plo.leaderboards.board import Row
from plo.tracking import RecordedCell
from plo.values import without_paths

PAIRS = "plo.pairs"  # tag of a cell: facts about its training pairs


def pairs_label(cell: RecordedCell) -> str:
    """Return a short name of a cell's training pairs, such as "round 2: answers of round 1"; "" for the data source's own."""
    about = _about(cell)
    noise = f"{about['flip']:.0%} turned" if about.get("flip") else ""
    number = about.get("round", 0)
    if not number:
        return noise and f"source, {noise}"
    policy = "start" if about["policy"] == "start" else f"round {number - 1}" if number > 1 else about["policy"]
    return f"round {number}: answers of {policy}" + (noise and f", {noise}")


def label_rows(rows: Sequence[Row], cells: Mapping[str, RecordedCell]) -> None:
    """Set the `pairs` of each trained row, if any row was trained on pairs that are not the data source's own.

    Args:
        cells: {run id: cell}.
    """
    found = {row.name: next(iter(pairs_label(cells[run]) for run in row.runs.values()), "") for row in rows}
    if any(found.values()):
        for row in rows:
            row.pairs = found[row.name] or ("source" if row.runs and row.loss != "reference" else "")


def pairs_notes(cells: Sequence[RecordedCell]) -> list[str]:
    """Return notes on the training pairs that were sampled or have turned labels, with the variants that have them."""
    return [f"Training pairs of {', '.join(variants)}: {text}." for text, variants in said_of_pairs(cells).items()]


def said_of_pairs(cells: Sequence[RecordedCell]) -> dict[str, list[str]]:
    """Return {how training pairs were sampled or turned: the variants that have them}, without those of the data source as it is."""
    by_variant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        if about := _about(cell):
            by_variant[cell.tags.get("plo.variant", cell.name)].append(about)
    alike: dict[str, list[str]] = defaultdict(list)
    for variant, all_ in by_variant.items():
        alike[_described(all_)].append(variant)
    return dict(alike)


def _about(cell: RecordedCell) -> dict[str, Any]:
    about = json.loads(cell.tags.get(PAIRS, "{}"))
    return {name: without_paths(value) if isinstance(value, str) else value for name, value in about.items()}


def _described(cells: Sequence[Mapping[str, Any]]) -> str:
    about, parts = cells[0], list[str]()
    if about.get("round"):
        whose = "the policy that training starts from" if about["policy"] == "start" else about["policy"]
        if about["round"] > 1:
            whose = f"the model of round {about['round'] - 1}, of the same loss and seed"
        parts += [
            f"round {about['round']}, {about['k']} answers at temperature {about['temperature']:g} to each of "
            f"{_range(cells, 'prompts')} prompts by {whose}, scored by {about['oracle']}, {about['rule']}"
        ]
    parts.append(f"{_range(cells, 'pairs')} pairs")
    if about.get("flip"):
        parts.append(f"{_range(cells, 'turned')} labels turned round ({about['flip']:.0%})")
    return ", ".join(parts)


def _range(cells: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [int(about[name]) for about in cells]
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
