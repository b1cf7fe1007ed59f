"""How each metric is shown: label, unit, digits, which way is better, and in which table."""

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from plo.evals import EVALUATIONS

ADJUSTED = "length_adjusted_"  # begins the name of a win rate as if the texts were as long as the opponent's


@dataclass(frozen=True)
class Metric:
    """`better` is "↑", "↓" or "" (neither direction is better by itself); `bounds`: the least and the greatest it can be."""

    name: str
    label: str
    meaning: str
    digits: int = 3
    better: str = ""
    table: str = "reward"
    bounds: tuple[float, float] = (-math.inf, math.inf)


_RATES = ("*win_rate", "*win_rate_*", "preference_accuracy", "consistency*", "unreadable*", "repetition", "finished")


def _bounds(name: str) -> tuple[float, float]:
    """0 and 1 of a share."""
    share = any(fnmatchcase(name, rate) for rate in _RATES) and not name.endswith("_se")
    return (0.0, 1.0) if share else (-math.inf, math.inf)


_ALL = [
    Metric("reward", "reward", "VADER compound score of the continuation, -1 to 1; it saturates", 3, "↑"),
    Metric("gold_win_rate", "win rate", "share of sample pairs in which the reference scores less", 3, "↑"),
    Metric("valence", "valence", "VADER's valence sum before it saturates, per token", 3, "↑"),
    Metric("kl", "KL", "nats: sequence KL(pi || ref) on the policy's own samples, T = 1", 2),
    Metric("ref_nll", "ref NLL", "nats a token: -log ref(y | x) / tokens; low is fluent", 3),
    Metric("repetition", "repetition", "share of repeated 3-grams within a sample", 3, "↓"),
    Metric("tokens", "tokens", "length of a sample, EOS included", 1),
    Metric("kl_se", "KL s.e.", "nats: standard error of one run's KL, prompts as clusters", 2, "", "text"),
    Metric("preference_accuracy", "pref. acc.", "share of held-out pairs ranked as labelled", 3, "↑", "text"),
    Metric("entropy", "entropy", "nats a token: full-vocabulary entropy of the policy", 3, "", "text"),
    Metric("distinct_1", "distinct-1", "unique / all words over a prompt's samples", 3, "↑", "text"),
    Metric("self_bleu_pairwise", "self-BLEU", "mean pairwise BLEU in a prompt, 0-100", 1, "↓", "text"),
    Metric("finished", "finished", "share of samples that ended with EOS", 3, "", "text"),
]
METRICS = {metric.name: replace(metric, bounds=_bounds(metric.name)) for metric in _ALL}


def metric(name: str) -> Metric:
    """The metric's presentation; a plain one for a metric of a user's own evaluation."""
    plain = Metric(name, name.replace("_", " "), "as its evaluation defines it", table="text")
    return METRICS.get(name, plain)


def of_evaluation(evaluation: str, name: str) -> Metric:
    """The presentation of an evaluation's metric: its direction is what the evaluation was registered with."""
    directions = EVALUATIONS[evaluation].facts["higher_is_better"] if evaluation in EVALUATIONS else {}
    raw = name.removeprefix(ADJUSTED)  # an adjusted rate is read as the raw one is
    found = next((better for pattern, better in directions.items() if fnmatchcase(raw, pattern)), None)
    arrow = {True: "↑", False: "↓", None: ""}[found]
    label = name.replace("length_adjusted", "length-adjusted").replace("_", " ")
    return Metric(name, label, "as its evaluation defines it", better=arrow, table=evaluation, bounds=_bounds(name))
