"""Best-of-n as a row of a comparison: what it chooses by, and what it needs."""

import pandas as pd

from plo.config import ConfigError, Experiment
from plo.data import SOURCES
from plo.evals import EVALUATIONS


def gold_reward(source: str, samples: pd.DataFrame) -> pd.Series:
    """Return the known reward of each sample of a data source's task."""
    name = SOURCES[source].facts.gold
    assert name is not None, "check_best_of refuses a source without a known reward"
    gold = EVALUATIONS[name]
    return gold.load()(samples)[gold.facts.main_score]


def check_best_of(experiment: Experiment, gold: str | None) -> None:
    """Refuse rows best_of_n where there is no reward to choose by, or where the bound of their KL does not hold (ConfigError).

    Args:
        gold: name of the evaluation that is the known reward of the data source; None without one.
    """
    if not experiment.best_of:
        return
    source, config = experiment.data.source, experiment.evaluation
    if gold is None:
        known = ", ".join(sorted(entry.name for entry in SOURCES if entry.facts.gold))
        raise ConfigError(
            f"best_of={list(experiment.best_of)}: the data source {source!r} has no known reward to choose the best sample by. "
            f"Remove best_of, or take a data source that has one: {known}, or one of your own with register_source(gold=...)."
        )
    if (config.temperature, config.top_p) != (1.0, 1.0):
        raise ConfigError(
            f"best_of={list(experiment.best_of)}: the KL of best-of-n is known for samples of the reference itself. Set "
            "evaluation.temperature=1 and evaluation.top_p=1, or remove best_of."
        )
