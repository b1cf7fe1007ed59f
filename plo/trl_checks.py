"""What fits plo's losses in TRL's trainer, and what is refused before training, with the remedy. See `plo.trl`."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import trl
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from plo.backbone.head import check_head, scaled
from plo.backbone.terms import as_pairs, nothing_known
from plo.backbone.token_statistics import STATISTICS, needs_reference
from plo.errors import PloError
from plo.losses import Loss
from plo.pairs import MissingStatistic, Side
from plo.verify.trainable import check_trainable

OF_TRLS_LOSS = (
    "loss_type", "loss_weights", "label_smoothing", "use_weighting", "f_divergence_type", "f_alpha_divergence_coef",
    "ld_alpha", "discopop_tau",
)  # fmt: skip
STATISTICS_BESIDE = ("ref_logps", "hidden")  # those that no function of the logits gives
NOT_TRIED = ("use_liger_kernel", "torch_compile", "activation_offloading")


class TRLError(PloError, ValueError):
    """A trainer, setting or loss that do not fit each other. The message names the remedy."""


def causal_lm(trainer: trl.DPOTrainer) -> PreTrainedModel:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if is_peft_model(model) else model


def check_class(kind: type[trl.DPOTrainer]) -> None:
    """That a trainer's class leaves the loss to TRL, whose place plo's takes.

    Raises:
        TRLError: it has a loss of its own.
    """
    for name in ("compute_loss", "_compute_loss"):
        if getattr(kind, name) is not getattr(trl.DPOTrainer, name):
            raise TRLError(f"{kind.__name__}.{name} computes a loss of its own, which plo's would take the place of.")


def checked(trainer: trl.DPOTrainer, loss: Loss) -> str:
    """Where the reference's statistics come from: "online", "summed" (TRL's precomputed sums), or "none".

    Raises:
        TRLError: with the remedy.
    """
    check_trainable(loss)
    _check_settings(trainer, loss)
    _check_setup(trainer, loss)
    model = causal_lm(trainer)
    _check_head(model)
    asked = [need for need in loss.needs if need in STATISTICS]
    unknown = [n for n in loss.needs if n not in (*STATISTICS_BESIDE, *asked) and not n.startswith("column:")]
    if unknown:
        raise TRLError(
            f"The loss {loss.name!r} needs {', '.join(map(repr, unknown))}, which TRL's trainer has no place for. Run it "
            f"with `plo compare`, which has token weights and the models behind them made before training."
        )
    if "ref_logps" not in loss.needs and not needs_reference(asked):
        return "summed" if trainer.precompute_ref_logps else "none"
    if trainer.precompute_ref_logps and _reads_sums(loss, model.get_output_embeddings().weight.shape[1]):
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


def _check_settings(trainer: trl.DPOTrainer, loss: Loss) -> None:
    args = trainer.args
    fields = {field.name: field for field in dataclasses.fields(trl.DPOConfig)}
    for name in OF_TRLS_LOSS:
        if name in fields and getattr(args, name) != (default := _default(fields[name])):
            raise TRLError(
                f"DPOConfig({name}={getattr(args, name)!r}) is a setting of TRL's loss and would have no effect on "
                f"plo's {loss.name!r}. Leave it at {default!r}, and give the loss's hyper-parameters to plo: "
                f'plo.trl.use(trainer, "dpo", label_smoothing=0.1).'
            )
    betas = [term.params["beta"] for _, term in loss.terms if "beta" in term.params]
    if betas and args.beta not in (_default(fields["beta"]), *betas):
        raise TRLError(
            f"DPOConfig(beta={args.beta}) is not read: the loss {loss.name!r} has its own beta={betas[0]}. "
            f"Hand it on, plo.trl.use(trainer, ..., beta=trainer.args.beta), or leave it out of DPOConfig."
        )
    for name in NOT_TRIED:
        if getattr(args, name):
            raise TRLError(f"DPOConfig({name}=True) was not tried with plo's losses: leave it out.")


def _check_setup(trainer: trl.DPOTrainer, loss: Loss) -> None:
    processes, accumulation = trainer.accelerator.num_processes, trainer.args.gradient_accumulation_steps
    if trainer.state.global_step:
        raise TRLError("This trainer has trained already: call plo.trl.use before trainer.train().")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.accelerator.parallelism_config is not None:
        raise TRLError(
            "plo.trl runs in one process or in several that hold the whole model each (DDP), not with FSDP, DeepSpeed "
            "or other parallelism: `accelerate launch --use_fsdp --fsdp_version 2 -m plo compare` shards any loss's model."
        )
    if is_peft_model(trainer.model) and getattr(causal_lm(trainer), "_hf_peft_config_loaded", False):
        raise TRLError(
            "The model had an adapter already when peft_config put another one on it: the new one takes its place, and the "
            "reference is the base without it. Merge it first, "
            "peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload(), or go on training it without peft_config."
        )
    if trainer._is_vision_dataset:
        raise TRLError("plo.trl was not tried with images: its losses see text alone.")
    if trainer.aux_loss_enabled:
        raise TRLError(
            "The auxiliary loss of a mixture of experts is not plo's: set DPOConfig(router_aux_loss_coef=0.0)."
        )
    if loss.level == "batch" and processes * accumulation > 1:
        raise TRLError(
            f"The loss {loss.name!r} compares the pairs of a whole optimiser step, and would see one of "
            f"{processes * accumulation} parts of it: set gradient_accumulation_steps=1 and start one process."
        )
    if loss.has_parameters and (trainer.optimizer is not None or trainer.lr_scheduler is not None):
        raise TRLError(
            f"The loss {loss.name!r} trains parameters of its own, with a learning rate of their own: name the "
            f"optimiser in DPOConfig(optim=...) instead of passing `optimizers`, for plo to add them."
        )


def _check_head(model: PreTrainedModel) -> None:
    training = model.training
    model.eval()
    try:
        check_head(model, lambda hidden: scaled(model.config, model.get_output_embeddings()(hidden)))
    finally:
        model.train(training)


def _reads_sums(loss: Loss, hidden_size: int) -> bool:
    """Whether the loss reads the reference by D(y) alone: asked with statistics that are 0 everywhere."""
    if needs_reference(need for need in loss.needs if need in STATISTICS):
        return False
    mask = torch.ones(2, 1, dtype=torch.bool)
    statistics = nothing_known(loss, mask, hidden_size)
    statistics.pop("ref_logps")
    columns = {need.removeprefix("column:"): torch.zeros(1) for need in loss.needs if need.startswith("column:")}
    side = functools.partial(SummedSide, ref_logp=torch.zeros(1))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for _, term in loss.terms:
                term.evaluate(as_pairs(statistics, mask, columns=columns, sides=(side, side)))
    except MissingStatistic:
        return False
    return True


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


class SummedSide(Side):
    """A side whose reference is known by its sum alone, as `precompute_ref_log_probs` gives it: D(y), and no D_t."""

    def __init__(self, *, ref_logp: Tensor, **statistics: Tensor):
        super().__init__(**statistics)
        self._ref_logp = ref_logp

    def __getattr__(self, name: str) -> Tensor:
        if name == "ref_logps":
            raise MissingStatistic("TRL's precompute_ref_log_probs keeps the sum over a response's tokens alone.")
        return super().__getattr__(name)

    def log_ratio(self) -> Tensor:
        return self.logp() - self._ref_logp

    def only(self, names: Sequence[str]) -> Side:
        side = super().only(names)
        if "ref_logps" not in set(names):
            return side
        return SummedSide(ref_logp=self._ref_logp, mask=side.mask, **side._statistics)
