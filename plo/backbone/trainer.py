"""transformers' `Trainer` around the one module. The only place that overrides its private methods."""

import contextlib
import gc
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, RandomSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from plo import distributed, interrupt, store
from plo.backbone import sharding
from plo.backbone.batch import Batch, collate
from plo.backbone.clipping import clip
from plo.backbone.head import ModelError
from plo.backbone.memory import available_bytes, peak_memory_gb, reset_peak_memory, saved_bytes
from plo.backbone.model import Backbone
from plo.backbone.reference import Reference
from plo.backbone.steps import arrange, micro_batches, tokens_of
from plo.backbone.terms import check_counts
from plo.backbone.token_statistics import STATISTICS, needs_reference
from plo.config import LEARNING_RATES, ConfigError, TrainConfig
from plo.data import Pair
from plo.errors import PloError
from plo.margins import without_rounding

TRAINED = "trained.safetensors"
MICRO = "micro_batch"  # key in the dictionary of inputs, which transformers requires
SHARE_OF_FREE_MEMORY = 0.7  # that activations may take: their gradients and the allocator's slack want the rest


@dataclass(frozen=True)
class MicroBatch:
    """The pairs of one forward pass of an optimiser step.

    Attributes:
        rows: indices of its pairs in the training data.
        counts: per term of the loss, number of pairs or tokens that it averages over.
        filler: whether it counts for nothing, because its process has no pairs left.
    """

    batch: Batch
    rows: tuple[int, ...]
    counts: list[int]
    filler: bool


class NonFiniteLoss(PloError, RuntimeError):
    """The loss or its gradient is nan or infinite. The message names the step and the rows."""


