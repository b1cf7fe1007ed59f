"""Micro-batches of optimiser steps, one forward pass each, made of training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plo import distributed
from plo.backbone import sharding
from plo.backbone.batch import Batch, collate
from plo.backbone.head import ModelError
from plo.backbone.memory import available_bytes, saved_bytes
from plo.backbone.model import Backbone
from plo.backbone.reference import Reference
from plo.backbone.steps import arrange, longest, tokens_of
from plo.config import ConfigError
from plo.data import Pair
from plo.data.completions import completion_names

SHARE_OF_FREE_MEMORY = 0.7  # that activations may take: their gradients and the allocator's slack need the rest


@dataclass(frozen=True)
class MicroBatch:
    """The pairs of one forward pass of an optimiser step.

    Attributes:
        rows: indices of its pairs in the training data.
        counts: per term of the loss, number of pairs or tokens that it averages over.
        filler: whether it counts for nothing, because its process has no pairs left.
        alone: whether it is all that its process computes of the step.
    """

    batch: Batch
    rows: tuple[int, ...]
    counts: list[int]
    filler: bool
    alone: bool


class TrainingPairs:
    """Training pairs of one backbone, with their reference statistics and token weights.

    Args:
        most: maximum number of pairs of a forward pass on each device.

    Raises:
        ModelError: pairs longer than packing was tried with.
        ConfigError: the loss needs token weights, and there are none.
    """

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[Pair],
        reference: Reference,
        weights: Sequence[tuple[Tensor, Tensor]] | None,
        most: int,
    ):
        tokens = max(map(longest, pairs))
        if backbone.packed and backbone.longest and tokens > backbone.longest:
            raise ModelError(
                f"Pairs of up to {tokens} tokens, and packing was tried with {backbone.longest}: "
                f"load_backbone(..., longest={tokens}) tries it for them."
            )
        needs = backbone.loss.needs
        if "weights" in needs and weights is None:
            raise ConfigError(
                f"The loss {backbone.loss.name!r} needs token weights: pass weights=, made by a token scorer."
            )
        self.backbone, self.pairs, self.reference, self.most = backbone, pairs, reference, most
        self.weights = weights if "weights" in needs else None
        if (names := completion_names(needs)) and reference.completions is None:
            raise ConfigError(
                f"The loss {backbone.loss.name!r} needs {', '.join(names)}, completions that are not the pairs' own: make the "
                f"reference by ReferenceStore.for_loss."
            )
        self.columns = [need.removeprefix("column:") for need in needs if need.startswith("column:")]

    def __len__(self) -> int:
        return len(self.pairs)

    def share(self, step: Sequence[int]) -> list[MicroBatch]:
        """Return this process's micro-batches of the pairs of an optimiser step.

        A process for which no pair is left gets a filler: it has to take part in what all processes do together.
        """
        packed, processes = self.backbone.packed, distributed.processes()
        micro = -(-len(step) // (self.most * processes))
        sizes = [tokens_of(self.pairs[i], packed) for i in step]
        parts = arrange(step, sizes, micro * processes, alike=not packed)
        mine = parts[distributed.rank() * micro : (distributed.rank() + 1) * micro]
        return [self._micro_batch(rows or step[:1], filler=not rows, alone=micro == 1) for rows in mine]

    def names(self, rows: Sequence[int], finite: Tensor) -> list[str]:
        """Return the places in the data of the pairs whose loss is not finite; if all are finite, of all pairs."""
        bad = [self.pairs[i].where for i, good in zip(rows, finite.tolist(), strict=True) if not good]
        return bad or [self.pairs[i].where for i in rows]

    def recomputes_layers(self, setting: str) -> bool:
        """Return whether the backward pass must compute layers again, because what they keep for it would not fit.

        What the shortest pair keeps is counted (the difference between two of it and one, as casts of weights are kept
        once), and scaled by tokens to the largest possible micro-batch. Logits are part of the slack.

        Args:
            setting: "on", "off", or "auto", which decides by the free memory.
        """
        backbone = self.backbone
        if setting != "auto" or sharding.is_sharded(backbone):
            return setting == "on"
        sizes = [tokens_of(pair, backbone.packed) for pair in self.pairs]
        shortest = sizes.index(min(sizes))
        backbone.checkpoint_layers(False)
        backbone.train()
        once, twice = self._saved_bytes([shortest]), self._saved_bytes([shortest, shortest])
        micro = sorted(sizes)[-self.most :]
        most = sum(micro) if backbone.packed else len(micro) * max(micro)
        activations = once + (twice - once) / sizes[shortest] * most
        state = sum(3 * p.numel() * p.element_size() for p in backbone.trained().values())  # gradient and Adam's two
        here = distributed.processes() if backbone.device.type == "cpu" else 1  # that share the memory
        return activations > SHARE_OF_FREE_MEMORY * (available_bytes(backbone.device) / here - state)

    def _micro_batch(self, rows: Sequence[int], *, filler: bool, alone: bool) -> MicroBatch:
        batch = self.batch(rows)
        counts = [0 if filler else count for count in self.backbone.count(batch)]
        return MicroBatch(batch, tuple(rows), counts, filler, alone)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the pairs with numbers `rows` as one batch, with the statistics of the reference and the token weights."""
        batch = collate([self.pairs[i] for i in rows], self.columns, packed=self.backbone.packed)
        if self.weights is not None:
            batch = replace(batch, token_weights=torch.cat([self.weights[i][side] for side in (0, 1) for i in rows]))
        batch = self.reference.added_to(batch, rows)
        if (further := self.reference.completions) is None or not completion_names(self.backbone.loss.needs):
            return batch
        completions = collate([further.items[i] for i in rows], packed=self.backbone.packed)
        return replace(batch, completions=further.added_to(completions, rows))

    def _saved_bytes(self, rows: Sequence[int]) -> int:
        backbone = self.backbone
        batch = backbone.with_reference(self.batch(rows).to(backbone.device), backbone.loss.needs)
        kept, backbone.kept_logits = backbone.kept_logits, 0
        try:
            with torch.random.fork_rng():  # LoRA's dropout draws here too
                return saved_bytes(backbone, batch)
        finally:
            backbone.kept_logits = kept
