"""Training on tiny float64 models: the exact mean, resuming, clipping, stopping at nan, what is logged and saved."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from plo import store
from plo.backbone.batch import collate
from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import NonFiniteLoss, PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.losses import LossError, get_loss

LOSSES = ["dpo", "sft", "tdpo2", "tbpo_q", "dpo + 0.2*sft", "kto", "bco + beta_dpo(keep=0.5) + alpha_dpo + epsilon_dpo"]
CONFIG = TrainConfig(
    lr=1e-2, batch_size=4, epochs=2, warmup=0.0, optimizer="adamw_torch", max_grad_norm=100.0, checkpoint_every=1000
)


@pytest.fixture
def train(tiny_llama, tiny_pairs, tmp_path):
    """Train and give back the trainer; 10 pairs at batch 4 leave a ragged last step of 2."""

    def run(
        loss="dpo", folder="run", seed=0, stop_at=None, resume=False, count=10, model=None, peft="full", dropout=0.0,
        **changes,
    ):  # fmt: skip
        backbone = Backbone(model or tiny_llama(), ModelConfig(peft=peft, lora_dropout=dropout))
        backbone.reset(seed, get_loss(loss))
        backbone.double()
        pairs = tiny_pairs(count)
        store = ReferenceStore(tmp_path / "store")
        trainer = PreferenceTrainer(
            backbone,
            pairs,
            store.with_completions(store.get(backbone, pairs, hidden=True), backbone, pairs, backbone.loss.needs),
            CONFIG.model_copy(update=changes),
            seed=seed,
            folder=tmp_path / folder,
            probe=(pairs[:2], store.get(backbone, pairs[:2], hidden=True)),
        )
        if stop_at:
            trainer.add_callback(_Stop(stop_at))
        checkpoint = last_checkpoint(tmp_path / folder) if resume else None
        assert bool(checkpoint) == resume
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer

    return run


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.trained().items()}


def assert_same(a, b, tolerance=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_changes_nothing_ragged_last_step_included(train, loss):
    whole = train(loss, "whole")
    parts = train(loss, "parts", micro_batch_size=1)
    assert_same(weights(whole), weights(parts))
    curve = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, parts)]
    assert len(curve[0]) == 6  # two epochs of 4 + 4 + 2 pairs
    assert curve[0] == pytest.approx(curve[1], abs=1e-6)


def test_the_logged_loss_of_a_ragged_step_is_the_mean_over_its_pairs(train, tiny_pairs):
    trainer = train("dpo", lr=1e-12, micro_batch_size=1)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([math.log(2)] * 6, abs=1e-7)  # a policy that does not move: log 2 in every step


def test_a_state_is_updated_from_the_dropout_that_the_step_will_draw(train):
    """Half of each step's pairs are kept, by margins of the pass without gradient: the pass with gradient has the same."""
    trainer = train("beta_dpo(keep=0.5)", peft="lora", dropout=0.5, micro_batch_size=1, lr=0.1)
    kept = [entry["loss/kept"] for entry in trainer.state.log_history if "loss/kept" in entry]
    assert kept == [1.0] + [0.5] * 5  # in the first step all margins are equal


@pytest.mark.parametrize("loss", LOSSES)
def test_resuming_changes_nothing(train, loss):
    straight = train(loss, "straight")
    train(loss, "broken", stop_at=4)  # in the second epoch
    resumed = train(loss, "broken", resume=True)
    assert resumed.state.global_step == 6
    assert_same(weights(straight), weights(resumed))


def test_resuming_keeps_the_norms_that_clipping_is_relative_to(train):
    """At half the median every step is clipped but the first, and by another factor if the median is forgotten."""
    relative = dict(max_grad_norm=None, clip_factor=0.5, checkpoint_every=2, optimizer="sgd")
    straight = train("dpo", "straight", **relative)
    train("dpo", "broken", stop_at=3, **relative)
    assert_same(weights(straight), weights(train("dpo", "broken", resume=True, **relative)))
    assert [entry["clipped"] for entry in straight.state.log_history if "clipped" in entry] == [0, *[1] * 5]
    fixed = train("dpo", "fixed", **{**relative, "max_grad_norm": 100.0})
    assert (
        max((a - b).abs().max() for a, b in zip(weights(fixed).values(), weights(straight).values(), strict=True))
        > 1e-4
    )


