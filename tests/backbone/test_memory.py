"""Memory: what a pass keeps is counted, layers are computed twice where it would not fit, and the numbers stay."""

import contextlib
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from plo.backbone import micro_batches
from plo.backbone.batch import collate
from plo.backbone.memory import available_bytes, peak_memory_gb, reset_peak_memory, saved_bytes
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.steps import arrange
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.losses import get_loss


class TwoProducts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5, 7))

    def forward(self, batch):
        return (batch["x"] @ self.weight).exp().sum()


def test_saved_bytes_by_hand():
    """The product keeps x (3, 5) and the weight, which is not counted; exp keeps its result (3, 7)."""
    assert saved_bytes(TwoProducts(), {"x": torch.ones(3, 5)}) == (3 * 5 + 3 * 7) * 4


def test_saved_bytes_keeps_nothing():
    """A function that saves its own result, as the sigmoid, closes a circle where the result itself is kept."""
    results = []

    class Sigmoid(torch.nn.Module):
        def forward(self, batch):
            result = batch["x"].sigmoid()
            results.append(weakref.ref(result))
            return result

    assert saved_bytes(Sigmoid(), {"x": torch.ones(3, 5, requires_grad=True)}) == 3 * 5 * 4
    gc.collect()
    assert [result() for result in results] == [None]


def test_available_bytes_are_those_of_the_machine():
    assert 1e6 < available_bytes(torch.device("cpu")) < 1e14


def test_the_peak_is_since_the_reset():
    block = torch.ones(60_000_000)  # 240 MB
    before = peak_memory_gb()
    del block
    reset_peak_memory()
    assert peak_memory_gb() < before


def train(setting, tiny_llama, pairs, folder):
    backbone = Backbone(tiny_llama(), ModelConfig(peft="full"))
    backbone.use_packed(True)
    backbone.reset(0, get_loss("dpo"))
    # sgd: Adam would blow up the rounding of the norms, in float32 in a float64 model too, where a gradient is near 0.
    config = TrainConfig(lr=0.1, batch_size=4, epochs=2, warmup=0.0, optimizer="sgd", gradient_checkpointing=setting)
    reference = ReferenceStore(folder / "store").get(backbone, pairs)
    trainer = PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=folder / setting)
    twice = backbone.causal_lm.is_activation_checkpointing
    trainer.train()
    return twice, torch.cat([p.detach().flatten() for p in backbone.policy_parameters()])


