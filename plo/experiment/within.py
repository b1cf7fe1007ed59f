"""The largest design of an experiment that fits into a given time, with the difference that it detects."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from plo.config import ConfigError, Experiment
from plo.errors import PloError
from plo.experiment.costs import Costs
from plo.experiment.estimate import Estimate
from plo.experiment.plan import plan_comparison
from plo.experiment.power import Measured, measure
from plo.experiment.recorded import Recorded

MOST_SEEDS = 20
ENOUGH_SEEDS = 3  # with fewer the number of trials is halved
LEAST_PROMPTS = 16


@dataclass(frozen=True)
class Fitting:
    """A design that fits.

    Attributes:
        seeds: number of seeds, those of the last look.
        looks: numbers of seeds at the looks; empty without looks.
        prompts: number of prompts of an evaluation.
        trials: number of trials of each loss; None without tuning.
        seconds: estimate of the wall-clock at most.
        detectable: minimal detectable difference of the primary metric; NaN where no variances are recorded.
    """

    seeds: int
    looks: tuple[int, ...]
    prompts: int
    trials: int | None
    seconds: float
    detectable: float

    def overrides(self, experiment: Experiment) -> list[str]:
        """Return the settings that make the design of an experiment, as a command takes them."""
        found = []
        if self.looks and self.looks != experiment.looks:
            found.append(f"seeds={{looks: [{', '.join(map(str, self.looks))}]}}")
        elif not self.looks and (seeds := _seeds(experiment, self.seeds)) != experiment.seeds:
            found.append(f"seeds={','.join(map(str, seeds))}")
        if self.prompts != experiment.evaluation.prompts:
            found.append(f"evaluation.prompts={self.prompts}")
        if self.trials is not None and experiment.tuning and self.trials != experiment.tuning.trials:
            found.append(f"tuning.trials={self.trials}")
            if experiment.tuning.promote > self.trials:
                found.append(f"tuning.promote={self.trials}")
        return found


@dataclass(frozen=True)
class Proposal:
    """The design to run, and all that fit with as many trials: for each number of prompts the one with the most seeds."""

    chosen: Fitting
    fitting: tuple[Fitting, ...]
    metric: str | None  # that `detectable` is about; None if no variances are recorded


def propose(known: Recorded, costs: Costs, seconds: float, workers: int = 1) -> Proposal:
    """Return the largest design that fits into `seconds`.

    The design with the least detectable difference is chosen or, where no variances are recorded, that with the most seeds.
    The number of trials is the experiment's, and is halved while fewer than three seeds fit.

    Raises:
        ConfigError: nothing fits, or no cost is known.
    """
    experiment, measured = known.inputs.experiment, None
    with suppress(PloError):
        measured = measure(experiment)
    most = len({pair.prompt for pair in known.inputs.data.eval})
    smallest = math.inf
    found = list[Fitting]()
    for trials in _trials(experiment):
        found = []
        for prompts in _prompts(experiment.evaluation.prompts, most):

            def wall(looks: tuple[int, ...], prompts: int = prompts, trials: int | None = trials) -> float:
                return _wall(known, costs, workers, _changed(experiment, looks, prompts, trials))

            sizes = _sizes(experiment)
            smallest = min(smallest, least := wall(sizes[0]))
            if least <= seconds:
                place = _last(sizes, lambda looks: wall(looks) <= seconds)
                looks = sizes[place]
                detectable = _detectable(measured, looks[-1], prompts, experiment.evaluation.samples)
                own = looks if experiment.looks else ()
                found.append(Fitting(looks[-1], own, prompts, trials, wall(looks), detectable))
        if found and max(one.seeds for one in found) >= ENOUGH_SEEDS:
            break
    if not found:
        raise ConfigError(
            f"Nothing fits into {seconds / 60:.0f} minutes: the smallest design tried takes about {smallest / 60:.0f}. Give "
            f"more time or --workers, fewer losses or pairs, or train.steps."
        )
    chosen = min(found, key=lambda one: (_rank(one.detectable), -one.seeds, _distance(one, experiment)))
    return Proposal(chosen, tuple(found), measured.metric if measured is not None else None)


def _wall(known: Recorded, costs: Costs, workers: int, changed: Experiment) -> float:
    """Return the estimated seconds of a changed experiment."""
    same = changed.evaluation == known.inputs.experiment.evaluation
    other = replace(
        known,
        inputs=replace(known.inputs, experiment=changed),
        tuning=replace(known.tuning, experiment=changed) if known.tuning is not None else None,
        comparison=known.comparison if same else None,  # other prompts make another comparison
    )
    plan = plan_comparison(changed, other)
    estimate = Estimate(plan, costs, workers)
    wall = estimate.total(estimate.units(plan.left)).wall
    if wall is None:
        raise ConfigError("--within needs costs, and none are known: leave out --no-measure, or run a few cells first.")
    return wall


def _changed(experiment: Experiment, looks: tuple[int, ...], prompts: int, trials: int | None) -> Experiment:
    changes: dict[str, Any] = {
        "seeds": _seeds(experiment, looks[-1]),
        "looks": looks if experiment.looks else (),
        "evaluation": experiment.evaluation.model_copy(update={"prompts": prompts}),
    }
    if trials is not None and experiment.tuning is not None:
        few = {"trials": trials, "promote": min(experiment.tuning.promote, trials)}
        changes["tuning"] = experiment.tuning.model_copy(update=few)
    return experiment.model_copy(update=changes)


def _seeds(experiment: Experiment, count: int) -> tuple[int, ...]:
    """Return the experiment's seeds, followed by numbers above them."""
    first = max(experiment.seeds) + 1
    return (*experiment.seeds, *range(first, first + count))[:count]


