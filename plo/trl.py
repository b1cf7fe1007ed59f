"""Any plo loss in a user's own TRL script: the trainer, data, collator, adapters and callbacks stay TRL's.

    trainer = trl.DPOTrainer(...)
    plo.trl.use(trainer, "tbpo_a", beta=0.2)          # or: plo.trl.DPOTrainer(..., loss="tbpo_a(beta=0.2)")
    trainer.train()

The loss of every batch is plo's, computed from the per-token statistics of TRL's own batch; what else a trainer does is
TRL's and transformers'. It alone, with `plo.trl_checks`, touches TRL's private names; written for TRL 1.16.

What is exact: the mean over an optimiser step. It is over all its pairs (or tokens: `sft`, and such terms of a sum),
over accumulation and processes (DDP). TRL takes the mean of its micro-batches' means, another number where they are
uneven: in a ragged last step, and always for tokens. What is as TRL does it: logged metrics and evaluation are means of
the batches' means; one process's dropout is not another's; with several processes the last step repeats rows to give
all of them some. `rewards/accuracies` counts a margin that is 0 but for rounding as 1/2 (`plo.margins`), where TRL counts its sign.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trl
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl.trainer.utils import use_adapter

from plo.backbone.head import scaled
from plo.backbone.terms import Terms, as_pairs, check_counts, count, evaluate, scatter
from plo.backbone.token_statistics import STATISTICS, Head, needs_reference, register_statistic, token_statistics
from plo.losses import Loss, get_loss
from plo.margins import wins, without_rounding
from plo.pairs import Pairs, Side
from plo.trl_checks import SummedSide, TRLError, causal_lm, check_class, checked

LOSS_FILE = "plo_loss.safetensors"  # beside the model: the loss's name, and its own parameters if it has any


def use(trainer: trl.DPOTrainer, loss: Any, /, **hyper_parameters: Any) -> trl.DPOTrainer:
    """Make a constructed `trl.DPOTrainer` train a plo loss. Call it before `trainer.train()`.

    Args:
        trainer: with its model, data, adapters, collator and callbacks, which all stay; changed in place.
        loss: whatever `get_loss` takes: a name, "dpo + 0.2*sft", a dict, a function of `Pairs`.
        hyper_parameters: of the loss. `DPOConfig.beta` is not read: hand it on by `beta=trainer.args.beta`.

    Returns:
        The same trainer.

    Raises:
        TRLError: a setting of TRL's own loss that would have no effect, a setup this was not tried with, or a loss
            whose statistics this trainer cannot give; the message names the remedy.
        LossError, RegistryError: as `get_loss`.
        ModelError: a model whose logits are not those of its LM head.

    Example:
        >>> trainer = trl.DPOTrainer(model, args=args, train_dataset=dataset)  # doctest: +SKIP
        >>> plo.trl.use(trainer, "tbpo_a", generator="sba", lam=0.0).train()  # doctest: +SKIP
    """
    if not isinstance(trainer, trl.DPOTrainer):
        raise TRLError(f"plo.trl.use takes a trl.DPOTrainer, not a {type(trainer).__name__}: its batches hold pairs.")
    if isinstance(trainer, _WithLoss):
        raise TRLError(f"This trainer trains {trainer.plo_loss.name!r} already: make a new one for another loss.")
    loss = get_loss(loss, **hyper_parameters)
    kind = type(trainer)
    check_class(kind)
    reference = checked(trainer, loss)
    trainer.__class__ = type(kind.__name__, (_WithLoss, kind), {"__module__": __name__})
    trainer._take(loss, reference)
    return trainer


class _WithLoss:
    """What `use` puts before a trainer's class."""

    loss_is_scaled_for_ga = True  # by `get_batch_samples`, which counts what a whole optimiser step averages over
    plo_columns: Sequence[str] = ()

    def _take(self, loss: Loss, reference: str) -> None:
        self.plo_loss = loss
        self.plo_reference = reference
        self.plo_columns = [need.removeprefix("column:") for need in loss.needs if need.startswith("column:")]
        self.plo_asked = tuple(need for need in loss.needs if need in STATISTICS)
        self.plo_beta = next((term.params["beta"] for _, term in loss.terms if "beta" in term.params), self.args.beta)
        self.plo_hidden_size = causal_lm(self).get_output_embeddings().weight.shape[1]
        _give_statistics(causal_lm(self))
        if self.ref_model is not None:
            _give_statistics(self.accelerator.unwrap_model(self.ref_model))
        if self.plo_columns:
            self.data_collator = _WithColumns(self.data_collator, self.plo_columns)
        if loss.has_parameters:
            with torch.random.fork_rng():
                torch.manual_seed(self.args.seed)  # alike in all processes, whatever was drawn before
                loss.build(self.plo_hidden_size).to(self.args.device)
            self.add_callback(_OwnParameters(self))
        self._name, self._paper = f"the loss {loss.name} of plo", {}  # for the model card

    # The loss of a batch.

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss, and TRL's metrics under TRL's names. `num_items_in_batch`: (terms,) of the optimiser step."""
        mode = "train" if self.model.training else "eval"
        tokens = _tokens(inputs)
        statistics = self._statistics(model, inputs, tokens)
        logged = {name: statistics.pop(name) for name in LOGGED}
        pairs = self._pairs(inputs, tokens, statistics)
        terms = evaluate(self.plo_loss, pairs)
        check_counts(self.plo_loss, terms.counts, self._count(inputs, tokens))
        counts = torch.tensor(terms.counts, device=terms.sums.device)
        if num_items_in_batch is None:  # in evaluation
            loss = (terms.sums / counts.clamp(min=1)).sum()
        else:  # DDP takes the mean over processes
            loss = (terms.sums / num_items_in_batch.to(terms.sums)).sum() * self.accelerator.num_processes
            if not torch.isfinite(loss):
                raise TRLError(
                    f"The loss {self.plo_loss.name!r} is not finite at step {self.state.global_step + 1}, in pairs "
                    f"{(~terms.finite).nonzero().flatten().tolist()} of its batch of {len(pairs)}, whose responses "
                    f"have {pairs.chosen.lengths.int().tolist()} and {pairs.rejected.lengths.int().tolist()} tokens. "
                    f"Lower the learning rate, clip the loss's ratio if it is unbounded, or look at these pairs."
                )
        with torch.no_grad():
            self._record(mode, inputs, pairs, terms, counts, logged)
        if return_outputs:  # only for `compute_metrics`, as TRL does it: the logits in one more pass
            with torch.no_grad():
                return loss, model(**_model_inputs(inputs))
        return loss

    def _statistics(self, model, inputs: Mapping[str, Tensor], tokens: "_Tokens") -> dict[str, Tensor]:
        """Everything that is known of each response token, (n,) or (n, d)."""
        reference = ref_head = None
        if self.plo_reference == "online":
            whole = needs_reference(self.plo_asked)
            reference = self._of_reference(inputs, _Asked(("logps",), tokens, hidden=whole))
            ref_head = self._reference_head() if whole else None
        names = tuple(dict.fromkeys(("logps", *self.plo_asked, *LOGGED)))
        asked = _Asked(
            names,
            tokens,
            hidden="hidden" in self.plo_loss.needs,
            ref_hidden=reference.get("hidden") if reference else None,
            ref_head=ref_head,
        )
        statistics = dict(model(**_model_inputs(inputs), plo=asked))  # the wrapped model: DDP's hooks
        return statistics | ({"ref_logps": reference["logps"]} if reference else {})

    def _of_reference(self, inputs: Mapping[str, Tensor], asked: "_Asked") -> dict[str, Tensor]:
        """TRL's reference, without dropout: its model, else the policy with its adapters off or those it began with."""
        model, adapters = self.ref_model, contextlib.nullcontext()
        if model is None:
            model = self.model
            policy = self.accelerator.unwrap_model(model)
            adapters = use_adapter(policy, "ref" if "ref" in policy.peft_config else None)
        training = model.training
        with torch.no_grad(), adapters, self.accelerator.autocast():
            model.eval()  # nothing of layers computed twice in training either
            try:
                return model(**_model_inputs(inputs), plo=asked)
            finally:
                model.train(training)

    def _reference_head(self) -> Head:
        model = causal_lm(self) if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        head = model.get_output_embeddings()
        if isinstance(head, ModulesToSaveWrapper):  # the policy's is a trained copy
            copies = head.modules_to_save
            head = copies["ref"] if "ref" in copies else head.original_module  # noqa: SIM401 (a ModuleDict has no get)
        return lambda hidden: scaled(model.config, head(hidden.to(head.weight.dtype)))

    def _pairs(self, inputs: Mapping[str, Tensor], tokens: "_Tokens", statistics: Mapping[str, Tensor]) -> Pairs:
        sides: tuple = (Side, Side)
        if self.plo_reference == "summed":
            sums = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
            sides = tuple(functools.partial(SummedSide, ref_logp=values) for values in sums)
        return as_pairs(
            {name: scatter(values, tokens.mask) for name, values in statistics.items()},
            tokens.mask,
            columns=self._columns_of(inputs),
            progress=self.state.global_step / max(1, self.state.max_steps),
            sides=sides,
        )

    def _columns_of(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: inputs[f"column:{name}"] for name in self.plo_columns}

    def _record(self, mode, inputs, pairs: Pairs, terms: Terms, counts: Tensor, logged: Mapping[str, Tensor]) -> None:
        sides = {"chosen": pairs.chosen, "rejected": pairs.rejected}
        of_pairs = {f"logps/{name}": side.logp() for name, side in sides.items()}
        if self.plo_reference != "none":
            rewards = {name: self.plo_beta * side.log_ratio() for name, side in sides.items()}
            margins = rewards["chosen"] - rewards["rejected"]
            of_pairs |= {f"rewards/{name}": values for name, values in rewards.items()}
            of_pairs |= {"rewards/accuracies": self._accuracy(pairs), "rewards/margins": margins}
        of_pairs |= terms.metrics
        values = self.accelerator.gather(torch.stack([v.float() for v in of_pairs.values()], dim=1)).mean(0).tolist()
        metrics = dict(zip(of_pairs, values, strict=True))
        chosen = int(pairs.chosen.mask.sum())
        sums = [
            inputs["attention_mask"].sum(), logged[ENTROPY].sum(), len(logged[ENTROPY]),
            logged[TOP1][:chosen].sum(), chosen,
        ]  # fmt: skip
        sums = torch.tensor([float(value) for value in sums], device=self.args.device)
        seen, entropy, responses, likeliest, chosen = self.accelerator.reduce(sums, "sum").tolist()
        metrics |= {"entropy": entropy / max(1, responses), "mean_token_accuracy": likeliest / max(1, chosen)}
        if len(terms.counts) > 1:
            means = self.accelerator.reduce(terms.sums.float() / counts.clamp(min=1), "mean").tolist()
            names = [f"loss/{term.name}" for _, term in self.plo_loss.terms]
            metrics |= dict(zip(names, means, strict=True))
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            self._total_train_tokens += int(seen)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def _accuracy(self, pairs: Pairs) -> Tensor:
        """(pairs,) 1, or 1/2 for a margin that is 0 but for rounding, which TRL counts by its sign, or 0."""
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        weights = causal_lm(self).get_output_embeddings().weight
        dtype = halves.get(self.accelerator.mixed_precision, weights.dtype)
        tokens = pairs.chosen.lengths + pairs.rejected.lengths
        return wins(without_rounding(pairs.log_ratio_margin(), tokens, dtype))

    # The exact mean.

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimiser step, and what each term of the loss averages over in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        counts = [self._count(batch, _tokens(batch)) for batch in batches]
        return batches, self.accelerator.reduce(torch.tensor(counts, device=device).sum(0), "sum")

    def _count(self, inputs: Mapping[str, Tensor], tokens: "_Tokens") -> list[int]:
        return count(self.plo_loss, tokens.mask, self._columns_of(inputs), self.plo_hidden_size)

    # Columns of the data set.

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in self.plo_columns if name not in self._signature_columns]

    def compute_ref_log_probs(self, model, inputs):
        return super().compute_ref_log_probs(
            model, {name: v for name, v in inputs.items() if not name.startswith("column:")}
        )

    # The loss's own parameters: groups of the optimiser. The clip norm is over the model's alone.

    def create_optimizer(self, *arguments, **keywords):
        optimizer = super().create_optimizer(*arguments, **keywords)
        there = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for _, term in self.plo_loss.terms:
            own = [p for p in term.parameters() if id(p) not in there]
            if own:
                lr = term.learning_rate or self.args.learning_rate
                optimizer.add_param_group({"params": own, "lr": lr, "weight_decay": 0.0})
        return optimizer

    def save_model(self, output_dir=None, _internal_call=False):
        """TRL's, and the loss beside it. A checkpoint's first file but for the model's: it is whole later."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            own = {name: p.detach().cpu().contiguous() for name, p in self.plo_loss.state_dict().items()}
            save_file(own, Path(output_dir or self.args.output_dir) / LOSS_FILE, {"loss": self.plo_loss.name})

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        path = Path(resume_from_checkpoint) / LOSS_FILE
        before = "TRL's own"
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


class DPOTrainer(_WithLoss, trl.DPOTrainer):
    """`trl.DPOTrainer` with the argument `loss`, whatever `get_loss` takes; `use` says the rest.

    Example:
        >>> plo.trl.DPOTrainer(model, args=args, train_dataset=dataset, loss="tdpo2(alpha=0.3)")  # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, loss: Any, **keywords: Any):
        loss = get_loss(loss)  # before a model is loaded
        super().__init__(*arguments, **keywords)
        self._take(loss, checked(self, loss))


