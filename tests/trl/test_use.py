"""What `plo.trl.use` promises: exact means, own parameters resumed, columns, errors with their remedy."""

from pathlib import Path

import pytest
import torch
import trl
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

import plo.trl
from plo.losses import LossError
from plo.pairs import MissingStatistic
from plo.trl import TRLError

ROWS = [
    {"prompt": f"It {'was ' * i}", "chosen": " right" * (7 - i), "rejected": " wrong" * (1 + i % 3), "margin": i % 3}
    for i in range(7)
]


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def margin_loss(pairs):
    """Needs a column of the data set."""
    return (pairs.log_ratio_margin() - pairs.columns["margin"]).square()


margin_loss.needs = ("ref_logps", "column:margin")


def ranks(pairs):
    return -pairs.log_ratio_margin().sort().values


ranks.level = "batch"


def weighted(pairs):
    return -(pairs.chosen.weights * pairs.chosen.logps).sum(-1)


weighted.needs = ("weights",)


# Exactness.


@pytest.mark.parametrize("name", ["dpo + 0.2*sft", "tbpo_q", "sft"])
@pytest.mark.parametrize("micro", [3, 4])
def test_accumulated_is_the_whole_batch(name, micro, trl_trainer):
    """Seven pairs of uneven lengths at once, as 4 + 3, and as 3 + 3 + 1."""

    def trained(size):
        trainer = trl_trainer(
            "lora", dtype=torch.float64, rows=ROWS, per_device_train_batch_size=size,
            gradient_accumulation_steps=-(-7 // size),
        )  # fmt: skip
        plo.trl.use(trainer, name).train()
        return trainer

    whole, parts = trained(7), trained(micro)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    for ours, others in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(ours, others, atol=1e-6)


def test_the_drop_in_trainer_is_use(trl_trainer):
    def kind(**keywords):
        return plo.trl.DPOTrainer(loss="tdpo2(alpha=0.3)", **keywords)

    one, other = trl_trainer("lora", kind=kind), plo.trl.use(trl_trainer("lora"), "tdpo2", alpha=0.3)
    one.train(), other.train()
    assert losses(one) == losses(other)
    assert losses(one)[0] - min(losses(one)) > 0.2
    assert isinstance(one, trl.DPOTrainer)


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_tbpo_a_trains(peft, trl_trainer):
    trainer = plo.trl.use(trl_trainer(peft), "tbpo_a")
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0, abs=1e-6)  # R = 1: its constant makes the value 0
    assert losses(trainer)[-1] < -0.01


def test_a_trained_copy_of_the_head_has_the_original_as_reference(trl_trainer, tiny_model):
    from peft import LoraConfig

    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer = plo.trl.use(trl_trainer("own", keywords={"peft_config": config}), "tdpo1")
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3)  # no KL before the first step
    head = trainer.model.get_base_model().lm_head
    assert not torch.equal(head.original_module.weight, head.modules_to_save["default"].weight)
    assert torch.equal(head.original_module.weight, tiny_model().lm_head.weight)


def test_the_metrics_have_trls_names_and_the_losses_own(trl_trainer):
    trainer = plo.trl.use(trl_trainer("lora"), "tbpo_a + 0.2*sft")
    trainer.train()
    entry = trainer.state.log_history[-2]
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "entropy", "num_tokens"} <= set(entry)
    assert {"loss/tbpo_a", "loss/sft", "tbpo_a/margin", "tbpo_a/clamped"} <= set(entry)
    assert entry["loss/tbpo_a"] + entry["loss/sft"] == pytest.approx(entry["loss"], abs=0.05)


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_before_the_first_step_every_pair_is_a_tie(peft, trl_trainer):
    """TRL counts margins above 0: rounding decides there."""
    trainer = plo.trl.use(trl_trainer(peft, max_steps=1), "dpo")
    trainer.train()
    (first,) = (entry for entry in trainer.state.log_history if "rewards/accuracies" in entry)
    assert first["rewards/accuracies"] == 0.5


def test_a_reference_free_loss_costs_no_reference_pass(trl_trainer):
    trainer = plo.trl.use(trl_trainer("full"), "simpo")
    trainer.ref_model.forward = None  # would fail when called
    trainer.train()
    assert "rewards/margins" not in trainer.state.log_history[0]
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_compute_metrics_gets_logits_as_from_trl(trl_trainer):
    seen = []
    keywords = {"compute_metrics": lambda prediction: seen.append(prediction.predictions.shape) or {"seen": 1.0}}
    trainer = plo.trl.use(trl_trainer("lora", keywords=keywords), "dpo")
    assert trainer.evaluate(trainer.train_dataset)["eval_seen"] == 1.0
    assert seen[0][-1] == len(trainer.processing_class)


# Own parameters.