def _sizes(experiment: Experiment) -> list[tuple[int, ...]]:
    """Return numbers of seeds to try, from few to many: without looks as one look each."""
    if not experiment.looks:
        return [(count,) for count in range(2, MOST_SEEDS + 1)]
    longest = list(experiment.looks)
    while (following := round(longest[-1] * 1.5)) <= MOST_SEEDS:
        longest.append(max(following, longest[-1] + 1))
    return [tuple(longest[:count]) for count in range(1, len(longest) + 1)]


def _prompts(given: int, most: int) -> Iterator[int]:
    """List numbers of prompts to try: the given one halved and doubled, up to all that are held out."""
    counts = {min(given, most), most} | {min(given * 2**power, most) for power in range(1, 5)}
    return iter(sorted(counts | ({given // 2} if given // 2 >= LEAST_PROMPTS and given <= most else set())))


def _trials(experiment: Experiment) -> Iterator[int | None]:
    """List numbers of trials to try, the experiment's own first."""
    trials = experiment.tuning.trials if experiment.tuning else None
    yield trials
    while trials is not None and trials > 2:
        trials = max(2, trials // 2)
        yield trials


def _last(sizes: list[tuple[int, ...]], fits: Callable[[tuple[int, ...]], bool]) -> int:
    """Return the place of the last size that fits, of which the first does."""
    low, high = 0, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return low


def _detectable(measured: Measured | None, seeds: int, prompts: int, samples: int) -> float:
    return measured.design(seeds, prompts, samples).detectable if measured is not None else math.nan


def _rank(detectable: float) -> float:
    """Return the detectable difference to two digits, so that designs that differ by less count as equal."""
    return 0.0 if math.isnan(detectable) else float(f"{detectable:.2g}")


def _distance(one: Fitting, experiment: Experiment) -> float:
    """Return how far the number of prompts is from the experiment's, more prompts being better than fewer."""
    ratio = one.prompts / experiment.evaluation.prompts
    return -ratio if ratio >= 1 else 1 / ratio
