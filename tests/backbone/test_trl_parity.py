"""`dpo` and `ipo` against TRL's DPOTrainer: value and gradient on identical batches, and whole training curves."""

import gzip
import json
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from plo.backbone.batch import collate
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.data import Pair
from plo.embedded import embedded_model
from plo.losses import get_loss

LOSSES = [("dpo", "sigmoid"), ("ipo", "ipo")]
ROWS = [
    {"prompt": f"The {thing} was", "chosen": f" {good}, and I would {verb} again.", "rejected": f" {bad}."}
    for thing, good, bad, verb in (
        ("soup", "warm and rich", "cold", "order it"), ("film", "a joy from start to end", "too long by an hour", "go"),
        ("train", "on time", "late, dirty and loud", "take it"), ("book", "short", "a chore to read", "buy one"),
        ("hotel", "quiet with a view of the sea", "next to the motorway", "stay"), ("walk", "easy", "muddy", "do it"),
        ("answer", "clear", "wrong in every line of it", "ask"), ("game", "fair", "over in a minute", "play"),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model())


Case = namedtuple("Case", "model rows lr epochs gradient_dtype")


@pytest.fixture(params=["tiny", pytest.param("embedded", marks=pytest.mark.slow)])
def case(request, tiny_llama, tokenizer):
    """A factory of models, rows of text, and a learning rate at which the loss falls by more than .2."""
    if request.param == "tiny":
        return Case(
            lambda dtype: tiny_llama(dtype=dtype, vocab_size=len(tokenizer)), ROWS, 5e-3, 8, torch.float32
        )  # fmt: skip
    folder = request.getfixturevalue("shared_data")
    rows = short_hh_rows(folder / "hh" / "harmless-base_test.jsonl.gz", 8)
    # Thirty layers in float32 round the two gradients 1.6e-5 of the largest entry apart; in float64 they agree.
    return Case(
        lambda dtype: AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype), rows, 3e-5, 5, torch.float64
    )  # fmt: skip


def short_hh_rows(path, count):
    """The shortest real HH pairs: prompt up to the last "Assistant:" of the chosen dialogue."""
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for dialogue in map(json.loads, file):
            prompt = dialogue["chosen"][: dialogue["chosen"].rindex("\n\nAssistant:") + len("\n\nAssistant:")]
            sides = {side: dialogue[side].removeprefix(prompt) for side in ("chosen", "rejected")}
            if all(dialogue[side].startswith(prompt) and len(sides[side]) > 20 for side in sides):
                rows.append({"prompt": prompt, **sides})
    return sorted(rows, key=lambda row: sum(map(len, row.values())))[:count]


@pytest.fixture
def trl_trainer(case, tokenizer, tmp_path):
    def make(loss_type, dtype=torch.float32, **changes):
        settings = dict(
            output_dir=str(tmp_path / "trl"), loss_type=loss_type, beta=0.1, per_device_train_batch_size=4, use_cpu=True,
            bf16=False, gradient_checkpointing=False, report_to=[], logging_steps=1, disable_tqdm=True, seed=3,
            learning_rate=case.lr, lr_scheduler_type="cosine", max_grad_norm=1.0, save_strategy="no", optim="adamw_torch",
        )  # fmt: skip
        return DPOTrainer(
            model=case.model(dtype), ref_model=case.model(dtype), args=DPOConfig(**settings | changes),
            train_dataset=Dataset.from_list(case.rows), processing_class=tokenizer,
        )  # fmt: skip

    return make


def pairs_of(trainer) -> list[Pair]:
    """TRL's own token ids."""
    return [
        Pair(
            prompt_ids=tuple(row["prompt_ids"]), chosen_ids=tuple(row["chosen_ids"]),
            rejected_ids=tuple(row["rejected_ids"]), prompt="", where=f"row {i}", columns={},
        )
        for i, row in enumerate(trainer.train_dataset)
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "loss_type"), LOSSES)
def test_value_and_gradient_on_an_identical_batch(name, loss_type, case, trl_trainer):
    trainer = trl_trainer(loss_type, case.gradient_dtype)
    pairs = pairs_of(trainer)
    reference = case.model(case.gradient_dtype)
    noise = torch.Generator().manual_seed(0)
    policy_weights = {
        k: v + 0.02 * v.std() * torch.randn(v.shape, generator=noise, dtype=v.dtype)
        for k, v in reference.named_parameters()
    }

    backbone = Backbone(reference, ModelConfig(peft="full"))
    backbone.reset(0, get_loss(name))
    batch = collate(pairs)
    batch = replace(batch, ref_logps=backbone.measure(batch, ("logps",))["logps"])
    backbone.policy.load_state_dict(policy_weights, strict=False)  # tied weights stand there once
    out = backbone(batch)
    loss = out["sums"].sum() / len(pairs)
    loss.backward()

    trainer.model.load_state_dict(policy_weights, strict=False)
    trainer.model.train()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()

    assert abs(loss.item() - get_loss(name)(_step_0(len(pairs))).mean().item()) > 1e-3  # the policy has moved
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    largest = max(p.grad.abs().max() for p in trainer.model.parameters())
    for (key, ours), (_, other) in zip(
        backbone.policy.named_parameters(), trainer.model.named_parameters(), strict=True
    ):
        assert (ours.grad - other.grad).abs().max() <= 1e-5 * largest, key


@pytest.mark.parametrize(("name", "loss_type"), LOSSES)
def test_a_training_run_follows_trls_curve(name, loss_type, case, trl_trainer, tmp_path):
    trainer = trl_trainer(loss_type, num_train_epochs=case.epochs)
    pairs = pairs_of(trainer)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    backbone = Backbone(case.model(torch.float32), ModelConfig(peft="full"))
    backbone.reset(0, get_loss(name))
    config = TrainConfig(
        lr=case.lr, batch_size=4, epochs=case.epochs, warmup=0.0, optimizer="adamw_torch", max_grad_norm=1.0
    )
    store = ReferenceStore(tmp_path / "store").get(backbone, pairs)
    ours_trainer = PreferenceTrainer(backbone, pairs, store, config, seed=3, folder=tmp_path / "plo")
    ours_trainer.train()
    ours = [entry["loss"] for entry in ours_trainer.state.log_history if "loss" in entry]

    assert ours[0] - min(ours) >= 0.2
    assert ours == pytest.approx(theirs, abs=1e-3)


def _step_0(count):
    from plo.pairs import Pairs, Side

    zeros, mask = torch.zeros(count, 1), torch.ones(count, 1, dtype=torch.bool)
    side = Side(logps=zeros, ref_logps=zeros, mask=mask)
    return Pairs(chosen=side, rejected=side)
