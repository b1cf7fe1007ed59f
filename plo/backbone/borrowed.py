"""Private and undocumented names of torch, transformers, peft and accelerate; no other module of the backbone uses them.

Importing this module checks that they exist. As a new version could also keep a name and change what it does, packed
attention, LoRA layers, norms and clipping are compared in numbers where they are used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from plo import distributed
from plo.borrowed import TORCH, Library
from plo.faults import on_disk

TRANSFORMERS = Library("transformers", tried=("5.21.0", "5.23.0"))
PEFT = Library("peft", tried=("0.20.0", "0.21.2"))
ACCELERATE = Library("accelerate", tried=("1.12.0", "1.15.0"))

# torch

_torch = TORCH.require("torch", "_softmax_backward_data", "clear_autocast_cache")
TORCH.require("torch", "autocast_increment_nesting", "autocast_decrement_nesting")
TORCH.require("torch.optim:Adam", ".grad_scale")
_backends = TORCH.require("torch.backends.cpu", "get_cpu_capability")
_cpu = TORCH.require("torch.cpu", "get_capabilities")


def softmax_backward(gradient: Tensor, probabilities: Tensor) -> Tensor:
    """Return the gradient of scores from that of their softmax over the last dimension."""
    return _torch._softmax_backward_data(gradient, probabilities, -1, probabilities.dtype)


@contextmanager
def autocast_nested() -> Iterator[None]:
    """Keep autocast's casts inside, which it would forget where the outermost autocast ends; forget them afterwards."""
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def forget_casts() -> None:
    """Let autocast cast every weight anew, as the weights have changed."""
    torch.clear_autocast_cache()


def divide_gradients(optimizer: Optimizer, by: Tensor) -> None:
    """Let a fused optimiser divide by a number, in its next step, every gradient that it reads."""
    optimizer.grad_scale = by  # type: ignore[attr-defined]


def multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for products in bfloat16, and torch uses them.

    Without them such products are many times slower than in float32. The environment variable `ATEN_CPU_CAPABILITY` may
    hold torch below what the CPU has.
    """
    capabilities, used = _cpu.get_capabilities(), _backends.get_cpu_capability()
    return used.startswith("AVX512") and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


# transformers: models

TRANSFORMERS.require(
    "transformers:PreTrainedModel", "_no_split_modules", "_is_stateful", "_can_set_attn_implementation"
)
TRANSFORMERS.require("transformers:PreTrainedModel", "set_attn_implementation(attn_implementation)", "base_model")
TRANSFORMERS.require("transformers:PreTrainedConfig", "_attn_implementation", "._name_or_path", "get_text_config")
find_adapter_config_file = TRANSFORMERS.require(
    "transformers.utils.peft_utils", "find_adapter_config_file(model_id)"
).find_adapter_config_file
sdpa_mask = TRANSFORMERS.require("transformers.masking_utils", "sdpa_mask").sdpa_mask


def attention_of(model: PreTrainedModel) -> str:
    """Return the name of the attention that a model computes with."""
    return str(model.config._attn_implementation)


@contextmanager
def attending(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Let a model attend by another implementation inside, and by its own again afterwards."""
    before = attention_of(model)
    if implementation == before:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def decoder_layers(model: PreTrainedModel) -> set[str]:
    """Return class names of the parts of a model that are not to be divided."""
    return set(model._no_split_modules or ())


def is_recurrent(model: PreTrainedModel) -> bool:
    """Return whether a token's state comes from its neighbour in the row."""
    return model._is_stateful


def can_exchange_attention(model: PreTrainedModel) -> bool:
    """Return whether a model attends through transformers' attention interface."""
    return model._can_set_attn_implementation()


def rename(model: PreTrainedModel, name: str) -> None:
    """Set the name by which a model is known, such as the folder that it comes from."""
    model.name_or_path = model.config._name_or_path = name


def recompute_layers(model: PreTrainedModel, on: bool) -> None:
    """Let the backward pass compute each decoder layer once more, or keep what is in it."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before 5.23
    if on != getattr(model, f"is_{kind}_checkpointing"):
        switch = getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")
        switch({"use_reentrant": False}) if on else switch()


# peft

LoraLinear = PEFT.require("peft.tuners.lora:Linear", "get_delta_weight(adapter)", "get_base_layer", "forward(x)")
PEFT.require("peft.tuners.lora:Linear", ".disable_adapters", ".merged", ".active_adapters", ".lora_A", ".lora_B")
PEFT.require("peft.tuners.lora:Linear", ".lora_dropout", ".scaling", ".lora_variant", ".base_layer")
BaseTunerLayer = PEFT.require("peft.tuners.tuners_utils:BaseTunerLayer", ".cast_input_dtype_enabled")
PEFT.require("peft:LoraModel", "enable_adapter_layers", "disable_adapter_layers")


def keep_input_dtype(layer: nn.Module) -> None:
    """Let an adapter read its input in the dtype that it comes in."""
    layer.cast_input_dtype_enabled = False  # type: ignore[assignment]


# transformers and accelerate: the training loop

TRANSFORMERS.require("transformers:TrainingArguments", "n_gpu", "._n_gpu")
_trainer = TRANSFORMERS.require("transformers.trainer", "OPTIMIZER_NAME", "SCHEDULER_NAME")
OPTIMIZER_FILE, SCHEDULER_FILE = _trainer.OPTIMIZER_NAME, _trainer.SCHEDULER_NAME
TRANSFORMERS.require(
    "transformers:Trainer",
    "get_batch_samples(epoch_iterator, num_batches, device)",
    "compute_loss(model, inputs, return_outputs, num_items_in_batch)",
    "_clip_grad_norm(model)",
    "_save_checkpoint(model, trial)",
    "_save(output_dir, state_dict)",
    "_save_optimizer_and_scheduler(output_dir)",
    "_save_rng_state(output_dir)",
    "_load_from_checkpoint(resume_from_checkpoint, model)",
    "_load_optimizer_and_scheduler(checkpoint)",
    ".model_accepts_loss_kwargs",
)
_data_loader = ACCELERATE.require(
    "accelerate.data_loader",
    "prepare_data_loader(dataloader, device, num_processes, process_index, use_seedable_sampler, data_seed)",
)
ACCELERATE.require("accelerate:Accelerator", ".scaler", "clip_grad_norm_(parameters, max_norm)", "unwrap_model(model)")


def unwrapped(optimizer: Any) -> Optimizer:
    """Return torch's optimiser inside accelerate's."""
    return ACCELERATE.get(optimizer, "optimizer")


def one_device(arguments: TrainingArguments) -> None:
    """Let a process use one GPU at most, whatever it sees."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    if arguments.n_gpu > 1:
        raise TRANSFORMERS.error("TrainingArguments.n_gpu does not read _n_gpu any more")


