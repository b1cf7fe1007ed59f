"""A causal LM that is trained many times: its weights are exchanged, reset, saved and restored."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from plo import distributed
from plo.backbone import sharding
from plo.backbone.borrowed import BaseTunerLayer, autocast_nested, forget_casts
from plo.backbone.disk import OnDisk
from plo.backbone.head import ModelError, check_plain
from plo.backbone.lora import fuse, lora_config
from plo.backbone.weights import Weights, model_identity
from plo.config import ModelConfig
from plo.faults import on_disk, reason


class TrainableModel(nn.Module):
    """A causal LM with LoRA adapters or trained as a whole, and the weights that it can hold.

    Attributes:
        base: the weights that the model was loaded with.
        start: the weights that `reset` goes back to. LoRA without tensors: fresh adapters.
        reference: the weights that a loss compares the policy with.
    """

    def __init__(self, model: PreTrainedModel, settings: ModelConfig, compute_dtype: torch.dtype | None):
        super().__init__()
        check_plain(model)
        self.settings = settings
        self.compute_dtype = compute_dtype
        self.base = self.start = self.reference = Weights(model_identity(model))
        self._held: Weights | None = None  # None: its own
        self._adapters_on = True
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # as TRL does: noise in the policy alone would be noise in the log-ratio
                module.p = 0.0
            if hasattr(module, "attention_dropout"):  # handed to the attention function as a number
                setattr(module, "attention_dropout", 0.0)  # noqa: B010 (a Module declares tensors alone)
        if settings.peft == "lora":
            model.requires_grad_(False)
            self.policy: Any = get_peft_model(model, lora_config(settings))
            fuse(self.policy, autocast=compute_dtype is not None)
        else:
            self.policy = model

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The model inside, without what peft puts around it."""
        return self.policy.get_base_model() if self.settings.peft == "lora" else self.policy

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.policy.parameters()).device

    @property
    def starts_at_reference(self) -> bool:
        """True if `reset` gives the reference."""
        return self.start is self.reference

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training changes, those of the loss excluded."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def weights(self) -> Weights:
        """Return copies of the trained weights, in full, in every process."""
        trained = {name: p.detach() for name, p in self.policy.named_parameters() if p.requires_grad}
        return Weights.on(self.base.identity, {name: sharding.whole(p).cpu().clone() for name, p in trained.items()})

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values, by name, into the policy's parameters: from now on they are the policy's own."""
        sharding.copy(tensors, dict(self.policy.named_parameters()))

    def casts_kept(self) -> AbstractContextManager[None]:
        """Cast each trained weight to the compute dtype once inside, until the optimiser changes it."""
        # A cast of every gathered weight of a sharded model would be the whole model.
        return nullcontext() if sharding.is_sharded(self) else autocast_nested()

    def reset_policy(self, seed: int) -> None:
        """Go back to the start, in place. Seed fixes the LoRA initialisation."""
        if sharding.is_sharded(self):
            cast(Any, self).reshard()  # an earlier training may have ended between a forward pass and its backward pass
        self.policy.requires_grad_(self.settings.peft == "full")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            if self.settings.peft == "lora":
                self.policy.add_adapter("fresh", lora_config(self.settings))  # whole, where "default" may be sharded
                fresh = {
                    n.replace(".fresh.", ".default."): p for n, p in self.policy.named_parameters() if ".fresh." in n
                }
                self.put(fresh)
                self.policy.delete_adapter("fresh")
                self.policy.set_adapter("default")
                fuse(self.policy, autocast=self.compute_dtype is not None)
            self.put(self.start.tensors)
        self.policy.zero_grad(set_to_none=True)

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Compute with `weights` inside, and put back afterwards what was there, whatever happens inside.

        Weights of another model are not copied: that model computes instead.
        """
        before = self._held
        if weights is before:
            yield
            return
        self._held = weights
        try:
            with self._exchanged(weights) if weights.model is None else nullcontext(), self.casts_kept():
                yield
        finally:
            self._held = before

    def start_from(self, weights: Weights, *, reference: bool) -> None:
        """Let every training start from `weights` from now on.

        Args:
            reference: whether they become the reference too; otherwise the reference stays what it was.
        """
        if reference:
            self.check_reference_can_be_trained()
        parameters = dict(self.policy.named_parameters())
        tensors = {name: sharding.like(value, parameters[name]) for name, value in weights.tensors.items()}
        self.start = Weights(weights.identity, OnDisk(tensors))
        if reference:
            self.reference = self.start

    def check_reference_can_be_trained(self) -> None:
        """Raise a ModelError where `start_from(..., reference=True)` is impossible: with adapters on the LM head."""
        if isinstance(self.causal_lm.get_output_embeddings(), BaseTunerLayer):
            raise ModelError(
                f"model.lora_targets={self.settings.lora_targets!r} puts adapters on the LM head of "
                f"{self.settings.name!r}, with which the stage sft cannot be the reference: leave the LM head out, or "
                f"set reference: init."
            )

    @contextmanager
    def _exchanged(self, weights: Weights) -> Iterator[None]:
        named, own, adapters_on = dict(self.policy.named_parameters()), {}, self._adapters_on
        try:
            self._switch_adapters(bool(weights.tensors))
            for name, values in weights.tensors.items():
                own[name] = self._replace(named[name], values)
            forget_casts()  # it holds casts of the weights that were there before
            yield
        finally:
            for name, values in own.items():
                self._replace(named[name], values)
            self._switch_adapters(adapters_on)
            forget_casts()

    def _switch_adapters(self, on: bool) -> None:
        if self.settings.peft == "lora" and on != self._adapters_on:
            lora = self.policy.base_model
            lora.enable_adapter_layers() if on else lora.disable_adapter_layers()
            self._adapters_on = on

    def _replace(self, parameter: nn.Parameter, values: Tensor) -> Tensor:
        """Give a parameter other values; return its own."""
        if sharding.is_sharded(self):  # FSDP gathers from the memory it knows
            own = parameter.detach().clone()
            with torch.no_grad():
                parameter.copy_(sharding.like(values, parameter))
        else:
            own, parameter.data = parameter.data, values.to(parameter.device)
        return own

    def save(self, folder: Path) -> None:
        """Write the policy as `from_pretrained` reads it: the adapter, or the whole model."""
        state = None
        if sharding.is_sharded(self):
            own = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
            state = sharding.on_main(own if self.settings.peft == "lora" else self.policy.state_dict())
        if distributed.is_main():
            # peft would look for the base's vocabulary, to see whether it grew, and warn where the base is an adapter
            settings = {"save_embedding_layers": False} if self.settings.peft == "lora" else {}
            with on_disk(folder):
                self.policy.save_pretrained(folder, state_dict=state, **settings)

    def restore(self, folder: Path) -> None:
        """Make the policy the one that `save` wrote, after a `reset`.

        Raises:
            ModelError: the folder lacks its weights, or they are another model's.
        """
        if sharding.is_sharded(self):
            raise ModelError(f"The trained policy {folder} cannot be read back under FSDP: start one process, or DDP.")
        try:
            if self.settings.peft == "lora":
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