class PreferenceTrainer(Trainer):
    """Trains a `Backbone` on pairs.

    The loss of an optimiser step is the exact mean over its pairs (or tokens), whatever the micro-batches, and however
    many processes share them: a step has the same pairs whatever their number.

    Args:
        backbone: reset, with its loss.
        pairs: training pairs, in the data set's order.
        reference: their reference statistics.
        config: optimisation.
        seed: fixes batch order and dropout.
        folder: of the checkpoints.
        weights: per pair, those of the chosen and of the rejected tokens, for a loss that needs them.
        probe: a fixed few pairs on which full-vocabulary KL and entropy are logged, and their reference's hidden states.
        callbacks: transformers' callbacks.
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
        longest = max(len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs)
        if backbone.packed and backbone.longest and longest > backbone.longest:
            raise ModelError(
                f"Pairs of up to {longest} tokens, and packing was tried with {backbone.longest}: "
                f"load_backbone(..., longest={longest}) tries it for them."
            )
        self.pairs = pairs
        self.reference = reference
        self.weights = weights
        if "weights" in backbone.loss.needs and weights is None:
            raise ConfigError(
                f"The loss {backbone.loss.name!r} needs token weights: give weights=, those of its scorer "
                f"{backbone.loss.scorer.name!r}."
            )
        self.columns = [need.removeprefix("column:") for need in backbone.loss.needs if need.startswith("column:")]
        distributed.start()
        micro, accumulation = micro_batches(config, backbone.loss)
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
            max_grad_norm=config.max_grad_norm,
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
        arguments._n_gpu = min(1, arguments.n_gpu)  # else several visible GPUs mean DataParallel, which tears batches
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._terms: defaultdict[str, float] = defaultdict(float)
        self._pairs = self._tokens = self._steps = self._clipped = 0
        self._seconds = 0.0
        self._bad: list[str] = []
        gc.collect()  # of an earlier training on these parameters, whose DDP would still reduce their gradients
        self._probe = _probe_batch(backbone, *probe) if probe else None
        self._probe_every = config.probe_every
        self._probed = 0  # the step of the last probe
        self.stopped_by: int | None = None  # the signal that asked the launch to end
        super().__init__(
            backbone,
            arguments,
            data_collator=list,
            train_dataset=range(len(pairs)),
            callbacks=[_StopAtSignal(self), *callbacks],
        )
        self.add_callback(_Clock(self))
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        self._sharded = self.is_distributed_loading_by_transformers = sharding.is_sharded(backbone)
        self._whole_reference = needs_reference(need for need in backbone.loss.needs if need in STATISTICS)
        reset_peak_memory()
        backbone.checkpoint_layers(any(distributed.everyone(self._wants_checkpointing(config.gradient_checkpointing))))
        if distributed.rank():
            torch.manual_seed(seed + distributed.rank())  # each process has LoRA dropout of its own

    def get_train_dataloader(self) -> DataLoader:
        """Indices of the pairs, in batches of whole optimiser steps' parts: `get_batch_samples` makes tensors of them.

        The same in every process. accelerate would fill up the last batch with rows of the first, to give all the same.
        """
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size * distributed.processes(),
            sampler=RandomSampler(self.train_dataset),
            collate_fn=list,
        )
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )

    def _share(self, step: Sequence[int]) -> list["MicroBatch"]:
        """Return this process's micro-batches of an optimiser step's pairs.

        A process for which no pair is left gets a filler: it has to take part in what all processes do together.
        """
        micro = -(-len(step) // (self.args.per_device_train_batch_size * distributed.processes()))
        sizes = [tokens_of(self.pairs[i], self._unwrapped.packed) for i in step]
        parts = arrange(step, sizes, micro * distributed.processes(), alike=not self._unwrapped.packed)
        mine = parts[distributed.rank() * micro : (distributed.rank() + 1) * micro]
        return [self._micro_batch(rows or step[:1], filler=not rows) for rows in mine]

    def _micro_batch(self, rows: Sequence[int], *, filler: bool) -> "MicroBatch":
        batch = self._batch(rows)
        counts = [0 if filler else count for count in self._unwrapped.count(batch)]
        return MicroBatch(batch, tuple(rows), counts, filler)

    def _batch(self, rows: Sequence[int]) -> Batch:
        batch = collate([self.pairs[i] for i in rows], self.columns, packed=self._unwrapped.packed)
        if "weights" in self._unwrapped.loss.needs:
            weights = torch.cat([self.weights[i][side] for side in (0, 1) for i in rows])
            batch = replace(batch, token_weights=weights)
        return self.reference.added_to(batch, rows)

    def _with_ref_hidden(self, batch: Batch) -> Batch:
        """Return the batch with the reference's hidden states if the loss needs them, computed if they are not stored."""
        if not self._whole_reference or batch.ref_hidden is not None:
            return batch
        return replace(batch, ref_hidden=_ref_hidden(self._unwrapped, batch))

    def _wants_checkpointing(self, setting: str) -> bool:
        """Layers are computed twice only where what they keep for the backward pass would not fit.

        What a pair keeps is counted on the shortest one (what two of them keep more than one: casts of weights are kept
        once), and scaled by tokens to the largest micro-batch there can be. The LM head's logits, which are kept up to a
        number of them, do not grow so: they are in the slack.
        """
        backbone = self._unwrapped
        free = available_bytes(backbone.device)
        if setting != "auto" or free is None or sharding.is_sharded(backbone):
            return setting == "on"
        sizes = [tokens_of(pair, backbone.packed) for pair in self.pairs]
        shortest = sizes.index(min(sizes))
        backbone.checkpoint_layers(False)
        backbone.train()
        once, twice = self._saved_bytes([shortest]), self._saved_bytes([shortest, shortest])
        micro = sorted(sizes)[-self.args.per_device_train_batch_size :]
        most = sum(micro) if backbone.packed else len(micro) * max(micro)
        activations = once + (twice - once) / sizes[shortest] * most
        state = sum(3 * p.numel() * p.element_size() for p in backbone.trained().values())  # gradient and Adam's two
        here = distributed.processes() if backbone.device.type == "cpu" else 1  # that share the memory
        return activations > SHARE_OF_FREE_MEMORY * (free / here - state)

    def _saved_bytes(self, rows: Sequence[int]) -> int:
        backbone = self._unwrapped
        batch = self._with_ref_hidden(self._batch(rows).to(backbone.device))
        kept, backbone.kept_logits = backbone.kept_logits, 0
        try:
            with torch.random.fork_rng():  # LoRA's dropout draws here too
                return saved_bytes(backbone, batch)
        finally:
            backbone.kept_logits = kept

    # The exact mean.

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimiser step, and what each term of the loss averages over in all of them."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed at the very end: transformers would look whether to stop only after a step more
        step = [index for indices in islice(epoch_iterator, num_batches) for index in indices]
        if not step:
            return [], None
        share = self._share(step)
        counts = torch.tensor([micro.counts for micro in share], dtype=torch.float64, device=device).sum(0)
        return [{MICRO: micro} for micro in share], self.accelerator.reduce(counts, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum over this micro-batch divided by the count of the whole step, times the devices (DDP averages)."""
        micro: MicroBatch = inputs[MICRO]
        progress = self.state.global_step / max(1, self.state.max_steps)
        out = model(replace(self._with_ref_hidden(micro.batch.to(self.args.device)), progress=progress))
        if not micro.filler:
            check_counts(self._unwrapped.loss, out["counts"], micro.counts)
        terms = (0.0 if micro.filler else 1.0) * out["sums"] / num_items_in_batch.to(out["sums"])
        loss = terms.sum() * distributed.processes()
        if not torch.isfinite(loss):
            self._bad += self._non_finite(micro.rows, out["finite"])
        if len(terms) > 1:
            for (_, term), value in zip(self._unwrapped.loss.terms, terms.tolist(), strict=True):
                self._terms[f"loss/{term.name}"] += value
        if not micro.filler:
            for name, values in out["metrics"].items():
                self._sums[name] += values.double().sum().item()
            self._pairs += len(micro.rows)
            self._tokens += micro.batch.tokens
        return (loss, out) if return_outputs else loss

    def _non_finite(self, rows: Sequence[int], finite: torch.Tensor) -> list[str]:
        bad = [self.pairs[i].where for i, good in zip(rows, finite.tolist(), strict=True) if not good]
        return bad or [self.pairs[i].where for i in rows]

    def _stop_at_non_finite(self) -> None:
        """At the end of a step, when all processes know: one that stopped at once would leave the others waiting."""
        bad, signals = zip(*distributed.everyone((self._bad, interrupt.requested())), strict=True)
        self.stopped_by = next(filter(None, signals), None)
        bad = [row for rows in bad for row in rows]
        if bad:
            raise NonFiniteLoss(
                f"The loss {self._unwrapped.loss.name!r} is not finite at step {self.state.global_step + 1}, "
                f"rows: {', '.join(dict.fromkeys(bad))}. Lower train.lr, clip the loss's ratio if it is unbounded, or "
                f"look at these rows."
            )

    # The loss's own parameters: a group of the optimiser, left out of the clip norm.

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups = [{"params": self._unwrapped.policy_parameters(), "weight_decay": self.args.weight_decay}]
            for _, term in self._unwrapped.loss.terms:
                if own := list(term.parameters()):
                    groups.append(
                        {"params": own, "lr": term.learning_rate or self.args.learning_rate, "weight_decay": 0.0}
                    )
            self.optimizer = kind(groups, **settings)
            self.optimizer.register_step_post_hook(lambda *_: torch.clear_autocast_cache())  # casts of the old weights
        return self.optimizer

    def train(self, *arguments, **keywords):
        with (
            interrupt.finishing("waiting for the training step under way and its checkpoint"),
            self._unwrapped.casts_kept(),
        ):
            return super().train(*arguments, **keywords)

    def _defer_fsdp_gradient_reduction(self):
        """Not deferred: shards of the gradient add up over micro-batches, a whole gradient might not fit."""
        return contextlib.nullcontext()

    def _clip_grad_norm(self, model):
        self._stop_at_non_finite()
        policy, own = self._unwrapped.policy_parameters(), self._unwrapped.loss_parameters()
        if self._sharded or self.accelerator.scaler:
            norm = sharding.whole(self.accelerator.clip_grad_norm_(policy, self.args.max_grad_norm))
        else:
            norm = clip(self.optimizer.optimizer, policy, self.args.max_grad_norm, own)
        value = float(norm)
        if not math.isfinite(value) or not all(p.grad is None or p.grad.isfinite().all() for p in own):
            raise NonFiniteLoss(
                f"The gradient of the loss {self._unwrapped.loss.name!r} is not finite at step "
                f"{self.state.global_step + 1}. Lower train.lr, or clip the loss's ratio if it is unbounded."
            )
        self._steps += 1
        self._clipped += value > self.args.max_grad_norm
        return norm

    @property
    def _unwrapped(self) -> Backbone:
        return self.accelerator.unwrap_model(self.model)

    # Logging.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the pairs since the last log, those of all processes."""
        if self._steps:
            pairs, tokens, sums, terms, peaks = zip(
                *distributed.everyone((self._pairs, self._tokens, self._sums, self._terms, peak_memory_gb())),
                strict=True,
            )
            logs |= {name: total / sum(pairs) for name, total in _added(sums).items()}
            logs |= {
                "both_falling": float(self._both_falling(logs, sum(pairs), sum(tokens))),
                "clipped": self._clipped / self._steps,
                "tokens_per_second": sum(tokens) / max(self._seconds, 1e-9),
                "peak_memory_gb": max(peaks),
            }
            logs |= {name: total / self._steps for name, total in _added(terms).items()}
            self._sums.clear()
            self._terms.clear()
            self._pairs = self._tokens = self._steps = self._clipped = 0
            self._seconds = 0.0
            if self.state.global_step // self._probe_every > self._probed // self._probe_every:
                logs |= self.probe()
                self._probed = self.state.global_step
        super().log(logs, start_time)

    def _both_falling(self, logs: Mapping[str, float], pairs: int, tokens: int) -> bool:
        """Whether both responses' log-ratios are below 0 by more than rounding, in the mean over the logged pairs."""
        sums = torch.tensor(
            [logs[f"log_ratios/{side}"] * pairs for side in ("chosen", "rejected")], dtype=torch.float64
        )
        return bool((without_rounding(sums, torch.tensor(tokens), self._unwrapped.head_dtype) < 0).all())

    def probe(self) -> dict[str, float]:
        """Full-vocabulary KL and entropy on the probe batch, nats per response token."""
        if self._probe is None:
            return {}
        values = self._unwrapped.measure(self._probe, ("kl_ref_pi", "kl_pi_ref", "entropy"))
        return {f"probe/{name}": v.mean().item() for name, v in values.items()}

    # Checkpoints hold everything that is trained, and nothing else. The last two are kept: a damaged one costs its steps.

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir)
        if distributed.is_main():
            for _, older in checkpoints(folder)[1:]:  # before writing, so that the disk never holds more than two
                store.remove(older)
        super()._save_checkpoint(model, trial)
        if distributed.is_main():
            store.seal(folder / f"checkpoint-{self.state.global_step}")

    def _save(self, output_dir=None, state_dict=None):
        trained = sharding.on_main(self._unwrapped.trained())
        if distributed.is_main():
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained, folder / TRAINED)

    def _save_optimizer_and_scheduler(self, output_dir):
        """In full, so that another number of processes, sharded or not, can go on from there."""
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.optimizer.state_dict()
        state["state"] = sharding.on_main(state["state"])
        if distributed.is_main():
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if not self._sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, values in state["state"].items():
            state["state"][number] = {name: sharding.like(v, parameters[number]) for name, v in values.items()}
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _save_rng_state(self, output_dir):
        """Each process its own. They are all there before the main one calls the checkpoint whole."""
        super()._save_rng_state(output_dir)
        distributed.everyone(None)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        trained = self._unwrapped.trained()
        if saved.keys() != trained.keys():
            different = sorted(saved.keys() ^ trained.keys())[:5]
            raise ModelError(f"The checkpoint {resume_from_checkpoint} is of another model or loss: {different} ...")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(sharding.like(saved[name], parameter))


