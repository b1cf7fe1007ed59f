"""RMS norms and gated MLPs that keep less for the backward pass.

autograd keeps what every operation multiplies: of a gated MLP, down(act(gate) * up), the tensors gate, act(gate), up and
their product. All but an RMS norm's input, gate and up can be computed again by cheap elementwise work, which saves a third
of what SmolLM2 keeps in bfloat16.
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
    """Let RMS norms and trained gated MLPs keep less (`on`), or as much as the model's own code does.

    A replacement is first compared with the module in numbers, forward and backward (`agrees`); a module that differs
    stays as it is. So does a frozen MLP, whose adapters are operations of their own, and a module whose forward something
    else has replaced.
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _KeepsLess):
            del module.forward
        if on and "forward" not in vars(module) and (make := _replacement(module)):
            module.forward = _KeepsLess(make(module))


def compare_parts(model: nn.Module) -> None:
    """Compare now whatever `keep_less` may replace later, when the model is sharded and cannot be compared any more."""
    for module in model.modules():
        _replacement(module)


class _KeepsLess(partial):
    """A forward method that `keep_less` set."""


_Make = Callable[[nn.Module], Callable[..., Tensor]]
_verdicts: WeakKeyDictionary[nn.Module, _Make | None] = WeakKeyDictionary()


def _replacement(module: nn.Module) -> _Make | None:
    """Return the function that makes a forward method which keeps less for `module`; None if none agrees with it."""
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    makes: list[_Make] = [_gated_mlp] if _is_trained_gated_mlp(module) else []
    if parameters == ["weight"] and isinstance(getattr(module, "variance_epsilon", None), float):
        makes.append(_rms_norm)
    if _is_trained_rms_norm(module):
        makes.append(_whole_again)
    if not makes:
        return None
    if module not in _verdicts:
        _verdicts[module] = next((make for make in makes if agrees(module, make)), None)
    return _verdicts[module]


def _gated_mlp(mlp: Any) -> Callable[[Tensor], Tensor]:
    def down(gate: Tensor, up: Tensor) -> Tensor:
        return mlp.down_proj(mlp.act_fn(gate) * up)

    return lambda x: _again(down, mlp.gate_proj(x), mlp.up_proj(x))


def _whole_again(module: nn.Module) -> Callable[..., Tensor]:
    return partial(_again, module.forward)


def _rms_norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda hidden_states: _RMSNorm.apply(hidden_states, norm.weight, norm.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    """RMS norm that keeps its input x and r: y = w z, z = x r, r = 1 / sqrt(mean(x^2) + eps), z and r in float32 as Llama's.

    Shapes: x (..., d), w (d,), r (..., 1).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.float()
        root = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, root)
        return weight * (exact * root).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):
        """Compute dL/dw, the sum of dy z over the rows, and dL/dx = r (dy w - z mean(dy z w))."""
        x, weight, root = ctx.saved_tensors
        z, d_y = x.float() * root, d_y.float()
        d_weight = (d_y * z).reshape(-1, len(weight)).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        d_z = d_y * weight.float()
        d_x = d_z.addcmul_(z, (d_z * z).mean(-1, keepdim=True), value=-1).mul_(root)
        return d_x.to(x.dtype), d_weight, None


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a function that draws nothing at random, and keep its inputs alone for the backward pass.

    The backward pass computes it again up to the last tensor that is needed: of a gated MLP, before the product with its weight.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _is_trained_rms_norm(module: nn.Module) -> bool:
    """Return whether a module is an RMS norm with a trained weight, other than torch's, which keeps no more than this."""
    if not type(module).__name__.endswith("RMSNorm") or isinstance(module, nn.RMSNorm):
        return False
    return any(weight.requires_grad for weight in module.parameters())


def _is_trained_gated_mlp(module: nn.Module) -> bool:
    """Return whether a module has the parts of Llama's MLP, and its `down_proj` is a trained layer of torch."""
    down = getattr(module, "down_proj", None)
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "act_fn"))
    return parts and type(down) is nn.Linear and down.weight.requires_grad


def agrees(module: Any, make: _Make) -> bool:
    """Return whether the forward that `make` makes for a module computes the numbers and gradients of the module.

    Both run on a copy in float64, on rows whose scales range from .01 to 1,000, so that a constant, a clamp or another
    exponent shows. The forward pass is compared in the module's own dtype as well, in which rounding must be the same.
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
    """Return whether two tensors are equal within the rounding in float32 of each row's largest entry."""
    return bool(((a - b).abs() <= TOLERANCE * a.abs().amax(-1, keepdim=True)).all())
