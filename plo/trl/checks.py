"""Trainers, settings and setups that plo's losses do not fit, refused before training, with the remedy."""

import copy
import dataclasses
from typing import Any

import trl
from accelerate.utils import is_peft_model

from plo.backbone.head import check_head
from plo.losses import Loss
from plo.trl.batch import COLUMN
from plo.trl.borrowed import check_trainer
from plo.trl.errors import TRLError
from plo.trl.reference import causal_lm, known_statistics
from plo.verify.trainable import check_trainable

OF_TRLS_LOSS = (
    "loss_type", "loss_weights", "label_smoothing", "use_weighting", "f_divergence_type", "f_alpha_divergence_coef",
    "ld_alpha", "discopop_tau",
)  # fmt: skip
NOT_TRIED = ("use_liger_kernel", "torch_compile", "activation_offloading")


def check_class(kind: type[trl.DPOTrainer]) -> None:
    """Raise a TRLError if a trainer's class has a loss of its own, whose place plo's would take."""
    for name in ("compute_loss", "_compute_loss"):
        if getattr(kind, name) is not getattr(trl.DPOTrainer, name):
            raise TRLError(f"{kind.__name__}.{name} computes a loss of its own, which plo's would take the place of.")


def check_fit(trainer: trl.DPOTrainer, loss: Loss) -> None:
    """Check that a trainer, as it is set up, can train a loss.

    Raises:
        TRLError, LossError, ModelError: it cannot; the message names the remedy.
        BorrowedError: TRL or transformers changed.
    """
    check_trainable(loss)
    check_trainer(trainer)
    _check_settings(trainer, loss)
    _check_setup(trainer, loss)
    check_head(causal_lm(trainer))
    possible = ("ref_logps", "hidden", *known_statistics(loss))
    if unknown := [need for need in loss.needs if need not in possible and not need.startswith(COLUMN)]:
        raise TRLError(
            f"The loss {loss.name!r} needs {', '.join(map(repr, unknown))}, which TRL's trainer has no place for. Run it "
            f"with `plo compare`, which makes token weights, the models behind them and completions of other prompts."
        )


def _check_settings(trainer: trl.DPOTrainer, loss: Loss) -> None:
    args: Any = trainer.args
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
    if is_peft_model(trainer.model) and causal_lm(trainer)._hf_peft_config_loaded:
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
    if (trainer.optimizer is not None or trainer.lr_scheduler is not None) and _has_weights(loss):
        raise TRLError(
            f"The loss {loss.name!r} trains parameters of its own, with a learning rate of their own: name the "
            f"optimiser in DPOConfig(optim=...) instead of passing `optimizers`, for plo to add them."
        )


def _has_weights(loss: Loss) -> bool:
    """Return whether a loss trains weights of its own; one with state alone does not."""
    return loss.has_parameters and any(True for _ in copy.deepcopy(loss).build(1).parameters())


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