class Stop(TrainerCallback):
    """As a kill right after a checkpoint."""

    def on_save(self, args, state, control, **keywords):
        control.should_training_stop = True


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_own_parameters_are_saved_and_resumed(peft, trl_trainer, tmp_path):
    def make(folder, stop=False):
        trainer = trl_trainer(
            peft, dtype=torch.float64, output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=5
        )
        if stop:
            trainer.add_callback(Stop())
        return plo.trl.use(trainer, "tbpo_q", baseline_size=16)

    whole, stopped = make("whole"), make("stopped", stop=True)
    whole.train()
    stopped.train()
    assert len(losses(stopped)) == 5
    torch.manual_seed(99)
    resumed = make("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    assert losses(whole)[4] != losses(whole)[3]
    for ours, others in zip(
        [*resumed.model.parameters(), *resumed.plo_loss.parameters()],
        [*whole.model.parameters(), *whole.plo_loss.parameters()],
        strict=True,
    ):
        assert torch.allclose(ours, others, atol=1e-6)


def test_own_parameters_have_their_own_learning_rate_and_no_part_in_the_clip_norm(trl_trainer):
    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **keywords):
            trainer = keywords["model"].looked_at
            own = [p.grad for p in trainer.plo_loss.parameters()]
            policy = [p.grad for p in trainer.model.parameters() if p.grad is not None]
            trainer.seen.append(
                (torch.nn.utils.get_total_norm(own).item(), torch.nn.utils.get_total_norm(policy).item())
            )

    trainer = plo.trl.use(trl_trainer("lora", max_grad_norm=1e-3, num_train_epochs=2), "tbpo_q", baseline_lr=0.3)
    trainer.model.looked_at, trainer.seen = trainer, []
    trainer.add_callback(Look())
    before = [p.detach().clone() for p in trainer.plo_loss.parameters()]
    trainer.train()
    assert trainer.optimizer.param_groups[-1]["initial_lr"] == 0.3
    assert any((p - q).abs().max() > 0.1 for p, q in zip(trainer.plo_loss.parameters(), before, strict=True))
    own, policy = map(max, zip(*trainer.seen, strict=True))
    assert policy <= 1.01e-3 < own  # the policy's is clipped, the loss's is not
    assert not any("plo" in name for name, _ in trainer.model.named_parameters())


def test_a_checkpoint_of_another_loss_is_refused(trl_trainer):
    first = plo.trl.use(trl_trainer("lora", save_strategy="steps", save_steps=2, max_steps=2), "dpo")
    first.train()
    folder = Path(first.args.output_dir) / "checkpoint-2"
    assert load_file(folder / "plo_loss.safetensors") == {}
    with pytest.raises(plo.trl.TRLError, match="with the loss 'dpo', not 'ipo'"):
        plo.trl.use(trl_trainer("lora"), "ipo").train(resume_from_checkpoint=str(folder))
    (folder / "plo_loss.safetensors").unlink()
    with pytest.raises(plo.trl.TRLError, match="TRL's own, not 'dpo'"):
        plo.trl.use(trl_trainer("lora"), "dpo").train(resume_from_checkpoint=str(folder))


# The data set's columns, and TRL's precomputed reference.


def test_a_column_of_the_data_set_reaches_the_loss(trl_trainer):
    trainer = plo.trl.use(trl_trainer("lora", num_train_epochs=1, precompute_ref_log_probs=True), margin_loss)
    trainer.train()
    rows = trainer.train_dataset
    assert losses(trainer)[0] >= 0
    batch = trainer.data_collator([rows[i] for i in (1, 2)])
    assert batch["column:margin"].tolist() == [1.0, 2.0]
    assert trainer.evaluate(rows.remove_columns(["ref_chosen_logps", "ref_rejected_logps"]))["eval_loss"] >= 0


def test_a_column_that_is_not_there_is_named(trl_trainer):
    rows = [{k: v for k, v in row.items() if k != "margin"} for row in ROWS]
    with pytest.raises(plo.trl.TRLError, match="numeric column 'margin'"):
        plo.trl.use(trl_trainer("lora", rows=rows), margin_loss).train()


