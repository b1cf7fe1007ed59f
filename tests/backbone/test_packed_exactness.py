"""Packed against padded on the embedded model and real HH pairs, float32 and bfloat16."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from plo.backbone.batch import collate
from plo.backbone.load import load_backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.data import load_data
from plo.embedded import embedded_model
from plo.losses import get_loss

pytestmark = pytest.mark.slow
MAX_LENGTH = 256


def hh_pairs(shared_data, count):
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    data = load_data(
        "hh",
        shared_data / "hh" / "harmless-base_test.jsonl.gz",
        tokenizer=tokenizer,
        limit=3 * count,
        eval_limit=1,
        max_length=512,
    )
    short = [p for p in data.train if len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) <= MAX_LENGTH]
    return short[:count]


def moved(backbone, scale):
    """The policy away from its reference, by noise of `scale` of each weight's own spread."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += scale * parameter.std() * noise if parameter.numel() > 1 else 0
    return backbone


def test_value_and_gradient_in_float32(shared_data):
    pairs = hh_pairs(shared_data, 8)
    backbone, _ = load_backbone(ModelConfig(peft="full", dtype="float32"))
    got = {}
    for packed in (False, True):
        backbone.use_packed(packed)
        backbone.reset(0, get_loss("tdpo2"))
        batch = collate(pairs, packed=packed)
        with backbone.holding(backbone.reference):
            reference = backbone.measure(batch, ("logps",), hidden=True)
        moved(backbone, 0.02)
        out = backbone(replace(batch, ref_logps=reference["logps"], ref_hidden=reference["hidden"]))
        out["sums"].sum().backward()
        got[packed] = out["sums"].item(), {n: p.grad.clone() for n, p in backbone.policy.named_parameters()}
        backbone.zero_grad()
    assert out["metrics"]["margin"].abs().max() > 1
    assert got[True][0] == pytest.approx(got[False][0], rel=1e-5)
    largest = max(gradient.abs().max() for gradient in got[False][1].values())
    assert max((got[True][1][n] - g).abs().max() for n, g in got[False][1].items()) <= 1e-5 * largest


@pytest.mark.parametrize("peft", ["lora", "full"])
def test_training_curve_in_float32(peft, shared_data, tmp_path):
    pairs = hh_pairs(shared_data, 16)
    backbone, _ = load_backbone(ModelConfig(peft=peft, dtype="float32"))
    curves = []
    for packed in (False, True):
        backbone.use_packed(packed)
        backbone.reset(0, get_loss("dpo"))
        reference = ReferenceStore(tmp_path / "store").get(backbone, pairs)
        config = TrainConfig(lr={"lora": 1e-3, "full": 3e-5}[peft], batch_size=4, epochs=3, warmup=0.0)
        trainer = PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=tmp_path / str(packed))
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert curves[0][0] - min(curves[0]) >= 0.2
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)


def margins(backbone, pairs, packed, size):
    """h of every pair, nats."""
    backbone.use_packed(packed)
    out = []
    for start in range(0, len(pairs), size):
        batch = collate(pairs[start : start + size], packed=packed)
        sums = [t.sum() for t in backbone.measure(batch, ("logps",))["logps"].split(batch.lengths)]
        half = len(sums) // 2
        out += [(c - r).item() for c, r in zip(sums[:half], sums[half:], strict=True)]
    return torch.tensor(out, dtype=torch.float64)


def test_margins_in_bfloat16(shared_data):
    """No bias, and a spread of no more than 1.2 times that of padded rows against themselves at another batch size."""
    pairs = hh_pairs(shared_data, 256)
    backbone, _ = load_backbone(ModelConfig(dtype="bfloat16"))
    moved_lora(backbone)
    packed, padded = (margins(backbone, pairs, packed, 8) for packed in (True, False))
    difference, between_padded = packed - padded, margins(backbone, pairs, False, 2) - padded
    print(f"spread of h: {difference.std():.3f} nats; of padded rows in batches of 2 and 8: {between_padded.std():.3f}")
    assert difference.mean().abs() <= 2 * difference.std() / len(pairs) ** 0.5
    assert difference.std() <= 1.2 * between_padded.std()


def moved_lora(backbone):
    backbone.reset(0, get_loss("dpo"))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return backbone
