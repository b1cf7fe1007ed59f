"""Seeds that are added to a comparison until its verdicts are settled."""

from collections.abc import Collection, Sequence

import pandas as pd

from plo.config import ConfigError, Experiment
from plo.experiment.keys import previous_round
from plo.metric import BUILT_IN, Metric
from plo.scorers import Variant
from plo.statistics.sequential import Judgement, baseline_seeds, judge
from plo.tracking import RecordedCell, allowed_name

SAMPLES = "samples.json"


def seeds_at(experiment: Experiment, variant: Variant | None, rows: int, look: int) -> tuple[int, ...]:
    """Return the seeds that a variant (None: the reference) has at a look.

    The baseline is part of every difference, so it gets more seeds than the others: the experiment's, and numbers above
    them. The reference has the seeds of all, because win rates are against its samples of the same seed.
    """
    if variant is not None and experiment.baseline not in (variant.name, variant.row):
        return experiment.seeds[:look]
    count = look if experiment.baseline is None else baseline_seeds(look, rows, experiment.baseline_seeds)
    first = max(experiment.seeds) + 1
    return (*experiment.seeds, *range(first, first + count))[:count]


def seeds_in_order(experiment: Experiment, variants: Sequence[Variant], look: int) -> list[tuple[Variant | None, int]]:
    """Return each variant (None: the reference) with each of its seeds at a look, in the order in which they run.

    The order is seed by seed, so that an interrupted comparison has all variants on its first seeds.
    """
    rows = sum(not variant.ceiling for variant in variants)  # that are tested
    seeds = {one: seeds_at(experiment, one, rows, look) for one in (None, *variants)}
    for one in sorted(variants, key=lambda variant: -variant.origin.round):  # a round needs that before it
        earlier = [v for v in variants if one.origin.round > 1 and v.name == previous_round(one).name]
        seeds |= {v: max(seeds[v], seeds[one], key=len) for v in earlier}
    order = dict.fromkeys(seed for own in seeds.values() for seed in own)
    return [(one, seed) for seed in order for one in seeds if seed in seeds[one]]


def judge_cells(experiment: Experiment, cells: Sequence[RecordedCell], ended: Collection[str] = ()) -> Judgement:
    """Return the verdicts on the primary metric of finished cells; ceilings, which no table tests, have none.

    Args:
        ended: variants with failed cells, for which no look waits.

    Raises:
        ConfigError: the primary metric has no values by prompt of the baseline, or no direction.
    """
    primary, tables, base = experiment.primary or "", dict[str, dict[int, pd.Series]](), ""
    metric = None
    for cell in cells:
        variant, loss = cell.tags["plo.variant"], cell.tags["plo.loss"]
        values, described = recorded_values(cell, primary)
        is_row = "plo.ceiling" not in cell.tags and (variant != "reference" or experiment.baseline == variant)
        if values is None or not is_row:
            continue
        tables.setdefault(variant, {})[int(cell.tags["plo.seed"])] = values.groupby(level=0).mean()
        metric = described or metric
        if experiment.baseline in (variant, loss):
            base = variant
    if metric is None or not metric.better or not base:
        raise ConfigError(
            f"primary={primary}: looks need a metric that has a direction, and recorded values by prompt of the baseline "
            f"{experiment.baseline}. Name another one."
        )
    order = dict.fromkeys([*experiment.seeds, *sorted({seed for by in tables.values() for seed in by})])
    frames = {name: pd.DataFrame({seed: by[seed] for seed in order if seed in by}) for name, by in tables.items()}
    return judge(
        frames,
        base,
        looks=experiment.looks,
        baseline_seeds=lambda look: baseline_seeds(look, len(frames), experiment.baseline_seeds),
        higher_is_better=metric.better != "↓",
        margin=experiment.margin,
        bounds=metric.bounds,
        ended=ended,
    )


def recorded_values(cell: RecordedCell, name: str) -> tuple[pd.Series | None, Metric | None]:
    """Return a metric's values of each sample or item, labelled by prompt, and its description; None if it has none.

    They are from the cell's samples or from an evaluation of its model.
    """
    if name in cell.metrics and cell.has_table(SAMPLES):
        samples = cell.table(SAMPLES).rename(columns=allowed_name)
        if name in samples:
            return samples.set_index("prompt_id")[name], cell.described.get(name, BUILT_IN.get(name))
    for finding in cell.findings:
        short = name.removeprefix(f"{finding.evaluation}.")
        if short != name and short in finding.metrics:
            items = finding.items.rename(columns=allowed_name)
            metrics = [Metric.from_dict(one) for one in finding.about.get("described", [])]
            return items.set_index("prompt_id")[short], next((m for m in metrics if m.name == short), None)
    return None, None
