"""The stage sft as the start of all cells, and the reference: the model as loaded, the stage sft, or another model."""

import pytest
import torch
from safetensors.torch import load_file
from staged import stages_of, trained_bench

from plo import caches
from plo.backbone.batch import collate
from plo.backbone.head import ModelError
from plo.config import ConfigError
from plo.experiment import scores
from plo.experiment.matrix import compare
from plo.losses import get_loss
from plo.paths import plo_home
from plo.scorers import Stage, get_scorer
from plo.tracking import Tracker

pytestmark = pytest.mark.usefixtures("oracle_loss")


def test_sft_is_one_recorded_run_that_all_cells_start_from(tiny):
    sft = {"stages": ["sft", "preference"], "sft": {"steps": 4, "lr": 1e-2}, "share_stages": True}
    experiment = tiny(losses=["dpo"], seeds=[0, 1], **sft)
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
        ({"reference": "sft"}, "requires the stage sft"),
        ({"sft": {"lr": 1}}, "require the stage sft"),
        ({"stages": ["sft", "preference"], "sft": {"lr": -1}}, "sft.lr: Input should be greater than 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            tiny(**wrong)


def test_a_model_of_other_tokens_is_refused(tiny, tmp_path, monkeypatch):
    bench = trained_bench(tiny())
    monkeypatch.setattr(type(bench.tokenizer), "get_vocab", lambda self: {id(self): 0})
    with pytest.raises(ConfigError, match="has another tokenizer"):
        bench.stages.base(Stage(model=str(tmp_path / "tiny")))


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


def test_adapters_on_the_lm_head_are_refused_before_the_stage_sft_is_trained(tiny):
    experiment = tiny(stages=["sft", "preference"], **{"model.lora_targets": ["lm_head", "q_proj"]})
    with pytest.raises(ModelError, match="set reference: init"):
        trained_bench(experiment)
    assert not (plo_home() / "stages").exists()


def test_a_misspelt_reference_names_what_there_is(tiny):
    with pytest.raises(ConfigError, match="reference=initt is neither init nor sft nor a model that can be loaded: "):
        trained_bench(tiny(reference="initt"))


def test_another_model_as_reference_is_refused_under_fsdp(tiny, monkeypatch):
    from plo.backbone import sharding

    bench = trained_bench(tiny())
    monkeypatch.setattr(sharding, "is_sharded", lambda module: True)
    with pytest.raises(ModelError, match="not supported under FSDP"):
        bench.backbone.compare_with(bench.backbone)
