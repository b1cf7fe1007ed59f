"""Differences from the baseline, verdicts and ranks of the rows of a table."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from plo.leaderboards.board import Design, Rank, Row, title_of
from plo.leaderboards.formatting import fold
from plo.leaderboards.protocol import Protocol
from plo.metric import Metric
from plo.statistics import baseline_seeds, compare, family_detectable, fragility, judge, pool, rank_intervals
from plo.statistics.intervals import RunNoise, StatisticsError

Tables = Mapping[str, pd.DataFrame]  # {row: [prompts, seeds]}


def set_differences(
    rows: Sequence[Row],
    base: Row,
    items: Mapping[str, Tables],
    bounds: Mapping[str, tuple[float, float]],
    notes: list[str],
    noise: Mapping[str, RunNoise],
) -> None:
    """Set every row's differences to the baseline `base`; append to `notes` what could not be compared.

    Args:
        items: the result of `values_by_prompt`.
        bounds: least and greatest value of each metric.
        noise: noise of the judge of each metric that has one.
    """
    said: dict[tuple[str, str], None] = {}  # ordered and without repetition, whatever the number of metrics
    by_name, titles = {row.name: row for row in rows}, {row.name: title_of(row, rows) for row in rows}
    apart = [row.name for row in rows if row is not base and not _is_variant(row)]
    for name, by_row in items.items():
        if base.name not in by_row:
            continue
        theirs, evaluation = by_row[base.name], name.rpartition(".")[0]
        common = titles[base.name] + (f" in {evaluation}" if evaluation else "")
        comparable = {base.name: theirs}
        for own, table in by_row.items():
            seeds = [seed for seed in table if seed in theirs]
            if own == base.name:
                continue
            if not seeds or table.index.intersection(theirs.index).empty:
                lacking = "prompt" if seeds else "seed"
                said[titles[own], f"No {lacking} in common with {common}, so no difference"] = None
                continue
            comparable[own] = table
            if len(seeds) == 1:
                said[titles[own], f"One seed in common with {common}, so the difference is for new prompts alone"] = (
                    None
                )
        gaps = compare(comparable, base.name, bounds=bounds[name], apart=apart, noise=noise.get(name, RunNoise()))
        for own, gap in gaps.items():
            by_name[own].differences[name] = gap
            if gap.dropped and gap.prompts:
                said[titles[own], f"Only the {gap.prompts} prompts count that every seed shares with {common}"] = None
    notes += fold(said)


def judge_rows(
    rows: Sequence[Row],
    base: Row,
    tables: Tables,
    metric: Metric,
    protocol: Protocol,
    primary: str,
    failed: Collection[str] = (),
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> Design | None:
    """Set the verdicts on the primary metric, and return the design of their test; None if there is nothing to test.

    The family is every variant with a difference from the baseline. The untrained reference, unless it is the baseline,
    and ceilings are no variants. Looks are replayed in the order in which seeds were run; those for which a variant among
    `failed` lacks seeds are taken without it.
    """
    family = [base, *(row for row in rows if row is not base and _is_variant(row) and primary in row.differences)]
    if len(family) < 2 or not metric.better:
        return None
    ordered = {row.name: _in_order(tables[row.name], protocol.seeds) for row in family}
    found = judge(
        ordered,
        base.name,
        looks=protocol.looks,
        baseline_seeds=lambda look: baseline_seeds(look, len(family), protocol.baseline_seeds),
        higher_is_better=metric.better != "↓",
        margin=protocol.margin,
        bounds=metric.bounds,
        ended=[row.name for row in family if row.variant in failed],
        noise=noise,
    )
    for row in family[1:]:
        row.differences[primary], row.verdict = found.compared[row.name], found.verdicts[row.name]
    detectable = family_detectable(found.compared.values(), alpha=found.alpha)
    fragile = None
    if all(map(math.isfinite, metric.bounds)):
        fragile = fragility(ordered, bounds=metric.bounds, higher_is_better=metric.better != "↓")
    return Design(found, protocol.looks, protocol.margin, pool(ordered), detectable, fragile)


def rank_rows(
    rows: Sequence[Row],
    base: Row | None,
    tables: Tables,
    metric: Metric,
    alpha: float,
    notes: list[str],
    noise: RunNoise = RunNoise(),  # noqa: B008
) -> None:
    """Set the ranks of the rows that were tuned by one protocol: the baseline's or, if that is untuned, the commonest."""
    tuned = [row for row in rows if row.tuning and not row.is_ceiling and row.name in tables]
    counts = Counter(_digest(row) for row in tuned)
    if not counts or not metric.better:
        return
    chosen = _digest(base) if base is not None and base.tuning else counts.most_common(1)[0][0]
    if len(counts) > 1:
        notes.append(
            f"Rows were tuned by different protocols ({', '.join(counts)}); only those of {chosen} are ranked. "
            f"To rank the others, run them with its settings of `tuning`."
        )
    ranked = {row.name: row for row in tuned if _digest(row) == chosen}
    if len(ranked) < 2:
        return
    try:
        higher, chosen_tables = metric.better != "↓", {name: tables[name] for name in ranked}
        found = rank_intervals(chosen_tables, higher_is_better=higher, alpha=alpha, noise=noise)
    except StatisticsError as error:
        notes.append(f"No ranks: {error}")
        return
    for name, line in found.iterrows():
        ranked[str(name)].rank = Rank(int(line["rank"]), int(line["low"]), int(line["high"]))


def _is_variant(row: Row) -> bool:
    return row.loss != "reference" and not row.is_ceiling


def _digest(row: Row) -> str:
    return str(row.tuning["digest"]) if row.tuning else ""


def _in_order(table: pd.DataFrame, seeds: Sequence[str]) -> pd.DataFrame:
    """Return the table with its seeds in the order in which they were run: those of the experiment, then the baseline's own."""
    return table[[*(seed for seed in seeds if seed in table), *(seed for seed in table if seed not in seeds)]]
