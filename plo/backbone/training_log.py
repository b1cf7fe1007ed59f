"""Metrics that a training logs: means over the pairs since the last entry, of all processes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plo import distributed
from plo.backbone.memory import peak_memory_gb
from plo.margins import without_rounding


class TrainingLog:
    """Sums over the pairs and steps since the last entry, of a model whose matrix products are in `dtype`."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._clear()

    def add(self, metrics: Mapping[str, Tensor], pairs: int, tokens: int, terms: Mapping[str, float]) -> None:
        """Add the metrics of a micro-batch's pairs, (pairs,) each, and its part of each term of a sum of losses."""
        for name, values in metrics.items():
            self._sums[name] += values.double().sum().item()
        for name, value in terms.items():
            self._terms[f"loss/{name}"] += value
        self._pairs += pairs
        self._tokens += tokens

    def add_step(self, *, clipped: bool) -> None:
        """Count an optimiser step."""
        self.steps += 1
        self._clipped += clipped

    def entry(self) -> dict[str, float]:
        """Return the means since the last entry, and begin anew. Empty if there was no step."""
        if not self.steps:
            return {}
        mine = (self._pairs, self._tokens, self._sums, self._terms, peak_memory_gb())
        pairs, tokens, sums, terms, peaks = zip(*distributed.gather(mine), strict=True)
        logs = {name: total / sum(pairs) for name, total in _added(sums).items()}
        logs |= {
            "both_falling": float(self.both_falling(logs, sum(pairs), sum(tokens))),
            "clipped": self._clipped / self.steps,
            "tokens_per_second": sum(tokens) / max(self.seconds, 1e-9),
            "peak_memory_gb": max(peaks),
        }
        logs |= {name: total / self.steps for name, total in _added(terms).items()}
        self._clear()
        return logs

    def _clear(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._terms: defaultdict[str, float] = defaultdict(float)
        self._pairs = self._tokens = self.steps = self._clipped = 0
        self.seconds = 0.0  # spent in optimiser steps

    def both_falling(self, logs: Mapping[str, float], pairs: int, tokens: int) -> bool:
        """Return whether the means of both responses' log-ratios are below 0 by more than rounding."""
        sums = torch.tensor(
            [logs[f"log_ratios/{side}"] * pairs for side in ("chosen", "rejected")], dtype=torch.float64
        )
        return bool((without_rounding(sums, torch.tensor(tokens), self.dtype) < 0).all())


def _added(sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(of_process.get(name, 0.0) for of_process in sums) for name in {n: 0 for s in sums for n in s}}
