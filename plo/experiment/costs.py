"""Costs of the parts of a comparison: seconds, memory and bytes, each with a text that says where it was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from plo.losses import Loss

PLAIN = "log-probs"  # the cost class of a loss that needs no statistic beyond log-probs
FREE = {"ref_logps", "weights"}  # needs that are read from a store and cost nothing in a step


@dataclass(frozen=True)
class Figure:
    """A measured number, and its source as a text: "12 recorded cells", "calibrated 2026-11-29"."""

    value: float
    source: str


@dataclass(frozen=True)
class Costs:
    """Measured costs by name. What was not measured costs None.

    Names and units:
        "start": seconds from the start of a process to its first cell.
        "draw": seconds to read the pairs of a seed, where every seed has pairs of its own.
        "reference": seconds of a pass of the reference, for each token.
        "training CLASS": seconds of optimiser steps, for each token; CLASS as of `cost_class`.
        "scoring NAME": seconds of a token scorer, for each token.
        "cell", "stage": seconds of a cell or a stage apart from its steps and evaluations.
        "checkpoint": seconds to write a checkpoint.
        "evaluation", "evaluation of the reference": seconds of one evaluation, for each sample.
        "evaluating NAME": seconds of an evaluation of a model that does not say how many texts it draws.
        "memory", "memory CLASS": peak memory in GB before a training, and in a training.
        "bytes of a model", "... checkpoint", "... cell", "... stage": bytes on disk of one.
        "bytes of reference", "bytes of hidden states": bytes on disk, for each response token.
    """

    figures: Mapping[str, Figure] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        """Return the value of a figure; None if it was not measured."""
        return self.figures[name].value if name in self.figures else None

    def of_class(self, kind: str, cost: str) -> float | None:
        """Return a figure of a cost class: "training" or "memory"; that of the dearest class if this one was not measured."""
        name = self._of_class(kind, cost)
        return self.figures[name].value if name else None

    def source(self, kind: str, cost: str) -> str:
        """Return the source of `of_class`."""
        name = self._of_class(kind, cost)
        return self.figures[name].source if name else ""

    def _of_class(self, kind: str, cost: str) -> str | None:
        if f"{kind} {cost}" in self.figures:
            return f"{kind} {cost}"
        alike = [name for name in self.figures if name.startswith(f"{kind} ") and not name.startswith("memory scoring")]
        return max(alike, key=lambda name: self.figures[name].value, default=None)

    def with_figures(self, others: "Costs") -> "Costs":
        """Return the costs with figures of `others` in place of those of the same name."""
        return Costs({**self.figures, **others.figures})

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values: {name: {"value": ..., "source": ...}}."""
        return {name: asdict(one) for name, one in self.figures.items()}

    @classmethod
    def of(cls, values: Mapping[str, float], source: str) -> "Costs":
        """Return costs that all have one source."""
        return cls({name: Figure(float(value), source) for name, value in values.items()})


def cost_class(loss: Loss) -> str:
    """Return the statistics that a loss needs and that cost time, as a name; losses of a class take about equally long.

    Example:
        >>> from plo.losses import get_loss
        >>> cost_class(get_loss("dpo")), cost_class(get_loss("tdpo2"))
        ('log-probs', 'kl_ref_pi')
    """
    costly = sorted(need for need in loss.needs if need not in FREE and not need.startswith("column:"))
    if any(term.updated == "before" for _, term in loss.terms):
        costly.append("a pass before each step")
    return " + ".join(costly) or PLAIN
