"""The training loop: transformers' `Trainer` around a `Backbone`."""

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from plo import distributed, interrupt
from plo.backbone import sharding
from plo.backbone.batch import Batch, collate
from plo.backbone.borrowed import HookedTrainer, check_unscaled, forget_casts, one_device, repeatable, unwrapped
from plo.backbone.checkpoints import Checkpoints
from plo.backbone.clipping import clip, relative_limit, remember_norm
from plo.backbone.memory import reset_peak_memory
from plo.backbone.micro_batches import MicroBatch, TrainingPairs
from plo.backbone.model import Backbone
from plo.backbone.reference import Reference
from plo.backbone.state import LossState
from plo.backbone.steps import micro_batches
from plo.backbone.terms import check_counts, parameter_groups
from plo.backbone.training_log import TrainingLog
from plo.config import LEARNING_RATES, TrainConfig
from plo.data import Pair
from plo.errors import PloError

MICRO = "micro_batch"  # key in the dictionary of inputs, which transformers requires
PROBED = ("kl_ref_pi", "kl_pi_ref", "entropy")  # statistics of the probe


class NonFiniteLoss(PloError, RuntimeError):
    """An error for a loss or a gradient that is nan or infinite. The message names the step and the rows."""


class PreferenceTrainer(HookedTrainer):
    """Trains a `Backbone` on pairs.

    The loss of an optimiser step is the exact mean over its pairs (or tokens), whatever the micro-batches and the number
    of processes: a step has the same pairs for any number of them.

    Args:
        backbone: the model, reset with its loss.
        pairs: training pairs, in the data set's order.
        reference: the reference statistics of the pairs.
        config: settings of the optimisation.
        seed: seed of batch order and dropout.
        folder: folder of the checkpoints.
        weights: per pair, weights of the chosen and of the rejected tokens, for a loss that needs them.
        probe: a few fixed pairs on which full-vocabulary KL and entropy are logged, and their reference statistics.
        callbacks: further callbacks of transformers.
    """

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[Pair],
        reference: Reference,
        config: TrainConfig,
        *,
        seed: int,
        folder: Path,
        weights: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        probe: tuple[Sequence[Pair], Reference] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        distributed.start()
        micro, accumulation = micro_batches(config, backbone.loss)
        self.data = TrainingPairs(backbone, pairs, reference, weights, micro)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            learning_rate=config.lr or LEARNING_RATES[backbone.settings.peft],
            num_train_epochs=config.epochs,
            max_steps=config.steps or -1,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup,  # below 1: a share of the steps
            optim=config.optimizer,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm or 1.0,  # any number: `clip_gradient` has the limit
            logging_steps=config.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=config.checkpoint_every,
            seed=seed,
            data_seed=seed,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,  # every forward pass uses all that is trained
            ddp_broadcast_buffers=False,  # there are none but constants
            use_cpu=backbone.device.type == "cpu",
            disable_tqdm=True,
            report_to=[],
        )
        one_device(arguments)  # several visible GPUs would mean DataParallel, which tears batches
        self._config = config
        self.metrics = TrainingLog(backbone.head_dtype)
        self._state = LossState(backbone.loss)
        self._bad: list[str] = []
        self._checked = False
        if distributed.processes() > 1:
            gc.collect()  # an earlier training on these parameters, whose DDP would still reduce their gradients
        self._probe: Batch | None = None
        if probe:
            batch = probe[1].added_to(collate(probe[0], packed=backbone.packed), range(len(probe[0])))
            self._probe = backbone.with_reference(batch, PROBED)
        self._probe_every = config.probe_every
        self.probed = 0  # the step of the last probe
        self.stopped_by: int | None = None  # the signal that ends the launch
        super().__init__(
            backbone,
            arguments,
            data_collator=list,
            train_dataset=cast(Any, range(len(pairs))),
            checkpoints=Checkpoints(backbone, folder),
            callbacks=list(callbacks),
        )
        self.add_callback(_Steps(self))
        self.remove_callback(PrinterCallback)
        self.owns_sharding(sharding.is_sharded(backbone))
        reset_peak_memory()
        recomputes = self.data.recomputes_layers(config.gradient_checkpointing)
        backbone.checkpoint_layers(any(distributed.gather(recomputes)))
        if distributed.rank():
            torch.manual_seed(seed + distributed.rank())  # each process has LoRA dropout of its own

    def get_train_dataloader(self) -> DataLoader:
        """Return indices of the pairs in batches, the same in every process; `get_batch_samples` makes tensors of them.

        accelerate would fill up the last batch with rows of the first, to give all processes the same number.
        """
        rows = cast(Any, self.train_dataset)
        loader = DataLoader(
            rows,
            batch_size=self.args.per_device_train_batch_size * distributed.processes(),
            sampler=RandomSampler(rows),
            collate_fn=list,
        )
        return repeatable(loader, self.args)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the micro-batches of one optimiser step, and what each term of the loss averages over in all of them."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed at the very end: transformers would look whether to stop only after a step more
        step = [index for indices in islice(epoch_iterator, num_batches) for index in indices]
        if not step:
            return [], None
        share = self._observed_first(self.data.share(step))
        counts = torch.tensor([micro.counts for micro in share], dtype=torch.float64, device=device).sum(0)
        return [{MICRO: micro} for micro in share], self.accelerator.reduce(counts, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the sum over a micro-batch, divided by the count of the whole step, times the processes, as DDP averages."""
        micro = cast(MicroBatch, inputs[MICRO])
        backbone = self.data.backbone
        out = model(self._batch(micro), self._state.observer(micro.filler, whole=micro.alone))
        terms = out["sums"] / cast(Tensor, num_items_in_batch).to(out["sums"])
        if micro.filler:
            terms = 0.0 * terms
        else:
            check_counts(backbone.loss, out["counts"], micro.counts)
            names = [term.name for _, term in backbone.loss.terms]
            parts = dict(zip(names, terms.tolist(), strict=True)) if len(names) > 1 else {}
            self.metrics.add(out["metrics"], len(micro.rows), micro.batch.tokens, parts)
        loss = terms.sum() * distributed.processes()
        if not torch.isfinite(loss):
            self._bad += self.data.names(micro.rows, out["finite"])
        if not self._checked:
            check_unscaled(loss, self.accelerator.scaler)
            self._checked = True
        return (loss, out) if return_outputs else loss

    def _batch(self, micro: MicroBatch) -> Batch:
        """Return what a pass over a micro-batch computes from, on the device."""
        backbone = self.data.backbone
        batch = backbone.with_reference(micro.batch.to(self.args.device), backbone.loss.needs)
        return replace(batch, progress=self.state.global_step / max(1, self.state.max_steps))

    def _observed_first(self, share: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Do what a loss needs before the step: log-probs of further completions, and its state updated from all micro-batches.

        State that depends on the pairs takes a pass without gradient over them, unless the step is a single micro-batch,
        whose pass with gradient then updates it.
        """
        backbone = self.data.backbone
        share = [replace(micro, batch=backbone.with_completions(micro.batch)) for micro in share]
        for micro in share:
            self._state.observe_completions(backbone.completions(micro.batch), micro.filler)
        if self._state.needs_first_pass and not share[0].alone:
            backbone.train()
            # The generator is forked once for all: each micro-batch draws the dropout that its pass with gradient will draw.
            with torch.random.fork_rng(), torch.no_grad():
                for micro in share:
                    backbone(self._batch(micro), self._state.observer(micro.filler, first=True))
        if not (self._state.needs_first_pass and share[0].alone):
            self._state.update("before")
        return share

    def _stop_at_non_finite(self) -> None:
        """Stop all processes together at the end of a step: one that stopped at once would leave the others waiting."""
        bad, signals = zip(*distributed.gather((self._bad, interrupt.requested())), strict=True)
        self.stopped_by = next(filter(None, signals), None)
        bad = [row for rows in bad for row in rows]
        if bad:
            raise NonFiniteLoss(
                f"The loss {self.data.backbone.loss.name!r} is not finite at step {self.state.global_step + 1}, "
                f"rows: {', '.join(dict.fromkeys(bad))}. Lower train.lr, clip the loss's ratio if it is unbounded, or "
                f"look at these rows."
            )

    def create_optimizer(self, model=None):
        """Make the optimiser, with a group for each term of the loss that trains parameters of its own."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups = [{"params": self.data.backbone.policy_parameters(), "weight_decay": self.args.weight_decay}]
            groups += parameter_groups(self.data.backbone.loss, self.args.learning_rate)
            self.optimizer = kind(groups, **settings)
            self.optimizer.register_step_post_hook(lambda *_: forget_casts())  # casts of the old weights
        return self.optimizer

    def train(self, *arguments, **keywords):
        """Train, and end at a signal of `plo.interrupt` with the checkpoint of the step under way."""
        with (
            interrupt.finishing("waiting for the training step under way and its checkpoint"),
            self.data.backbone.casts_kept(),
        ):
            return super().train(*arguments, **keywords)

    def clip_gradient(self) -> Tensor:
        """Clip the policy's gradient by its norm.

        Raises:
            NonFiniteLoss: a loss or the gradient of this step is not finite.
        """
        self._stop_at_non_finite()
        backbone = self.data.backbone
        policy, own = backbone.policy_parameters(), list(backbone.loss.parameters())
        optimizer = unwrapped(self.optimizer)
        limit = self._config.max_grad_norm or relative_limit(optimizer, self._config.clip_factor)
        if self.sharded or self.accelerator.scaler:
            norm = sharding.whole(cast(Tensor, self.accelerator.clip_grad_norm_(policy, limit)))
        else:
            norm = clip(optimizer, policy, limit, own)
        value = float(norm)
        if not math.isfinite(value) or not all(p.grad is None or p.grad.isfinite().all() for p in own):
            raise NonFiniteLoss(
                f"The gradient of the loss {backbone.loss.name!r} is not finite at step "
                f"{self.state.global_step + 1}. Lower train.lr, or clip the loss's ratio if it is unbounded."
            )
        self._state.update("after")
        remember_norm(optimizer, value)
        self.metrics.add_step(clipped=value > limit)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the pairs since the last log, those of all processes."""
        if entry := self.metrics.entry():
            logs |= entry
            if self.state.global_step // self._probe_every > self.probed // self._probe_every:
                logs |= self.probe()
                self.probed = self.state.global_step
        super().log(logs, start_time)

    def probe(self) -> dict[str, float]:
        """Return full-vocabulary KL and entropy on the probe batch, nats per response token."""
        if self._probe is None:
            return {}
        values = self.data.backbone.measure(self._probe, PROBED)
        return {f"probe/{name}": v.mean().item() for name, v in values.items()}


class _Steps(TrainerCallback):
    """Measures the seconds of optimiser steps, without evaluation and checkpoints, and ends the training at a signal."""

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.probed = state.global_step  # 0, or where a checkpoint resumes

    def on_step_begin(self, *args, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.metrics.seconds += time.perf_counter() - self.started
        if number := self.trainer.stopped_by:  # in all processes alike
            interrupt.request(number)
            control.should_save = control.should_log = control.should_training_stop = True
