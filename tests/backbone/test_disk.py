"""Weights on disk: what comes back is what went in, in no other memory; the reference's are there to the bit."""

import gc

import pytest
import torch

from plo.backbone import disk
from plo.backbone.batch import collate
from plo.backbone.disk import OnDisk
from plo.backbone.head import ModelError
from plo.backbone.model import Backbone
from plo.backbone.weights import Weights
from plo.config import ModelConfig
from plo.losses import get_loss


def test_what_comes_back_is_what_went_in(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "plo_home", lambda: tmp_path)
    tensors = {
        "matrix": torch.randn(300, 50),
        "turned": torch.randn(7, 5).t(),
        "half": torch.randn(3).bfloat16(),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.empty(0, 4),
    }
    kept = OnDisk(tensors)
    assert list(tmp_path.iterdir()) == []  # without a name: nothing is left behind, whatever happens
    assert list(kept) == list(tensors)
    for name, tensor in tensors.items():
        assert kept[name].dtype == tensor.dtype
        assert torch.equal(kept[name], tensor)
    kept["matrix"].zero_()
    assert torch.equal(kept["matrix"], tensors["matrix"])


def test_no_room_says_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "plo_home", lambda: tmp_path / "absent")
    with pytest.raises(ModelError, match=r"0\.1 GB of weights cannot be kept in .*absent.*PLO_HOME"):
        OnDisk({"weight": torch.zeros(5000, 5000)})


@pytest.mark.parametrize("lead", ["init", "sft"])
def test_the_initial_weights_are_not_in_memory_and_come_back_to_the_bit(lead, tiny_llama, tiny_pairs):
    backbone = Backbone(tiny_llama(dtype=torch.float32, vocab_size=97), ModelConfig(peft="full"), torch.bfloat16)
    batch = collate(tiny_pairs(3))
    if lead == "sft":  # weights of an earlier training
        state = {name: values + 0.1 for name, values in backbone.weights().tensors.items()}
        backbone.start_from(Weights("sft", state), reference=True)
        del state
    backbone.reset(0, get_loss("tdpo2"))
    before = {name: p.detach().double() for name, p in backbone.policy.named_parameters()}
    initial = backbone.measure(batch, ("logps", "entropy"))

    def move():
        with torch.no_grad():
            for parameter in backbone.policy_parameters():
                parameter += 0.05 * torch.randn_like(parameter)

    def same(got):
        return all(torch.equal(values, initial[name]) for name, values in got.items())

    move()
    own = {id(parameter) for parameter in backbone.policy_parameters()}
    gc.collect()  # what earlier tests left
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and id(thing) not in own]
    assert [t for t in tensors if t.shape == (97, 16) and t.dtype == torch.float32] == []
    moved = backbone.measure(batch, ("logps", "entropy"))
    assert not same(moved)
    for _ in range(2):
        with backbone.holding(backbone.reference):
            assert same(backbone.measure(batch, ("logps", "entropy")))
        move()
    backbone.reset(0, get_loss("dpo"))
    assert same(backbone.measure(batch, ("logps", "entropy")))
    for name, parameter in backbone.policy.named_parameters():
        assert torch.equal(parameter.double(), before[name]), name


def test_the_policy_is_back_after_the_reference(tiny_llama, tiny_pairs):
    backbone = Backbone(tiny_llama(), ModelConfig(peft="full"))
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter += 0.05
    policy, batch = backbone.weights().tensors, collate(tiny_pairs(2))
    with pytest.raises(KeyError), backbone.holding(backbone.reference):
        backbone.measure(batch, ("logps",))
        raise KeyError
    for name, parameter in backbone.policy.named_parameters():
        assert torch.equal(parameter, policy[name]), name


def test_the_references_head_follows_the_reference(tiny_llama, tiny_pairs):
    """Kept for the length of a training, not beyond: KL to the reference is 0 wherever the policy is the reference."""
    backbone = Backbone(tiny_llama(), ModelConfig(peft="full"))
    batch = collate(tiny_pairs(2))
    for shift in (0.0, 0.1):
        state = {name: values + shift for name, values in backbone.weights().tensors.items()}
        backbone.start_from(Weights(f"moved by {shift}", state), reference=True)
        backbone.reset(0)
        kl = backbone.measure(batch, ("kl_ref_pi",))["kl_ref_pi"]
        torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-12, rtol=0)
