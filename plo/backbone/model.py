"""The module that is trained: a causal LM and the loss's own parameters, with the forward pass from a batch to a loss."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from plo import distributed
from plo.backbone import sharding
from plo.backbone.activations import compare_parts, keep_less
from plo.backbone.attention import PACKED
from plo.backbone.batch import Batch
from plo.backbone.borrowed import BaseTunerLayer, attending, attention_of, decoder_layers, recompute_layers
from plo.backbone.disk import OnDisk
from plo.backbone.head import ModelError, check_head, evaluating, scaled
from plo.backbone.terms import always_logged, as_pairs, count, evaluate, scatter
from plo.backbone.token_statistics import KEPT_ELEMENTS, Head, needs_reference, statistic_of, token_statistics
from plo.backbone.trainable import TrainableModel
from plo.backbone.weights import Weights
from plo.config import ModelConfig
from plo.data.completions import completion_names
from plo.losses import Loss
from plo.pairs import Pairs, Side


class Backbone(TrainableModel):
    """Policy, reference and loss in one module, whose `forward(batch)` is all that training uses.

    With LoRA the reference is the policy with its adapters off. With full fine-tuning it is the initial weights, kept
    on disk. `start_from` and `compare_with` set another reference. In training its statistics come from the store; only
    hidden states beyond the store's disk budget are computed online.

    Args:
        model: a causal LM; its weights are the reference.
        settings: LoRA or full fine-tuning, and the sizes of LoRA.
        compute_dtype: autocast dtype of matrix products; None: the dtype of the weights.
        device: device of the shards if the model is sharded; None: the model's own.

    Attributes:
        packed: whether to pack batches of pairs, so that a prompt is computed once (see `plo.backbone.attention`).
        attention: name of the model's own attention, which padded rows and generation use.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: ModelConfig,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__(model, settings, compute_dtype)
        self.loss: Any = None  # a `Loss` from the first reset that gives one
        self.attention = attention_of(model)
        self._reference_weights: tuple[Weights, dict[str, Tensor]] | None = None  # of its head, until the next training
        # transformers' generate takes a strided slice of the prompt's hidden states, for which a bfloat16 linear layer
        # on the CPU copies the LM head once a row: 13 s for 200 rows of SmolLM2 instead of 20 ms.
        self.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
        with self._autocast():
            check_head(model)
        self.kept_logits = KEPT_ELEMENTS  # of a trained head, for the backward pass
        self.packed = False
        self.longest: int | None = None  # tokens that packing was tried with
        if distributed.is_sharding_requested():
            compare_parts(self.policy)
            sharding.shard(self, decoder_layers(model), ("measure", "generate"), device or self.device)
        if settings.peft == "full":  # the only copy of what training will change, once the weights are where they stay
            tensors = OnDisk(dict(model.named_parameters()))
            self.base = self.start = self.reference = Weights(self.base.identity, tensors)

    def use_packed(self, packed: bool) -> None:
        """Set whether batches of pairs are packed. `load_backbone` sets it by what the model supports."""
        self.packed = packed
        self.causal_lm.set_attn_implementation(PACKED if packed else self.attention)

    def checkpoint_layers(self, on: bool) -> None:
        """Set whether the backward pass computes each decoder layer once more instead of keeping its intermediate results."""
        keep_less(self.causal_lm, not on)
        recompute_layers(self.causal_lm, on)

    def reset(self, seed: int, loss: Loss | None = None) -> None:
        """Go back to the start, in place, with a fresh loss. `seed` fixes the initialisation of LoRA and of the loss."""
        self.reset_policy(seed)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)  # the loss's draw does not depend on the adapters'
            self.loss = loss.build(self.hidden_size).to(self.device) if loss is not None else None
        self._reference_weights = None

    def compare_with(self, other: "Backbone") -> None:
        """Make another model with the same tokens the reference. Nothing else may train it or reset it."""
        if sharding.is_sharded(self):
            raise ModelError(
                "A reference that is another model is not supported under FSDP: start DDP, or one process."
            )
        sizes = [b.causal_lm.config.get_text_config().vocab_size for b in (self, other)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"The reference has {sizes[1]} tokens where the policy has {sizes[0]}: they must share them."
            )
        if self.packed != other.packed:
            self.use_packed(False)
            other.use_packed(False)
        self.reference = Weights(other.base.identity, model=other)
        other.base = other.start = other.reference = Weights(other.base.identity)  # what it would go back to is let go

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states that enter the LM head."""
        return self.lm_head.weight.shape[1]

    @property
    def lm_head(self) -> Any:
        """The layer from hidden states to logits."""
        return self.causal_lm.get_output_embeddings()

    def trained(self) -> dict[str, Tensor]:
        """Everything that training changes, the loss's own parameters and state included: what a checkpoint holds."""
        trained: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if self.loss is not None:
            trained |= {f"loss.{name}": buffer for name, buffer in self.loss.named_buffers()}
        return trained

    def forward(self, batch: Batch, observe: Callable[[Pairs], None] | None = None) -> dict[str, Any]:
        """Compute the loss and the metrics of a batch that has its `ref_logps`.

        Args:
            observe: receives the pairs before the loss is computed, for what the loss's state depends on.

        Returns:
            The attributes of `Terms` as a dictionary, which DDP and FSDP look into, with the metrics that are always logged.
        """
        batch = self.with_completions(self.with_reference(batch, self.loss.needs))
        pairs = self._pairs(batch, self.loss.needs)
        if observe is not None:
            observe(pairs)
        terms = evaluate(self.loss, pairs)
        return vars(terms) | {"metrics": terms.metrics | always_logged(pairs, self.head_dtype)}

    def count(self, batch: Batch) -> list[int]:
        """Return how many pairs or tokens each term of the loss averages over, without a forward pass."""
        columns = {name: values.to(self.device) for name, values in batch.columns.items()}
        return count(self.loss, batch.mask.to(self.device), columns, self.hidden_size)

    def measure(self, batch: Batch, names: tuple[str, ...], *, hidden: bool = False) -> dict[str, Tensor]:
        """Return statistics (n,) of a batch without gradient, and with `hidden` the final hidden states (n, d)."""
        if self._other is not None:
            return self._other.measure(batch, names, hidden=hidden)
        batch = self.with_reference(batch.to(self.device), names)
        with self.evaluating():
            states = self._hidden(batch)
            statistics = self._statistics(batch, names, states)
        return statistics | ({"hidden": states.to(self.head_dtype)} if hidden else {})

    def with_reference(self, batch: Batch, names: Iterable[str]) -> Batch:
        """Return the batch with the reference's hidden states, if one of `names` compares with its whole distribution."""
        if batch.ref_hidden is not None or not needs_reference(names):
            return batch
        with self.holding(self.reference):
            return replace(batch, ref_hidden=self.measure(batch, (), hidden=True)["hidden"])

    def with_completions(self, batch: Batch) -> Batch:
        """Return the batch with the policy's log-probs of the completions that are not the pairs' own, if it has some."""
        if batch.completions is None or batch.completions.logps is not None:
            return batch
        own = batch.completions.to(self.device)
        return replace(batch, completions=replace(own, logps=self.measure(own, ("logps",))["logps"]))

    def completions(self, batch: Batch) -> dict[str, Side]:
        """Return the completions of a batch that are not the pairs' own, by name, one `Side` each; {} if it has none."""
        if (own := batch.completions) is None:
            return {}
        statistics = {name: scatter(own.given(name), own.mask) for name in ("logps", "ref_logps")}
        names = completion_names(self.loss.needs)
        parts = [
            dict(zip(statistics, rows, strict=True))
            for rows in zip(*(v.chunk(len(names)) for v in statistics.values()), strict=True)
        ]
        masks = own.mask.chunk(len(names))
        return {name: Side(mask=mask, **part) for name, mask, part in zip(names, masks, parts, strict=True)}

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **arguments: Any) -> Tensor:
        """Generate with the policy in evaluation mode, and return the ids, left-padded prompts included."""
        if self._other is not None:
            return self._other.generate(input_ids, attention_mask, **arguments)
        # generate takes what its arguments leave open from the model's settings, such as a repetition penalty. The samples
        # would then not come from the policy's distribution.
        own, self.causal_lm.generation_config = self.causal_lm.generation_config, GenerationConfig()
        try:
            with self.evaluating(), self._with_attention(self.attention):
                return self.policy.generate(
                    input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device), **arguments
                ).cpu()
        finally:
            self.causal_lm.generation_config = own

    @property
    def head_dtype(self) -> torch.dtype:
        """The dtype in which hidden states enter the LM head, and in which they are stored without loss."""
        return self.compute_dtype or self.lm_head.weight.dtype

    def _pairs(self, batch: Batch, needs: tuple[str, ...]) -> Pairs:
        registered = [need for need in needs if statistic_of(need) is not None]
        with self._autocast():
            hidden = self._hidden(batch)
            statistics = self._statistics(batch, ("logps", *registered), hidden)
        statistics["ref_logps"] = batch.given("ref_logps").to(statistics["logps"])
        if "hidden" in needs:
            statistics["hidden"] = hidden.detach()
        if "weights" in needs:
            statistics["weights"] = batch.given("token_weights").to(statistics["logps"])
        return as_pairs(
            {name: scatter(values, batch.mask) for name, values in statistics.items()},
            batch.mask,
            columns=batch.columns,
            progress=batch.progress,
            completions=self.completions(batch),
        )

    def _statistics(self, batch: Batch, names: tuple[str, ...], hidden: Tensor) -> dict[str, Tensor]:
        reference, ref_hidden = self.reference, batch.ref_hidden if needs_reference(names) else None
        return token_statistics(
            names,
            hidden,
            batch.targets,
            self._head,
            ref_hidden,
            (reference.model or self)._head_with(reference) if ref_hidden is not None else None,
            frozen=not any(p.requires_grad for p in self.lm_head.parameters()),
            vocabulary=self.causal_lm.config.get_text_config().vocab_size,
            kept=self.kept_logits,
        )

    def _hidden(self, batch: Batch) -> Tensor:
        """Compute the final hidden states (n, d) at the positions that predict the response tokens."""
        if self._other is not None:
            return self._other.measure(batch, (), hidden=True)["hidden"]
        with self._with_attention(PACKED if batch.packed else self.attention):
            decoder: Any = self.causal_lm.base_model
            states = decoder(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
        return states.flatten(0, 1)[batch.positions]

    def _head(self, hidden: Tensor) -> Tensor:
        return self._scaled(self.lm_head(hidden))

    def _head_with(self, weights: Weights) -> Head:
        """Return the LM head with `weights` and without an adapter, gathered once for all chunks if it is sharded."""
        head = self.lm_head
        head = head.base_layer if isinstance(head, BaseTunerLayer) else head
        names = {id(p): name for name, p in self.policy.named_parameters()}
        if not any(names[id(p)] in weights.tensors for p in head.parameters()):
            return lambda hidden: self._scaled(head(hidden.to(head.weight.dtype)))
        if self._reference_weights is None or self._reference_weights[0] is not weights:
            tensors = {name: weights.tensors[names[id(p)]].to(self.device) for name, p in head.named_parameters()}
            self._reference_weights = weights, tensors
        own = {name: sharding.whole(p) for name, p in self._reference_weights[1].items()}
        weight, bias = own["weight"], own.get("bias")
        return lambda hidden: self._scaled(F.linear(hidden.to(weight.dtype), weight, bias))

    @property
    def _other(self) -> "Backbone | None":
        """The model that computes instead of this one while this one holds its weights."""
        return self._held.model if self._held is not None else None

    def _scaled(self, logits: Tensor) -> Tensor:
        return scaled(self.causal_lm.config, logits)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the policy into evaluation mode inside, in the compute dtype and without gradient."""
        with evaluating(self.policy), torch.no_grad(), self._autocast():
            yield

    def _with_attention(self, implementation: str):
        """Attend by an implementation inside. Training keeps its own, as a checkpointed layer runs once more later."""
        return attending(self.causal_lm, implementation) if self.packed else nullcontext()

    def _autocast(self):
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)
