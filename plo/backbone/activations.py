"""Less kept for the backward pass, for the same numbers to the bit.

autograd keeps what every product multiplies. Of an RMS norm that is its input and what it makes of it on the way, of a
gated MLP, down(act(gate) * up), gate, act(gate), up and their product: the widest tensors of a layer. All but the norm's
input, gate and up follow by elementwise work, which is cheap, and `torch.utils.checkpoint` does again: it stops at the last
tensor that is needed, hence before the product with down's weight. A third of what SmolLM2 keeps in bfloat16.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaMLP


def keep_less(model: nn.Module, on: bool) -> None:
    """Let trained RMS norms and gated MLPs keep less, or as much as the model's own code does.

    Frozen ones keep little, and their adapters are operations of their own. A module whose forward was replaced by
    something else is left alone.
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _KeepsLess):
            del module.forward
        if on and "forward" not in vars(module):
            if _is_gated_mlp(module):
                module.forward = _KeepsLess(_gated_mlp, module)
            elif _is_rms_norm(module):
                module.forward = _KeepsLess(_again, module.forward)


class _KeepsLess(partial):
    """A forward that `keep_less` has put there."""


def _gated_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    return _again(partial(_down, mlp), mlp.gate_proj(x), mlp.up_proj(x))


def _down(mlp: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    return mlp.down_proj(mlp.act_fn(gate) * up)


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The function of the inputs; of what is in it only they are kept. It draws nothing at random."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether it is one with a trained weight; torch's own is one operation, which keeps no more than this."""
    if not type(module).__name__.endswith("RMSNorm") or isinstance(module, nn.RMSNorm):
        return False
    return any(weight.requires_grad for weight in module.parameters())


def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether its forward is that of Llama's MLP, of which most models have a copy, and `down_proj` is torch's, trained."""
    theirs, llamas = (getattr(cls.forward, "__code__", None) for cls in (type(module), LlamaMLP))
    if theirs is None or (theirs.co_code, theirs.co_names) != (llamas.co_code, llamas.co_names):
        return False
    return type(module.down_proj) is nn.Linear and module.down_proj.weight.requires_grad
