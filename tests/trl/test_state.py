"""Losses with state in TRL's trainer: as in plo's own trainer, in one pass or several, resumed, untouched by evaluation."""

import pytest
import torch
from transformers import TrainerCallback

import plo.trl
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.data import Pair
from plo.losses import get_loss

STATE = "bco + beta_dpo(keep=0.5) + alpha_dpo + epsilon_dpo(epsilon=0.3)"  # updated before the step and after it


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def state(trainer):
    return {name: value.item() for name, value in trainer.plo_loss.named_buffers()}


def trained(trl_trainer, loss=STATE, **settings):
    settings = {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "num_train_epochs": 4, **settings}
    trainer = trl_trainer("full", dtype=torch.float64, **settings)
    plo.trl.use(trainer, loss).train()
    return trainer


def test_a_loss_with_state_trains_as_in_plos_own_trainer(trl_trainer, tiny_model, tmp_path):
    """All eight pairs are one step in both, so that their order has no effect."""
    there = trained(trl_trainer)
    pairs = [
        Pair(tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), tuple(row["rejected_ids"]), "", f"row {i}", {})
        for i, row in enumerate(there.train_dataset)
    ]
    backbone = Backbone(tiny_model(torch.float64), ModelConfig(peft="full"))
    backbone.reset(0, get_loss(STATE))
    backbone.double()
    config = TrainConfig(
        lr=5e-3, batch_size=8, epochs=4, warmup=0.0, schedule="constant", optimizer="adamw_torch", max_grad_norm=1.0
    )
    reference = ReferenceStore(tmp_path / "reference").for_loss(backbone, pairs, backbone.loss.needs)
    here = PreferenceTrainer(backbone, pairs, reference, config, seed=0, folder=tmp_path / "plo")
    here.train()
    assert losses(there) == pytest.approx(losses(here), rel=1e-6)
    assert abs(losses(there)[-1] - losses(there)[0]) > 0.1
    expected = {name: value.item() for name, value in backbone.loss.named_buffers()}
    assert state(there) == pytest.approx(expected, rel=1e-6)


def test_accumulated_is_the_whole_batch(trl_trainer):
    """Eight pairs at once, and as 3 + 3 + 2."""
    whole = trained(trl_trainer)
    parts = trained(trl_trainer, per_device_train_batch_size=3, gradient_accumulation_steps=3)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    assert state(parts) == pytest.approx(state(whole), abs=1e-6)
    for ours, others in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(ours, others, atol=1e-6)


class Stop(TrainerCallback):
    """As a kill right after a checkpoint."""

    def on_save(self, args, state, control, **keywords):
        control.should_training_stop = True


def test_a_state_is_saved_and_resumed(trl_trainer, tmp_path):
    def make(folder):
        trainer = trl_trainer(
            "full", dtype=torch.float64, output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=3,
            num_train_epochs=3,
        )  # fmt: skip
        return plo.trl.use(trainer, STATE)

    whole, stopped = make("whole"), make("stopped")
    whole.train()
    stopped.add_callback(Stop())
    stopped.train()
    resumed = make("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    assert state(resumed) == pytest.approx(state(whole), abs=1e-6)


def test_evaluation_leaves_the_state(trl_trainer):
    trainer = trained(trl_trainer, num_train_epochs=2)
    before = state(trainer)
    assert any(before.values())
    trainer.evaluate(trainer.train_dataset.select(range(5)))
    assert state(trainer) == before


def test_an_optimizer_of_ones_own_trains_a_loss_that_has_state_and_no_weights(trl_trainer, tiny_model):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = trl_trainer("full", model=model, keywords={"optimizers": (optimizer, None)}, max_steps=1)
    plo.trl.use(trainer, "bco").train()
    assert trainer.plo_loss.module.count.item() == 8  # four pairs


def test_completions_of_other_prompts_are_refused(trl_trainer):
    with pytest.raises(plo.trl.TRLError, match=r"'kto' needs 'completion:mismatched.*Run it with `plo compare`"):
        plo.trl.use(trl_trainer("lora"), "kto")
