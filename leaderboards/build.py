"""Build a leaderboard from recorded cells. MLflow is reached through `plo.tracking` alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.checks import (
    LeaderboardError,
    best_of_notes,
    check_comparable,
    commit_notes,
    incomplete_notes,
    stage_notes,
    truncation_notes,
)
from plo.leaderboards.fixed_length import diversity_at_fixed_length
from plo.leaderboards.items import fetch_samples, values_by_prompt
from plo.leaderboards.matched import match_kl
from plo.leaderboards.metrics import recorded_metrics
from plo.leaderboards.overall import by_other_judges, primary_components
from plo.leaderboards.protocol import Protocol, read_protocol
from plo.leaderboards.rows import add_samples, build_rows, find_baseline, means_along_training
from plo.leaderboards.sections import build_sections, choose_primary_metric, find_primary_metric
from plo.leaderboards.training_pairs import label_rows, pairs_notes
from plo.leaderboards.verdicts import judge_rows, rank_rows, set_differences
from plo.metric import Metric
from plo.statistics import RunNoise, estimate
from plo.tracking import RecordedCell, Tracker


def read(
    tracker: Tracker,
    comparison: str | None = None,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    *,
    primary: str | None = None,
    margin: float | None = None,
) -> Leaderboard:
    """Build the leaderboard of a store: of all its comparisons, or of those with this name or key.

    Baseline, primary metric and margin are those that the comparisons declare, unless they are given here.
    """
    chosen = tracker.comparisons(comparison)
    by_comparison = [(one, one.cells()) for one in chosen]
    cells = [cell for _, own in by_comparison for cell in own]
    missing = [f"{name} ({one.name})" for one, own in by_comparison for name in one.missing(own)]
    notes: list[str] = []
    protocol = read_protocol(chosen, notes)
    board = build(cells, baseline, metrics, missing, tracker.judge_checks(), protocol, primary=primary, margin=margin)
    board.notes[:0] = notes
    board.notes += pairs_notes([cell for cell in cells if cell.status == "FINISHED"])
    board.notes += stage_notes(cells, tracker.stages())
    board.recorded = chosen
    return board


def build(
    cells: Sequence[RecordedCell],
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    missing: Iterable[str] = (),
    checks: Sequence[Mapping[str, Any]] = (),
    protocol: Protocol = Protocol(),  # noqa: B008
    *,
    primary: str | None = None,
    margin: float | None = None,
) -> Leaderboard:
    """Build the leaderboard of these cells.

    Args:
        baseline: variant (or loss with one variant) that differences are taken to; default: as declared, or "reference".
        metrics: which to show, in this order; default: all that were recorded. The primary metric is shown in any case.
        missing: names of planned cells that were never started, listed in the notes.
        checks: cards of judges, shown with their verdicts.
        protocol: what the cells' experiment declares.
        primary: metric that verdicts are about; default: as declared, or else `choose_primary_metric`.
        margin: difference below which two variants count as equivalent; default: as declared.

    Raises:
        LeaderboardError: no cell is finished, the cells do not compare, or there is no such baseline or metric.
    """
    if margin is not None:
        protocol = replace(protocol, margin=margin)
    missing = list(missing)
    finished = [cell for cell in cells if cell.status == "FINISHED"]
    if not finished:
        failed = "".join(f"\n  {note}" for note in incomplete_notes(cells, [], missing))
        if not cells:
            raise LeaderboardError(
                f"No cell of the comparison was started: run `plo compare` with its experiment. After `plo tune` it goes on with "
                f"what that chose.{failed}"
            )
        raise LeaderboardError(
            f"None of the {len(cells)} cells is finished: run `plo compare` to its end first.{failed}"
        )
    shared = check_comparable(finished)
    notes: list[str] = []
    sampled = [cell for cell in finished if cell.metrics]  # `plo eval` records cells without metrics of their own
    wanted = primary or protocol.primary
    sections = build_sections(finished, checks, notes, None if wanted and "." in wanted else metrics)
    of_sections = [(name, by_run) for section in sections for name, by_run in section.values.items()]
    finished = [
        replace(
            cell, metrics=cell.metrics | {name: runs[cell.run_id] for name, runs in of_sections if cell.run_id in runs}
        )
        for cell in finished
    ]
    known = {name for cell in finished for name in cell.metrics}
    recorded = recorded_metrics(sampled, notes)
    named = find_primary_metric(wanted, known, sections) if wanted else None
    if wanted and not named and not primary:
        notes.append(f"The comparison declares the primary metric {wanted}, which no run recorded: nothing is tested.")
    if metrics and named:
        metrics = [named, *(name for name in metrics if name != named)]
    shown = list(metrics or [n for n in recorded if n in known] + [n for section in sections for n in section.metrics])
    asked = shown if named or not primary else [*shown, primary]
    if unknown := [name for name in asked if name not in known]:
        known |= {name for section in build_sections(finished, checks, []) for name in section.metrics}
        raise LeaderboardError(
            f"No run recorded the metric {', '.join(unknown)}. Recorded: {', '.join(sorted(known))}."
        )
    for section in sections:
        section.keep_metrics(shown)
    sections = [section for section in sections if section.metrics]
    row_notes: list[str] = []
    rows = build_rows(finished, shown, row_notes)
    label_rows(rows, {cell.run_id: cell for cell in finished})
    samples = fetch_samples(sampled, notes)
    by_item = values_by_prompt(rows, shown, samples, sections)
    notes[:0] = row_notes

    base = _baseline(rows, baseline, protocol, notes)
    described = {name: recorded.get(name) or Metric(name, name.replace("_", " "), table="text") for name in shown}
    described |= {name: section.describe(name) for section in sections for name in section.metrics}
    bounds = {name: metric.bounds for name, metric in described.items()}
    judge_noise = {name: one for section in sections for name, one in section.noise.items()}
    run_noise = {name: one.of_mean for name, one in judge_noise.items()}
    for row in rows:
        row.estimates = {
            name: estimate(tables[row.name], bounds=bounds[name], noise=run_noise.get(name, RunNoise()))
            for name, tables in by_item.items()
            if row.name in tables
        }
    if base is not None:
        set_differences(rows, base, by_item, bounds, notes, run_noise)
    chosen = named if wanted else choose_primary_metric(shown, sections, described)
    tables, design, noise = by_item.get(chosen or "", {}), None, run_noise.get(chosen or "", RunNoise())
    if chosen and not any(chosen in section.metrics and section.is_hidden(chosen) for section in sections):
        if base is not None:
            failed = {cell.tags["plo.variant"] for cell in cells if cell.status == "FAILED"}
            design = judge_rows(rows, base, tables, described[chosen], protocol, chosen, failed, noise)
        alpha = design.judgement.alpha if design else 0.05
        rank_rows(rows, base, tables, described[chosen], alpha, notes, noise)
        rows.sort(key=lambda row: row.rank or (0,))
    by_run = {cell.run_id: cell for cell in finished}
    for row in rows:
        row.along = means_along_training([by_run[run] for run in row.runs.values()])
    add_samples(rows, samples)
    more_seeds = base if protocol.baseline else None
    notes += incomplete_notes(cells, rows, missing, more_seeds) + commit_notes(finished)
    notes += truncation_notes(rows, by_run) + best_of_notes(rows)
    others = by_other_judges(chosen, sections, by_item)
    components = primary_components(tables, others, notes, judge_noise.get(chosen or ""))
    return Leaderboard(
        rows,
        shown,
        base,
        shared,
        comparisons=sorted({f"{cell.comparison} ({cell.comparison_key[:12]})" for cell in cells}),
        notes=notes,
        cells=finished,
        sections=sections,
        primary_metric=chosen,
        design=design,
        matched=match_kl(rows, base, by_run, samples) if base is not None else None,
        fixed_length=diversity_at_fixed_length(rows, samples),
        components=components,
        descriptions=described,
        tables=samples,
    )


def _baseline(rows: Sequence[Row], given: str | None, protocol: Protocol, notes: list[str]) -> Row | None:
    """Return the baseline's row; a declared one that is not finished is noted, and nothing takes its place."""
    try:
        return find_baseline(rows, given or protocol.baseline)
    except LeaderboardError as error:
        if given:
            raise
        notes.append(f"The comparison declares a baseline that cannot be used: {error}")
        return None
