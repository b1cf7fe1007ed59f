"""Private and undocumented names of TRL, transformers and PEFT that `plo.trl` uses, with the checks that they are still there.

A name that a class has is checked at import, one that only instances have by `check_trainer` and `check_batch`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plo.backbone.borrowed import PEFT, TRANSFORMERS
from plo.borrowed import Library

TRL = Library("trl", tried=("1.14.0", "1.16.0"))

use_adapter = TRL.require("trl.trainer.utils", "use_adapter(model, adapter_name)").use_adapter
ModulesToSaveWrapper = PEFT.require("peft.utils:ModulesToSaveWrapper", ".original_module")
# Methods and attributes that `plo.trl.trainer` overrides: under another name they would be ignored without a word.
TRL.require(
    "trl:DPOTrainer",
    "compute_loss(model, inputs, return_outputs, num_items_in_batch)",
    "_compute_loss(model, inputs, return_outputs)",
    "_set_signature_columns_if_needed",
    "compute_ref_log_probs(model, inputs)",
    "_name",
    "_paper",
)
TRANSFORMERS.require(
    "transformers:Trainer",
    "get_batch_samples(epoch_iterator, num_batches, device)",
    "create_optimizer",
    "save_model(output_dir, _internal_call)",
    "_load_from_checkpoint(resume_from_checkpoint, model)",
    "loss_is_scaled_for_ga",
    "_prepare_inputs(inputs)",
)
TRANSFORMERS.require("transformers:PreTrainedModel", "_hf_peft_config_loaded", "base_model")

OF_TRAINERS = {
    TRL: ("precompute_ref_logps", "aux_loss_enabled", "_is_vision_dataset", "_metrics", "_total_train_tokens"),
    TRANSFORMERS: ("_signature_columns", "is_in_train", "is_fsdp_enabled", "is_deepspeed_enabled"),
}
REFERENCE_SUMS = ("ref_chosen_logps", "ref_rejected_logps")  # columns of a batch, from precompute_ref_log_probs
REFERENCE_ADAPTER = "ref"  # TRL's copy of an adapter that was trained before
TRL.require_text("trl:DPOTrainer.__init__", f'add_adapter("{REFERENCE_ADAPTER}"')


def check_trainer(trainer: Any) -> None:
    """Raise a BorrowedError if an instance of `trl.DPOTrainer` lacks a name that only instances have."""
    for library, names in OF_TRAINERS.items():
        for name in names:
            library.get(trainer, name)


def check_batch(inputs: Mapping[str, Tensor], *others: str) -> None:
    """Raise a BorrowedError if a batch of TRL's collator lacks a column."""
    for name in ("input_ids", "attention_mask", "completion_mask", *others):
        if name not in inputs:
            raise TRL.error(f"the column {name!r} of DPOTrainer's batches is gone")