class _OwnParameters(TrainerCallback):
    """The loss's parameters stand outside the model, so nobody else averages or forgets their gradients."""

    def __init__(self, trainer: trl.DPOTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, *arguments, **keywords):
        accelerator = self.trainer.accelerator
        for parameter in self.trainer.plo_loss.parameters():
            if accelerator.num_processes > 1 and parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(self, *arguments, **keywords):
        self.trainer.plo_loss.zero_grad(set_to_none=True)


# Statistics from a TRL batch.


LOGGED = ENTROPY, TOP1 = "trl_entropy", "trl_is_top1"  # as TRL does, and without gradient


@register_statistic(ENTROPY)
def _entropy(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    return STATISTICS["entropy"].load()(log_probs.detach(), None, targets)


@register_statistic(TOP1)
def _is_top1(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    return (log_probs.detach().argmax(-1) == targets).to(log_probs.dtype)


@dataclass(frozen=True)
class _Tokens:
    """Where the response tokens of a batch stand.

    Attributes:
        predicting: (rows, length - 1) bool: the next token is one of a response.
        targets: (n,) these tokens, row after row.
        mask: (rows, tokens) bool, left-aligned.
    """

    predicting: Tensor
    targets: Tensor
    mask: Tensor


def _tokens(inputs: Mapping[str, Tensor]) -> _Tokens:
    predicting = inputs["completion_mask"][:, 1:].bool()
    lengths = predicting.sum(-1, keepdim=True)
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths
    return _Tokens(predicting, inputs["input_ids"][:, 1:][predicting], mask)


@dataclass(frozen=True)
class _Asked:
    """What a forward pass is to give instead of logits: the named statistics, and with `hidden` the hidden states."""

    names: tuple[str, ...]
    tokens: _Tokens
    hidden: bool = False
    ref_hidden: Tensor | None = None
    ref_head: Head | None = None

    def of(self, model: PreTrainedModel, states: Tensor) -> dict[str, Tensor]:
        head = model.get_output_embeddings()
        states = states.to(head.weight.device)  # a model split over devices
        length = self.tokens.predicting.shape[1] + 1
        states = states[:, -length:-1]  # prompt learning puts its virtual tokens before the real ones
        hidden = states[self.tokens.predicting]
        statistics = token_statistics(
            self.names,
            hidden,
            self.tokens.targets.to(hidden.device),
            lambda hidden: scaled(model.config, head(hidden)),
            self.ref_hidden,
            self.ref_head,
            frozen=not any(p.requires_grad for p in head.parameters()),
            vocabulary=model.config.get_text_config().vocab_size,
        )
        return statistics | ({"hidden": hidden.detach()} if self.hidden else {})


def _give_statistics(model: PreTrainedModel) -> None:
    """Let `model(..., plo=asked)` give statistics, inside the forward pass that DDP, PEFT and autocast wrap."""
    forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def with_statistics(self, *arguments, plo: _Asked | None = None, **keywords):
        if plo is None:
            return forward(*arguments, **keywords)
        keywords.pop("labels", None)  # PEFT's, None
        return plo.of(self, self.base_model(*arguments, **keywords).last_hidden_state)

    model.forward = types.MethodType(with_statistics, model)


def _model_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    others = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
    kept = {k: v for k, v in inputs.items() if k not in others and not k.startswith("column:")}
    return kept | {"use_cache": False}


class _WithColumns:
    """A collator that also keeps numeric columns of the data set, as `column:...`."""

    def __init__(self, collator: Callable, columns: Sequence[str]):
        self.collator = collator
        self.columns = columns

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {}
        for name in self.columns:
            try:
                columns[f"column:{name}"] = torch.tensor([float(row[name]) for row in examples])
            except (KeyError, TypeError, ValueError) as error:
                raise TRLError(
                    f"The loss needs the numeric column {name!r} in every row of the data set; one has columns "
                    f"{', '.join(sorted(examples[0]))} ({type(error).__name__}: {error})."
                ) from error
        return {**self.collator(examples), **columns}


__all__ = ["DPOTrainer", "TRLError", "use"]
