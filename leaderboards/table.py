"""The leaderboard as data: one row a variant, every number with the runs it came from. No MLflow here."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from plo.leaderboards.checks import LeaderboardError, commits, comparable, incomplete, made_first, natural
from plo.leaderboards.items import items, row_differences, tables
from plo.leaderboards.metrics import Metric, described, plain
from plo.leaderboards.overall import by_other_judges, overall
from plo.leaderboards.sections import Section, primary, sections
from plo.statistics import Difference, Estimate, Ratings, Spread, estimate, spread
from plo.tracking import ANY, RecordedCell, Tracker

ALWAYS = ("reference", "sft")
IDENTITY = ("lr", "beta", "peft")


@dataclass
class Row:
    """A variant: a configured loss with its learning rate, beta and adapter.

    Attributes:
        settings: what tells this row from others: lr, beta, peft, and any other parameter that varies.
        runs: {seed: run id} of the finished cells behind every number of the row.
        metrics: at the final evaluation point, mean and sd over the seeds.
        values: {metric: {run id: value}}, what `metrics` is made of.
        estimates: {metric: mean and interval} for a new prompt and seed, where values of items were recorded.
        differences: {metric: difference to the baseline's row}, paired by prompt and seed.
        along: {share of training: {metric: mean over seeds}} for reward and kl.
        samples: (prompt, text) of this row's continuations of the board's two sample prompts.
    """

    variant: str
    loss: str
    settings: dict[str, str | None]
    runs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Spread] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    along: dict[float, dict[str, float]] = field(default_factory=dict)
    samples: list[tuple[str, str]] = field(default_factory=list)
    status: str = "untuned"  # nothing else, and no rank, until there is a tuning protocol

    @property
    def name(self) -> str:
        """The variant and its settings: unique in a table."""
        shown = [f"{key}={value}" for key, value in self.settings.items() if value is not None]
        return f"{self.variant} [{', '.join(shown)}]" if shown else self.variant


@dataclass
class Leaderboard:
    """Rows in order (reference, sft, then by name: no rank), and what must be said under the table.

    Attributes:
        how: {metric: how it is read and shown}, by full names.
        tables: {run id: samples of the final evaluation point} of the cells that recorded them.
    """

    rows: list[Row]
    metrics: list[str]
    baseline: Row | None
    settings: dict[str, str]
    comparisons: list[str]
    notes: list[str]
    cells: list[RecordedCell]
    sections: list[Section] = field(default_factory=list)
    primary: str | None = None
    components: pd.Series | None = None
    ratings: Ratings | None = None
    how: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def title(self, row: Row) -> str:
        """The variant alone where that is unique, else with its settings."""
        return row.variant if sum(other.variant == row.variant for other in self.rows) == 1 else row.name

    @property
    def plain(self) -> list[str]:
        """The metrics that stand in no evaluation's section."""
        return [name for name in self.metrics if not any(name in section.metrics for section in self.sections)]

    def hidden(self, name: str) -> bool:
        """Whether a judge that is no better than chance made this metric."""
        return any(name in section.metrics and section.hidden(name) for section in self.sections)


def read(
    tracker: Tracker,
    comparison: str | None = None,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Leaderboard:
    """The leaderboard of a store: of all its comparisons, or of those with this name or key."""
    chosen = tracker.comparisons(comparison)
    by_comparison = [(one, one.cells()) for one in chosen]
    cells = [cell for _, own in by_comparison for cell in own]
    missing = [f"{name} ({one.name})" for one, own in by_comparison for name in one.missing(own)]
    board = build(cells, baseline, metrics, missing, tracker.judge_checks())
    board.notes += made_first(cells, tracker.stages())
    return board


def build(
    cells: Sequence[RecordedCell],
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    missing: Iterable[str] = (),
    checks: Sequence[Mapping[str, Any]] = (),
) -> Leaderboard:
    """Build the leaderboard of these cells.

    Args:
        baseline: variant (or loss with one variant) that differences are taken to; default "reference".
        metrics: which to show, in this order; default: all that were recorded.
        missing: names of planned cells that were never started, to be named under the table.
        checks: cards of judges, shown beside their verdicts.

    Raises:
        LeaderboardError: nothing is finished, the cells do not compare, or the baseline is not there.
    """
    finished = [cell for cell in cells if cell.status == "FINISHED"]
    if not finished:
        failed = "".join(f"\n  {note}" for note in incomplete(cells, [], list(missing)))
        raise LeaderboardError(
            f"None of the {len(cells)} cells is finished: run `plo compare` to its end first.{failed}"
        )
    settings, notes = comparable(finished), []
    sampled = [cell for cell in finished if cell.metrics]  # others were evaluated only, by `plo eval`
    found = sections(finished, checks, notes, metrics)
    finished = [replace(cell, metrics=cell.metrics | _found(cell, found)) for cell in finished]
    known = {name for cell in finished for name in cell.metrics}
    how = described(sampled, notes)
    shown = list(metrics or [n for n in how if n in known] + [n for section in found for n in section.metrics])
    if unknown := [name for name in shown if name not in known]:
        known |= {name for section in sections(finished, checks, []) for name in section.metrics}
        raise LeaderboardError(
            f"No run recorded the metric {', '.join(unknown)}. Recorded: {', '.join(sorted(known))}."
        )
    for section in found:
        section.keep(shown)
    found = [section for section in found if section.metrics]
    rows, said = _rows(finished, shown)
    by_run = {cell.run_id: cell for cell in finished}
    samples = tables(sampled, notes)
    by_item = items(rows, shown, samples, found)
    notes[:0] = said

    base = _baseline(rows, baseline)
    how = {name: how.get(name, plain(name)) for name in shown} | {n: one.how(n) for one in found for n in one.metrics}
    bounds = {name: one.bounds for name, one in how.items()}
    for row in rows:
        row.estimates = {n: estimate(t[row.name], bounds=bounds[n]) for n, t in by_item.items() if row.name in t}
    if base is not None:
        row_differences(rows, base, by_item, bounds, notes)
    for row in rows:
        row.along = _along([by_run[run] for run in row.runs.values()])
    _samples(rows, samples)
    notes += incomplete(cells, rows, list(missing)) + commits(finished)
    names = sorted({f"{cell.comparison} ({cell.comparison_key[:12]})" for cell in cells})
    board = Leaderboard(rows, shown, base, settings, names, notes, finished, found, how=how, tables=samples)
    board.primary = primary(shown, found, how)
    others = by_other_judges(board.primary, found, by_item)
    board.components, board.ratings = overall(
        by_item.get(board.primary, {}),
        others,
        notes,
        higher_is_better=board.primary is None or how[board.primary].better != "↓",
    )
    return board


def _found(cell: RecordedCell, found: Sequence[Section]) -> dict[str, float]:
    """What evaluations of its model found, by full names."""
    values = {name: by_run for section in found for name, by_run in section.values.items()}
    return {name: by_run[cell.run_id] for name, by_run in values.items() if cell.run_id in by_run}


def _rows(cells: Sequence[RecordedCell], metrics: Sequence[str]) -> tuple[list[Row], list[str]]:
    varying, notes = _varying(cells), []
    rows: dict[tuple, Row] = {}
    for cell in cells:  # oldest first
        variant, loss = _variant(cell), cell.tags.get("plo.loss", _variant(cell))
        settings = {key: _setting(cell, key) for key in (*IDENTITY, *varying)}
        row = rows.setdefault((variant, *settings.values()), Row(variant, loss, settings))
        seed = cell.tags.get("plo.seed", "-")
        if seed in row.runs:
            notes.append(f"{row.name}, seed {seed}: recorded twice; the later run {cell.run_id} counts.")
            for values in row.values.values():
                values.pop(row.runs[seed], None)
        row.runs[seed] = cell.run_id
        for name in metrics:
            if name in cell.metrics:
                row.values.setdefault(name, {})[cell.run_id] = cell.metrics[name]
    trained = any(cell.tags.get("plo.model") != ANY for cell in cells)  # `plo eval` of any models has no such rows
    for name in ALWAYS if trained else ():
        if not any(name in (row.variant, row.loss) for row in rows.values()):
            rows[(name,)] = Row(name, name, dict.fromkeys((*IDENTITY, *varying)))
            notes.append(f"{name} was not run: its row is empty.")
    for row in rows.values():
        row.runs = dict(sorted(row.runs.items(), key=lambda item: natural(item[0])))
        row.metrics = {name: spread(values.values()) for name, values in row.values.items()}
        holes = [n for n, v in row.values.items() if 0 < sum(map(math.isnan, v.values())) < len(v)]
        if holes:
            notes.append(f"{row.name}: {', '.join(holes)} is not a number in some seeds, so it has no mean.")
    order = {name: place for place, name in enumerate(ALWAYS)}
    return sorted(rows.values(), key=lambda row: (order.get(row.loss, len(ALWAYS)), _place(row))), notes


def _varying(cells: Sequence[RecordedCell]) -> list[str]:
    """Parameters, other than lr, beta, peft, in which cells of one variant differ by setting, not by seed.

    They become columns, so that a run of 60 steps is not averaged with one of 600 as if it were another seed.
    One that differs from seed to seed within a comparison (a folder, say) is no setting.
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


def _place(row: Row) -> tuple:
    return row.variant, *(natural(value or "") for value in row.settings.values())


def _baseline(rows: list[Row], name: str | None) -> Row | None:
    wanted = name or "reference"
    for fits in (lambda row: wanted in (row.variant, row.name), lambda row: row.loss == wanted):
        found = [row for row in rows if row.runs and fits(row)]
        if len(found) > 1:
            names = "; ".join(row.name for row in found)
            raise LeaderboardError(f"The baseline {wanted!r} may be any of: {names}. Name one in full.")
        if found:
            return found[0]
    if name is None:
        return None  # that the reference was not run is noted already
    names = "; ".join(row.name for row in rows if row.runs)
    raise LeaderboardError(f"There is no finished run of the baseline {name!r}. There are: {names}.")


def _along(cells: list[RecordedCell]) -> dict[float, dict[str, float]]:
    """Means over the seeds at each evaluation point, as a share of training: the last point is its end."""
    points: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for name in ("reward", "kl"):
            history = cell.history(name)
            for step, value in history.items():
                points[round(step / max(1, *history), 3)][name].append(value)
    return {point: {m: spread(v).mean for m, v in found.items()} for point, found in sorted(points.items())}


def _samples(rows: list[Row], tables: dict[str, pd.DataFrame], count: int = 2) -> None:
    """The first sample of the same prompts, spread evenly over the ids, for every row: no choice."""
    firsts = {id(row): next((tables[r] for r in row.runs.values() if r in tables), None) for row in rows}
    frames = [frame for frame in firsts.values() if frame is not None]
    if not frames:
        return
    common = sorted(set.intersection(*(set(frame["prompt_id"]) for frame in frames)))
    chosen = list(dict.fromkeys(common[i * len(common) // count] for i in range(count))) if common else []
    for row in rows:
        if (frame := firsts[id(row)]) is not None:
            first = frame.sort_values(["prompt_id", "sample"]).drop_duplicates("prompt_id")
            first = first.set_index("prompt_id")
            row.samples = [(first.loc[prompt, "prompt"], first.loc[prompt, "text"]) for prompt in chosen]