def test_precomputed_sums_serve_losses_that_read_sums(trl_trainer):
    with pytest.raises(plo.trl.TRLError, match="Leave precompute_ref_log_probs out"):
        plo.trl.use(trl_trainer("full", precompute_ref_log_probs=True), "tbpo_a(kl=k3)")
    with pytest.warns(UserWarning, match="computed in every step"):
        sums = plo.trl.use(trl_trainer("lora", precompute_ref_log_probs=True), "tbpo_a")
    online = plo.trl.use(trl_trainer("lora"), "tbpo_a")
    sums.train(), online.train()
    assert losses(sums) == losses(online)
    side = plo.trl.SummedSide(ref_logp=torch.zeros(1), logps=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(MissingStatistic, match="precompute_ref_log_probs"):
        _ = side.log_ratios


@pytest.mark.parametrize("name", ["dpo", "ipo", "ipo(reduction=mean)", "bpo"])
def test_these_read_sums(name, trl_trainer):
    trainer = plo.trl.use(trl_trainer("full", precompute_ref_log_probs=True), name)
    assert trainer.plo_reference.source == "summed"


# What does not fit is said at once.


@pytest.mark.parametrize(("settings", "loss", "message"), [
    ({"loss_type": "ipo"}, "dpo", r"DPOConfig\(loss_type=\['ipo'\]\) is a setting of TRL's loss"),
    ({"label_smoothing": 0.1}, "dpo", "label_smoothing=0.1"),
    ({"use_weighting": True}, "dpo", "use_weighting=True"),
    ({"ld_alpha": 0.5}, "dpo", "ld_alpha=0.5"),
    ({"f_divergence_type": "js_divergence"}, "dpo", "f_divergence_type"),
    ({"loss_weights": [2.0]}, "dpo", "loss_weights"),
    ({"beta": 0.5}, "dpo", "beta=trainer.args.beta"),
    ({"use_liger_kernel": True}, "dpo", "use_liger_kernel=True"),
    ({"gradient_accumulation_steps": 2}, ranks, "set gradient_accumulation_steps=1"),
    ({}, weighted, "plo compare"),
])  # fmt: skip
def test_settings_without_effect_are_refused(settings, loss, message, trl_trainer, monkeypatch):
    trainer = trl_trainer("lora")
    for name, value in settings.items():
        monkeypatch.setattr(trainer.args, name, [value] if name == "loss_type" else value)
    with pytest.raises(plo.trl.TRLError, match=message):
        plo.trl.use(trainer, loss)
    plo.trl.use(trl_trainer("lora"), "dpo")  # another is not the worse for it


def test_trls_beta_is_handed_on(trl_trainer):
    trainer = trl_trainer("lora", beta=0.5)
    plo.trl.use(trainer, "dpo", beta=trainer.args.beta).train()
    theirs = trl_trainer("lora", beta=0.5)
    theirs.train()
    assert losses(trainer) == pytest.approx(losses(theirs), abs=1e-4)


def test_an_adapter_that_another_one_took_the_place_of_is_refused(trl_trainer, tiny_model):
    """As `AutoModelForCausalLM.from_pretrained(ADAPTER)` gives it; TRL starts from the base alone, and says nothing."""
    model = tiny_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    trainer = trl_trainer("lora", model=model)
    with pytest.raises(plo.trl.TRLError, match="had an adapter already when peft_config put another one on it"):
        plo.trl.use(trainer, "dpo")


def test_wrong_uses_are_refused(trl_trainer, tiny_model):
    trainer = plo.trl.use(trl_trainer("lora"), "dpo")
    with pytest.raises(plo.trl.TRLError, match="trains 'dpo' already"):
        plo.trl.use(trainer, "ipo")
    with pytest.raises(plo.trl.TRLError, match=r"takes a trl\.DPOTrainer, not a LlamaForCausalLM"):
        plo.trl.use(tiny_model(), "dpo")
    with pytest.raises(LossError, match="no hyper-parameter 'betta'"):
        plo.trl.use(trl_trainer("lora"), "dpo", betta=0.2)
    trained = trl_trainer("lora", max_steps=1)
    trained.train()
    with pytest.raises(plo.trl.TRLError, match=r"before trainer\.train"):
        plo.trl.use(trained, "dpo")

    class Own(trl.DPOTrainer):
        def _compute_loss(self, model, inputs, return_outputs): ...

    with pytest.raises(plo.trl.TRLError, match="Own._compute_loss computes a loss of its own"):
        plo.trl.use(trl_trainer("lora", kind=Own), "dpo")
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    own = trl_trainer("full", model=model, keywords={"optimizers": (optimizer, None)})
    with pytest.raises(plo.trl.TRLError, match=r"DPOConfig\(optim=\.\.\.\)"):
        plo.trl.use(own, "tbpo_q")


def test_a_token_mask_that_depends_on_values_is_refused(trl_trainer):
    def confident(pairs):
        return -pairs.chosen.logps, pairs.chosen.mask & (pairs.chosen.logps > -3)

    confident.level, confident.needs = "token", ()
    with pytest.raises(LossError, match="may depend on lengths, not on values"):
        plo.trl.use(trl_trainer("lora"), confident).train()


def test_a_loss_that_is_not_finite_stops_with_the_pairs(trl_trainer):
    def breaks(pairs):
        return pairs.log_ratio_margin() / torch.tensor([1.0, 0.0, 1.0, 1.0]) * torch.tensor([1.0, 0.0, 1.0, 1.0])

    with pytest.raises(TRLError, match=r"not finite at step 1, in pairs \[1\] of its batch of 4"):
        plo.trl.use(trl_trainer("lora"), breaks).train()
