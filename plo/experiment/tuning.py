"""Tuning of every loss before a comparison: equally many trials for each, on prompts that the final table does not use.

    tuned = tune(bench, variants, run, results)       # one Tuned per variant, in the same order

Trials are cells with a seed and held-out prompts of their own. In the first rung every point of a loss's search space is
trained for a share of the steps; in the second the best of them, and the setting that the experiment gives, are trained in
full. What is chosen depends on recorded trials alone, so that an interrupted tuning ends with the same settings.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from plo.config import ConfigError, Experiment, TuningConfig
from plo.errors import PloError
from plo.evals import describe_metrics
from plo.experiment.keys import Cell, Inputs, cell_key, optimiser_steps, train_settings, training_pairs
from plo.identity import sha256
from plo.scorers import Variant
from plo.scorers.space import Space, at_point, search_space
from plo.statistics.tuning import edges, search_points, select_trial

VERSION = 2  # of the protocol; rows that were tuned with another number are not ranked together
STEPS = "train.steps"
log = logging.getLogger(__name__)


Results = Mapping[str, "Result"]
AnyInputs = TypeVar("AnyInputs", bound=Inputs)


class TuningError(PloError, RuntimeError):
    """An error for a tuning that cannot choose, because trials are missing."""


@dataclass(frozen=True)
class Result:
    """Recorded outcome of a trial.

    Attributes:
        metrics: final metrics on the tuning prompts; empty if the training diverged.
        by_prompt: {metric: its values by prompt}.
        seconds: seconds of training and evaluation.
    """

    metrics: dict[str, float]
    by_prompt: Mapping[str, Sequence[float]]
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """A variant with the settings that its tuning chose.

    Attributes:
        given: the variant as the experiment has it.
        variant: the variant to compare.
        record: facts for tables, as recorded with every cell: digest of the protocol, trials, space, scores, cost.
    """

    given: Variant
    variant: Variant
    record: dict[str, Any]


def tune(
    bench: Inputs,
    variants: Sequence[Variant],
    run: Callable[[Any, list[Cell]], dict[str, str]],
    results: Callable[[], Results],
) -> list[Tuned]:
    """Return every variant with the best settings found for it.

    Args:
        bench: workbench whose held-out prompts serve tuning; `run` receives it with the settings of trials.
        run: trains and records the cells that are not recorded yet, and returns the errors of failed ones by name.
        results: returns the recorded results by the keys of their cells.

    Raises:
        ConfigError: the primary metric is not measured on samples.
        TuningError: a trial failed for another reason than a loss that is not finite.
    """
    return _Tuning(bench, run, results).tuned(variants)


def for_trials(bench: AnyInputs) -> AnyInputs:
    """Return a workbench with the settings of trials: evaluated once, at the end, and on samples alone."""
    experiment = bench.experiment.model_copy(update={"eval_at": (1.0,), "record_models": "none"})
    return replace(bench, experiment=experiment, model_evaluations=())


def first_round(variant: Variant) -> Variant:
    """Return the variant whose trials tune a variant: every round of iterated pairs has the settings of the first one."""
    return variant.on(variant.origin.rounds[0])


def _of_round(variant: Variant, first: Tuned) -> Tuned:
    return replace(first, given=variant, variant=first.variant.on(variant.origin))


def trial_steps(experiment: Experiment, variant: Variant, pairs: int) -> list[int]:
    """Return the optimiser steps of each trial of a variant: those of the first rung, then those in full."""
    config = experiment.tuning or TuningConfig()
    space = search_space(variant, experiment.train.lr or math.nan, config.search.get(variant.registered_name))
    short, full = _rungs(experiment, variant, pairs)
    return [*[short] * config.trials, *[full] * (config.promote + 1)] if space else [full]


def _rungs(experiment: Experiment, variant: Variant, pairs: int) -> tuple[int, int]:
    """Return the optimiser steps of a trial of the first rung, with a schedule of that length, and of one in full."""
    full = optimiser_steps(train_settings(experiment, variant), pairs)
    return max(1, round((experiment.tuning or TuningConfig()).share * full)), full


@dataclass
class _Search:
    """The trials of one variant: its points with the cells of the first rung, then those trained in full."""

    variant: Variant
    space: Space
    points: list[dict[str, float]]
    first: list[Cell]
    full: list[tuple[dict[str, float], Cell]] = field(default_factory=list)


class _Tuning:
    """A tuning on one workbench; `tune` describes the arguments."""

    def __init__(self, bench: Inputs, run: Callable[..., dict[str, str]], results: Callable[[], Results]):
        experiment = bench.experiment
        self.bench = for_trials(bench)
        self.run, self.results = run, results
        self.config = experiment.tuning or TuningConfig()
        self.reference = self._cell(None)

    def tuned(self, variants: Sequence[Variant]) -> list[Tuned]:
        metric, higher = self._primary(self._ran([])[self.reference.key])
        firsts = {one.name: one for one in map(first_round, variants)}
        searches = [self._search(variant) for variant in firsts.values()]
        found = self._ran([cell for search in searches for cell in search.first])
        for search in searches:
            first = _trials(found, search.first, metric, higher)
            promoted = _promising(first, self.config.promote, self.config.max_kl, self.config.share)
            # {} is the setting that the experiment gives: in full it is a trial too, and may be chosen.
            points = [*(search.points[place] for place in promoted), {}]
            search.full = [(point, self._cell(search.variant, point)) for point in points]
        found = self._ran([cell for search in searches for _, cell in search.full])
        chosen = {search.variant.name: self._choose(search, found, metric, higher) for search in searches}
        return [_of_round(variant, chosen[first_round(variant).name]) for variant in variants]

    def _search(self, variant: Variant) -> _Search:
        experiment = self.bench.experiment
        lr = experiment.train.lr or math.nan
        space = search_space(variant, lr, self.config.search.get(variant.registered_name))
        points = [
            {name: float(f"{value:.3g}") for name, value in point.items()}
            for point in (search_points(space, self.config.trials, self.config.seed) if space else [])
        ]
        short, _ = _rungs(experiment, variant, training_pairs(self.bench, variant))
        return _Search(variant, space, points, [self._cell(variant, {**p, STEPS: short}) for p in points])

    def _choose(self, search: _Search, found: Results, metric: str, higher: bool) -> Tuned:
        trials = _trials(found, [cell for _, cell in search.full], metric, higher)
        best = select_trial(trials, self.config.max_kl)
        place = len(trials) - 1 if best is None else int(str(best))
        point, sign = search.full[place][0], 1 if higher else -1
        cells = [*search.first, *(cell for _, cell in search.full)]
        record = {
            "digest": self._digest(metric),
            "trials": len(search.points),
            "metric": metric,
            "space": search.space,
            "point": point,
            "edges": edges(search.space, point, self.config.trials) if point else [],
            "score": _number(sign * trials["utility"].iloc[place]),
            "score_se": _number(trials["se"].iloc[place]),
            "default": _number(sign * trials["utility"].iloc[-1]),
            "first": [_number(sign * value) for value in _trials(found, search.first, metric, higher)["utility"]],
            "seconds": round(sum(found[cell.key].seconds for cell in cells), 1),
            "within_kl": best is not None,
        }
        variant = at_point(search.variant, point)
        log.info(
            "tuned  %s: %s, %s %s (as given %s)",
            search.variant.name,
            variant.name,
            metric,
            *map(_shown, trials["utility"].iloc[[place, -1]] * sign),
        )
        return Tuned(search.variant, variant, record)

    def _cell(self, given: Variant | None, point: Mapping[str, Any] | None = None) -> Cell:
        variant = at_point(given, point) if given is not None and point else given
        key = cell_key(self.bench, variant, self.config.seed)
        return Cell(variant, self.config.seed, key, given.name if given is not None else "", point or {})

    def _ran(self, cells: list[Cell]) -> Results:
        if failed := self.run(self.bench, [self.reference, *cells]):  # losses would get unequal numbers of trials
            raise TuningError(
                f"{len(failed)} trials failed, so nothing was chosen: {'; '.join(f'{k}: {v}' for k, v in failed.items())}. "
                f"Finished trials are kept: start the same command again."
            )
        return self.results()

    def _primary(self, reference: Result) -> tuple[str, bool]:
        """Return the metric that is tuned, and whether higher values are better."""
        directed = {m.name: m.better for m in describe_metrics(self.bench.suite, reference.metrics) if m.better}
        wanted = self.bench.experiment.primary or ("reward" if "reward" in directed else next(iter(directed), None))
        if wanted not in directed:
            raise ConfigError(
                f"primary={wanted}: tuning needs a metric of samples that has a direction. Measured: {', '.join(directed) or 'none'}. "
                f"Name one of these, or add an evaluation of samples to evaluation.suite."
            )
        return wanted, directed[wanted] != "↓"

    def _digest(self, metric: str) -> str:
        """Return the hash of the protocol, which rows must share to be ranked together."""
        config = self.config.model_dump(mode="json")
        return sha256([VERSION, config, metric, self.bench.data.digest, self.bench.experiment.train.lr])[:12]


def _trials(found: Results, cells: Sequence[Cell], metric: str, higher: bool) -> pd.DataFrame:
    """Return utility (higher is better), its standard error over prompts, and KL of trials; NaN where one diverged."""
    rows = []
    for result in (found[cell.key] for cell in cells):
        values = np.asarray(result.by_prompt.get(metric, ()), dtype=float)
        error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
        value = result.metrics.get(metric, math.nan)
        rows.append((value if higher else -value, error, result.metrics.get("kl", math.nan)))
    return pd.DataFrame(rows, columns=["utility", "se", "kl"], dtype=float)


def _promising(first: pd.DataFrame, count: int, max_kl: float | None, share: float) -> list[int]:
    """Return the places of the first trials that are trained in full: the best by utility among those with little KL.

    KL grows about in proportion to the steps, so that a trial of `share` of them may have that share of the largest KL. By
    utility alone, those would be promoted that learn fastest and exceed the largest KL in the end. Where fewer than `count`
    are within it, those with the least KL follow. Diverged trials are left out.
    """
    within = first["kl"] <= math.inf if max_kl is None else first["kl"] <= max_kl * share
    best = first[within]["utility"].nlargest(count)
    beyond = first[~within & first["utility"].notna()]["kl"].dropna().nsmallest(count - len(best))
    return sorted(int(str(place)) for place in (*best.index, *beyond.index))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "diverged"
