"""Stages: trained once for seeds, variants and later comparisons, recorded, resumed."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from staged import stages_of, trained_bench

from plo import caches
from plo.experiment import scores
from plo.experiment.evaluations import evaluate_recorded
from plo.experiment.keys import cell_key, comparison_key
from plo.experiment.matrix import compare
from plo.experiment.stages import stage_settings
from plo.experiment.workbench import prepare, workbench
from plo.leaderboards import read
from plo.losses import register_loss
from plo.registry import RegistryError
from plo.scorers import Stage, get_scorer, get_variant, register_scorer
from plo.tracking import Tracker

SMALL = {"eval_at": [1.0], "train.steps": 2, "evaluation.prompts": 2, "evaluation.samples": 1, "evaluation.pairs": 2}
pytestmark = pytest.mark.usefixtures("oracle_loss")


def test_an_oracle_is_trained_and_scored_once_for_all_seeds_and_comparisons(tiny, oracle_loss):
    outcome = compare(tiny(losses=["weighted", "weighted(beta=0.5)"], seeds=[0, 1, 2], share_stages=True))
    assert not outcome.failed
    assert len(oracle_loss) == 1
    assert stages_of() == [("scores oracle_ratio", "FINISHED"), ("oracle", "FINISHED")] or stages_of() == [
        ("oracle", "FINISHED"),
        ("scores oracle_ratio", "FINISHED"),
    ]
    compare(tiny(losses=["weighted(beta=0.7)"], name="later"))
    assert len(oracle_loss) == 1 and stages_of("later") == []
    [trained] = (entry.path for entry in caches.entries(["stages"]))
    assert not list(trained.glob("checkpoint-*"))
    with safe_open(trained / "policy.safetensors", framework="pt") as file:
        numbers = file.metadata()
    assert float(numbers["steps"]) == 3 and float(numbers["seconds"]) > 0


def test_each_seed_trains_its_own_oracle_unless_seeds_share_it(tiny, oracle_loss):
    assert not compare(tiny(losses=["weighted"], seeds=[0, 1], **SMALL)).failed
    tracker = Tracker(create=False)
    made = tracker.stages()
    seeds = {name: {run["params"].get("stage.seed", run["params"].get("seed")) for run in made if run["name"] == name}
             for name in ("oracle", "scores oracle_ratio")}  # fmt: skip
    assert seeds == {"oracle": {"0", "1"}, "scores oracle_ratio": {"0", "1"}} and len(made) == 4
    own = {c.name: (c.key, json.loads(c.tags["plo.stages"])) for c in tracker.cells() if c.name.startswith("weighted")}
    assert not {*own["weighted seed 0"][1]} & {*own["weighted seed 1"][1]}
    assert not compare(tiny(losses=["weighted"], seeds=[0, 1], share_stages=True, **SMALL)).failed
    assert len(oracle_loss) == 2  # that of seed 0 serves all
    keys = {cell.name: {c.key for c in tracker.cells() if c.name == cell.name} for cell in tracker.cells()}
    assert {name: len(found) for name, found in keys.items()} == {
        "weighted seed 0": 2, "weighted seed 1": 2, "sft seed 0": 1, "sft seed 1": 1, "reference seed 0": 1,
        "reference seed 1": 1,
    }  # fmt: skip
    notes = read(tracker).notes
    assert any("oracle ran once for seeds 0, 1 together, for weighted" in note for note in notes)


def test_a_scorer_inside_another_has_its_stages_of_the_seed(oracle_loss):
    scorer = get_scorer("shuffled(of=oracle_ratio)")
    own = scorer.of_seed(3)
    assert [own.stages["oracle"].seed, own.inner.stages["oracle"].seed] == [3, 3] and own.seeded
    assert [scorer.stages["oracle"].seed, scorer.inner.stages["oracle"].seed] == [0, 0]
    plain = get_scorer("position_decay")
    assert plain.of_seed(3) is plain


@pytest.mark.parametrize(("peft", "reference"), [("lora", None), ("full", "init")])
def test_each_seed_starts_from_its_own_sft(tiny, peft, reference):
    settings = {"stages": ["sft", "preference"], "sft": {"steps": 3, "lr": 1e-2}, "reference": reference}
    settings |= {"model.peft": peft, "model.dtype": "float32", "losses": ["dpo"], "seeds": [0, 1], **SMALL}
    assert not compare(tiny(**settings)).failed
    tracker = Tracker(create=False)
    assert [run["params"]["stage.seed"] for run in tracker.stages()] == ["0", "1"]
    cells = {cell.name: cell for cell in tracker.cells()}
    bench = workbench(tiny(**settings))
    prepare(bench)
    found = {}
    for seed in (1, 0, 1):
        assert cells[f"reference seed {seed}"].metrics["kl"] == pytest.approx(0, abs=1e-6)
        of_seed = bench.of_seed(seed)
        assert [of_seed.sft] == json.loads(cells[f"dpo seed {seed}"].tags["plo.stages"])
        of_seed.backbone.reset(5)
        found.setdefault(seed, []).append(of_seed.backbone.weights().identity)
        with safe_open(caches.CACHES["stages"].path(of_seed.sft) / "policy.safetensors", framework="pt") as file:
            assert file.metadata()["identity"] == of_seed.backbone.start.identity
        assert of_seed.backbone.starts_at_reference == (reference != "init")
        losses = cells[f"dpo seed {seed}"].history("loss")
        at_reference = losses[min(losses)] == pytest.approx(0.693147, abs=1e-5)
        assert at_reference == (reference != "init")
    assert found[1][0] == found[1][1] != found[0][0]
    assert len(tracker.stages()) == 2
    shared = workbench(tiny(**settings, share_stages=True))
    assert shared.model_identity != bench.model_identity


def test_a_comparison_without_stages_has_the_same_keys_either_way(tiny):
    own, shared = (workbench(tiny(share_stages=share)) for share in (False, True))
    assert comparison_key(own) == comparison_key(shared)
    for variant in (None, get_variant("dpo"), get_variant("twdpo(scorer=position_decay)")):
        assert cell_key(own, variant, 1) == cell_key(shared, variant, 1)


def test_a_comparison_recorded_before_the_setting_is_evaluated_with_shared_stages(tiny, monkeypatch):
    settings = {"stages": ["sft", "preference"], "sft": {"steps": 2}, **SMALL}
    assert not compare(tiny(**settings, share_stages=True)).failed
    tracker = Tracker(create=False)
    [recorded] = tracker.comparisons()
    config = {name: value for name, value in recorded.config().items() if name != "share_stages"}
    monkeypatch.setattr(type(recorded), "config", lambda self: dict(config))
    assert evaluate_recorded(recorded, None, {}, tracker) == {}  # else an error that weights differ


def test_a_reversed_stage_learns_the_opposite(tiny):
    bench = trained_bench(tiny(**{"train.lr": 1e-2}))
    margins = []
    for spec in ("oracle_ratio", "oracle_ratio(reversed=True)"):
        weights = scores.token_weights(bench.stages, get_scorer(spec), 0)
        margins.append(sum(w.sum() - l.sum() for w, l in weights).item())
    assert margins[0] > 0 > margins[1]


def test_a_stage_on_another_model(tiny, tiny_llama, tmp_path):
    import shutil

    from transformers import AutoConfig

    small = tmp_path / "small"
    shutil.copytree(tmp_path / "tiny", small)
    size = AutoConfig.from_pretrained(small).vocab_size
    tiny_llama(seed=3, vocab_size=size, num_hidden_layers=1).float().save_pretrained(small)

    @register_scorer("small_oracle", stages=lambda model: {"oracle": Stage(model=model, train={"steps": 1})})
    def small_oracle(material, *, model: str):
        yield from material.logps("oracle.reference")

    bench = trained_bench(tiny())
    made = scores.token_weights(bench.stages, get_scorer("small_oracle", model=str(small)), 0)
    own = bench.store.get(bench.backbone, bench.data.train).logps
    assert not torch.allclose(made[0][0], own[0][0], atol=1e-3)
    other = trained_bench(tiny(**{"model.name": str(small)}))
    expected = other.store.get(other.backbone, other.data.train).logps
    torch.testing.assert_close(made, [tuple(sides) for sides in expected])


def test_a_failing_stage_fails_the_cells_that_want_it_and_no_others(tiny):
    @register_loss("unlucky", replace=True)
    def unlucky(pairs):
        raise RuntimeError("no luck today")

    @register_scorer("broken", stages=lambda: {"oracle": Stage(loss="unlucky")})
    def broken(material):
        yield from ()

    outcome = compare(tiny(losses=["dpo", "weighted(scorer=broken)"]))
    assert list(outcome.failed) == ["weighted(scorer=broken) seed 0"]
    assert "no luck today" in outcome.failed["weighted(scorer=broken) seed 0"]


def test_a_stage_of_an_unknown_loss_is_refused_before_anything_is_trained(tiny):
    @register_scorer("broken", stages=lambda: {"oracle": Stage(loss="nosuchloss")})
    def broken(material):
        yield from ()

    with pytest.raises(RegistryError, match="no loss 'nosuchloss'"):
        compare(tiny(losses=["dpo", "weighted(scorer=broken)"]))
    assert not list(Path("runs").glob("*"))


def test_pairs_keep_their_order_when_reversed(tiny):
    bench = trained_bench(tiny())
    pair = bench.data.train[0]
    assert bench.stages._pairs(Stage(reversed=True))[0] == replace(
        pair, chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids
    )


def test_two_launches_at_once_make_and_record_a_stage_once(tiny, oracle_loss):
    """The second one waits, and does not take the first one's record for that of a killed process."""
    experiment = tiny()
    tracker = Tracker(experiment.store)
    parent = tracker.comparison("tiny", "key", {})
    both = [trained_bench(experiment) for _ in range(2)]
    for bench in both:
        bench.stages.record = lambda key, name, params: tracker.start_stage(parent, key, name, {}, params)
    work = (get_scorer("oracle_ratio"), 0)
    launches = [threading.Thread(target=scores.token_weights, args=(bench.stages, *work)) for bench in both]
    for launch in launches:
        launch.start()
    for launch in launches:
        launch.join()
    assert len(oracle_loss) == 1
    runs = [tracker._client.get_run(stage["run_id"]) for stage in tracker.stages()]
    assert sorted(run.info.run_name for run in runs) == ["oracle", "scores oracle_ratio"]
    assert all(run.info.status == "FINISHED" and "plo.superseded" not in run.data.tags for run in runs)


