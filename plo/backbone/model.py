"""The one module that is trained: a causal LM, the loss's own parameters, and the way back to the reference."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from plo import distributed
from plo.backbone import sharding
from plo.backbone.activations import compare_parts, keep_less
from plo.backbone.attention import PACKED
from plo.backbone.batch import Batch
from plo.backbone.disk import OnDisk
from plo.backbone.head import ModelError, check_head, check_plain, scaled
from plo.backbone.lora import fuse, lora_config
from plo.backbone.terms import always_logged, as_pairs, count, evaluate, scatter
from plo.backbone.token_statistics import KEPT_ELEMENTS, Head, needs_reference, token_statistics
from plo.config import ModelConfig
from plo.faults import reason
from plo.losses import Loss
from plo.pairs import Pairs


class Backbone(nn.Module):
    """Policy, reference and loss in one module. `forward(batch)` is all that training uses.

    With LoRA the reference is the policy with its adapters off. With full fine-tuning it is the initial weights, kept
    on disk. `start_from` and `compare_with` make it another one. In training its statistics come from the store; only hidden
    states beyond the store's disk budget are computed online.

    Args:
        model: a causal LM; its weights are the reference.
        settings: peft, LoRA sizes.
        compute_dtype: autocast dtype of matrix products; None computes in the dtype of the weights.
        device: where shards go if the model is sharded; None: the model's own.

    Attributes:
        packed: whether batches of pairs are to be packed (see `plo.backbone.attention`), their prompt computed once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: ModelConfig,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__()
        check_plain(model)
        self.settings = settings
        self.compute_dtype = compute_dtype
        self.loss: Loss | None = None
        self.fingerprint = self.reference_fingerprint = fingerprint_of(model)
        self.attention = model.config._attn_implementation  # of padded rows, and in generation
        self.initial: Mapping[str, Tensor] = {}  # weights of the reference; none: the policy without its adapters
        self.start = self.initial  # that `reset` goes back to; none: fresh adapters
        self._initial_head: dict[str, Tensor] = {}  # of `initial`, from its first use until the next training
        # The reference, where it is another model; in a list, as it is no part of this one.
        self._other: list[Backbone] = []
        self._as_reference = False
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # as TRL does: noise in the policy alone would be noise in the log-ratio
                module.p = 0.0
            if hasattr(module, "attention_dropout"):  # handed to the attention function as a number
                module.attention_dropout = 0.0
        # transformers' generate takes a strided slice of the prompt's hidden states, for which a bfloat16 linear layer
        # on the CPU copies the LM head once a row: 13 s for 200 rows of SmolLM2 instead of 20 ms.
        model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
        if settings.peft == "lora":
            model.requires_grad_(False)
            self.policy = get_peft_model(model, lora_config(settings))
        else:
            self.policy = model
        self._check_head()
        self.kept_logits = KEPT_ELEMENTS  # of a trained head, for the backward pass
        self.packed = False
        self.longest: int | None = None  # tokens that packing was tried with
        if distributed.wants_shards():
            compare_parts(self.policy)
            sharding.shard(self, set(model._no_split_modules or ()), ("measure", "generate"), device or self.device)
        if settings.peft == "full":
            self.initial = self.start = OnDisk(dict(model.named_parameters()))

    def use_packed(self, packed: bool) -> None:
        """Pack batches of pairs from now on, or not. `load_backbone` decides it by what the model can."""
        self.packed = packed
        self.causal_lm.set_attn_implementation(PACKED if packed else self.attention)

    def checkpoint_layers(self, on: bool) -> None:
        """Whether the backward pass computes each decoder layer once more instead of keeping what is in it."""
        model = self.causal_lm
        keep_less(model, not on)
        if on and not model.is_activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        elif not on and model.is_activation_checkpointing:
            model.activation_checkpointing_disable()

    @contextmanager
    def casts_kept(self) -> Iterator[None]:
        """Inside, a trained weight is cast to the compute dtype once, until the optimiser changes it, not once a pass."""
        if sharding.is_sharded(self):  # a cast of every gathered weight would be the whole model
            yield
            return
        torch.autocast_increment_nesting()  # autocast forgets its casts where the outermost one ends
        try:
            yield
        finally:
            torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()

    # What the experiment uses between runs.

    def reset(self, seed: int, loss: Loss | None = None) -> None:
        """Back to the initial policy, in place, with a fresh loss. Seed fixes the LoRA initialisation alone."""
        if sharding.is_sharded(self):
            self.reshard()  # an earlier training may have ended between a forward pass and its backward pass
        self.policy.requires_grad_(self.settings.peft == "full")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            if self.settings.peft == "lora":
                self.policy.add_adapter("fresh", lora_config(self.settings))  # whole, where "default" may be sharded
                fresh = {name: p for name, p in self.policy.named_parameters() if ".fresh." in name}
                for name, parameter in fresh.items():
                    default = self.policy.get_parameter(name.replace(".fresh.", ".default."))
                    default.copy_(sharding.like(parameter, default))
                self.policy.delete_adapter("fresh")
                self.policy.set_adapter("default")
                fuse(self.policy, autocast=self.compute_dtype is not None)
            parameters = dict(self.policy.named_parameters())
            for name, values in self.start.items():
                parameters[name].copy_(values)
            torch.manual_seed(seed)  # the loss's draw does not depend on the adapters'
            self.loss = loss.build(self.hidden_size).to(self.device) if loss is not None else None
        self._initial_head.clear()
        self.policy.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """The policy as `from_pretrained` reads it: the adapter, or the whole model."""
        state = None
        if sharding.is_sharded(self):
            own = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
            state = sharding.on_main(own if self.settings.peft == "lora" else self.policy.state_dict())
        if distributed.is_main():
            # peft would look for the base's vocabulary, to see whether it grew, and warn where the base is an adapter
            settings = {"save_embedding_layers": False} if self.settings.peft == "lora" else {}
            self.policy.save_pretrained(folder, state_dict=state, **settings)

    def restore(self, folder: Path) -> None:
        """Make the policy the one that `save` wrote, after a `reset`.

        Raises:
            ModelError: the folder lacks its weights, or they are another model's.
        """
        lora = self.settings.peft == "lora"
        if sharding.is_sharded(self):
            raise ModelError(f"The trained policy {folder} cannot be read back under FSDP: start one process, or DDP.")
        try:
            if lora:
                state = load_peft_weights(str(folder), device="cpu")
                unexpected = set_peft_model_state_dict(self.policy, state).unexpected_keys
            else:
                state = type(self.policy).from_pretrained(folder, dtype=torch.float32).state_dict()
                unexpected = self.policy.load_state_dict(state, strict=False).unexpected_keys
        except Exception as error:  # a file that is damaged or a pickle: each library has its own error
            raise ModelError(
                f"The trained policy {folder} cannot be read: {reason(error)}. Train it again, or mend the path."
            ) from error
        if unexpected:
            raise ModelError(
                f"The trained policy {folder} is another model's: {self.settings.name!r} lacks {unexpected[0]}."
            )

    def policy_state(self) -> dict[str, Tensor]:
        """Copies of the policy's trained weights, in full, in every process."""
        trained = {name: p.detach() for name, p in self.policy.named_parameters() if p.requires_grad}
        return {name: sharding.whole(p).cpu().clone() for name, p in trained.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Make the policy the one that `policy_state` gave."""
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                if name in state:
                    parameter.copy_(sharding.like(state[name], parameter))

    def start_from(self, state: Mapping[str, Tensor], identity: str, reference: bool) -> None:
        """From now on every training starts from these weights (`policy_state` of an earlier training).

        Args:
            identity: what the weights are, for the keys of what is computed with them.
            reference: whether they are the reference too; else that stays what it was.
        """
        parameters = dict(self.policy.named_parameters())
        if reference:
            self.check_reference_can_be_trained()
        self.start = OnDisk({name: sharding.like(value, parameters[name]) for name, value in state.items()})
        self.fingerprint = identity
        if reference:
            self.initial, self.reference_fingerprint = self.start, identity
            self._initial_head.clear()

    def check_reference_can_be_trained(self) -> None:
        """That `start_from(..., reference=True)` is possible.

        Raises:
            ModelError: with the remedy.
        """
        if isinstance(self.causal_lm.get_output_embeddings(), BaseTunerLayer):
            raise ModelError(
                f"model.lora_targets={self.settings.lora_targets!r} puts adapters on the LM head of "
                f"{self.settings.name!r}, with which the stage sft cannot be the reference: leave the LM head out, or "
                f"set reference: init."
            )

    def compare_with(self, other: "Backbone") -> None:
        """From now on the reference is another model with the same tokens. Nothing else may train it or reset it."""
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
        other.initial, other.start = {}, {}  # what it would go back to after a training
        self._other = [other]
        self.reference_fingerprint = other.fingerprint

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the reference."""
        if self._as_reference:
            yield
            return
        self._as_reference = True
        try:
            with self._exchanged(), self.casts_kept():
                yield
        finally:
            self._as_reference = False

    @property
    def starts_at_reference(self) -> bool:
        """Whether `reset` gives the reference."""
        return not self._other and self.start is self.initial

    @property
    def causal_lm(self) -> PreTrainedModel:
        return self.policy.get_base_model() if self.settings.peft == "lora" else self.policy

    @property
    def hidden_size(self) -> int:
        return self.causal_lm.get_output_embeddings().weight.shape[1]

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that training changes, the loss's own parameters included: what a checkpoint holds."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def policy_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.policy.parameters() if p.requires_grad]

    def loss_parameters(self) -> list[nn.Parameter]:
        return list(self.loss.parameters()) if self.loss is not None else []

    # The forward pass.

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Compute the loss and the metrics of a batch that has its `ref_logps`.

        A loss that compares with the reference's whole distribution reads `ref_hidden`; without it the reference makes
        one more pass.

        Returns:
            sums: (terms,) weighted sum of each term of the loss over its pairs or tokens, with gradient;
            counts: (terms,) how many pairs or tokens each sum is over;
            finite: (pairs,) whether all terms are finite for the pair;
            metrics: name -> (pairs,), detached.
        """
        pairs = self._pairs(batch, self.loss.needs)
        terms = evaluate(self.loss, pairs)
        return {
            "sums": terms.sums,
            "counts": terms.counts,
            "finite": terms.finite,
            "metrics": terms.metrics | always_logged(pairs, self.head_dtype),
        }

    def count(self, batch: Batch) -> list[int]:
        """How many pairs or tokens each term of the loss averages over, without a forward pass."""
        columns = {name: values.to(self.device) for name, values in batch.columns.items()}
        return count(self.loss, batch.mask.to(self.device), columns, self.hidden_size)

    def measure(self, batch: Batch, names: tuple[str, ...], *, hidden: bool = False) -> dict[str, Tensor]:
        """Statistics (n,) of a batch without gradient; with `hidden`, the final hidden states (n, d) too."""
        if self._as_reference and self._other:
            return self._other[0].measure(batch, names, hidden=hidden)
        batch = batch.to(self.device)
        with self.evaluating():
            states = self._hidden(batch)
            statistics = self._statistics(batch, names, states)
        return statistics | ({"hidden": states.to(self.head_dtype)} if hidden else {})

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **arguments: Any) -> Tensor:
        """Generated ids, left-padded prompts included, from the policy in evaluation mode."""
        if self._as_reference and self._other:
            return self._other[0].generate(input_ids, attention_mask, **arguments)
        # generate fills what its arguments leave open from the model's own settings (a repetition penalty, say), which
        # would make the samples another distribution's than the policy's.
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
        """dtype in which hidden states enter the LM head, hence in which they are stored without loss."""
        return self.compute_dtype or self.causal_lm.get_output_embeddings().weight.dtype

    def _pairs(self, batch: Batch, needs: tuple[str, ...]) -> Pairs:
        asked = [n for n in needs if n not in ("ref_logps", "hidden", "weights") and not n.startswith("column:")]
        with self._autocast():
            hidden = self._hidden(batch)
            statistics = self._statistics(batch, ("logps", *asked), hidden)
        statistics["ref_logps"] = batch.ref_logps.to(statistics["logps"])
        if "hidden" in needs:
            statistics["hidden"] = hidden.detach()
        if "weights" in needs:
            statistics["weights"] = batch.token_weights.to(statistics["logps"])
        return as_pairs(
            {name: scatter(values, batch.mask) for name, values in statistics.items()},
            batch.mask,
            columns=batch.columns,
            progress=batch.progress,
        )

    def _statistics(self, batch: Batch, names: tuple[str, ...], hidden: Tensor) -> dict[str, Tensor]:
        ref_hidden = None
        if needs_reference(names):
            ref_hidden = batch.ref_hidden
            if ref_hidden is None:
                with self.evaluating(), self.reference():
                    ref_hidden = self._hidden(batch)
        ref_head = self._reference_head() if ref_hidden is not None else None
        head = self.causal_lm.get_output_embeddings()
        return token_statistics(
            names,
            hidden,
            batch.targets,
            self._head,
            ref_hidden,
            ref_head,
            frozen=not any(p.requires_grad for p in head.parameters()),
            vocabulary=self.causal_lm.config.get_text_config().vocab_size,
            kept=self.kept_logits,
        )

    def _hidden(self, batch: Batch) -> Tensor:
        """(n, d) final hidden states at the positions that predict the response tokens."""
        if self._as_reference and self._other:
            return self._other[0].measure(batch, (), hidden=True)["hidden"]
        with self._with_attention(PACKED if batch.packed else self.attention):
            states = self.causal_lm.base_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
        return states.flatten(0, 1)[batch.positions]

    def _head(self, hidden: Tensor) -> Tensor:
        return self._scaled(self.causal_lm.get_output_embeddings()(hidden))

    def _reference_head(self) -> Head:
        """The reference's LM head, gathered once for all chunks if it is sharded."""
        if self._other:
            return self._other[0]._reference_head()
        head = self.causal_lm.get_output_embeddings()
        head = head.base_layer if isinstance(head, BaseTunerLayer) else head  # the reference's, without an adapter
        names = {id(p): name for name, p in self.policy.named_parameters()}
        if not any(names[id(p)] in self.initial for p in head.parameters()):
            return lambda hidden: self._scaled(head(hidden.to(head.weight.dtype)))
        if not self._initial_head:
            initial = {name: self.initial[names[id(p)]] for name, p in head.named_parameters()}
            self._initial_head = {name: values.to(self.device) for name, values in initial.items()}
        own = {name: sharding.whole(p) for name, p in self._initial_head.items()}
        weight, bias = own["weight"], own.get("bias")
        return lambda hidden: self._scaled(F.linear(hidden.to(weight.dtype), weight, bias))

    def _scaled(self, logits: Tensor) -> Tensor:
        return scaled(self.causal_lm.config, logits)

    def _check_head(self) -> None:
        with self._autocast():
            check_head(self.causal_lm, self._head)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the policy is in evaluation mode, in the compute dtype, without gradient."""
        training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self.policy.train(training)

    @contextmanager
    def _with_attention(self, implementation: str) -> Iterator[None]:
        """The attention inside; outside it stays what training uses, as a checkpointed layer runs once more later."""
        before = self.causal_lm.config._attn_implementation
        if implementation == before or not self.packed:
            yield
            return
        self.causal_lm.set_attn_implementation(implementation)
        try:
            yield
        finally:
            self.causal_lm.set_attn_implementation(before)

    def _autocast(self):
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Inside, the policy's weights are the reference's, unless that is another model."""
        if self._other:
            yield
        elif not self.initial:
            with self.policy.disable_adapter():
                yield
        else:
            named = dict(self.policy.named_parameters())
            own = {name: self._replace(named[name], values) for name, values in self.initial.items()}
            torch.clear_autocast_cache()  # it holds casts of the weights that were there before
            try:
                yield
            finally:
                for name, values in own.items():
                    self._replace(named[name], values)
                torch.clear_autocast_cache()

    def _replace(self, parameter: nn.Parameter, values: Tensor) -> Tensor:
        """Give a parameter other values; returns its own."""
        if sharding.is_sharded(self):  # FSDP gathers from the memory it knows
            own = parameter.detach().clone()
            with torch.no_grad():
                parameter.copy_(values)
        else:
            own, parameter.data = parameter.data, values.to(parameter.device)
        return own


def fingerprint_of(model: PreTrainedModel) -> str:
    """sha256 over names, dtypes and bytes of the weights, and what of the config changes a forward pass."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"}
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
