"""Clipping a gradient by its global norm, as `torch.nn.utils.clip_grad_norm_` does, in fewer passes over it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


def clip(optimizer: Optimizer, gradients: Sequence[Tensor], max_norm: float, others: Sequence[Tensor] = ()) -> Tensor:
    """Let the optimiser's next step see `gradients` times min(1, max_norm / their global norm); returns the norm.

    A fused optimiser divides what it reads by its `grad_scale`, as for mixed precision's loss scaling (of which float16 would
    have need, and plo has none). It does so to `others` too, the rest of its gradients, hence they are multiplied first.
    """
    norm = global_norm(gradients)
    scale = ((norm + 1e-6) / max_norm).clamp(min=1)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale = scale.float()
        for grad in others:
            grad.mul_(optimizer.grad_scale)
    else:
        torch._foreach_div_(list(gradients), scale)
    return norm


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients as one vector."""
    if all(grad.dtype == torch.float32 and grad.device.type == "cpu" for grad in gradients):
        # torch's own norm reads memory at half the speed of a product of vectors.
        return torch.stack([torch.dot(grad.flatten(), grad.flatten()) for grad in gradients]).sum().sqrt()
    return get_total_norm(list(gradients))
