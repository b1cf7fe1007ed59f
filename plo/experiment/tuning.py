"""Tuning of every loss before a comparison: equally many trials for each, on prompts that the final table does not use.

    tuned = tune(bench, variants, run, results)       # one Tuned per variant, in the same order

Trials are cells with a seed and held-out prompts of their own. In the first rung every point of a loss's search space is
trained for a share of the steps; in the second the best of them, and the setting that the experiment gives, are trained in
full. What is chosen depends on recorded trials alone, so that an interrupted tuning ends with the same settings.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plo.config import ConfigError, TuningConfig
from plo.errors import PloError
from plo.evals import describe_metrics
from plo.experiment.keys import Cell, cell_key, optimiser_steps, train_settings
from plo.experiment.workbench import Workbench
from plo.identity import sha256
from plo.scorers import Variant
from plo.scorers.space import at_point, search_space
from plo.statistics.tuning import Trial, choose, edges, promoted, sobol_points

VERSION = 1  # of the protocol; rows that were tuned with another number are not ranked together
STEPS = "train.steps"
log = logging.getLogger(__name__)


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
        variant: the variant to compare.
        record: facts for tables, as recorded with every cell: digest of the protocol, trials, space, scores, cost.
    """

    variant: Variant
    record: dict[str, Any]


def tune(
    bench: Workbench,
    variants: Sequence[Variant],
    run: Callable[[Workbench, list[Cell]], dict[str, str]],
    results: Callable[[], Mapping[str, Result]],
) -> list[Tuned]:
    """Return every variant with the best settings found for it.

    Args:
        bench: workbench whose held-out prompts serve tuning.
        run: trains and records the cells that are not recorded yet, and returns the errors of failed ones by name.
        results: returns the recorded results by the keys of their cells.

    Raises:
        ConfigError: the primary metric is not measured on samples.
        TuningError: a trial failed for another reason than a loss that is not finite.
    """
    return _Tuning(bench, run, results).tuned(variants)


class _Tuning:
    """A tuning on one workbench; `tune` describes the arguments."""

    def __init__(
        self, bench: Workbench, run: Callable[..., dict[str, str]], results: Callable[[], Mapping[str, Result]]
    ):
        experiment = bench.experiment
        self.bench = replace(bench, experiment=experiment.model_copy(update={"eval_at": (1.0,)}), model_evaluations=())
        self.run, self.results = run, results
        self.config = experiment.tuning or TuningConfig()
        self.reference = self._cell(None)

    def tuned(self, variants: Sequence[Variant]) -> list[Tuned]:
        lr, given = self.bench.experiment.train.lr or math.nan, self.config.search
        spaces = [search_space(one, lr, given.get(one.registered_name)) for one in variants]
        points = [sobol_points(space, self.config.trials, seed=self.config.seed) for space in spaces]
        metric, higher = self._primary(self._ran([])[self.reference.key])

        def tried(cells: list[list[Cell]]) -> list[list[Trial]]:
            found = self._ran([cell for own in cells for cell in own])
            return [[_trial(found.get(cell.key), metric, higher) for cell in own] for own in cells]

        short = [[self._cell(self._short(one, p)) for p in own] for one, own in zip(variants, points, strict=True)]
        first = tried(short)
        # {} is the setting that the experiment gives: it is trained in full too, so that no choice is worse than it here.
        kept = [
            [*(own[place] for place in promoted(trials, self.config.promote)), {}]
            for own, trials in zip(points, first, strict=True)
        ]
        full = [[self._cell(at_point(one, p)) for p in own] for one, own in zip(variants, kept, strict=True)]
        second = tried(full)
        found = self.results()
        chosen = []
        for one, space, own, cells, trials, short_trials, short_cells in zip(
            variants, spaces, kept, full, second, first, short, strict=True
        ):
            best = choose(trials, max_kl=self.config.max_kl)
            seconds = sum(found[cell.key].seconds for cell in (*short_cells, *cells) if cell.key in found)
            record = {
                "digest": self._digest(metric),
                "trials": self.config.trials,
                "metric": metric,
                "space": space,
                "point": own[best],
                "edges": edges(space, own[best]),
                "score": _signed(trials[best].utility, higher),
                "default": _signed(trials[-1].utility, higher),
                "first": [_signed(trial.utility, higher) for trial in short_trials],
                "seconds": round(seconds, 1),
            }
            chosen.append(Tuned(at_point(one, own[best]), record))
            log.info(
                "tuned  %s: %s, %s %.3g (as given %.3g)",
                one.name,
                chosen[-1].variant.name,
                metric,
                record["score"],
                record["default"],
            )
        return chosen

    def _short(self, variant: Variant, point: Mapping[str, float]) -> Variant:
        """Return a variant for a first trial at a point: trained for a share of the steps, with a schedule of that length."""
        steps = optimiser_steps(train_settings(self.bench.experiment, variant), len(self.bench.data.train))
        return at_point(variant, {**point, STEPS: max(1, round(self.config.share * steps))})

    def _cell(self, variant: Variant | None) -> Cell:
        return Cell(variant, self.config.seed, cell_key(self.bench, variant, self.config.seed))

    def _ran(self, cells: list[Cell]) -> Mapping[str, Result]:
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


def _trial(result: Result | None, metric: str, higher: bool) -> Trial:
    """Return a trial's utility, larger for better ones; -inf where the training failed or the metric is no number."""
    value = result.metrics.get(metric, math.nan) if result is not None else math.nan
    if result is None or math.isnan(value):
        return Trial(-math.inf, math.nan, math.inf)
    values = np.asarray(result.by_prompt.get(metric, ()), dtype=float)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return Trial(_signed(value, higher), error, result.metrics.get("kl", math.nan))


def _signed(value: float, higher: bool) -> float:
    return value if higher else -value