def test_relative_clipping_does_not_depend_on_the_scale_of_a_loss(train):
    relative = dict(max_grad_norm=None, clip_factor=1.0, optimizer="adamw_torch")
    one, other = train("dpo", "one", **relative), train("10000*dpo", "other", **relative)
    clipped = [[entry["clipped"] for entry in t.state.log_history if "clipped" in entry] for t in (one, other)]
    assert clipped[0] == clipped[1] and 0 < sum(clipped[0]) < len(clipped[0])


def test_resuming_at_the_very_end_trains_no_further(train):
    done = train("dpo", "run", steps=2, schedule="constant", checkpoint_every=2)  # in the middle of an epoch
    resumed = train("dpo", "run", resume=True, steps=2, schedule="constant", checkpoint_every=2)
    assert resumed.state.global_step == 2
    assert_same(weights(done), weights(resumed), 0)


def test_a_sum_logs_its_terms_apart_and_exactly(train):
    trainer = train("dpo + 0.2*sft", lr=1e-12, micro_batch_size=1)
    alone = [train(name, name, lr=1e-12).state.log_history for name in ("dpo", "sft")]
    for ours, dpo, sft in zip(trainer.state.log_history, *alone, strict=True):
        if "loss" in ours:
            assert ours["loss/dpo"] == pytest.approx(dpo["loss"], abs=1e-6)
            assert ours["loss/sft"] == pytest.approx(0.2 * sft["loss"], abs=1e-6)


def test_each_term_has_its_own_learning_rate(train):
    trainer = train("tbpo_q(baseline_lr=0.5) + tbpo_q(baseline_lr=0.001)", lr=1e-30)
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [1e-30, 0.5, 0.001]


