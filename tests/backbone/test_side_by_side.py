"""Several adapters in one forward pass: each row is computed with its own, as peft computes it alone."""

import pytest
import torch

from plo.backbone.model import Backbone
from plo.backbone.side_by_side import can_share, sharing
from plo.config import ModelConfig


def with_adapters(tiny_llama, count, **settings):
    """A backbone and the tensors of that many random adapters of it."""
    backbone = Backbone(tiny_llama(), ModelConfig(peft="lora", lora_r=3, **settings))
    backbone.policy.double()
    adapters = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        named = [(n, p) for n, p in backbone.policy.named_parameters() if p.requires_grad]
        adapters.append({n: 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in named})
    return backbone, adapters


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_rows_are_computed_with_the_adapter_of_their_share(tiny_llama, targets):
    backbone, adapters = with_adapters(tiny_llama, 3, lora_targets=targets)
    assert can_share(backbone.policy)
    ids = torch.randint(2, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    expected = []
    with torch.no_grad():
        for number, tensors in enumerate(adapters):
            backbone.put(tensors)
            expected.append(backbone.policy(input_ids=ids[2 * number : 2 * number + 2]).logits)
        with sharing(backbone.policy, adapters, None):
            found = backbone.policy(input_ids=ids).logits
        after = backbone.policy(input_ids=ids[4:]).logits
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)
    assert (found[:2] - found[2:4]).abs().max() > 1e-3
    assert torch.equal(after, expected[2])  # what was there computes again


def test_a_policy_with_more_than_plain_lora_is_not_shared(tiny_llama):
    backbone, _ = with_adapters(tiny_llama, 1)
    backbone.policy.get_base_model().model.norm.weight.requires_grad_(True)
    assert not can_share(backbone.policy)
    assert not can_share(Backbone(tiny_llama(), ModelConfig(peft="full")).policy)
