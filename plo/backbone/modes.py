"""How a model computes for a while: which attention, which casts are kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from plo.backbone import sharding


@contextmanager
def casts_kept(module: nn.Module) -> Iterator[None]:
    """Cast each weight to the compute dtype once inside, instead of once a forward pass.

    The optimiser clears the casts when it changes the weights.
    """
    if sharding.is_sharded(module):  # a cast of every gathered weight would be the whole model
        yield
        return
    torch.autocast_increment_nesting()  # autocast forgets its casts where the outermost one ends
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


@contextmanager
def attending(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Let a model attend by another implementation inside, and by its own again afterwards."""
    before = model.config._attn_implementation
    if implementation == before:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