def test_two_seeds_differ_and_one_repeats(train):
    first, again, other = (weights(train(folder=str(i), seed=s)) for i, s in enumerate((0, 0, 1)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any((first[name] - other[name]).abs().max() > 1e-4 for name in first)


def test_a_checkpoint_holds_all_that_is_trained_and_nothing_else(train, tmp_path):
    train("tbpo_q", peft="lora", checkpoint_every=2)
    saved = load_file(last_checkpoint(tmp_path / "run") / "trained.safetensors")
    assert any("lora_A" in name for name in saved) and any(name.startswith("loss.") for name in saved)
    assert not any("embed_tokens" in name for name in saved)


CHECKPOINT = ["trained.safetensors", "optimizer.pt", "trainer_state.json"]


@pytest.mark.parametrize("file", CHECKPOINT)
def test_from_a_damaged_checkpoint_training_goes_back_to_the_one_before(train, tmp_path, harm, caplog, file):
    whole = weights(train(folder="whole", checkpoint_every=2))
    train(checkpoint_every=2, stop_at=4)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    harm(tmp_path / "run" / "checkpoint-4" / file)
    assert_same(weights(train(checkpoint_every=2, resume=True)), whole)
    [line] = caplog.messages
    assert f"checkpoint-4 is damaged in {file}" in line


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path, caplog):
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 9}))
        if step < 6:
            store.seal(folder)
    assert (
        last_checkpoint(tmp_path, lambda step, steps: "lacks" if (step, steps) == (4, 9) else None).name
        == "checkpoint-2"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
    assert "checkpoint-6 was not written to its end" in caplog.messages[0]
    assert "checkpoint-4 lacks" in caplog.messages[1]


def test_a_non_finite_loss_stops_the_run_and_names_step_and_rows(train):
    def breaks(pairs):
        values = -pairs.log_ratio_margin()
        return torch.where(pairs.columns["margin"] == 7, values * math.nan, values)

    breaks.needs = ("ref_logps", "column:margin")
    with pytest.raises(NonFiniteLoss, match=r"'breaks' is not finite at step [123], rows: row 7\."):
        train(breaks)


def test_a_non_finite_gradient_stops_the_run(train):
    def steep(pairs):
        return (pairs.log_ratio_margin() * 0).abs().sqrt()  # 0, with gradient nan

    with pytest.raises(NonFiniteLoss, match="gradient of the loss 'steep' is not finite at step 1"):
        train(steep)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_own_parameters_are_left_out_of_the_clip_norm(train, optimizer):
    trainer = train("tbpo_q", max_grad_norm=1e-9, lr=1e-30, optimizer=optimizer)
    own, policy = list(trainer.model.loss.parameters()), trainer.model.policy_parameters()
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [len(policy), len(own)]
    assert trainer.optimizer.param_groups[1]["initial_lr"] == 1e-3
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["clipped"] == 1.0
    # Adam divides by its own running norm: a clipped gradient of 1e-9 would leave the second moment near 1e-21.
    moments = torch.cat([trainer.optimizer.state[p]["exp_avg_sq"].flatten() for p in own])
    assert moments.max() > 1e-14
    clipped = torch.cat([trainer.optimizer.state[p]["exp_avg_sq"].flatten() for p in policy])
    assert 0 < clipped.max() < 1e-20


def test_what_is_always_logged(train):
    for loss in ("sft", "dpo"):
        entry = [e for e in train(loss, loss, probe_every=1).state.log_history if "loss" in e][-1]
        wanted = {
            "loss",
            "logps/chosen",
            "logps/rejected",
            "log_ratios/chosen",
            "log_ratios/rejected",
            "margin",
            "accuracy",
            "grad_norm",
            "clipped",
            "tokens_per_second",
            "peak_memory_gb",
            "both_falling",
            "probe/kl_ref_pi",
            "probe/kl_pi_ref",
            "probe/entropy",
        }
        assert wanted <= entry.keys()
        assert entry["margin"] == pytest.approx(entry["log_ratios/chosen"] - entry["log_ratios/rejected"])
        assert entry["probe/kl_ref_pi"] > 0


def test_both_falling_is_flagged(train):
    def push_down(pairs):
        return pairs.chosen.log_ratio() + pairs.rejected.log_ratio()

    entries = [e for e in train(push_down).state.log_history if "loss" in e]
    assert entries[-1]["both_falling"] == 1.0 and entries[-1]["log_ratios/chosen"] < 0
    assert [e for e in train("sft", "up").state.log_history if "loss" in e][-1]["both_falling"] == 0.0


def test_what_falls_by_rounding_alone_does_not_fall(train):
    """Four pairs of 40 tokens in float64: their sum is rounding up to 100 * 2^-52 * sqrt(40) = 1.4e-13 nats."""
    trainer = train("dpo")
    for each, falls in ((-1e-17, False), (-3e-14, False), (-4e-14, True)):
        logs = {"log_ratios/chosen": each, "log_ratios/rejected": each}
        assert trainer.metrics.both_falling(logs, pairs=4, tokens=40) is falls


def test_a_token_mask_that_depends_on_values_is_refused(train):
    def unstable(pairs):
        return -pairs.chosen.logps, pairs.chosen.mask & (pairs.chosen.logps < -1)

    unstable.level = "token"
    with pytest.raises(LossError, match="may depend on lengths, not on values"):
        train(unstable)


def test_a_batch_level_loss_is_refused_under_accumulation(train):
    def ranks(pairs):
        return -pairs.log_ratio_margin().sort().values

    ranks.level = "batch"
    train(ranks)
    with pytest.raises(ValueError, match="set train.micro_batch_size=4"):
        train(ranks, "other", micro_batch_size=2)


class _Stop(TrainerCallback):
    """Saves and stops, as a kill right after a checkpoint would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_token_weights_reach_the_tokens_they_were_made_for(tiny_llama, tiny_pairs, tmp_path):
    """sum_t a_t log pi of each response, by hand from the policy's own log-probs, pair by pair."""
    pairs, step = tiny_pairs(5), 0.25
    weights = [
        tuple(i + side + step * torch.arange(len(ids)) for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)))
        for i, pair in enumerate(pairs)
    ]
    backbone = Backbone(tiny_llama(), ModelConfig(peft="full"))
    backbone.use_packed(True)
    backbone.reset(0, get_loss("twdpo(beta=0.5)"))
    reference = ReferenceStore(tmp_path).get(backbone, pairs)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter.mul_(1.1)
    trainer = PreferenceTrainer(backbone, pairs, reference, TrainConfig(), seed=0, folder=tmp_path, weights=weights)
    rows, margins = [3, 0, 4], []
    for i in rows:
        logps = backbone.measure(collate([pairs[i]]), ("logps",))["logps"].tolist()
        ratios = [a - b for a, b in zip(logps, torch.cat(reference.logps[i]).tolist(), strict=True)]
        first = len(pairs[i].chosen_ids)
        chosen = sum((i + step * t) * d for t, d in enumerate(ratios[:first]))
        margins.append(0.5 * (chosen - sum((i + 1 + step * t) * d for t, d in enumerate(ratios[first:]))))
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins)
    assert backbone(trainer.data.batch(rows))["sums"].item() == pytest.approx(expected, rel=1e-6)
    assert max(map(abs, margins)) > 0.1
