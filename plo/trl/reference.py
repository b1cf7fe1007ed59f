"""The reference of a TRL trainer: computed in every step, known by TRL's precomputed sums, or not needed."""

import contextlib
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from plo.backbone.head import evaluating, scaled
from plo.backbone.terms import evaluate_zeros
from plo.backbone.token_statistics import Head, needs_reference, statistic_of
from plo.losses import Loss
from plo.pairs import MissingStatistic, Side
from plo.trl.batch import COLUMN, Request, ResponseTokens, lm_head, model_inputs
from plo.trl.borrowed import PEFT, REFERENCE_ADAPTER, REFERENCE_SUMS, ModulesToSaveWrapper, check_batch, use_adapter
from plo.trl.errors import TRLError

Source = Literal["online", "summed", "none"]


def causal_lm(trainer: Any) -> PreTrainedModel:
    """Return the causal LM that a trainer trains, without the wrappers of accelerate and PEFT."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if is_peft_model(model) else model


def reference_source(trainer: Any, loss: Loss) -> Source:
    """Decide where the reference's statistics come from: "online", "summed" (TRL's precomputed sums), or "none".

    Raises:
        TRLError: the loss reads the reference token by token, and the trainer keeps sums alone.
    """
    if "ref_logps" not in loss.needs and not needs_reference(loss.needs):
        return "summed" if trainer.precompute_ref_logps else "none"
    if trainer.precompute_ref_logps and _reads_sums(loss, lm_head(causal_lm(trainer)).weight.shape[1]):
        return "summed"
    if trainer.ref_model is None and not is_peft_model(trainer.model):
        raise TRLError(
            f"The loss {loss.name!r} reads the reference token by token, and precompute_ref_log_probs=True keeps sums "
            f"over responses and no reference model. Leave precompute_ref_log_probs out, or pass a ref_model as well."
        )
    if trainer.precompute_ref_logps:
        warnings.warn(
            f"The loss {loss.name!r} reads the reference token by token: it is computed in every step, and what "
            f"precompute_ref_log_probs=True computed is not used. Leave it out to save that time.",
            stacklevel=3,
        )
    return "online"


class Reference:
    """The reference of a trainer, as TRL has it: `ref_model`, else the policy with its adapters off or as they began."""

    def __init__(self, trainer: Any, source: Source):
        self.trainer = trainer
        self.source = source

    def statistics(self, inputs: Mapping[str, Tensor], tokens: ResponseTokens, hidden: bool) -> dict[str, Tensor]:
        """Compute `logps` of the response tokens, and with `hidden` the hidden states, without dropout."""
        trainer = self.trainer
        model, adapters = trainer.ref_model, contextlib.nullcontext()
        if model is None:
            model = trainer.model
            policy = trainer.accelerator.unwrap_model(model)
            adapters = use_adapter(policy, REFERENCE_ADAPTER if REFERENCE_ADAPTER in policy.peft_config else None)
        # Evaluation mode switches gradient checkpointing off too.
        with torch.no_grad(), adapters, trainer.accelerator.autocast(), evaluating(model):
            return model(**model_inputs(inputs), plo=Request(("logps",), tokens, hidden=hidden))

    def head(self) -> Head:
        """Return the reference's LM head, as a function of hidden states."""
        trainer = self.trainer
        model = causal_lm(trainer) if trainer.ref_model is None else trainer.accelerator.unwrap_model(trainer.ref_model)
        head = lm_head(model)
        if isinstance(head, ModulesToSaveWrapper):  # the policy trains a copy of its head
            copies = PEFT.get(head, "modules_to_save")
            head = copies[REFERENCE_ADAPTER] if REFERENCE_ADAPTER in copies else head.original_module  # noqa: SIM401
        return lambda hidden: scaled(model.config, head(hidden.to(head.weight.dtype)))

    def sides(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """Return what makes the chosen and the rejected `Side` of a batch."""
        if self.source != "summed":
            return Side, Side
        check_batch(inputs, *REFERENCE_SUMS)
        chosen, rejected = (functools.partial(SummedSide, ref_logp=inputs[name]) for name in REFERENCE_SUMS)
        return chosen, rejected


class SummedSide(Side):
    """A side whose reference is known by its sum alone, as `precompute_ref_log_probs` gives it: D(y), but no D_t."""

    def __init__(self, *, ref_logp: Tensor, **statistics: Tensor):
        statistics.pop("ref_logps", None)  # not known token by token
        super().__init__(**statistics)
        self._ref_logp = ref_logp

    def __getattr__(self, name: str) -> Tensor:
        if name == "ref_logps":
            raise MissingStatistic("TRL's precompute_ref_log_probs keeps the sum over a response's tokens alone.")
        return super().__getattr__(name)

    def log_ratio(self) -> Tensor:
        """Return (pairs,) nats: D(y), from the sums."""
        return self.logp() - self._ref_logp

    def only(self, names: Sequence[str]) -> Side:
        """Return the same side with `logps` and the named statistics, no others."""
        side = super().only(names)
        if "ref_logps" not in set(names):
            return side
        return SummedSide(ref_logp=self._ref_logp, mask=side.mask, **side._statistics)


def known_statistics(loss: Loss) -> list[str]:
    """Return the statistics that a loss needs and a function of the logits gives."""
    return [need for need in loss.needs if statistic_of(need) is not None]


def _reads_sums(loss: Loss, hidden_size: int) -> bool:
    """Return whether the loss reads the reference by D(y) alone, by calling it with statistics that are 0 everywhere."""
    if needs_reference(loss.needs):
        return False
    mask = torch.ones(2, 1, dtype=torch.bool)
    columns = {need.removeprefix(COLUMN): torch.zeros(1) for need in loss.needs if need.startswith(COLUMN)}
    side = functools.partial(SummedSide, ref_logp=torch.zeros(1))
    try:
        with torch.random.fork_rng(devices=[]):
            evaluate_zeros(loss, mask, columns, hidden_size, sides=(side, side))
    except MissingStatistic:
        return False
    return True
