"""The fused LoRA layer against peft's own."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from plo.backbone import lora
from plo.backbone.lora import fuse


class Two(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first, self.second = nn.Linear(6, 10, bias=bias), nn.Linear(10, 4, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(bias=True, dropout=0.0):
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, lora_dropout=dropout, target_modules=["first", "second"])
    policy = get_peft_model(Two(bias), config).double()
    with torch.no_grad():  # B starts at 0, where nothing could be seen
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += torch.randn_like(parameter)
    return policy


def value_and_gradients(policy):
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = policy(x)
    y.square().sum().backward()
    return y, x.grad, *(p.grad for p in policy.parameters() if p.requires_grad)


@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_pefts(bias):
    theirs, ours = adapted(bias), adapted(bias)
    fuse(ours, autocast=False)
    for a, b in zip(value_and_gradients(ours), value_and_gradients(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_peft_that_computes_otherwise_keeps_its_own_layers(monkeypatch):
    """Tried in numbers, once a process: here as if a later peft added .1% to what its layers give."""
    theirs = lora.LoraLinear.forward
    try:
        for factor, fused in ((1.001, False), (1, True)):
            monkeypatch.setattr(lora.LoraLinear, "forward", lambda self, x, f=factor: f * theirs(self, x))
            lora._agrees.cache_clear()
            policy = adapted()
            fuse(policy, autocast=False)
            layers = [layer for layer in policy.modules() if isinstance(layer, lora.LoraLinear)]
            assert [isinstance(layer.forward, partial) for layer in layers] == [fused, fused]
    finally:
        lora._agrees.cache_clear()


def test_without_adapters_it_is_the_base():
    policy = adapted()
    fuse(policy, autocast=False)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.manual_seed(0)
    with policy.disable_adapter():
        torch.testing.assert_close(policy(x), Two(True).double()(x), rtol=1e-12, atol=1e-12)


def test_dropout_and_merging_stay_pefts():
    policy = adapted(dropout=0.5)
    fuse(policy, autocast=False)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert not torch.equal(policy(x), policy(x))
    policy.eval()
    before = policy(x)
    policy.merge_adapter()
    torch.testing.assert_close(policy(x), before, rtol=1e-10, atol=1e-10)


def test_the_layer_is_tried_in_float64_whatever_surrounds_it():
    """The first model of a process may be made inside autocast, as the attention judge's is."""
    lora._agrees.cache_clear()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert lora._agrees()