def test_layers_are_computed_twice_where_memory_asks_for_it(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    pairs = tiny_pairs(8)
    roomy, plain = train("auto", tiny_llama, pairs, tmp_path / "roomy")
    assert not roomy
    monkeypatch.setattr(micro_batches, "available_bytes", lambda device: 300_000)  # weights of 26 kB, gradient, Adam
    tight, twice = train("auto", tiny_llama, pairs, tmp_path / "tight")
    assert tight
    torch.testing.assert_close(twice, plain, rtol=1e-6, atol=1e-7)
    assert (plain - torch.cat([p.flatten() for p in tiny_llama().parameters()])).abs().max() > 1e-3  # they moved
    assert train("on", tiny_llama, pairs, tmp_path / "on")[0]


def test_a_weight_is_cast_once_a_step(tiny_llama, tiny_pairs):
    """Two micro-batches of one optimiser step share the bfloat16 copies; after the step there are new ones."""
    backbone = Backbone(tiny_llama(dtype=torch.float32), ModelConfig(peft="full"), torch.bfloat16)
    backbone.reset(0, get_loss("dpo"))
    batch = collate(tiny_pairs(3))
    with backbone.holding(backbone.reference):
        batch = replace(batch, ref_logps=backbone.measure(batch, ("logps",))["logps"])
    weight = backbone.causal_lm.model.layers[0].mlp.down_proj.weight

    def copies():
        kept = set()

        def look(tensor):
            if tensor.dtype == torch.bfloat16 and tensor.untyped_storage().nbytes() == weight.numel() * 2:
                kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        with saved_tensors_hooks(look, lambda tensor: tensor):
            first, second = backbone(batch)["sums"].sum(), backbone(batch)["sums"].sum()
        (first + second).backward()
        return len(kept)

    apart = copies()
    with backbone.casts_kept():
        together = copies()
        backbone.measure(batch, ("logps",))  # without gradient, between two steps
        backbone.zero_grad()
        backbone(batch)["sums"].sum().backward()
        assert weight.grad is not None and weight.grad.abs().max() > 0
    assert apart >= 2 * together > 0


def test_a_weight_is_cast_once_in_all_passes_over_the_reference(tiny_llama, tiny_pairs):
    backbone = Backbone(tiny_llama(dtype=torch.float32), ModelConfig(peft="full"), torch.bfloat16)
    backbone.reset(0, get_loss("dpo"))
    batch = collate(tiny_pairs(3))
    weights = {tuple(p.shape) for p in backbone.policy_parameters() if p.dim() == 2}
    casts = 0

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal casts
            copied = function is torch.ops.aten._to_copy.default and tuple(arguments[0].shape) in weights
            casts += copied and keywords["dtype"] == torch.bfloat16
            return function(*arguments, **(keywords or {}))

    def passes(count):
        nonlocal casts
        casts = 0
        with Casts(), backbone.holding(backbone.reference):
            for _ in range(count):
                backbone.measure(batch, ("logps",))
        return casts

    assert passes(3) == passes(1) > 0
    batch = replace(batch, ref_logps=torch.zeros(len(batch.targets)))
    with backbone.casts_kept():
        backbone(batch)["sums"].sum().backward()  # no cast made without gradient is left
    assert all(p.grad is not None for p in backbone.policy_parameters())


def test_after_a_step_the_casts_are_those_of_the_new_weights(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    """Kept over the micro-batches of a step or made anew each time: the same curve."""

    def curve(folder):
        backbone = Backbone(tiny_llama(dtype=torch.float32), ModelConfig(peft="full"), torch.bfloat16)
        backbone.reset(0, get_loss("dpo"))
        pairs = tiny_pairs(16)
        config = TrainConfig(lr=1e-2, batch_size=4, micro_batch_size=2, epochs=2, warmup=0.0)
        reference = ReferenceStore(tmp_path / "store").get(backbone, pairs)
        trainer = PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=tmp_path / folder)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    kept = curve("kept")
    monkeypatch.setattr(Backbone, "casts_kept", lambda self: contextlib.nullcontext())
    anew = curve("anew")
    assert anew[0] - min(anew) > 0.2
    assert kept == anew


def test_casts_of_weights_do_not_count_for_every_token(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    """A large vocabulary: the cast of the head alone is more than all that 64 tokens keep."""
    model = tiny_llama(dtype=torch.float32, vocab_size=40_000)
    backbone = Backbone(model, ModelConfig(peft="full"), torch.bfloat16)
    backbone.use_packed(True)
    backbone.reset(0, get_loss("dpo"))
    pairs = tiny_pairs(16)
    weights = sum(p.numel() * 4 for p in backbone.policy_parameters())
    monkeypatch.setattr(
        micro_batches, "available_bytes", lambda device: 3 * weights + 57_000_000
    )  # 40 MB to fill: 27 are kept
    reference = ReferenceStore(tmp_path).get(backbone, pairs)
    PreferenceTrainer(backbone, pairs, reference, TrainConfig(batch_size=16), seed=0, folder=tmp_path)
    assert not backbone.causal_lm.is_activation_checkpointing


def test_logits_kept_for_one_pair_and_not_for_two_do_not_upset_the_estimate(
    tiny_llama, tiny_pairs, tmp_path, monkeypatch
):
    backbone = Backbone(tiny_llama(dtype=torch.float32, vocab_size=40_000), ModelConfig(peft="full"), torch.bfloat16)
    backbone.use_packed(True)
    backbone.reset(0, get_loss("dpo"))
    pairs = tiny_pairs(1) * 64
    backbone.kept_logits = kept = 40_000 * (len(pairs[0].chosen_ids) + len(pairs[0].rejected_ids))
    weights = sum(p.numel() * 4 for p in backbone.policy_parameters())
    monkeypatch.setattr(micro_batches, "available_bytes", lambda device: 3 * weights + 1_000_000)
    reference = ReferenceStore(tmp_path).get(backbone, pairs)
    PreferenceTrainer(backbone, pairs, reference, TrainConfig(batch_size=64), seed=0, folder=tmp_path)
    assert backbone.causal_lm.is_activation_checkpointing  # 64 pairs do not fit into a megabyte
    assert backbone.kept_logits == kept
    backbone.checkpoint_layers(False)
    batch = reference.added_to(collate(pairs[:1], packed=True), [0])
    with_logits = saved_bytes(backbone, batch)
    backbone.kept_logits = 0
    assert with_logits - saved_bytes(backbone, batch) >= 0.9 * 2 * kept  # in bfloat16, but for some hidden states


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_bfloat16_products_move_the_weights_as_float32_does(peft, tiny_llama, tiny_pairs, tmp_path):
    """At a learning rate of 5e-7, at which weights kept in bfloat16 would stand still."""
    change = {}
    for dtype in (None, torch.bfloat16):
        backbone = Backbone(tiny_llama(dtype=torch.float32), ModelConfig(peft=peft), dtype)
        backbone.use_packed(True)
        backbone.reset(0, get_loss("dpo"))
        before = torch.cat([p.detach().flatten() for p in backbone.policy_parameters()])
        config = TrainConfig(lr=5e-7, batch_size=4, epochs=4, warmup=0.0)
        pairs = tiny_pairs(16)
        reference = ReferenceStore(tmp_path / f"store{dtype}").get(backbone, pairs)
        PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=tmp_path / str(dtype)).train()
        change[dtype] = torch.cat([p.detach().flatten() for p in backbone.policy_parameters()]) - before
    moved = (change[None] != 0).float().mean()
    agreement = torch.cosine_similarity(change[None], change[torch.bfloat16], dim=0)
    assert moved > 0.4 and agreement > 0.95
    if peft == "full":
        still = before.bfloat16() == (before + change[None]).bfloat16()
        assert still.float().mean() > 0.97  # what weights kept in bfloat16 would have lost


@pytest.mark.parametrize(
    ("alike", "lengths"),
    [
        (True, [[50, 40], [31, 20], [12, 8, 3]]),
        (False, [[50, 8, 3], [40, 12], [31, 20]]),  # dealt there and back
    ],
)
def test_a_step_is_shared_out_by_length_and_keeps_its_rows(alike, lengths):
    sizes = [50, 3, 40, 8, 31, 20, 12]
    parts = arrange(range(7), sizes, 3, alike)
    assert [[sizes[row] for row in part] for part in parts] == lengths


def test_fewer_rows_than_parts():
    assert arrange([4, 2], [1, 9], 3, alike=False) == [[2], [4], []]
