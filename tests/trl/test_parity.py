"""`plo.trl` beside TRL's own DPOTrainer, and beside plo's own Backbone: the same numbers."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import plo.trl
from plo.backbone.batch import collate
from plo.backbone.model import Backbone
from plo.config import ModelConfig
from plo.data import Pair
from plo.embedded import embedded_model
from plo.losses import get_loss

SAME_METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "entropy", "mean_token_accuracy", "num_tokens", "grad_norm",
)  # fmt: skip


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def follows(make, loss="dpo", falls=0.2, **settings):
    """Trains twice, as TRL does and with `plo.trl`, and compares every logged number."""
    theirs = make(loss_type={"dpo": "sigmoid", "ipo": "ipo"}[loss.split("(")[0]], **settings)
    theirs.train()
    ours = plo.trl.use(make(**settings), loss)
    ours.train()
    assert logged(ours)[0] - min(logged(ours)) >= falls
    print(
        f"\n{settings}: falls {logged(ours)[0]:.4f} -> {min(logged(ours)):.4f}, largest difference of the loss "
        f"{max(abs(a - b) for a, b in zip(logged(ours), logged(theirs), strict=True)):.2e}"
    )
    assert logged(ours) == pytest.approx(logged(theirs), abs=1e-3)
    for name in SAME_METRICS:
        # Before the first step all pairs are ties, which TRL counts by the sign of their rounding, and plo as 1/2.
        first = 1 if name == "rewards/accuracies" else 0
        expected = pytest.approx(logged(theirs, name)[first:], abs=1e-3, rel=1e-3)
        assert logged(ours, name)[first:] == expected, name
    return ours


@pytest.mark.parametrize("settings", [
    {}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, {"gradient_checkpointing": True},
    {"precompute_ref_log_probs": True},
], ids=["plain", "accumulated", "checkpointing", "precomputed"])  # fmt: skip
@pytest.mark.parametrize("peft", ["full", "lora"])
def test_dpo_follows_trls_curve(peft, settings, trl_trainer):
    follows(trl_trainer, peft=peft, **settings)


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_in_bfloat16_it_rounds_no_more_than_trl(peft, trl_trainer):
    """Both under autocast; the head's product is rounded at other places."""
    theirs, ours = (trl_trainer(peft, bf16=True) for _ in range(2))
    theirs.train()
    plo.trl.use(ours, "dpo").train()
    assert logged(ours) == pytest.approx(logged(theirs), abs=3e-2)


@pytest.mark.parametrize("peft", ["adapter", "prompt"])
def test_dpo_follows_trls_curve_with_other_adapters(peft, trl_trainer):
    follows(trl_trainer, peft=peft, num_train_epochs=12 if peft == "prompt" else 6)


def test_ipo_per_token_follows_trls_curve(trl_trainer):
    follows(trl_trainer, "ipo(reduction=mean)", peft="lora")


def test_evaluation_gives_trls_numbers(trl_trainer, tiny_tokenizer):
    def evaluated(loss):
        trainer = trl_trainer(peft="lora")
        trainer = plo.trl.use(trainer, loss) if loss else trainer
        trainer.train()
        data = trainer.train_dataset.select(range(5))
        return trainer.evaluate(data)

    ours, theirs = evaluated("dpo"), evaluated(None)
    for name in ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies", "eval_logps/chosen"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name


@pytest.fixture
def embedded(trl_trainer, shared_data):
    """TRL's trainer on the embedded model and the shortest real HH pairs."""
    rows = []
    with gzip.open(shared_data / "hh" / "harmless-base_test.jsonl.gz", "rt", encoding="utf-8") as file:
        for dialogue in map(json.loads, file):
            prompt = dialogue["chosen"][: dialogue["chosen"].rindex("\n\nAssistant:") + len("\n\nAssistant:")]
            sides = {side: dialogue[side].removeprefix(prompt) for side in ("chosen", "rejected")}
            if all(dialogue[side].startswith(prompt) and len(sides[side]) > 20 for side in sides):
                rows.append({"prompt": prompt, **sides})
    rows = sorted(rows, key=lambda row: sum(map(len, row.values())))[:8]
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())

    def model():
        return AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)

    def make(peft, **settings):
        online = peft == "full" and not settings.get("precompute_ref_log_probs")
        keywords = {"ref_model": model()} if online else {}
        settings = {"learning_rate": {"full": 3e-5, "lora": 1e-3}[peft], "num_train_epochs": 5, **settings}
        return trl_trainer(peft, rows=rows, model=model(), tokenizer=tokenizer, keywords=keywords, **settings)

    return make


ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"peft": "full"}, {"peft": "lora"}, {"peft": "full", "precompute_ref_log_probs": True},
    {"peft": "lora", "precompute_ref_log_probs": True, **ACCUMULATED},
], ids=["full", "lora", "full-precomputed", "lora-precomputed-accumulated"])  # fmt: skip
def test_dpo_follows_trls_curve_on_real_pairs(settings, embedded):
    follows(embedded, **settings)


@pytest.mark.slow
def test_tbpo_a_on_real_pairs(embedded):
    ours, theirs = values(plo.trl.use(embedded("lora"), "tbpo_a"), "tbpo_a")
    print(f"\ntbpo_a: {ours:.7f} {theirs:.7f}")
    assert ours == pytest.approx(theirs, rel=1e-5)
    trainer = plo.trl.use(embedded("lora"), "tbpo_a")
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]


def values(trainer, name):
    """The loss of eight pairs by the trainer and by plo's Backbone, the policy (LoRA) moved away from the reference."""
    noise = torch.Generator().manual_seed(0)
    moved = {
        key: 0.1 * torch.randn(p.shape, generator=noise, dtype=p.dtype)
        for key, p in trainer.model.named_parameters()
        if p.requires_grad
    }
    trainer.model.load_state_dict(moved, strict=False)
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.model.train()
    ours = trainer.compute_loss(trainer.model, inputs)
    ours.backward()

    config = trainer.model.peft_config["default"]
    plain = trainer.model.unload()
    plain.forward = type(plain).forward.__get__(plain)
    settings = dict(lora_r=config.r, lora_alpha=config.lora_alpha, lora_targets=sorted(config.target_modules))
    backbone = Backbone(plain, ModelConfig(peft="lora", lora_dropout=0.0, **settings))
    backbone.reset(0, get_loss(name))
    for key, parameter in backbone.policy.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(moved[key])
    batch = collate([
        Pair(tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), tuple(row["rejected_ids"]), "", f"row {i}", {})
        for i, row in enumerate(trainer.train_dataset)
    ])  # fmt: skip
    with backbone.holding(backbone.reference):
        batch = replace(batch, ref_logps=backbone.measure(batch, ("logps",))["logps"])
    if trainer.plo_loss.has_parameters:
        backbone.loss.load_state_dict(trainer.plo_loss.state_dict())
    out = backbone(batch)
    return ours.item(), sum(s.item() / c for s, c in zip(out["sums"], out["counts"], strict=True))


@pytest.mark.parametrize("name", ["tbpo_a", "tdpo2", "dpo + 0.2*sft", "tbpo_q", "simpo", "tdpo1 + 0.1*orpo"])
def test_the_value_is_the_backbones(name, trl_trainer):
    ours, theirs = values(plo.trl.use(trl_trainer("lora"), name), name)
    print(f"\n{name}: {ours:.7f} {theirs:.7f}")
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert abs(ours) > 1e-3
