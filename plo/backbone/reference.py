"""The reference store: the reference's per-token log-probs, and the hidden states that some losses need, on disk.

They are computed once and shared by every loss and seed. A shard's file name is the hash of what its numbers depend on:
weights, token ids (hence truncation and template), dtype, attention, and the batching of this module.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from plo import caches, distributed, store
from plo.backbone import sharding
from plo.backbone.batch import Batch, collate
from plo.backbone.model import Backbone
from plo.backbone.steps import longest
from plo.backbone.token_statistics import needs_reference
from plo.data import Pair
from plo.data.completions import Completions, completions
from plo.identity import sha256

SHARD_PAIRS = 256  # pairs a file: what a crash can cost
PASS_PAIRS = 8  # pairs a forward pass
VERSION = 2  # of the layout and the batching below

Items = Sequence[Pair] | Sequence[Completions]


@dataclass(frozen=True)
class Reference:
    """Statistics of a list of pairs under the reference.

    Attributes:
        logps: per pair and side, (tokens,) nats.
        hidden: per pair and side, a function that reads (tokens, d); None if they were not requested or not stored.
        items: what the statistics are of, for completions that are not the pairs' own.
        completions: further completions that a loss needs, with their statistics; None if it needs none.
    """

    logps: Sequence[tuple[Tensor, ...]]
    hidden: Sequence[tuple[Callable[[], Tensor], ...]] | None
    items: Sequence[Completions] = ()
    completions: "Reference | None" = None

    def statistics(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return `ref_logps` (n,) and, if stored, `ref_hidden` (n, d) of the pairs at `indices`, in a `Batch`'s order."""
        sides = [(i, side) for side in range(len(self.logps[0])) for i in indices]
        statistics = {"ref_logps": torch.cat([self.logps[i][side] for i, side in sides])}
        if self.hidden is not None:
            statistics["ref_hidden"] = torch.cat([self.hidden[i][side]() for i, side in sides])
        return statistics

    def added_to(self, batch: Batch, indices: Sequence[int]) -> Batch:
        """Return a batch of the pairs at `indices` with their reference's statistics."""
        return replace(batch, **self.statistics(indices))


class ReferenceStore:
    """Store of reference statistics, which several processes may fill at once.

    Args:
        folder: folder of the shards.
        disk_gb: hidden states beyond this many gigabytes are not stored, but computed online in each step.
    """

    def __init__(self, folder: Path, disk_gb: float = 20):
        self.folder = folder
        self.disk_gb = disk_gb
        folder.mkdir(parents=True, exist_ok=True)

    def get(
        self,
        backbone: Backbone,
        pairs: Items,
        *,
        hidden: bool = False,
        policy: str | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Reference:
        """Return the statistics of `pairs`, and compute those that are missing.

        Args:
            policy: identity of the weights that the policy has now, to get its statistics instead of the reference's.
            progress: receives the number of pairs done so far.
        """
        hidden = hidden and self._affordable(backbone, pairs)
        logps, states = [], []
        for start in range(0, len(pairs), SHARD_PAIRS):
            shard = pairs[start : start + SHARD_PAIRS]
            path = self._filled(backbone, shard, hidden, policy)
            lengths = [len(ids) for pair in shard for ids in pair.responses]
            with safe_open(path, framework="pt") as file:
                parts = file.get_tensor("logps").split(lengths)
            rows = [partial(_hidden, path, *edges) for edges in pairwise(accumulate(lengths, initial=0))]
            size = len(shard[0].responses)
            logps += [tuple(parts[i : i + size]) for i in range(0, len(parts), size)]
            states += [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]
            progress(start + len(shard))
        return Reference(logps, states if hidden else None)

    def for_loss(self, backbone: Backbone, pairs: Sequence[Pair], needs: Sequence[str]) -> Reference:
        """Return the statistics of training pairs that a loss with these needs reads, those of further completions included."""
        return self.with_completions(self.get(backbone, pairs, hidden=needs_reference(needs)), backbone, pairs, needs)

    def with_completions(
        self, reference: Reference, backbone: Backbone, pairs: Sequence[Pair], needs: Sequence[str]
    ) -> Reference:
        """Return the statistics of `pairs` with those of the further completions that a loss with these needs reads."""
        items = completions(pairs, needs)
        return (
            reference
            if items is None
            else replace(reference, completions=replace(self.get(backbone, items), items=items))
        )

    def _filled(self, backbone: Backbone, shard: Items, hidden: bool, policy: str | None) -> Path:
        key = _key(backbone, shard, policy)
        larger = self.folder / f"{key}-hidden.safetensors"
        path = larger if hidden else self.folder / f"{key}.safetensors"
        for candidate in (path, larger):
            caches.hold(candidate)  # `_hidden` reads it as long as the run goes on
        found = next(filter(store.intact, (path, larger)), None)
        if sharding.is_sharded(backbone):  # each process holds a part of the model: all compute, or none
            if all(distributed.gather(found is not None)) and found is not None:
                return found
            values = _compute(backbone, shard, hidden, policy)
            distributed.on_main(lambda: store.write(path, partial(save_file, values)), share=False)
            return path
        if found is not None:
            return found
        with caches.lock(path):
            if not store.intact(path):  # another process may have filled it while this one waited
                store.write(path, partial(save_file, _compute(backbone, shard, hidden, policy)))
        return path

    def _affordable(self, backbone: Backbone, pairs: Items) -> bool:
        tokens = sum(len(ids) for pair in pairs for ids in pair.responses)
        return tokens * backbone.hidden_size * backbone.head_dtype.itemsize <= self.disk_gb * 1e9


def _hidden(path: Path, start: int, end: int) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_slice("hidden")[start:end]


def _compute(backbone: Backbone, shard: Items, hidden: bool, policy: str | None) -> dict[str, Tensor]:
    order = sorted(range(len(shard)), key=lambda i: (longest(shard[i]), i))  # little padding
    parts: dict[str, list[list[Tensor]]] = {name: [[] for _ in shard] for name in ("logps", "hidden")}
    with backbone.holding(backbone.reference) if policy is None else nullcontext():
        for start in range(0, len(order), PASS_PAIRS):
            rows = order[start : start + PASS_PAIRS]
            batch = collate([shard[i] for i in rows], packed=backbone.packed)
            for name, values in backbone.measure(batch, ("logps",), hidden=hidden).items():
                for i, part in zip(rows * len(shard[0].responses), values.cpu().split(batch.lengths), strict=True):
                    parts[name][i].append(part)
    return {name: torch.cat([t for sides in values for t in sides]) for name, values in parts.items() if any(values)}


def _key(backbone: Backbone, shard: Items, policy: str | None) -> str:
    weights = policy or backbone.reference.identity
    how = [weights, str(backbone.compute_dtype), backbone.device.type, backbone.packed, backbone.attention]
    return sha256([VERSION, SHARD_PAIRS, PASS_PAIRS, torch.__version__, how, ids_digest(shard)])


def ids_digest(pairs: Items) -> str:
    """Return the hash of the token ids of pairs. Keys of recorded comparisons with a stage contain it."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr((pair.prompt_ids, *pair.responses)).encode())
    return digest.hexdigest()
