"""Costs from what is recorded: cells, trials and scores of the same model, data and machine, in any comparison of a store."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from plo.config import Experiment
from plo.environment import environment
from plo.errors import PloError
from plo.experiment.costs import Costs, Figure, cost_class
from plo.experiment.recorded import Recorded
from plo.scorers import get_variant
from plo.tracking import Comparison, Run, Tracker

NEWEST = 20  # comparisons that are looked through
COSTS = "plo.costs"  # tag of a run: see `plo.experiment.cell.run_cell`
HARDWARE = ("plo.cpu", "plo.gpu")
OF_DATA = ("source", "max_length", "truncation", "options")
OF_TRAINING = ("batch_size", "micro_batch_size", "gradient_checkpointing", "optimizer")
OF_EVALUATION = ("samples", "max_new_tokens", "temperature", "top_p", "batch_size", "suite")


@dataclass(frozen=True)
class _Spent:
    """Seconds and memory of the attempt that finished a cell or a trial."""

    kind: str
    cost: str | None  # class; None for the reference
    pairs: int
    training: float
    evaluations: int
    evaluation: float
    memory: float


def recorded_costs(known: Recorded, tokens: float, samples: int, calibrated: Costs) -> Costs:
    """Return costs of trainings and evaluations as recorded cells and trials show them.

    Args:
        tokens: mean number of tokens of a training pair.
        samples: number of samples in an evaluation.
        calibrated: costs whose fixed seconds of a cell are subtracted before the rest is divided among tokens.
    """
    if known.tracker is None:
        return Costs()
    experiment = known.inputs.experiment
    trained: dict[str, list[_Spent]] = defaultdict(list)
    evaluated: dict[bool, list[tuple[float, _Spent]]] = defaultdict(list)
    for comparison in [*reversed(known.tracker.comparisons())][:NEWEST]:
        with suppress(PloError):
            config = comparison.config()
            if not _alike(config, experiment):
                continue
            same = _part(config, "evaluation", OF_EVALUATION) == _own(experiment, "evaluation", OF_EVALUATION)
            scale = config["evaluation"]["prompts"] / experiment.evaluation.prompts
            for spent in _spent(known.tracker, comparison):
                if spent.cost is not None and spent.pairs:
                    trained[spent.cost].append(spent)
                if same and spent.evaluations:
                    evaluated[spent.cost is not None].append((scale, spent))
    found = _scoring(known.tracker, known.inputs.model_identity, tokens)
    fixed = calibrated.get("cell") or 0.0
    for cost, spent in trained.items():
        seconds = sum(max(one.training - fixed, 0.1 * one.training) for one in spent)
        found[f"training {cost}"] = Figure(seconds / (tokens * sum(one.pairs for one in spent)), _source(spent))
        found[f"memory {cost}"] = Figure(max(one.memory for one in spent), _source(spent))
    for is_trained, several in evaluated.items():
        name = "evaluation" if is_trained else "evaluation of the reference"
        drawn = sum(min(scale, 1.0) * samples * one.evaluations for scale, one in several)
        found[name] = Figure(sum(one.evaluation for _, one in several) / drawn, _source([one for _, one in several]))
    return Costs(found)


def _alike(config: Mapping[str, Any], experiment: Experiment) -> bool:
    ours = experiment.model.model_dump(mode="json", exclude={"reference_disk_gb"})
    return (
        _part(config, "model", ours) == ours
        and _part(config, "data", OF_DATA) == _own(experiment, "data", OF_DATA)
        and _part(config, "train", OF_TRAINING) == _own(experiment, "train", OF_TRAINING)
    )


def _part(config: Mapping[str, Any], section: str, names: Any) -> dict[str, Any]:
    return {name: config.get(section, {}).get(name) for name in names}


def _own(experiment: Experiment, section: str, names: Any) -> dict[str, Any]:
    return _part(experiment.model_dump(mode="json"), section, names)


def _spent(tracker: Tracker, comparison: Comparison) -> Iterator[_Spent]:
    """List what the finished cells and trials of a comparison took, as far as it is recorded and on a machine like this."""
    import torch

    here = environment()
    cells = [("cell", one) for one in comparison.cells() if one.status == "FINISHED"]
    trials: list[tuple[str, Run]] = [("trial", one) for one in tracker.trials(comparison.run_id).values()]
    for kind, run in [*cells, *trials]:
        costs = json.loads(run.tags.get(COSTS, "{}"))
        if costs.get("threads") != torch.get_num_threads() or costs.get("processes") != 1:
            continue
        if any(run.tags.get(tag) != here.get(tag) for tag in HARDWARE):
            continue
        name, cost = run.tags["plo.variant"], None
        if name != "reference":
            try:
                cost = cost_class(get_variant(name).loss)
            except PloError:  # of a plug-in that is not loaded
                continue
        pairs = costs["steps"] * int(run.params.get("train.batch_size", 0))
        training = costs["seconds"] - costs["evaluation_seconds"]
        yield _Spent(kind, cost, pairs, training, costs["evaluations"], costs["evaluation_seconds"], costs["memory_gb"])


def _scoring(tracker: Tracker, model: str, tokens: float) -> dict[str, Figure]:
    """Return seconds a token of the scorers whose scores of this model are recorded."""
    seconds: dict[str, list[float]] = defaultdict(list)
    here = environment()
    for run in tracker.stages() if model else ():
        name, numbers, tags = run["name"], run["metrics"], run["tags"]
        alike = tags.get("plo.model") == model and all(tags.get(tag) == here.get(tag) for tag in HARDWARE)
        if name.startswith("scores ") and run["status"] == "FINISHED" and alike and numbers.get("pairs"):
            seconds[name.removeprefix("scores ")].append(numbers["seconds"] / (numbers["pairs"] * tokens))
    return {
        f"scoring {name}": Figure(fmean(own), f"{len(own)} recorded scoring{'s' if len(own) > 1 else ''}")
        for name, own in seconds.items()
    }


def _source(spent: list[_Spent]) -> str:
    counts = {kind: sum(one.kind == kind for one in spent) for kind in ("cell", "trial")}
    return " and ".join(f"{n} recorded {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n)
