"""The step from a causal LM's last hidden state to its logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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
    """Raise a ModelError if a model has adapters already, which the trained ones would replace, having the same name."""
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            f"The model {model.name_or_path!r} has an adapter already. New adapters would replace it, and training would start "
            f"from the base alone. Merge it first: peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def check_head(model: PreTrainedModel) -> None:
    """Compare `scaled` of the LM head's output with the model's own logits, as families differ in what follows the head.

    Raises:
        ModelError: the logits differ, or the model's own are not finite.
    """
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % model.config.get_text_config().vocab_size
    with evaluating(model), torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        head: Any = model.get_output_embeddings()
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        got = scaled(model.config, head(states)).float()
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
