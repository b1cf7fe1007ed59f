"""Token weights: computed once and kept, made again where damaged, the same as by hand."""

import json

import pytest
import torch
from staged import trained_bench
from transformers import AutoModelForCausalLM

from plo.backbone.batch import collate
from plo.experiment import scores
from plo.experiment.matrix import compare
from plo.losses import get_loss
from plo.paths import plo_home
from plo.scorers import ScorerError, Stage, get_scorer, register_scorer
from plo.tracking import Tracker

pytestmark = pytest.mark.usefixtures("oracle_loss")


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


def test_controls_use_the_weights_that_are_made_already(tiny, oracle_loss):
    outcome = compare(
        tiny(losses=["weighted", "weighted(scorer=shuffled(of=oracle_ratio))"], seeds=[0, 1], share_stages=True)
    )
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
    lines = [line for line in caplog.messages if " is damaged " in line]
    assert len(lines) == len(damaged) == 2 and all(str(path) in "".join(lines) for path in damaged)


def test_a_control_owes_to_the_weights_it_changes(tiny):
    compare(tiny(losses=["weighted(scorer=shuffled(of=oracle_ratio))"]))
    tracker = Tracker(create=False)
    owing = [json.loads(c.tags.get("plo.stages", "[]")) for c in tracker.cells() if c.name.startswith("weighted")]
    assert {stage["key"] for stage in tracker.stages()} == set(owing[0])


def test_uniform_weights_train_as_dpo_does_bit_for_bit(tiny):
    assert not compare(tiny(losses=["dpo", "twdpo"])).failed
    cells = {cell.name: cell for cell in Tracker(create=False).cells()}
    dpo, weighted = cells["dpo seed 0"], cells["twdpo seed 0"]
    for name in ("loss", "grad_norm", "margin", "kl"):
        assert dpo.history(name) == weighted.history(name) and len(dpo.history(name)) > 1, name


def test_log_probs_after_other_prompts_are_those_of_a_plain_pass(tiny):
    bench = trained_bench(tiny(**{"model.dtype": "float32"}))
    pairs, seen = bench.data.train[:3], []
    prompts = [((5, 6, 7 + i), (8, 9)) for i in range(3)]

    @register_scorer("after_other_prompts", reads=("model",), replace=True)
    def after_other_prompts(material):
        seen.extend(material.logps_after(prompts))
        yield from seen

    material = scores._Material(bench.stages, get_scorer("after_other_prompts"), 0, pairs, [])
    material.scored()
    model = AutoModelForCausalLM.from_pretrained(bench.experiment.model.name)
    for pair, asked, got in zip(pairs, prompts, seen, strict=True):
        for prompt, ids, logps in zip(asked, (pair.chosen_ids, pair.rejected_ids), got, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
            plain = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
            torch.testing.assert_close(logps, plain, rtol=1e-5, atol=1e-5)
