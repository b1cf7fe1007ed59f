"""What evaluations of level "model" recorded in the cells, and the statistics of a table's primary metric."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from plo.statistics import Ratings, head_to_head, ratings, variance_components
from plo.tracking import Cell

NOTES, LENGTHS = "plo.notes.", "plo.lengths."
JUDGED, ADJUSTED = "win_rate*", "length_adjusted_"


@dataclass(frozen=True)
class Section:
    """An evaluation of level "model".

    Attributes:
        metrics: full names, `<evaluation>.<metric>`.
        notes: what it said beside its numbers.
        judges: {"judge": name, "card": lines or None, "informative": bool or None} of each that gave its verdicts.
        lengths: for a win rate, the columns of the table with the length of the subject's text and of the opponent's.
    """

    evaluation: str
    metrics: tuple[str, ...]
    notes: tuple[str, ...]
    judges: tuple[dict[str, Any], ...]
    lengths: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """Where the values of its items were recorded."""
        return f"{self.evaluation}.json"

    def short(self, name: str) -> str:
        """The metric's name without the evaluation's."""
        return name.removeprefix(f"{self.evaluation}.")

    def asked(self, names: Collection[str]) -> bool:
        """Whether one of these is its metric, or may be made of its metrics."""
        return any(name.startswith(f"{self.evaluation}.") for name in names)

    def only(self, names: Collection[str]) -> "Section":
        """With these of its metrics."""
        return replace(self, metrics=tuple(name for name in names if name in self.metrics))

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that recorded one of its metrics."""
        return [cell for cell in cells if any(name in cell.metrics for name in self.metrics)]

    def judged(self, name: str) -> bool:
        """Whether the metric is a judge's verdicts, or what was made of them."""
        return fnmatchcase(self.short(name).removeprefix(ADJUSTED), JUDGED)

    def hidden(self, name: str) -> bool:
        """Whether the metric is a verdict of a judge whose agreement with gold labels includes chance."""
        return self.judged(name) and any(judge.get("informative") is False for judge in self.judges)


def sections(cells: Sequence[Cell]) -> list[Section]:
    """One for every evaluation that recorded metrics `<evaluation>.<metric>`, in order of name."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        known = _evaluations(cell)
        for name in cell.metrics:
            fitting = [evaluation for evaluation in known if name.startswith(f"{evaluation}.")]
            if "." in name:
                evaluation = max(fitting, key=len, default=name.partition(".")[0])
                found.setdefault(evaluation, {})[name] = None
    made = []
    for evaluation, names in sorted(found.items()):
        section = Section(evaluation, tuple(sorted(names)), (), ())
        own = section.cells(cells)
        notes = [note for cell in own for note in json.loads(cell.tags.get(NOTES + evaluation, "[]"))]
        judged = any(map(section.judged, names))
        judges = {cell.tags["plo.judge"]: None for cell in own if judged and "plo.judge" in cell.tags}
        lengths = {
            k: tuple(v) for cell in own for k, v in json.loads(cell.tags.get(LENGTHS + evaluation, "{}")).items()
        }
        said = {"notes": tuple(dict.fromkeys(notes)), "judges": tuple(map(json.loads, judges))}
        made.append(replace(section, **said, lengths=lengths))
    return made


def _evaluations(cell: Cell) -> set[str]:
    """Names of evaluations that the cell's tables and notes give: a name with options may itself hold a dot."""
    tables = {
        table["path"].removesuffix(".json") for table in json.loads(cell.tags.get("mlflow.loggedArtifacts", "[]"))
    }
    return tables | {tag.removeprefix(NOTES) for tag in cell.tags if tag.startswith(NOTES)}


def primary(metrics: Sequence[str], found: Sequence[Section]) -> str | None:
    """The reward where there is one, else the first win rate that an informative judge gave."""
    if "reward" in metrics:
        return "reward"
    rates = (
        name for section in found for name in section.metrics
        if fnmatchcase(section.short(name), JUDGED) and not section.hidden(name)
    )  # fmt: skip
    return next(rates, None)


def overall(tables: dict[str, pd.DataFrame], notes: list[str]) -> tuple[pd.Series | None, Ratings | None]:
    """Variance components and ratings of the primary metric, {row: [prompts, seeds]}, over the seeds that all rows have.

    None of both with fewer than two rows, or no prompt or seed that all have: then a note says so.
    """
    if len(tables) < 2:
        return None, None
    frames = list(tables.values())
    seeds = [seed for seed in frames[0] if all(seed in frame for frame in frames)]
    prompts = [prompt for prompt in frames[0].index if all(prompt in frame.index for frame in frames)]
    games = head_to_head(
        pd.DataFrame({name: table.loc[prompts, seed] for name, table in tables.items()}) for seed in seeds
    )
    long = pd.concat(
        [table.loc[prompts, [seed]].set_axis(["value"], axis=1).assign(loss=name, seed=seed).rename_axis("prompt").reset_index()
         for name, table in tables.items() for seed in seeds] or [pd.DataFrame({"value": []})]
    )  # fmt: skip
    complete = (
        long.dropna().groupby("prompt").size() == len(tables) * len(seeds) if len(long) else pd.Series(dtype=bool)
    )
    if not complete.any():
        notes.append("No prompt and seed is common to all variants: no variance components and no ratings.")
        return None, None
    return variance_components(long), ratings(games)
