"""Stages: trained and scored once for seeds, variants and later comparisons, recorded, resumed; SFT as a start."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from plo import caches
from plo.backbone.batch import collate
from plo.backbone.head import ModelError
from plo.config import ConfigError
from plo.experiment import scores
from plo.experiment.keys import cell_key
from plo.experiment.matrix import compare
from plo.experiment.workbench import prepare, workbench
from plo.losses import get_loss, register_loss
from plo.paths import plo_home
from plo.registry import RegistryError
from plo.scorers import ScorerError, Stage, get_scorer, get_variant, register_scorer
from plo.tracking import Tracker


@pytest.fixture(autouse=True)
def oracle_loss():
    """A weighted loss whose weights come from a DPO oracle, and how often its scorer ran."""

    @register_loss("weighted", needs=("ref_logps", "weights"), scorer="oracle_ratio")
    def weighted(pairs, *, beta: float = 0.1):
        chosen, rejected = ((side.weights * side.log_ratios).sum(-1) for side in (pairs.chosen, pairs.rejected))
        return -logsigmoid(beta * (chosen - rejected))

    scored = []

    @register_scorer("oracle_ratio", stages=lambda reversed: {"oracle": Stage(train={"steps": 3}, reversed=reversed)})
    def oracle_ratio(material, *, reversed: bool = False):
        scored.append(len(material.pairs))
        both = zip(material.logps("oracle"), material.logps("oracle.reference"), strict=True)
        yield from (tuple(o - r for o, r in zip(*sides, strict=True)) for sides in both)

    @register_scorer("lottery", seeded=True)
    def lottery(material):
        scored.append(material.seed)
        generator = torch.Generator().manual_seed(material.seed)
        for pair in material.pairs:
            yield tuple(torch.rand(len(ids), generator=generator) for ids in (pair.chosen_ids, pair.rejected_ids))

    return scored


def stages_of(name="tiny"):
    tracker = Tracker(create=False)
    return [(s["name"], s["status"]) for c in tracker.comparisons(name) for s in tracker.stages(c.run_id)]


def trained_bench(experiment):
    bench = workbench(experiment)
    prepare(bench)
    return bench


def test_an_oracle_is_trained_and_scored_once_for_all_seeds_and_comparisons(tiny, oracle_loss):
    outcome = compare(tiny(losses=["weighted", "weighted(beta=0.5)"], seeds=[0, 1, 2]))
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


def test_a_seeded_scorer_is_asked_once_a_seed(tiny, oracle_loss):
    compare(tiny(losses=["weighted(scorer=lottery)", "weighted(scorer=lottery, beta=1.0)"], seeds=[0, 1]))
    assert oracle_loss == [0, 1]


def test_scores_are_those_of_a_model_trained_by_hand(tiny):
    """The same three steps of DPO without stages: the log-ratio of every response token."""
    bench = trained_bench(tiny())
    got = scores.token_weights(bench.stages, get_scorer("oracle_ratio"), 0)
    from plo.backbone.trainer import PreferenceTrainer

    backbone, pairs = bench.backbone, bench.data.train
    backbone.reset(0, get_loss("dpo"))
    settings = bench.experiment.train.model_copy(update={"steps": 3})
    reference = bench.store.get(backbone, pairs)
    PreferenceTrainer(backbone, pairs, reference, settings, seed=0, folder=plo_home() / "by-hand").train()
    for pair, weights in zip(pairs, got, strict=True):
        batch = collate([pair], packed=backbone.packed)
        ratio = backbone.measure(batch, ("logps",))["logps"]
        with backbone.holding(backbone.reference):
            ratio -= backbone.measure(batch, ("logps",))["logps"]
        torch.testing.assert_close(torch.cat(weights), ratio, rtol=1e-5, atol=1e-6)
    assert torch.cat([torch.cat(w) for w in got]).abs().max() > 1e-3


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


def test_a_killed_stage_goes_on_and_a_killed_scoring_too(tiny, monkeypatch):
    monkeypatch.setattr(scores, "SHARD_PAIRS", 6)
    bench = trained_bench(tiny(**{"train.checkpoint_every": 1}))
    scorer = get_scorer("oracle_ratio")
    from plo.backbone.trainer import PreferenceTrainer

    step = PreferenceTrainer.training_step

    def dying(self, *arguments, **keywords):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(PreferenceTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        scores.token_weights(bench.stages, scorer, 0)
    steps = []
    monkeypatch.setattr(
        PreferenceTrainer, "training_step", lambda s, *a, **k: steps.append(s.state.global_step) or step(s, *a, **k)
    )
    write, written = scores._write, []

    def failing(made, path, seconds):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(made, path, seconds)

    monkeypatch.setattr(scores, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        scores.token_weights(bench.stages, scorer, 0)
    assert steps == [2]  # the third step alone was left
    monkeypatch.setattr(scores, "_write", lambda made, path, s: written.append(path.name) or write(made, path, s))
    got = scores.token_weights(bench.stages, scorer, 0)
    assert written[:3] == ["0.safetensors", "6.safetensors", "12.safetensors"] and len(set(written)) == len(written)
    monkeypatch.setenv("PLO_HOME", str(plo_home() / "fresh"))
    monkeypatch.setattr(scores, "SHARD_PAIRS", 256)
    whole = trained_bench(tiny())
    expected = scores.token_weights(whole.stages, scorer, 0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_sft_is_one_recorded_run_that_all_cells_start_from(tiny):
    experiment = tiny(losses=["dpo"], seeds=[0, 1], stages=["sft", "preference"], sft={"steps": 4, "lr": 1e-2})
    assert not compare(experiment).failed
    assert stages_of() == [("sft", "FINISHED")]
    cells = {cell.name: cell for cell in Tracker(create=False).cells()}
    assert cells["reference seed 0"].metrics["kl"] == 0
    losses = cells["dpo seed 0"].history("loss")
    assert losses[min(losses)] == pytest.approx(0.693147, abs=1e-5)  # the reference is the stage's model
    [folder] = (entry.path for entry in caches.entries(["stages"]))
    bench = trained_bench(experiment)
    bench.backbone.reset(5)
    state = load_file(folder / "policy.safetensors")
    for name, value in bench.backbone.weights().tensors.items():
        torch.testing.assert_close(value, state[name])
    plain = trained_bench(tiny())
    assert plain.model_identity != bench.model_identity
    nll = {}
    for label, b in (("sft", bench), ("plain", plain)):
        b.backbone.reset(0)
        nll[label] = -torch.cat([sides[0] for sides in b.store.get(b.backbone, b.data.train).logps]).mean().item()
    assert nll["sft"] < nll["plain"] - 0.2


@pytest.mark.parametrize("peft", ["lora", "full"])
def test_the_reference_is_init_or_sft_or_another_model(tiny, tiny_llama, tmp_path, peft):
    sft = {
        "stages": ["sft", "preference"],
        "sft": {"steps": 4, "lr": 1e-2},
        "model.peft": peft,
        "model.dtype": "float32",
    }
    pairs = {}
    reference = {}
    for name in ("init", "sft", str(tmp_path / "tiny")):
        bench = trained_bench(tiny(**sft, reference=name))
        pairs = bench.data.train
        reference[name] = bench.store.get(bench.backbone, pairs, hidden=True)
    loaded = trained_bench(tiny(**{"model.peft": peft, "model.dtype": "float32"}))
    original = loaded.store.get(loaded.backbone, pairs)
    init, started, other = reference.values()
    for i in range(len(pairs)):
        torch.testing.assert_close(init.logps[i], original.logps[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.logps[i], original.logps[i], rtol=1e-4, atol=1e-4)
    assert sum((a[0] - b[0]).sum() for a, b in zip(started.logps, init.logps, strict=True)) > 1
    # and a loss that compares whole distributions sees that reference, whatever it is stored as

    for name in reference:
        bench = trained_bench(tiny(**sft, reference=name))
        bench.backbone.reset(0, get_loss("tdpo1"))
        batch = collate(pairs[:3], packed=bench.backbone.packed)
        stored = bench.store.get(bench.backbone, pairs, hidden=True).added_to(batch, range(3))
        with_store = bench.backbone.measure(stored, ("kl_ref_pi",))["kl_ref_pi"]
        online = bench.backbone.measure(batch, ("kl_ref_pi",))["kl_ref_pi"]
        torch.testing.assert_close(with_store, online, rtol=1e-4, atol=1e-5)
        assert (online.max() < 1e-5) == (name == "sft")


def test_settings_that_do_not_fit_are_refused_with_the_reason(tiny):
    for wrong, message in [
        ({"stages": ["preference", "sft"]}, "write \\[preference\\] or \\[sft, preference\\]"),
        ({"reference": "sft"}, "wants the stage sft"),
        ({"sft": {"lr": 1}}, "want the stage"),
        ({"stages": ["sft", "preference"], "sft": {"lr": -1}}, "sft.lr: Input should be greater than 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            tiny(**wrong)


def test_a_model_of_other_tokens_is_refused(tiny, tmp_path, monkeypatch):
    bench = trained_bench(tiny())
    monkeypatch.setattr(type(bench.tokenizer), "get_vocab", lambda self: {id(self): 0})
    with pytest.raises(ConfigError, match="has another tokenizer"):
        bench.stages.base(Stage(model=str(tmp_path / "tiny")))


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


def test_controls_use_the_weights_that_are_made_already(tiny, oracle_loss):
    outcome = compare(tiny(losses=["weighted", "weighted(scorer=shuffled(of=oracle_ratio))"], seeds=[0, 1]))
    assert not outcome.failed
    assert len(oracle_loss) == 1  # the oracle's scores; the shuffles of both seeds are made of them
    bench = trained_bench(tiny())
    plain, shuffled = (
        scores.token_weights(bench.stages, get_scorer(spec), 1)
        for spec in ("oracle_ratio", "shuffled(of=oracle_ratio)")
    )
    assert all(
        sorted(a[i].tolist()) == sorted(b[i].tolist()) for a, b in zip(plain, shuffled, strict=True) for i in (0, 1)
    )
    assert any(not torch.equal(a[i], b[i]) for a, b in zip(plain, shuffled, strict=True) for i in (0, 1))


# What once went wrong.


@pytest.mark.parametrize("peft", ["lora", "full"])
def test_the_reference_row_is_at_no_distance_from_itself_though_training_starts_elsewhere(tiny, peft):
    sft = {"stages": ["sft", "preference"], "sft": {"steps": 6, "lr": 1e-2}, "reference": "init"}
    assert not compare(tiny(losses=["sft"], **sft, **{"model.peft": peft, "model.dtype": "float32"})).failed
    metrics = {cell.name: cell.metrics for cell in Tracker(create=False).cells()}
    assert metrics["reference seed 0"]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["sft seed 0"]["kl"] > 1e-2


@pytest.mark.parametrize("peft", ["lora", "full"])
def test_an_oracle_of_the_references_model_leaves_the_reference_alone(tiny, tmp_path, peft):
    settings = {"model.peft": peft, "train.lr": 1e-2, "model.dtype": "float32"}
    bench = trained_bench(tiny(reference=str(tmp_path / "tiny"), **settings))
    batch = collate(bench.data.train[:3], packed=bench.backbone.packed)

    def reference():
        with bench.backbone.holding(bench.backbone.reference):
            return bench.backbone.measure(batch, ("logps",))["logps"]

    before = reference()
    scorer = get_scorer("log_ratio", model=str(tmp_path / "tiny"))
    made = scores.token_weights(bench.stages, scorer, 0)
    assert max(part.abs().max() for sides in made for part in sides) > 1e-2
    torch.testing.assert_close(reference(), before, rtol=0, atol=0)


def test_a_cell_is_the_same_with_stages_before_it_and_without(tiny):
    dropout = {"model.lora_dropout": 0.2}
    compare(tiny(name="with", losses=["sepo", "dpo"], **dropout))
    compare(tiny(name="without", losses=["dpo"], **dropout))
    one, other = ({c.name: c for c in Tracker(create=False).cells(n)}["dpo seed 0"] for n in ("with", "without"))
    assert one.history("loss") == other.history("loss") and one.metrics["kl"] == other.metrics["kl"]


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


def test_keys_hold_what_the_numbers_depend_on(tiny, tiny_llama, tmp_path):
    import shutil

    from transformers import AutoConfig

    def margin_loss(pairs):
        return pairs.columns["margin"] * pairs.log_ratio_margin()

    margin_loss.needs = ("ref_logps", "column:margin")
    bench = trained_bench(tiny())
    stages, stage = bench.stages, Stage(loss=margin_loss)
    judge = get_scorer("attention_judge")

    def keys():
        plain = scores.scores_key(stages, get_scorer("uniform"), 0)
        return plain, stages.key(stage), scores.scores_key(stages, judge, 0), stages.key(Stage())

    stages.pairs = [replace(pair, columns={"margin": 1.0}) for pair in stages.pairs]
    before = keys()
    stages.pairs = [replace(pair, columns={"margin": 2.0}) for pair in stages.pairs]
    after = keys()
    assert all(a != b for a, b in zip(before[:3], after[:3], strict=True)) and before[3] == after[3]
    stages.tokenizer("a text", truncation=True, max_length=1)  # leaves a state behind
    assert keys() == after
    stages.tokenizer.chat_template = "{{ messages[0].content }}"
    assert keys()[2] != after[2] and keys()[:2] == after[:2]

    # another model's weights, under the same path
    small = tmp_path / "small"
    shutil.copytree(tmp_path / "tiny", small)
    variant = get_variant("weighted", scorer=f"log_ratio(model='{small}')")
    size = AutoConfig.from_pretrained(small).vocab_size
    found = set()
    for seed in (3, 4):
        tiny_llama(seed=seed, vocab_size=size, num_hidden_layers=1).float().save_pretrained(small)
        found.add(cell_key(workbench(tiny()), variant, 0))
    assert len(found) == 2


def test_other_models_are_let_go_before_the_losses_train(tiny, tmp_path):
    bench = trained_bench(tiny())
    scorer = get_scorer("log_ratio", model=str(tmp_path / "tiny"))
    scores.token_weights(bench.stages, scorer, 0)
    assert not bench.stages._others


def test_the_model_that_is_asked_for_is_the_initial_one_whatever_else_is(tiny):
    seen = []

    @register_scorer("both", reads=("model",), stages=lambda: {"oracle": Stage(train={"steps": 3, "lr": 1e-2})})
    def both(material):
        model = material.attending_model()
        for _ in range(2):
            seen.append(model(input_ids=torch.arange(1, 9)[None]).logits)
            oracle = material.logps("oracle")
        yield from oracle

    bench = trained_bench(tiny())
    scores.token_weights(bench.stages, get_scorer("both"), 0)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)


def test_a_scorer_that_hides_what_it_reads_is_refused(tiny):
    @register_scorer("hiding")
    def hiding(material):
        yield from material.logps()

    bench = trained_bench(tiny())
    with pytest.raises(ScorerError, match=r'register it with reads=\("model",\)'):
        scores.token_weights(bench.stages, get_scorer("hiding"), 0)


def test_a_stages_epochs_come_before_the_experiments_steps(tiny):
    stages = trained_bench(tiny(**{"train.steps": 3})).stages
    assert stages._settings(Stage(train={"epochs": 2})).steps is None
    assert stages._settings(Stage(train={"lr": 1})).steps == 3


def test_damaged_files_are_made_again(tiny, oracle_loss, harm, caplog):
    bench = trained_bench(tiny())
    scorer = get_scorer("oracle_ratio")
    got = scores.token_weights(bench.stages, scorer, 0)
    got = [tuple(part.clone() for part in sides) for sides in got]
    damaged = [*(plo_home() / "scores").rglob("*.safetensors"), *(plo_home() / "stages").rglob("*.safetensors")]
    for path in damaged:
        harm(path)
    torch.testing.assert_close(scores.token_weights(bench.stages, scorer, 0), got)
    assert len(oracle_loss) == 2
    lines = [line for line in caplog.messages if "damaged" in line]
    assert len(lines) == len(damaged) == 2 and all(str(path) in "".join(lines) for path in damaged)


def test_adapters_on_the_lm_head_are_refused_before_the_stage_sft_is_trained(tiny):
    experiment = tiny(stages=["sft", "preference"], **{"model.lora_targets": ["lm_head", "q_proj"]})
    with pytest.raises(ModelError, match="set reference: init"):
        trained_bench(experiment)
    assert not (plo_home() / "stages").exists()


def test_a_control_owes_to_the_weights_it_changes(tiny):
    compare(tiny(losses=["weighted(scorer=shuffled(of=oracle_ratio))"]))
    tracker = Tracker(create=False)
    owing = [json.loads(c.tags.get("plo.stages", "[]")) for c in tracker.cells() if c.name.startswith("weighted")]
    assert {stage["key"] for stage in tracker.stages()} == set(owing[0])


def test_a_misspelt_reference_names_what_there_is(tiny):
    with pytest.raises(ConfigError, match="reference=initt is neither init nor sft, and no model: .*cannot be loaded"):
        trained_bench(tiny(reference="initt"))


def test_another_model_as_reference_is_refused_under_fsdp(tiny, monkeypatch):
    from plo.backbone import sharding

    bench = trained_bench(tiny())
    monkeypatch.setattr(sharding, "is_sharded", lambda module: True)
    with pytest.raises(ModelError, match="not supported under FSDP"):
        bench.backbone.compare_with(bench.backbone)


def test_uniform_weights_train_as_dpo_does_bit_for_bit(tiny):
    assert not compare(tiny(losses=["dpo", "twdpo"])).failed
    cells = {cell.name: cell for cell in Tracker(create=False).cells()}
    dpo, weighted = cells["dpo seed 0"], cells["twdpo seed 0"]
    for name in ("loss", "grad_norm", "margin", "kl"):
        assert dpo.history(name) == weighted.history(name) and len(dpo.history(name)) > 1, name
