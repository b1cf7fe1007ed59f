"""Weights as a value: what identifies them, and the tensors themselves."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Weights:
    """Values of a model's trained parameters.

    Attributes:
        identity: sha256, which differs where a forward pass with the weights would.
        tensors: values by parameter name. LoRA without tensors is the base alone, its adapters off.
        model: the `Backbone` whose weights they are, if that is another one than the one that holds them.
    """

    identity: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    model: Any = field(default=None, repr=False)

    @classmethod
    def on(cls, base: str, tensors: Mapping[str, Tensor]) -> "Weights":
        """Return the weights that are `tensors` on a base model of the identity `base`."""
        digest = hashlib.sha256(base.encode())
        _update(digest, tensors)
        return cls(digest.hexdigest(), tensors)


def model_identity(model: PreTrainedModel) -> str:
    """Return the sha256 of names, dtypes and bytes of a model's weights, and of what in its config changes a forward pass."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"}
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    _update(digest, {name: parameter.detach() for name, parameter in model.named_parameters()})
    return digest.hexdigest()


def _update(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
