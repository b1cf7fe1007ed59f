"""Weights are a value: what is held inside a `with` is gone after it, and an identity is of the tensors alone."""

import pytest
import torch

from plo.backbone.batch import collate
from plo.backbone.model import Backbone
from plo.backbone.weights import Weights
from plo.config import ModelConfig
from plo.losses import get_loss


@pytest.fixture(params=["lora", "full"])
def backbone(request, tiny_llama):
    backbone = Backbone(tiny_llama(), ModelConfig(peft=request.param))
    backbone.reset(0, get_loss("dpo"))
    return backbone.double()


def moved(backbone, seed):
    """Other weights than the backbone's, which keeps its own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: values + 0.1 * torch.randn(values.shape, generator=generator, dtype=values.dtype)
        for name, values in backbone.weights().tensors.items()
    }
    return Weights.on(backbone.base.identity, tensors)


def state(backbone):
    parameters = backbone.policy.named_parameters()
    return {name: (p.detach().clone(), p.requires_grad) for name, p in parameters}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name][0], b[name][0]) and a[name][1] == b[name][1] for name in a)


def test_what_is_held_computes_and_is_gone_afterwards_whatever_happens(backbone, tiny_pairs):
    batch, one, two = collate(tiny_pairs(3)), moved(backbone, 1), moved(backbone, 2)

    def logps():
        return backbone.measure(batch, ("logps",))["logps"]

    def copied_in(weights):
        """The same by hand: the values copied into the parameters, and the old ones back."""
        before = backbone.weights()
        backbone.put(weights.tensors)
        values = logps()
        backbone.put(before.tensors)
        return values

    expected = [copied_in(one), copied_in(two)]
    backbone.put(moved(backbone, 3).tensors)
    own, before = logps(), state(backbone)
    initial = None
    with pytest.raises(KeyError), backbone.holding(one):
        assert torch.equal(logps(), expected[0])
        with backbone.holding(two):
            assert torch.equal(logps(), expected[1])
            with backbone.holding(backbone.reference):
                initial = logps()
                with backbone.holding(one):  # LoRA: its adapters are on again
                    assert torch.equal(logps(), expected[0])
                assert torch.equal(logps(), initial)
            assert torch.equal(logps(), expected[1])
        assert torch.equal(logps(), expected[0])
        raise KeyError
    assert_same(state(backbone), before)
    assert torch.equal(logps(), own)
    backbone.reset(0)
    torch.testing.assert_close(logps(), initial, atol=1e-12, rtol=1e-12)


def test_weights_that_do_not_fit_leave_the_own_ones(backbone):
    before, tensors = state(backbone), dict(moved(backbone, 1).tensors)
    with pytest.raises(KeyError), backbone.holding(Weights("strange", tensors | {"absent": torch.zeros(1)})):
        pass
    assert_same(state(backbone), before)


def test_an_identity_is_of_the_tensors_and_of_the_base(backbone, tiny_llama):
    one = moved(backbone, 1)
    assert moved(backbone, 1).identity == one.identity != moved(backbone, 2).identity
    backbone.put(one.tensors)
    assert backbone.weights().identity == one.identity
    assert Weights.on("another base", one.tensors).identity != one.identity
    other = Backbone(tiny_llama(seed=1), ModelConfig(peft=backbone.settings.peft))
    assert other.base.identity != backbone.base.identity
    assert Backbone(tiny_llama(), ModelConfig()).base.identity == backbone.base.identity


def test_a_start_is_what_reset_gives_and_no_longer_the_reference(backbone, tiny_pairs):
    batch, start = collate(tiny_pairs(3)), moved(backbone, 1)
    assert backbone.starts_at_reference
    with backbone.holding(backbone.reference):
        initial = backbone.measure(batch, ("logps",))["logps"]
    backbone.start_from(start, reference=False)
    assert not backbone.starts_at_reference and backbone.start.identity == start.identity
    backbone.reset(5)
    for name, values in backbone.weights().tensors.items():
        assert torch.equal(values.double(), start.tensors[name].double())
    with backbone.holding(backbone.reference):
        assert torch.equal(backbone.measure(batch, ("logps",))["logps"], initial)
