"""TRL's `DPOTrainer` with the loss of plo."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from plo.backbone.borrowed import TRANSFORMERS, check_unscaled
from plo.backbone.state import LossState
from plo.backbone.terms import Terms, as_pairs, check_counts, count, evaluate, parameter_groups, scatter
from plo.backbone.token_statistics import needs_reference
from plo.losses import Loss
from plo.pairs import Pairs
from plo.scorers import get_loss
from plo.trl.batch import (
    COLUMN,
    LOGGED,
    ColumnCollator,
    Request,
    ResponseTokens,
    give_statistics,
    lm_head,
    model_inputs,
    response_tokens,
    without_columns,
)  # fmt: skip
from plo.trl.checks import check_class, check_fit
from plo.trl.errors import TRLError
from plo.trl.metrics import metrics
from plo.trl.reference import Reference, causal_lm, known_statistics, reference_source

LOSS_FILE = "plo_loss.safetensors"  # next to the model: the loss's name, and its own parameters if it has any


def use(trainer: trl.DPOTrainer, loss: Any, /, **hyper_parameters: Any) -> trl.DPOTrainer:
    """Make a constructed `trl.DPOTrainer` train a plo loss. Call it before `trainer.train()`.

    Args:
        trainer: changed in place; its model, data, adapters, collator and callbacks stay.
        loss: whatever `get_loss` takes: a name, "dpo + 0.2*sft", a dict, a function of `Pairs`.
        hyper_parameters: of the loss. `DPOConfig.beta` is not read: hand it on by `beta=trainer.args.beta`.

    Raises:
        TRLError: a setting of TRL's own loss that would have no effect, a setup this was not tried with, or a loss
            whose statistics this trainer cannot give.
        LossError, RegistryError, ModelError, BorrowedError: the loss, the model, or a library's version does not fit.

    Example:
        >>> trainer = trl.DPOTrainer(model, args=args, train_dataset=dataset)  # doctest: +SKIP
        >>> plo.trl.use(trainer, "tbpo_a", generator="sba", lam=0.0).train()  # doctest: +SKIP
    """
    if not isinstance(trainer, trl.DPOTrainer):
        raise TRLError(f"plo.trl.use takes a trl.DPOTrainer, not a {type(trainer).__name__}: its batches hold pairs.")
    if isinstance(trainer, LossMixin):
        raise TRLError(f"This trainer trains {trainer.plo_loss.name!r} already: make a new one for another loss.")
    loss = get_loss(loss, **hyper_parameters)
    kind = type(trainer)
    check_class(kind)
    check_fit(trainer, loss)
    source = reference_source(trainer, loss)
    trainer.__class__ = type(kind.__name__, (LossMixin, kind), {"__module__": __name__})
    mixed: Any = trainer
    mixed.take_loss(loss, source)
    return trainer


_Base: Any = object  # of type checkers: any attribute may be the trainer's


class LossMixin(_Base):
    """Methods that `use` puts before those of a trainer's class."""

    loss_is_scaled_for_ga = True  # `get_batch_samples` counts what a whole optimiser step averages over
    plo_columns: Sequence[str] = ()

    def take_loss(self, loss: Loss, source) -> None:
        """Prepare the trainer's models, collator and callbacks for a loss."""
        self.plo_loss = loss
        self.plo_state = LossState(loss)
        self.plo_reference = Reference(self, source)
        self.plo_columns = [need.removeprefix(COLUMN) for need in loss.needs if need.startswith(COLUMN)]
        self.plo_statistics = tuple(dict.fromkeys(("logps", *known_statistics(loss), *LOGGED)))
        self.plo_hidden_size = lm_head(causal_lm(self)).weight.shape[1]
        self.plo_checked = False
        give_statistics(causal_lm(self))
        if self.ref_model is not None:
            give_statistics(self.accelerator.unwrap_model(self.ref_model))
        if self.plo_columns:
            self.data_collator = ColumnCollator(self.data_collator, self.plo_columns)
        if loss.has_parameters:
            with torch.random.fork_rng():
                torch.manual_seed(self.args.seed)  # alike in all processes, whatever was drawn before
                loss.build(self.plo_hidden_size).to(self.args.device)
            self.add_callback(_LossParameters(self))
        self._name, self._paper = f"the loss {loss.name} of plo", {}  # for the model card

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss, and record TRL's metrics under TRL's names.

        Args:
            num_items_in_batch: (terms,) pairs or tokens of the whole optimiser step; None in evaluation.
        """
        training = self.model.training
        if training and self.is_in_train and num_items_in_batch is None:
            raise TRANSFORMERS.error("Trainer.training_step passes no num_items_in_batch")
        tokens = response_tokens(inputs)
        pairs, logged = self._pairs(model, inputs, tokens)
        if num_items_in_batch is not None and (observe := self.plo_state.observer(filler=False)):
            observe(pairs)
        terms = evaluate(self.plo_loss, pairs)
        check_counts(self.plo_loss, terms.counts, self._count(inputs, tokens))
        counts = torch.tensor(terms.counts, device=terms.sums.device)
        if num_items_in_batch is None:
            loss = (terms.sums / counts.clamp(min=1)).sum()
        else:  # DDP takes the mean over processes
            loss = (terms.sums / num_items_in_batch.to(terms.sums)).sum() * self.accelerator.num_processes
            self._check_step(loss, pairs, terms)
        recorded = self._metrics["train" if training else "eval"]
        with torch.no_grad():
            for name, value in metrics(self, pairs, terms, counts, logged).items():
                recorded[name].append(value)
            seen = self.accelerator.reduce(inputs["attention_mask"].sum().to(self.args.device), "sum")
        if training:
            self._total_train_tokens += int(seen)
        recorded["num_tokens"] = [self._total_train_tokens]
        if return_outputs:  # only for `compute_metrics`, as TRL does it: the logits in one more pass
            with torch.no_grad():
                return loss, model(**model_inputs(inputs))
        return loss

    def _check_step(self, loss: Tensor, pairs: Pairs, terms: Terms) -> None:
        if not torch.isfinite(loss):
            raise TRLError(
                f"The loss {self.plo_loss.name!r} is not finite at step {self.state.global_step + 1}, in pairs "
                f"{(~terms.finite).nonzero().flatten().tolist()} of its batch of {len(pairs)}, whose responses "
                f"have {pairs.chosen.lengths.int().tolist()} and {pairs.rejected.lengths.int().tolist()} tokens. "
                f"Lower the learning rate, clip the loss's ratio if it is unbounded, or look at these pairs."
            )
        if not self.plo_checked:
            check_unscaled(loss, self.accelerator.scaler)
            self.plo_checked = True

    def _pairs(self, model, inputs: Mapping[str, Tensor], tokens: ResponseTokens) -> tuple[Pairs, dict[str, Tensor]]:
        """Compute the pairs that the loss sees, and the statistics that TRL logs."""
        statistics = self._statistics(model, inputs, tokens)
        logged = {name: statistics.pop(name) for name in LOGGED}
        pairs = as_pairs(
            {name: scatter(values, tokens.mask) for name, values in statistics.items()},
            tokens.mask,
            columns=self._columns(inputs),
            progress=self.state.global_step / max(1, self.state.max_steps),
            sides=self.plo_reference.sides(inputs),
        )
        return pairs, logged

    def _statistics(self, model, inputs: Mapping[str, Tensor], tokens: ResponseTokens) -> dict[str, Tensor]:
        """Compute everything that is known of each response token, (n,) or (n, d)."""
        reference: dict[str, Tensor] = {}
        if self.plo_reference.source == "online":
            reference = self.plo_reference.statistics(inputs, tokens, hidden=needs_reference(self.plo_loss.needs))
        request = Request(
            self.plo_statistics,
            tokens,
            hidden="hidden" in self.plo_loss.needs,
            ref_hidden=reference.get("hidden"),
            ref_head=self.plo_reference.head() if "hidden" in reference else None,
        )
        statistics = dict(model(**model_inputs(inputs), plo=request))  # the wrapped model: DDP's hooks
        return statistics | ({"ref_logps": reference["logps"]} if reference else {})

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the micro-batches of one optimiser step, and what each term averages over in all processes.

        A state that depends on the step's own pairs is updated here, by a pass without gradient over all micro-batches.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        if observe := self.plo_state.observer(filler=False, first=True):
            self.model_wrapped.train()
            # The generator is forked: the passes with gradient draw the dropout that they would draw anyway.
            with torch.random.fork_rng(), torch.no_grad():
                for batch in map(self._prepare_inputs, batches):
                    observe(self._pairs(self.model_wrapped, batch, response_tokens(batch))[0])
            self.plo_state.update("before")
        counts = [self._count(batch, response_tokens(batch)) for batch in batches]
        return batches, self.accelerator.reduce(torch.tensor(counts, device=device).sum(0), "sum")

    def _count(self, inputs: Mapping[str, Tensor], tokens: ResponseTokens) -> list[int]:
        return count(self.plo_loss, tokens.mask, self._columns(inputs), self.plo_hidden_size)

    def _columns(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: inputs[COLUMN + name] for name in self.plo_columns}

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in self.plo_columns if name not in self._signature_columns]

    def compute_ref_log_probs(self, model, inputs):
        """Compute TRL's sums over responses, without the data set's own columns."""
        return super().compute_ref_log_probs(model, without_columns(inputs))

    def create_optimizer(self, *arguments, **keywords):
        """Make TRL's optimiser, with a group for the parameters of each term; the clip norm is over the model's alone."""
        if self.optimizer is None:
            optimizer = super().create_optimizer(*arguments, **keywords)
            for group in parameter_groups(self.plo_loss, self.args.learning_rate):
                optimizer.add_param_group(group)
        return self.optimizer

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, then the loss next to it: a checkpoint's later files follow, so that it is whole with them."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            own = {name: p.detach().cpu().contiguous() for name, p in self.plo_loss.state_dict().items()}
            save_file(own, Path(output_dir or self.args.output_dir) / LOSS_FILE, {"loss": self.plo_loss.name})

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        path = Path(resume_from_checkpoint) / LOSS_FILE
        before, own = "TRL's own", {}
        if path.exists():
            with safe_open(path, framework="pt") as file:
                before = repr(file.metadata()["loss"])
                own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if before != repr(self.plo_loss.name):
            raise TRLError(
                f"The checkpoint {resume_from_checkpoint} is of a run with the loss {before}, not "
                f"{self.plo_loss.name!r}: resume with that loss, or start a run from its model."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.plo_loss.load_state_dict(own)


class DPOTrainer(LossMixin, trl.DPOTrainer):
    """`trl.DPOTrainer` with the argument `loss`, whatever `get_loss` takes; see `use`.

    Example:
        >>> plo.trl.DPOTrainer(model, args=args, train_dataset=dataset, loss="tdpo2(alpha=0.3)")  # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, loss: Any, **keywords: Any):
        loss = get_loss(loss)  # before a model is loaded
        super().__init__(*arguments, **keywords)
        check_fit(self, loss)
        self.take_loss(loss, reference_source(self, loss))


class _LossParameters(TrainerCallback):
    """Updates the loss's state; averages and clears the gradients of its parameters, which are outside the model DDP wraps."""

    def __init__(self, trainer: LossMixin):
        self.trainer = trainer

    def on_pre_optimizer_step(self, *arguments, **keywords):
        self.trainer.plo_state.update("after")
        accelerator = self.trainer.accelerator
        for parameter in self.trainer.plo_loss.parameters():
            if accelerator.num_processes > 1 and parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(self, *arguments, **keywords):
        self.trainer.plo_loss.zero_grad(set_to_none=True)
