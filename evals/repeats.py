"""Join the findings of an evaluation that was judged several times into one, and keep what each repeat said."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from plo.evals.findings import Findings

TABLE = "{}_repeats.json"  # table with one row per repeat and item, by the name of the evaluation


def join_repeats(evaluation: str, found: Sequence[Findings]) -> Findings:
    """Return the mean of the findings of an evaluation over the repeats of its judge.

    Metrics, also along training, and numeric columns of items, are means over the repeats in which they are defined. Recorded tables get a column
    `repeat`; `<evaluation>_repeats.json` has the items of each repeat, from which the judge's noise is estimated. Files of
    later repeats that differ from the first one's have `_repeat2`, `_repeat3`, ... in their names.
    """
    first = found[0]
    if len(found) == 1:
        return first
    whole = _stacked([one.items for one in found])
    curves = {step: _mean([one.curves[step] for one in found if step in one.curves]) for step in first.curves}
    tables = {name: _stacked([one.tables[name] for one in found if name in one.tables]) for name in first.tables}
    files = dict(first.files)
    for repeat, one in enumerate(found[1:], 2):
        for name, text in one.files.items():
            if text != first.files.get(name):
                stem, dot, end = name.rpartition(".")
                files[f"{stem}_repeat{repeat}{dot}{end}" if dot else f"{name}_repeat{repeat}"] = text
    return replace(
        first,
        metrics=_mean([one.metrics for one in found]),
        curves=curves,
        items=_mean_items(whole),
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        tables=tables | {TABLE.format(evaluation): whole},
        files=files,
    )


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {str(name): float(value) for name, value in pd.DataFrame(list(metrics)).mean().items()}


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(repeat=repeat) for repeat, table in enumerate(tables, 1)], ignore_index=True)


def _mean_items(whole: pd.DataFrame) -> pd.DataFrame:
    """Return the items of the first repeat, in its order, with numbers averaged over the repeats."""
    number = whole.groupby(["repeat", "prompt_id"]).cumcount()  # a prompt may have several rows
    numeric = whole.select_dtypes([np.number, "bool"]).columns.difference(["repeat", "prompt_id"])
    how = {name: "mean" if name in numeric else "first" for name in whole if name not in ("repeat", "prompt_id")}
    grouped = whole.assign(number=number).groupby(["prompt_id", "number"], sort=False)
    return grouped.agg(how).reset_index("prompt_id").reset_index(drop=True)[[c for c in whole if c != "repeat"]]