def _added(sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(of_process.get(name, 0.0) for of_process in sums) for name in {n: 0 for s in sums for n in s}}


def _probe_batch(backbone: Backbone, pairs: Sequence[Pair], reference: Reference) -> Batch:
    batch = reference.added_to(collate(pairs, packed=backbone.packed), range(len(pairs)))
    return batch if batch.ref_hidden is not None else replace(batch, ref_hidden=_ref_hidden(backbone, batch))


def _ref_hidden(backbone: Backbone, batch: Batch) -> torch.Tensor:
    with backbone.holding(backbone.reference):
        return backbone.measure(batch, (), hidden=True)["hidden"]


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a training's checkpoints, the newest first, whole or not."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_checkpoint(folder: Path, lacking: Callable[[int, int], str | None] = lambda step, steps: None) -> Path | None:
    """The newest checkpoint to go on from. Those after it that are damaged, or were not written whole, are removed.

    Args:
        lacking: says of a step, and the steps of the whole training, what is gone that going on from there would need.
    """
    for step, path in checkpoints(folder):
        if not store.is_sealed(path):
            store.drop(path, "was not written to its end")
        elif store.intact(path):
            steps = json.loads((path / "trainer_state.json").read_text())["max_steps"]
            wrong = lacking(step, steps)
            if wrong is None:
                return path
            store.drop(path, wrong)
    return None


class _StopAtSignal(TrainerCallback):
    """Ends the training with a checkpoint after the step in which Ctrl-C or SIGTERM came, in all processes alike."""

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if number := self.trainer.stopped_by:
            interrupt.request(number)
            control.should_save = control.should_log = control.should_training_stop = True


class _Clock(TrainerCallback):
    """Seconds spent in optimiser steps, so that tokens per second leave evaluation and checkpoints out."""

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._probed = state.global_step  # 0, or where a checkpoint resumes

    def on_step_begin(self, *args, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.trainer._seconds += time.perf_counter() - self.started
