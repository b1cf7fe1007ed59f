"""Loading a `Backbone` and its tokenizer by the name of a model."""

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from plo import distributed
from plo.backbone.borrowed import multiplies_bfloat16
from plo.backbone.limits import check_vocabulary
from plo.backbone.memory import keep_freed_memory
from plo.backbone.model import Backbone, ModelError
from plo.backbone.packing import use_if_agreed, why_not
from plo.backbone.pretrained import near_folders, pretrained
from plo.config import ModelConfig
from plo.faults import reason


def load_backbone(config: ModelConfig, longest: int = 512) -> tuple[Backbone, Any]:
    """Load a backbone and its tokenizer, onto the GPU if there is one.

    An adapter is merged into its base, and the two together are the start and the reference of training. LoRA holds the
    frozen base in the compute dtype; full fine-tuning holds float32 master weights. Pairs are packed if the model computes
    the same numbers with packed rows; otherwise a warning says why not.

    Args:
        longest: number of tokens of the longest sequence that the model will read.

    Raises:
        ModelError: the model cannot be loaded, or not be trained with these settings.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute_dtype = _compute_dtype(config.dtype, device)
    if device.type == "cpu":
        keep_freed_memory()
    weights_dtype = torch.float32 if config.peft == "full" or compute_dtype is None else compute_dtype
    attention = None if config.attention == "auto" else config.attention
    remedy = (
        "Give 'embedded', 'pocket', a local folder, or a hub name (and, for the hub, a connection or a filled cache)."
    )
    try:
        model, tokenizer = pretrained(AutoModelForCausalLM, config.name, weights_dtype, attn_implementation=attention)
    except ModelError:
        raise
    except Exception as error:  # files that are damaged, cut short, or pickles: each library has its own error
        if attention is not None and isinstance(error, ImportError):
            remedy = "Install the package, or set model.attention=auto."
        elif close := near_folders(config.name):
            remedy = f"A folder of a near name is here: {', '.join(close)}. {remedy}"
        raise ModelError(f"The model {config.name!r} cannot be loaded: {reason(error)}. {remedy}") from error
    check_vocabulary(model, tokenizer)
    try:
        if not distributed.is_sharding_requested():  # else shard by shard, as a device may not hold all
            model.to(device)  # pyright: ignore[reportArgumentType] (a decorator of transformers hides `self`)
        backbone = Backbone(model, config, compute_dtype, device=device)
    except ModelError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"The model {config.name!r} cannot be trained with these settings: {reason(error)}. Change those of `model`; "
            f"model.lora_targets=all-linear fits every model."
        ) from error
    backbone.longest = longest
    if config.packed:
        why = why_not(model, longest) or use_if_agreed(backbone, longest)
        if why:
            warnings.warn(
                f"{config.name}: pairs are padded, not packed, which is slower: {why}. (model.packed=false pads them without this check.)",
                stacklevel=2,
            )
    return backbone, tokenizer


def _compute_dtype(name: str, device: torch.device) -> torch.dtype | None:
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if multiplies_bfloat16() else None
    return torch.bfloat16 if name == "bfloat16" else None