def test_seconds_are_those_it_took_to_make_though_made_earlier_or_in_two_attempts(tiny, monkeypatch):
    import time

    from plo.backbone.trainer import PreferenceTrainer

    @register_scorer("slow")
    def slow(material):
        for pair in material.pairs:
            time.sleep(0.02)
            yield torch.ones(len(pair.chosen_ids)), torch.ones(len(pair.rejected_ids))

    bench = trained_bench(tiny(**{"train.checkpoint_every": 1}))
    recorded = {}

    class Run:
        def __init__(self, name):
            self.finish = lambda metrics=None: recorded.update({name: metrics})

        def __getattr__(self, name):
            return lambda *arguments: None

    bench.stages.record = lambda key, name, params: Run(name)
    for _ in range(2):
        scores.token_weights(bench.stages, get_scorer("slow"), 0)
        assert recorded.pop("scores slow")["seconds"] > 0.02 * len(bench.data.train)

    step = PreferenceTrainer.training_step

    def dying(self, *arguments, **keywords):
        time.sleep(0.5)
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(PreferenceTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        bench.stages.make(Stage(train={"steps": 3}), "oracle")
    monkeypatch.setattr(PreferenceTrainer, "training_step", step)
    bench.stages.make(Stage(train={"steps": 3}), "oracle")
    assert recorded["oracle"]["seconds"] > 1


def test_other_models_are_let_go_before_the_losses_train(tiny, tmp_path):
    bench = trained_bench(tiny())
    scorer = get_scorer("log_ratio", model=str(tmp_path / "tiny"))
    scores.token_weights(bench.stages, scorer, 0)
    assert not bench.stages._others


def test_a_stages_epochs_come_before_the_experiments_steps(tiny):
    stages = trained_bench(tiny(**{"train.steps": 3})).stages
    assert stage_settings(stages.train, Stage(train={"epochs": 2})).steps is None
    assert stage_settings(stages.train, Stage(train={"lr": 1})).steps == 3
