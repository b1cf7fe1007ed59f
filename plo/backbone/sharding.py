"""FSDP2: each process holds a shard of every weight, and gathers the weights when a forward pass needs them.

plo shards the model itself, as accelerate would shard the loss too and could not undo it for the next cell. The decoder's
layers are gathered one by one; embedding, final norm and LM head belong to the root and are gathered once a pass.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from plo import distributed


def is_sharded(module: nn.Module) -> bool:
    """Return whether each process holds a part of the module's weights."""
    return isinstance(module, FSDPModule)


def shard(module: nn.Module, layers: set[str], methods: tuple[str, ...], device: torch.device) -> None:
    """Shard `module` in place, on `device`.

    Args:
        layers: class names of the parts that are gathered one by one (FSDP_TRANSFORMER_CLS_TO_WRAP overrides them).
        methods: names of the methods besides `forward` that compute with the weights.
    """
    if names := os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP"):
        layers = set(names.split(","))
    mesh = init_device_mesh(device.type, (distributed.processes(),))
    free = distributed.flag("FSDP_RESHARD_AFTER_FORWARD", True)
    for part in module.modules():
        if type(part).__name__ in layers:
            fully_shard(part, mesh=mesh, reshard_after_forward=free)
    fully_shard(module, mesh=mesh)
    module.forward = _returning(module.forward)
    module.register_forward_hook(lambda module, inputs, out: _raised(out))  # after FSDP's own
    for name in methods:
        setattr(module, name, _returning(getattr(module, name)))
        register_fsdp_forward_method(module, name)
        setattr(module, name, _resharding(module, getattr(module, name)))


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in full, gathered if it is sharded: all processes must call it at the same moment."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return this process's part of a tensor, and a function that makes the tensor of its part again."""
    if not isinstance(tensor, DTensor):
        return tensor, lambda part: part
    how = {"device_mesh": tensor.device_mesh, "placements": tensor.placements}
    return tensor.to_local(), partial(DTensor.from_local, **how, shape=tensor.shape, stride=tensor.stride())


def on_main(tensors: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return full copies of tensors, also in nested mappings, on the CPU of the main process; in the others nothing."""
    gathered = {}
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            value = on_main(value)
        elif isinstance(value, Tensor):
            value = whole(value.detach())
        if distributed.is_main():
            gathered[name] = value.to("cpu", copy=True).contiguous() if isinstance(value, Tensor) else value
    return gathered


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a full tensor that every process has, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor) or isinstance(tensor, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def copy(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Copy full tensors, by name, into parameters, sharded or not."""
    for name, tensor in tensors.items():
        parameters[name].copy_(like(tensor, parameters[name]))


def _resharding(module: Any, method: Callable) -> Callable:
    """Let a method free the root's gathered weights after it, as a backward pass does."""

    @wraps(method)
    def call(*arguments, **keywords):
        out = method(*arguments, **keywords)
        module.reshard()
        return _raised(out)

    return call


def _returning(method: Callable) -> Callable:
    """Let a method return its error instead of raising it, as FSDP must clean up after every pass, a failed one included."""

    @wraps(method)
    def call(*arguments, **keywords):
        try:
            return method(*arguments, **keywords)
        except Exception as error:
            return error

    return call


def _raised(out: Any) -> Any:
    if isinstance(out, Exception):
        raise out
    return out
