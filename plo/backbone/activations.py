"""Less kept for the backward pass, and fewer passes over what is.

autograd keeps what every operation multiplies. Of an RMS norm that is its input and what it makes of it on the way, of a
gated MLP, down(act(gate) * up), gate, act(gate), up and their product: the widest tensors of a layer. All but the norm's
input, gate and up follow by elementwise work, which is cheap to do again. A third of what SmolLM2 keeps in bfloat16.
"""

from collections.abc import Callable
from functools import partial
from types import CodeType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


def keep_less(model: nn.Module, on: bool) -> None:
    """Let RMS norms and trained gated MLPs keep less, or as much as the model's own code does.

    Of a frozen MLP the adapters are operations of their own. A module whose forward was replaced by something else is
    left alone.
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _KeepsLess):
            del module.forward
        if on and "forward" not in vars(module):
            if _is_gated_mlp(module):
                module.forward = _KeepsLess(_gated_mlp, module)
            elif _computes_as(LlamaRMSNorm, module):
                module.forward = _KeepsLess(_rms_norm, module)
            elif _is_rms_norm(module):
                module.forward = _KeepsLess(_again, module.forward)


class _KeepsLess(partial):
    """A forward that `keep_less` has put there."""


def _gated_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    return _again(partial(_down, mlp), mlp.gate_proj(x), mlp.up_proj(x))


def _down(mlp: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    return mlp.down_proj(mlp.act_fn(gate) * up)


def _rms_norm(norm: nn.Module, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, norm.weight, norm.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    """y = w * z, z = x r, r = 1 / sqrt(mean(x^2) + eps); x (..., d), w (d,). z and r (..., 1) in float32, as Llama's."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.float()
        root = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, root)
        return weight * (exact * root).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):
        """dL/dw = sum of dy z over the rows, dL/dx = r (dy w - z mean(dy z w))."""
        x, weight, root = ctx.saved_tensors
        z, d_y = x.float() * root, d_y.float()
        d_weight = (d_y * z).reshape(-1, len(weight)).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        d_z = d_y * weight.float()
        d_x = d_z.addcmul_(z, (d_z * z).mean(-1, keepdim=True), value=-1).mul_(root)
        return d_x.to(x.dtype), d_weight, None


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The function of the inputs; of what is in it only they are kept. It draws nothing at random.

    It is done again up to the last tensor that is needed: of `_down`, before the product with its weight.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether it is another kind with a trained weight; torch's own is one operation, which keeps no more than this."""
    if not type(module).__name__.endswith("RMSNorm") or isinstance(module, nn.RMSNorm):
        return False
    return any(weight.requires_grad for weight in module.parameters())


def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether its forward is that of Llama's MLP, and `down_proj` is torch's, trained."""
    if not _computes_as(LlamaMLP, module):
        return False
    return type(module.down_proj) is nn.Linear and module.down_proj.weight.requires_grad


def _computes_as(cls: type[nn.Module], module: nn.Module) -> bool:
    """Whether the module's forward is that of a module of Llama's, of which most models have a copy."""
    theirs, llamas = (getattr(kind.forward, "__code__", None) for kind in (type(module), cls))
    return theirs is not None and _what_it_does(theirs) == _what_it_does(llamas)


def _what_it_does(code: CodeType) -> tuple:
    return code.co_code, code.co_names, [value for value in code.co_consts if not isinstance(value, str | None)]
