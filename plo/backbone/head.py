"""The step from a causal LM's last hidden state to its logits."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from plo.backbone.borrowed import BaseTunerLayer
from plo.errors import PloError


class ModelError(PloError, ValueError):
    """An error for a model that cannot be loaded or used. The message names the model and the remedy."""


def scaled(config: PreTrainedConfig, logits: Tensor) -> Tensor:
    """Return the logits after what some families do to the product with the LM head: scale it, or cap it."""
    config = config.get_text_config()
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        logits = logits / config.logits_scaling
    if getattr(config, "final_logit_softcapping", None) is not None:  # Gemma2
        logits = config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
    return logits


def check_plain(model: PreTrainedModel) -> None:
    """Raise if a model has adapters already, which the trained ones would replace, as they have the same name.

    Raises:
        ModelError: the model has an adapter.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            f"The model {model.name_or_path!r} has an adapter already. New adapters would replace it, and training would start "
            f"from the base alone. Merge it first: peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()."
        )


def check_head(model: PreTrainedModel, head: Callable[[Tensor], Tensor]) -> None:
    """Compare `head` of the last hidden state with the model's own logits, as families differ in what follows the LM head.

    Raises:
        ModelError: the logits differ, or the model's own are not finite.
    """
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        got = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not expected.isfinite().all():
        raise ModelError(
            f"The model {model.name_or_path!r} answers with numbers that are not finite: its weights are damaged, or "
            f"{str(expected.dtype).removeprefix('torch.')} is too narrow for them. Copy it again, or set model.dtype=float32."
        )
    expected = expected.float()
    if not torch.allclose(expected, got, atol=1e-3 * expected.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__}: its logits are not those of its LM head on its last hidden state (off by "
            f"{(expected - got).abs().max():.3g}). Add what it does after the head to plo.backbone.head.scaled."
        )
