"""LoRA adapters, and their linear layer as one operation: the numbers of peft's layer with fewer passes over its output.

peft computes y = x W^T and adds s (x A^T) B^T to it, which takes two more tensors of y's size forward and two backward.
"""

from functools import cache, partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plo.backbone.borrowed import BaseTunerLayer, LoraLinear, keep_input_dtype
from plo.config import ModelConfig


def lora_config(config: ModelConfig) -> LoraConfig:
    """Return peft's settings of the adapters that are trained."""
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType] (peft takes any number)
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets,
        task_type="CAUSAL_LM",
    )


def fuse(policy: PeftModel, autocast: bool) -> None:
    """Let plain LoRA layers (one active adapter, no dropout, no variant) compute as one operation.

    The other layers stay as peft made them, except that under autocast they no longer cast every adapter's input to float32.
    """
    for layer in policy.modules():
        plain = type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear and not layer.lora_variant
        if plain and _agrees():
            layer.forward = partial(_forward, layer)
        if autocast and isinstance(layer, BaseTunerLayer):
            keep_input_dtype(layer)


@cache
def _agrees() -> bool:
    """Return whether `_forward` computes the numbers and gradients of the installed peft's LoRA layer, tried on a small one."""
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        policy: Any = get_peft_model(nn.Sequential(nn.Linear(5, 4)), config).double()  # pyright: ignore[reportArgumentType]
        layer, x = policy.base_model.model[0], torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
        found = []
        for forward in (layer.forward, partial(_forward, layer)):
            y = forward(x)
            found.append([y.detach(), *torch.autograd.grad(y.square().sum(), inputs)])
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*found, strict=True))


def _forward(layer: Any, x: Tensor, *args, **kwargs) -> Tensor:
    """Compute what a plain LoRA layer does; peft's own forward computes anything else."""
    if layer.disable_adapters and not layer.merged:
        return layer.base_layer(x)
    [name] = layer.active_adapters if len(layer.active_adapters) == 1 else [None]
    plain = name in layer.lora_A and not (layer.merged or args or kwargs)
    if not plain or isinstance(layer.lora_dropout[name], nn.Dropout):
        return type(layer).forward(layer, x, *args, **kwargs)
    base = layer.base_layer
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    a, b, weight = (p.to(dtype) for p in (layer.lora_A[name].weight, layer.lora_B[name].weight, base.weight))
    bias = base.bias.to(dtype) if base.bias is not None else None
    y = _LoraLinear.apply(x.to(dtype).flatten(0, -2), weight, bias, a, b, layer.scaling[name])
    return y.unflatten(0, x.shape[:-1])


class _LoraLinear(torch.autograd.Function):
    """LoRA's linear layer: y = x W^T + bias + s (x A^T) B^T with W and bias frozen.

    Shapes: x (n, in), W (out, in), A (r, in), B (out, r).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        low = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        y = x @ weight.t()
        if bias is not None:
            y += bias
        return y.addmm_(low, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):
        x, weight, a, b, low = ctx.saved_tensors
        d_low = (d_y @ b).mul_(ctx.scaling)
        d_x = (d_y @ weight).addmm_(d_low, a) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_low.t() @ x, (low.t() @ d_y).t() * ctx.scaling, None
