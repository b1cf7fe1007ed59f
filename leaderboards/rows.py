"""Rows of a leaderboard from recorded cells: cells that differ only in their seed make one row."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from plo.leaderboards.board import Row
from plo.leaderboards.checks import LeaderboardError, natural_key
from plo.leaderboards.formatting import fold
from plo.statistics import spread
from plo.tracking import ANY, RecordedCell

ALWAYS = ("reference", "sft")
IDENTITY = ("lr", "beta", "peft")


def build_rows(cells: Sequence[RecordedCell], metrics: Sequence[str], notes: list[str]) -> list[Row]:
    """Group finished cells, oldest first, into rows with the mean of each metric; append what is odd to `notes`."""
    varying, said = _varying_params(cells), list[tuple[str, str]]()
    rows: dict[tuple, Row] = {}
    for cell in cells:
        variant = _variant(cell)
        settings = {key: _setting(cell, key) for key in (*IDENTITY, *varying)}
        new = Row(variant, cell.tags.get("plo.loss", variant), settings)
        row = rows.setdefault((variant, *settings.values()), new)
        seed = cell.tags.get("plo.seed", "-")
        if seed in row.runs:
            said.append((f"{row.name} seed {seed} (run {cell.run_id})", "Recorded twice; the later run counts"))
            for values in row.values.values():
                values.pop(row.runs[seed], None)
        row.runs[seed] = cell.run_id
        row.is_ceiling = row.is_ceiling or cell.tags.get("plo.ceiling") == "true"
        for name in metrics:
            if name in cell.metrics:
                row.values.setdefault(name, {})[cell.run_id] = cell.metrics[name]
    trained = any(cell.tags.get("plo.model") != ANY for cell in cells)  # `plo eval` of any models has no such rows
    for name in ALWAYS if trained else ():
        if not any(name in (row.variant, _loss(row)) for row in rows.values()):
            rows[(name,)] = Row(name, name, dict.fromkeys((*IDENTITY, *varying)))
            said.append((name, "Not run, so an empty row"))
    by_run = {cell.run_id: cell for cell in cells}
    for row in rows.values():
        row.runs = dict(sorted(row.runs.items(), key=lambda item: natural_key(item[0])))
        row.tuning = _tuning(row, [by_run[run] for run in row.runs.values()], said)
        # Values are put in the order of seeds: otherwise the last bit of a sum would depend on which cell ended first.
        row.values = {n: {run: v[run] for run in row.runs.values() if run in v} for n, v in row.values.items()}
        row.metrics = {name: spread(values.values()) for name, values in row.values.items()}
        holes = [n for n, v in row.values.items() if 0 < sum(map(math.isnan, v.values())) < len(v)]
        if holes:
            said += [(row.name, f"{name} is not a number in some seeds, so it has no mean") for name in holes]
    notes += fold(said)
    order = {name: place for place, name in enumerate(ALWAYS)}
    return sorted(rows.values(), key=lambda row: (order.get(_loss(row), len(ALWAYS)), _sort_key(row)))


def _loss(row: Row) -> str:
    """Return the registered name of a row's loss, without where its training pairs come from."""
    return row.loss.partition(" @ ")[0]


def _tuning(row: Row, cells: Sequence[RecordedCell], said: list[tuple[str, str]]) -> dict[str, Any] | None:
    """Return the record of the row's tuning; None if its cells were not all tuned by one protocol."""
    records = [json.loads(cell.tags.get("plo.tuning", "null")) for cell in cells]
    if not any(records):
        return None
    if not all(records) or len({record["digest"] for record in records}) > 1:
        found = dict.fromkeys(record["digest"] if record else "untuned" for record in records)
        text = (
            f"Counted as untuned, because seeds were tuned by different protocols or not at all (plo.tuning: {', '.join(found)}); "
            f"run all seeds with one setting of `tuning`"
        )
        said.append((row.name, text))
        return None
    return records[-1]


def _varying_params(cells: Sequence[RecordedCell]) -> list[str]:
    """Return the parameters, other than lr, beta and peft, whose setting differs between cells of one variant.

    They become columns, so that a run of 60 steps is not averaged with one of 600 as if it were another seed.
    A parameter that differs from seed to seed within a comparison, such as a folder, is no setting.
    """
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))  # parameter, variant, seed: values
    for cell in cells:
        group = (_variant(cell), *(_setting(cell, key) for key in IDENTITY))
        for key, value in cell.params.items():
            found[key][group][cell.comparison_key, cell.tags.get("plo.seed")].add(value)
    varying = set()
    for key, groups in found.items():
        for by_seed in groups.values():
            within = defaultdict(list)
            for (comparison, _), values in by_seed.items():
                within[comparison].append(values)
            noise = any(values != sets[0] for sets in within.values() for values in sets)
            if not noise and len(set.union(*by_seed.values())) > 1:
                varying.add(key)
    return sorted(varying - {*IDENTITY, "seed"})


def _setting(cell: RecordedCell, key: str) -> str | None:
    value = cell.params.get(key)
    return None if value in ("", "-", "None") else value


def _variant(cell: RecordedCell) -> str:
    return cell.tags.get("plo.variant", cell.name)


def _sort_key(row: Row) -> tuple:
    return row.variant, *(natural_key(value or "") for value in row.settings.values())


def find_baseline(rows: Sequence[Row], name: str | None) -> Row | None:
    """Return the row of that variant, name or loss; without a name the reference, or None where that was not run.

    Raises:
        LeaderboardError: no finished row, or several, have that name.
    """
    wanted = name or "reference"
    for fits in (lambda row: wanted in (row.variant, row.name), lambda row: row.loss == wanted):
        found = [row for row in rows if row.runs and fits(row)]
        if len(found) > 1:
            names = "; ".join(row.name for row in found)
            raise LeaderboardError(f"The baseline {wanted!r} may be any of: {names}. Give one of these names in full.")
        if found:
            return found[0]
    if name is None:
        return None  # `build_rows` notes that the reference was not run
    names = "; ".join(row.name for row in rows if row.runs)
    raise LeaderboardError(f"There is no finished run of the baseline {name!r}. Finished: {names}.")


def means_along_training(cells: Sequence[RecordedCell]) -> dict[float, dict[str, float]]:
    """Return reward and KL, averaged over the seeds, at each evaluation point; the key is the share of training."""
    points: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for name in ("reward", "kl"):
            history = cell.history(name)
            for step, value in history.items():
                points[round(step / max(1, *history), 3)][name].append(value)
    return {point: {m: spread(v).mean for m, v in found.items()} for point, found in sorted(points.items())}


def add_samples(rows: Sequence[Row], tables: dict[str, pd.DataFrame], count: int = 2) -> None:
    """Give every row its first sample of the same `count` prompts, spread evenly over the prompts that all rows have."""
    firsts = {id(row): next((tables[r] for r in row.runs.values() if r in tables), None) for row in rows}
    frames = [frame for frame in firsts.values() if frame is not None]
    if not frames:
        return
    common = sorted(set.intersection(*(set(frame["prompt_id"]) for frame in frames)))
    chosen = list(dict.fromkeys(common[i * len(common) // count] for i in range(count))) if common else []
    for row in rows:
        if (frame := firsts[id(row)]) is not None:
            first = frame.sort_values(["prompt_id", "sample"]).drop_duplicates("prompt_id")
            texts = dict(zip(first["prompt_id"], zip(first["prompt"], first["text"], strict=True), strict=True))
            row.samples = [texts[prompt] for prompt in chosen]
