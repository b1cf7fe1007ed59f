"""Contexts in which a model computes in another way: with other attention, or with casts that are kept."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from plo.backbone import sharding
from plo.backbone.borrowed import attention_of, autocast_nested


@contextmanager
def casts_kept(module: nn.Module) -> Iterator[None]:
    """Cast each weight to the compute dtype once inside, instead of once a forward pass.

    The optimiser clears the casts when it changes the weights.
    """
    if sharding.is_sharded(module):  # a cast of every gathered weight would be the whole model
        yield
        return
    with autocast_nested():
        yield


@contextmanager
def attending(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Let a model attend by another implementation inside, and by its own again afterwards."""
    before = attention_of(model)
    if implementation == before:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
