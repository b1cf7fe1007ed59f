"""Power of an experiment before it is run: what its designs could detect and would cost, by the cells that are recorded."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import pandas as pd

from plo.config import ConfigError, Experiment
from plo.evals import EVALUATIONS
from plo.experiment.keys import BEST_OF
from plo.experiment.looks import recorded_values
from plo.experiment.preflight import configured_variants
from plo.experiment.recorded import Recorded, find_recorded
from plo.statistics import look_levels, pool, sample_variance, variance_components
from plo.statistics.power import Design, cheapest_design, design_detectable
from plo.tracking import RecordedCell

SEEDS = (2, 3, 5, 8)


@dataclass(frozen=True)
class Measured:
    """Variances and costs of recorded cells, from which the power of designs follows.

    Attributes:
        metric: the primary metric.
        comparison: name of the comparison that the cells belong to.
        variants, seeds, prompts, samples: numbers behind the components; samples are those of a prompt.
        components: variances by component, as of `variance_components`, and "sample".
        d0: degrees of freedom of the shared seed variance, as in `Pool`; inf: taken to be equal.
        cell_seconds: seconds of a cell without its evaluations; NaN where they were not recorded.
        sample_seconds: seconds of one sample of one prompt, at every evaluation point together.
        held_out: number of held-out prompts that the data has.
        rows: number of rows of the planned table with its baseline.
        alpha: level of a design's tests: that of the last look, or .05.
    """

    metric: str
    comparison: str
    variants: int
    seeds: int
    prompts: int
    samples: int
    components: dict[str, float]
    d0: float
    cell_seconds: float
    sample_seconds: float
    held_out: int
    rows: int
    alpha: float

    def design(self, seeds: int, prompts: int, samples: int) -> Design:
        """Return a design with the difference that it detects with probability .8, and its cost in seconds."""
        detectable = design_detectable(
            self.components,
            rows=self.rows,
            seeds=seeds,
            prompts=prompts,
            samples=samples,
            measured_samples=self.samples,
            d0=self.d0,
            alpha=self.alpha,
        )
        cost = self.rows * seeds * (self.cell_seconds + prompts * samples * self.sample_seconds)
        return Design(seeds, prompts, samples, detectable, cost)

    def cheapest(self, wanted: float) -> Design:
        """Return the cheapest design that detects a difference of `wanted`.

        Raises:
            ConfigError: the seconds of the recorded cells are not known.
            StatisticsError: no design detects so little; the message names the least difference that one does.
        """
        if math.isnan(self.cell_seconds):
            raise ConfigError(
                f"The cells of {self.comparison} were recorded without their seconds, so designs have no cost: run plo power "
                f"without --detect, or one more cell."
            )
        return cheapest_design(
            self.components,
            wanted,
            rows=self.rows,
            cell_cost=self.cell_seconds,
            sample_cost=self.sample_seconds,
            most_prompts=self.held_out,
            measured_samples=self.samples,
            d0=self.d0,
            alpha=self.alpha,
        )


def designs(experiment: Experiment, measured: Measured) -> list[Design]:
    """Return designs of an experiment: its own numbers of seeds, prompts and samples, common ones, and four times as many."""
    config, most = experiment.evaluation, measured.held_out
    seeds = sorted({*SEEDS, max(2, len(experiment.seeds))})
    prompts = sorted({min(config.prompts, most), min(4 * config.prompts, most)})
    samples = [config.samples, 4 * config.samples] if "sample" in measured.components else [config.samples]
    return [measured.design(*size) for size in product(seeds, prompts, samples)]


def measure(experiment: Experiment) -> Measured | None:
    """Return variances and costs from the recorded cells of an experiment or of its pilot; None if they are too few.

    Raises:
        ConfigError: the primary metric has no values of the recorded cells.
        PloError: the comparison would fail before anything is trained.
    """
    candidates = [experiment, pilot(experiment)] if experiment.tuning else [experiment]
    for one in candidates:
        known = find_recorded(one)
        cells = [cell for cell in known.cells if cell.status == "FINISHED"]
        if (chosen := _balanced(cells)) is not None:
            return _measured(experiment, known, cells, chosen)
    return None


def pilot(experiment: Experiment) -> Experiment:
    """Return the smallest comparison that shows variances: `sft` and the baseline, or else the first loss, on two seeds.

    Its cells are those of the experiment itself, which then reuses them. An experiment with tuning compares other settings,
    so its pilot is a comparison with a name of its own.
    """
    variants = configured_variants(experiment)
    names = [variant.name for variant in variants]
    others = [one for one in variants if one.name != "sft"] or variants
    first = next((one for one in others if experiment.baseline in (one.name, one.row)), others[0])
    given = dict(zip(names[-len(experiment.losses) :], experiment.losses, strict=True))
    suite = [one for one in experiment.evaluation.suite if _serves(one, experiment.primary or "")]
    seeds = (*experiment.seeds, max(experiment.seeds) + 1)[:2]
    changes = {
        "losses": (given[first.name],),
        "seeds": seeds,
        "looks": (),
        "baseline": None,
        "baseline_seeds": None,
        "tuning": None,
        "name": f"{experiment.name}-pilot" if experiment.tuning else experiment.name,
        "evaluation": experiment.evaluation.model_copy(update={"suite": tuple(suite)}),
    }
    return experiment.model_copy(update=changes)


def _serves(evaluation: str | dict, primary: str) -> bool:
    """Return whether a pilot needs an evaluation: those of samples, and the one of a model that has the primary metric."""
    name = evaluation if isinstance(evaluation, str) else next(iter(evaluation))
    return EVALUATIONS[name].facts.level != "model" or primary.startswith(f"{name}.")


def _balanced(cells: Iterable[RecordedCell]) -> dict[tuple[str, int], RecordedCell] | None:
    """Return the cells of the trained variants that have at least two seeds in common with all others; None: too few."""
    found = {(cell.tags["plo.variant"], int(cell.tags["plo.seed"])): cell for cell in cells}
    seeds: dict[str, set[int]] = {}
    for variant, seed in found:
        if variant != "reference" and "plo.ceiling" not in found[variant, seed].tags:
            seeds.setdefault(variant, set()).add(seed)
    several = {variant: own for variant, own in seeds.items() if len(own) > 1}
    common = set.intersection(*several.values()) if several else set[int]()
    if len(several) < 2 or len(common) < 2:
        return None
    return {one: cell for one, cell in found.items() if one[0] in several and one[1] in common}


def _measured(
    experiment: Experiment, known: Recorded, cells: list[RecordedCell], chosen: dict[tuple[str, int], RecordedCell]
) -> Measured:
    metric = experiment.primary or _primary(next(iter(chosen.values())))
    parts: list[pd.DataFrame] = []
    for (variant, seed), cell in chosen.items():
        values, _ = recorded_values(cell, metric)
        if values is None:
            raise ConfigError(
                f"primary={metric}: {cell.name} of the recorded comparison {cell.comparison} has no values of it by prompt. "
                f"Name a metric of samples, or evaluate the recorded cells with plo compare first."
            )
        parts.append(pd.DataFrame({"loss": variant, "seed": seed, "prompt": values.index, "value": values.to_numpy()}))
    frame = pd.concat(parts, ignore_index=True)
    tables = {
        str(loss): own.pivot_table(index="prompt", columns="seed", values="value")
        for loss, own in frame.groupby("loss")
    }
    components = {str(name): float(value) for name, value in variance_components(frame).items()}
    samples = round(len(frame) / frame.groupby(["loss", "seed", "prompt"]).ngroups)
    if not math.isnan(of_samples := sample_variance(frame)):
        components["sample"] = of_samples
    shared = pool(tables)
    rows = sum(not variant.ceiling for variant in configured_variants(experiment))
    prompts = frame["prompt"].nunique()
    cell_seconds, sample_seconds = _seconds(experiment, cells, prompts * samples)
    return Measured(
        metric=metric,
        comparison=next(iter(chosen.values())).comparison,
        variants=len(tables),
        seeds=len({seed for _, seed in chosen}),
        prompts=prompts,
        samples=samples,
        components=components,
        d0=shared.d0 if shared is not None else math.inf,
        cell_seconds=cell_seconds,
        sample_seconds=sample_seconds,
        held_out=len({pair.prompt for pair in known.inputs.data.eval}),
        rows=rows + (experiment.baseline in (None, "reference")),
        alpha=look_levels(experiment.looks)[experiment.looks[-1]] if experiment.looks else 0.05,
    )


def _primary(cell: RecordedCell) -> str:
    """Return the metric that verdicts are about where the experiment names none, as tuning chooses it."""
    directed = [
        name for name, one in cell.described.items() if one.better and recorded_values(cell, name)[0] is not None
    ]
    if not directed:
        raise ConfigError(f"primary: no metric of {cell.name} has a direction and values by prompt; name one.")
    return "reward" if "reward" in directed else directed[0]


def _seconds(experiment: Experiment, cells: list[RecordedCell], texts: int) -> tuple[float, float]:
    """Return the seconds of a cell without evaluations, and of one sample at every evaluation point; NaN if not recorded.

    The reference is not trained, so its seconds are those of one evaluation. Rows best_of_n are not trained either.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for cell in cells:
        if "plo.seconds" in cell.tags and cell.tags.get("plo.loss") != BEST_OF:
            seconds[cell.tags["plo.variant"] != "reference"].append(float(cell.tags["plo.seconds"]))
    if not all(seconds.values()):
        return math.nan, math.nan
    evaluations = len(experiment.points) * fmean(seconds[False])
    return max(fmean(seconds[True]) - evaluations, 0.0), evaluations / texts
