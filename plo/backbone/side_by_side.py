"""Several LoRA adapters in one forward pass: each computes its own share of a batch's rows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plo.backbone.borrowed import LoraLinear

Tensors = Mapping[str, Tensor]


def can_share(policy: nn.Module) -> bool:
    """Return whether `sharing` supports a policy: all that is trained is plain LoRA on plain linear layers."""
    covered = sum(len(layer.lora_A) + len(layer.lora_B) for _, layer in _plain_layers(policy))
    return covered > 0 and covered == sum(parameter.requires_grad for parameter in policy.parameters())


@contextmanager
def sharing(policy: nn.Module, adapters: Sequence[Tensors], dtype: torch.dtype | None) -> Iterator[None]:
    """Let the first n-th of a batch's rows be computed with the first of n adapters inside, the next n-th with the second, ...

        y_g = x_g W^T + b + s (x_g A_g^T) B_g^T

    The product with W is one for all rows; those with A and B are batched over the adapters g.

    Args:
        adapters: values of the policy's trained parameters by name.
        dtype: dtype of the products; None: that of the weights.
    """
    exchanged = []
    try:
        for name, layer in _plain_layers(policy):
            [adapter] = layer.active_adapters
            a, b = (
                torch.stack([tensors[f"{name}.{part}.{adapter}.weight"] for tensors in adapters])
                for part in ("lora_A", "lora_B")
            )
            weight = layer.base_layer.weight
            place = {"device": weight.device, "dtype": dtype or weight.dtype}
            exchanged.append((layer, layer.__dict__.get("forward")))
            layer.forward = partial(_forward, layer.base_layer, a.to(**place), b.to(**place), layer.scaling[adapter])
        yield
    finally:
        for layer, forward in exchanged:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _plain_layers(policy: nn.Module) -> Iterator[tuple[str, Any]]:
    """Iterate over the plain LoRA layers of a policy on plain linear layers, with their names."""
    for name, layer in policy.named_modules():
        if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear and not layer.lora_variant:
            yield name, layer


def _forward(base: nn.Linear, a: Tensor, b: Tensor, scaling: float, x: Tensor) -> Tensor:
    """Compute the layer for rows x (n * rows, tokens, in), with A (n, r, in) and B (n, out, r)."""
    x = x.to(a.dtype)
    y = F.linear(x, base.weight.to(a.dtype), base.bias)
    groups = x.reshape(len(a), -1, x.shape[-1])
    low = groups @ a.transpose(1, 2)
    return y.reshape(len(b), -1, y.shape[-1]).baddbmm_(low, b.transpose(1, 2), alpha=scaling).view(y.shape)
