"""Build a leaderboard from recorded cells. MLflow is reached through `plo.tracking` alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.checks import LeaderboardError, check_comparable, commit_notes, incomplete_notes, stage_notes
from plo.leaderboards.items import fetch_samples, set_differences, values_by_prompt
from plo.leaderboards.metrics import recorded_metrics
from plo.leaderboards.overall import by_other_judges, components_and_ratings
from plo.leaderboards.rows import add_samples, build_rows, find_baseline, means_along_training
from plo.leaderboards.sections import build_sections, choose_primary_metric
from plo.metric import Metric
from plo.statistics import estimate
from plo.tracking import RecordedCell, Tracker


def read(
    tracker: Tracker,
    comparison: str | None = None,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Leaderboard:
    """Build the leaderboard of a store: of all its comparisons, or of those with this name or key."""
    chosen = tracker.comparisons(comparison)
    by_comparison = [(one, one.cells()) for one in chosen]
    cells = [cell for _, own in by_comparison for cell in own]
    missing = [f"{name} ({one.name})" for one, own in by_comparison for name in one.missing(own)]
    board = build(cells, baseline, metrics, missing, tracker.judge_checks())
    board.notes += stage_notes(cells, tracker.stages())
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
        missing: names of planned cells that were never started, listed in the notes.
        checks: cards of judges, shown with their verdicts.

    Raises:
        LeaderboardError: no cell is finished, the cells do not compare, or there is no such baseline or metric.
    """
    missing = list(missing)
    finished = [cell for cell in cells if cell.status == "FINISHED"]
    if not finished:
        failed = "".join(f"\n  {note}" for note in incomplete_notes(cells, [], missing))
        raise LeaderboardError(
            f"None of the {len(cells)} cells is finished: run `plo compare` to its end first.{failed}"
        )
    shared = check_comparable(finished)
    notes: list[str] = []
    sampled = [cell for cell in finished if cell.metrics]  # `plo eval` records cells without metrics of their own
    sections = build_sections(finished, checks, notes, metrics)
    of_sections = [(name, by_run) for section in sections for name, by_run in section.values.items()]
    finished = [
        replace(
            cell, metrics=cell.metrics | {name: runs[cell.run_id] for name, runs in of_sections if cell.run_id in runs}
        )
        for cell in finished
    ]
    known = {name for cell in finished for name in cell.metrics}
    recorded = recorded_metrics(sampled, notes)
    shown = list(metrics or [n for n in recorded if n in known] + [n for section in sections for n in section.metrics])
    if unknown := [name for name in shown if name not in known]:
        known |= {name for section in build_sections(finished, checks, []) for name in section.metrics}
        raise LeaderboardError(
            f"No run recorded the metric {', '.join(unknown)}. Recorded: {', '.join(sorted(known))}."
        )
    for section in sections:
        section.keep_metrics(shown)
    sections = [section for section in sections if section.metrics]
    row_notes: list[str] = []
    rows = build_rows(finished, shown, row_notes)
    samples = fetch_samples(sampled, notes)
    by_item = values_by_prompt(rows, shown, samples, sections)
    notes[:0] = row_notes

    base = find_baseline(rows, baseline)
    described = {name: recorded.get(name) or Metric(name, name.replace("_", " "), table="text") for name in shown}
    described |= {name: section.describe(name) for section in sections for name in section.metrics}
    bounds = {name: metric.bounds for name, metric in described.items()}
    for row in rows:
        row.estimates = {n: estimate(t[row.name], bounds=bounds[n]) for n, t in by_item.items() if row.name in t}
    if base is not None:
        set_differences(rows, base, by_item, bounds, notes)
    by_run = {cell.run_id: cell for cell in finished}
    for row in rows:
        row.along = means_along_training([by_run[run] for run in row.runs.values()])
    add_samples(rows, samples)
    notes += incomplete_notes(cells, rows, missing) + commit_notes(finished)
    primary = choose_primary_metric(shown, sections, described)
    components, ratings = components_and_ratings(
        by_item.get(primary, {}) if primary else {},
        by_other_judges(primary, sections, by_item),
        notes,
        higher_is_better=primary is None or described[primary].better != "↓",
    )
    return Leaderboard(
        rows,
        shown,
        base,
        shared,
        comparisons=sorted({f"{cell.comparison} ({cell.comparison_key[:12]})" for cell in cells}),
        notes=notes,
        cells=finished,
        sections=sections,
        primary_metric=primary,
        components=components,
        ratings=ratings,
        descriptions=described,
        tables=samples,
    )
