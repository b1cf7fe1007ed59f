"""Less kept for the backward pass, and fewer passes over what is.

autograd keeps what every operation multiplies. Of an RMS norm that is its input and what it makes of it on the way, of a
gated MLP, down(act(gate) * up), gate, act(gate), up and their product: the widest tensors of a layer. All but the norm's
input, gate and up follow by elementwise work, which is cheap to do again. A third of what SmolLM2 keeps in bfloat16.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # of the rows on which a replacement is compared
TOLERANCE = 1e-4


def keep_less(model: nn.Module, on: bool) -> None:
    """Let RMS norms and trained gated MLPs keep less, or as much as the model's own code does.

    What replaces a module's forward is first compared with it in numbers, forward and backward (`agrees`); where they
    differ, the module stays as it is. Of a frozen MLP the adapters are operations of their own. A module whose forward
    was replaced by something else is left alone.
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _KeepsLess):
            del module.forward
        if on and "forward" not in vars(module) and (make := _replacement(module)):
            module.forward = _KeepsLess(make(module))


def compare_parts(model: nn.Module) -> None:
    """Compare whatever `keep_less` may replace now, where that is impossible later: of a sharded model."""
    for module in model.modules():
        _replacement(module)


class _KeepsLess(partial):
    """A forward that `keep_less` has put there."""


_Make = Callable[[nn.Module], Callable[..., Tensor]]
_verdicts: WeakKeyDictionary[nn.Module, _Make | None] = WeakKeyDictionary()


def _replacement(module: nn.Module) -> _Make | None:
    """What makes the forward that keeps less for a module of this kind; None where there is none that agrees."""
    if _is_trained_gated_mlp(module):
        makes = (_gated_mlp,)
    elif isinstance(getattr(module, "variance_epsilon", None), float) and [
        name for name, _ in module.named_parameters(recurse=False)
    ] == ["weight"]:
        makes = (_rms_norm, _whole_again) if _is_trained_rms_norm(module) else (_rms_norm,)
    elif _is_trained_rms_norm(module):
        makes = (_whole_again,)
    else:
        return None
    if module not in _verdicts:
        _verdicts[module] = next((make for make in makes if agrees(module, make)), None)
    return _verdicts[module]


def _gated_mlp(mlp: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: _again(partial(_down, mlp), mlp.gate_proj(x), mlp.up_proj(x))


def _whole_again(module: nn.Module) -> Callable[..., Tensor]:
    return partial(_again, module.forward)


def _down(mlp: Any, gate: Tensor, up: Tensor) -> Tensor:
    return mlp.down_proj(mlp.act_fn(gate) * up)


def _rms_norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda hidden_states: _RMSNorm.apply(hidden_states, norm.weight, norm.variance_epsilon)


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


def _is_trained_rms_norm(module: nn.Module) -> bool:
    """Whether it is a norm with a trained weight, by name; torch's own is one operation, which keeps no more than this."""
    if not type(module).__name__.endswith("RMSNorm") or isinstance(module, nn.RMSNorm):
        return False
    return any(weight.requires_grad for weight in module.parameters())


def _is_trained_gated_mlp(module: nn.Module) -> bool:
    """Whether it has the parts of Llama's MLP, and `down_proj` is torch's, trained."""
    down = getattr(module, "down_proj", None)
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "act_fn"))
    return parts and type(down) is nn.Linear and down.weight.requires_grad


def agrees(module: Any, make: _Make) -> bool:
    """Whether the forward that `make` makes for a module computes the module's numbers and gradients.

    Both run on a copy in float64, on rows whose scales lie from .01 to 1,000, so that a constant, a clamp or another
    exponent shows; and forward on the module's own dtype, as rounding is to be the same.
    """
    width = (module.gate_proj if hasattr(module, "gate_proj") else module).weight.shape[-1]
    generator = torch.Generator().manual_seed(0)
    x, d_y = torch.randn(2, len(SCALES), width, generator=generator, dtype=torch.float64)
    x = x * torch.tensor(SCALES, dtype=torch.float64)[:, None]
    weight = next(module.parameters())
    try:
        with torch.random.fork_rng(), torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
            copied = copy.deepcopy(module).train()
            own = x.to(weight)
            if not torch.equal(copied(own), make(copied)(own)):
                return False
            copied = copied.double()
            found = [_with_gradients(forward, copied, x.to(weight.device), d_y) for forward in (copied, make(copied))]
    except Exception:  # of another signature, or with parts of its own
        return False
    return all(_close(a, b) for a, b in zip(*found, strict=True))


def _with_gradients(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, d_y: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = forward(x)
    trained = [p for p in module.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [x, *trained], d_y.to(y))]


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of float32, in which norms compute, of the largest entry of each row."""
    return bool(((a - b).abs() <= TOLERANCE * a.abs().amax(-1, keepdim=True)).all())
