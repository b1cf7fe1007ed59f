"""The engine that is used unless another one is named: transformers, in this process, with plo's own noise."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from plo.backbone.model import Backbone
from plo.backbone.out_of_memory import Passes
from plo.backbone.side_by_side import can_share, sharing
from plo.faults import is_out_of_memory
from plo.subjects.engines.engine import TOGETHER, Adapter, Request, cut
from plo.subjects.noise import GumbelSampler
from plo.subjects.subject import Sampling

LOWER = "Lower evaluation.batch_size (--batch-size) or evaluation.max_new_tokens, or use a smaller model"
SHARED_CACHE = (
    2**30
)  # bytes of keys and values in a forward pass of several adapters, if batch_size does not allow more
log = logging.getLogger(__name__)


class Local:
    """Draws with the model in memory. Plain LoRA adapters of one call share forward passes, each with equally many rows.

    Args:
        at_a_time: number of sequences of one model in a call, and in a forward pass of it alone.
        held: adapter whose weights the backbone holds; requests without an adapter are drawn with them too.
    """

    def __init__(self, backbone: Backbone, at_a_time: int, held: Adapter | None = None):
        self.identity: list[Any] = []
        self.backbone, self.at_a_time, self.held = backbone, at_a_time, held
        self.together = TOGETHER if held is not None and can_share(backbone.policy) else 1
        self._passes = Passes(at_a_time, "sampling", "sequences at a time", LOWER)
        self._tensors: dict[Adapter | None, dict[str, Tensor]] = {}

    def draw(self, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
        by_adapter: dict[Adapter | None, list[Request]] = {}
        for request in requests:
            by_adapter.setdefault(request.adapter, []).append(request)
        if set(by_adapter) <= {None, self.held}:
            return self._alone(requests, sampling, ends)
        models, each = [self._weights(adapter) for adapter in by_adapter], [*by_adapter.values()]
        found = self._shared(each, models, sampling, ends) if len({len(own) for own in each}) == 1 else None
        if found is None:
            found = []
            for tensors, own in zip(models, each, strict=True):
                with sharing(self.backbone.policy, [tensors], self.backbone.compute_dtype):
                    found.append(self._alone(own, sampling, ends))
        parts = dict(zip(by_adapter, map(iter, found), strict=True))
        return [next(parts[request.adapter]) for request in requests]

    def _alone(self, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
        return self._passes.over(requests, lambda rows: self._drawn(rows, sampling, ends))

    def _shared(
        self, each: Sequence[Sequence[Request]], models: Sequence[Any], sampling: Sampling, ends: Sequence[int]
    ) -> list[list[list[int]]] | None:
        """Return the continuations of each model's requests, drawn with all models at once; None if memory runs out."""
        longest = max(len(request.prompt) for own in each for request in own) + sampling.max_new_tokens
        rows = max(self.at_a_time, SHARED_CACHE // max(1, longest * self._cache_bytes())) // len(each)
        found: list[list[list[int]]] = [[] for _ in each]
        try:
            with sharing(self.backbone.policy, models, self.backbone.compute_dtype):
                for start in range(0, len(each[0]), max(1, rows)):
                    parts = [own[start : start + max(1, rows)] for own in each]
                    drawn = self._drawn([request for part in parts for request in part], sampling, ends)
                    for place, part in enumerate(parts):
                        found[place] += drawn[place * len(part) : (place + 1) * len(part)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("Memory ran out in sampling %s models together: they are sampled one by one.", len(models))
            return None
        return found

    def _cache_bytes(self) -> int:
        """Return the bytes of a token's keys and values; so many that nothing fits if the model does not say."""
        config: Any = self.backbone.causal_lm.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", SHARED_CACHE)
        size = getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1)
        return 2 * config.num_hidden_layers * heads * size * self.backbone.head_dtype.itemsize

    def _weights(self, adapter: Adapter | None) -> dict[str, Tensor]:
        """Return an adapter's tensors by the names of the policy's parameters. What the backbone holds stays the same."""
        if adapter not in self._tensors:
            own = self.backbone.weights().tensors
            try:
                if adapter is not None and adapter != self.held:
                    self.backbone.restore(adapter.folder)
                self._tensors[adapter] = dict(self.backbone.weights().tensors)
            finally:
                self.backbone.put(own)
        return self._tensors[adapter]

    def _drawn(self, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
        ids = [request.prompt for request in requests]
        length = max(map(len, ids))
        padded = torch.tensor([[ends[0]] * (length - len(i)) + list(i) for i in ids])
        mask = torch.tensor([[0] * (length - len(i)) + [1] * len(i) for i in ids])
        keys = torch.tensor([request.key for request in requests], device=self.backbone.device)
        generation = GenerationConfig(
            do_sample=False,  # the sampler draws the token, and greedy decoding takes it
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )
        sampler = LogitsProcessorList([GumbelSampler(keys, length, sampling)])
        out = self.backbone.generate(padded, mask, generation_config=generation, logits_processor=sampler)
        return [cut(response, ends) for response in out[:, length:].tolist()]