def repeatable(loader: DataLoader, arguments: TrainingArguments) -> DataLoader:
    """Return a loader whose order a seed fixes, the same in every process."""
    return _data_loader.prepare_data_loader(
        loader,
        arguments.device,
        num_processes=1,
        process_index=0,
        use_seedable_sampler=True,
        data_seed=arguments.data_seed,
    )


def check_unscaled(loss: Tensor, scaler: Any) -> None:
    """Raise a BorrowedError in the backward pass of `loss` if it was scaled since `compute_loss` returned it.

    Args:
        scaler: accelerate's gradient scaler, if there is one.
    """
    expected = 1.0 if scaler is None else scaler.get_scale()

    def check(gradient: Tensor) -> None:
        if float(gradient) != expected:
            raise TRANSFORMERS.error(f"Trainer.training_step multiplies the loss by {float(gradient) / expected:.3g}")

    loss.register_hook(check)


class HookedTrainer(Trainer):
    """transformers' `Trainer`, whose private methods call `clip_gradient` and `Checkpoints`, each checked to be called."""

    clip_gradient: Callable[[], Tensor]

    def __init__(self, *arguments: Any, checkpoints: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.checkpoints = checkpoints
        self.sharded = False
        self.called: set[str] = set()
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True  # the latter tells it before 5.19
        self.add_callback(_HooksAreCalled(self))

    def owns_sharding(self, sharded: bool) -> None:
        """Declare whether the model is sharded already, so that transformers neither wraps it nor defers its gradients."""
        if sharded:
            TRANSFORMERS.require("transformers:Trainer", ".is_distributed_loading_by_transformers")  # since 5.19
            if hasattr(PreTrainedModel, "activation_checkpointing_enable"):  # since 5.23, as the other one
                TRANSFORMERS.require("transformers:Trainer", "_defer_fsdp_gradient_reduction")
        self.sharded = self.is_distributed_loading_by_transformers = sharded

    def _defer_fsdp_gradient_reduction(self):
        """Defer nothing: shards of the gradient add up over micro-batches, and a whole gradient might not fit."""
        return nullcontext()

    def _clip_grad_norm(self, model):
        self.called.add("clip_gradient")
        return self.clip_gradient()

    def _save_checkpoint(self, model, trial):
        self.called.add("checkpoint")
        self.checkpoints.begin()
        with on_disk(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)
        self.checkpoints.end(self.state.global_step)

    def _save(self, output_dir=None, state_dict=None):
        self.called.add("save_weights")
        self.checkpoints.save_weights(Path(output_dir or str(self.args.output_dir)))

    def _save_optimizer_and_scheduler(self, output_dir):
        self.called.add("save_optimizer")
        if self.sharded:
            self.checkpoints.save_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.called.add("random_states_saved")
        distributed.gather(None)  # all processes have written theirs before the main one declares the checkpoint whole

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.called.add("load_weights")
        self.checkpoints.load_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint):
        self.called.add("load_optimizer")
        if self.sharded and checkpoint is not None:
            self.checkpoints.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def check_called(self, when: str, *hooks: str) -> None:
        """Raise a BorrowedError where transformers did not call a hook that it should have called by now."""
        if missing := [hook for hook in hooks if hook not in self.called]:
            raise TRANSFORMERS.error(f"Trainer did not call the method behind {', '.join(missing)} {when}")


class _HooksAreCalled(TrainerCallback):
    """Checks that transformers called what would otherwise be left out silently: clipping, and parts of checkpoints."""

    def __init__(self, trainer: HookedTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:
            self.trainer.check_called("when it resumed", "load_weights", "load_optimizer")

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.check_called("in a step", "clip_gradient")
        self.trainer.called.discard("clip_gradient")

    def on_save(self, args, state, control, **kwargs):
        saved = "checkpoint", "save_weights", "save_optimizer", "random_states_saved"
        self.trainer.check_called("in a checkpoint", *saved)
        self.trainer.called.difference_update(saved)
