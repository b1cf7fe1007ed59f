"""Descriptions of metrics, recorded with each run, so that a table needs recorded runs alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

ADJUSTED = "length_adjusted_"  # prefix of a win rate adjusted to the length of the opponent's texts


@dataclass(frozen=True)
class Metric:
    """Description of a metric: its direction, range, label and format in a table.

    Attributes:
        better: "↑" if higher is better, "↓" if lower is, "" if neither direction is better by itself.
        table: "reward" for the first table of a leaderboard, "text" for the second, else the name of an evaluation.
        bounds: least and greatest possible value.
    """

    name: str
    label: str
    meaning: str = "as its evaluation defines it"
    digits: int = 3
    better: str = ""
    table: str = "reward"
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; an infinite bound becomes null."""
        return asdict(self) | {"bounds": [bound if math.isfinite(bound) else None for bound in self.bounds]}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> "Metric":
        """Return the metric that `to_dict` wrote; keys that a later version added are ignored."""
        known: dict[str, Any] = {key: value for key, value in recorded.items() if key in cls.__dataclass_fields__}
        low, high = known.get("bounds", (None, None))
        known["bounds"] = (-math.inf if low is None else low, math.inf if high is None else high)
        return cls(**known)


_SHARES = ("*win_rate", "*win_rate_*", "preference_accuracy", "consistency*", "unreadable*", "repetition", "finished")
ARROWS = {True: "↑", False: "↓", None: ""}

_ALL = [
    Metric("reward", "reward", "VADER compound score of the continuation, -1 to 1; it saturates", 3, "↑"),
    Metric("gold_win_rate", "win rate", "share of sample pairs in which the reference scores less", 3, "↑"),
    Metric("valence", "valence", "VADER's valence sum before it saturates, per token", 3, "↑"),
    Metric("kl", "KL", "nats: sequence KL(pi || ref) on the policy's own samples, T = 1", 2),
    Metric("ref_nll", "ref NLL", "nats a token: -log ref(y | x) / tokens; low is fluent", 3),
    Metric("repetition", "repetition", "share of repeated 3-grams within a sample", 3, "↓"),
    Metric("tokens", "tokens", "length of a sample, EOS included", 1),
    Metric(
        "oracle_queries",
        "oracle queries",
        "answers scored, or questions to the judge, for its training pairs, all rounds, or to choose its samples",
        0,
        "",
        "text",
    ),
    Metric(
        "data_kl_start",
        "data KL, start",
        "nats: KL(policy of the training answers || policy) before the training",
        2,
        "",
        "text",
    ),
    Metric(
        "data_kl", "data KL, end", "nats: KL(policy of the training answers || trained policy), sequence", 2, "", "text"
    ),
    Metric(
        "data_kl_se", "data KL s.e.", "nats: standard error of one run's data KL, prompts as clusters", 2, "", "text"
    ),
    Metric("kl_se", "KL s.e.", "nats: standard error of one run's KL, prompts as clusters", 2, "", "text"),
    Metric("preference_accuracy", "pref. acc.", "share of held-out pairs ranked as labelled", 3, "↑", "text"),
    Metric("entropy", "entropy", "nats a token: full-vocabulary entropy of the policy", 3, "", "text"),
    Metric("distinct_1", "distinct-1", "unique / all words over a prompt's samples", 3, "↑", "text"),
    Metric("self_bleu_pairwise", "self-BLEU", "mean pairwise BLEU in a prompt, 0-100", 1, "↓", "text"),
    Metric("finished", "finished", "share of samples that ended with EOS", 3, "", "text"),
]


def usual_bounds(name: str) -> tuple[float, float]:
    """Return (0, 1) for a metric that is a share by plo's naming, else infinite bounds."""
    share = any(fnmatchcase(name, pattern) for pattern in _SHARES) and not name.endswith("_se")
    return (0.0, 1.0) if share else (-math.inf, math.inf)


BUILT_IN = {metric.name: replace(metric, bounds=usual_bounds(metric.name)) for metric in _ALL}

# Directions of plo's own evaluations of a model, for runs recorded before directions were.
EARLIER = {
    "win_rate_se": None, "win_rate*": True, "*_win_rate": True, "preference_accuracy": True, "distinct_*": True,
    "ead_*": True, "self_bleu_*": False, "cosine_distance*": True, "vendi_score*": True, "compression_ratio*": False,
    "*.acc*": True, "*.exact_match*": True, "*.prompt_level_*": True, "*.inst_level_*": True, "*perplexity*": False,
    "*.bits_per_byte*": False,
}  # fmt: skip


def matching(patterns: Mapping[str, Any], name: str) -> Any:
    """Return the value of the first pattern that matches a name, or None."""
    return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), None)
