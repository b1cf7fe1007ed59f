"""An adapter as a model: what is trained and measured starts from base and adapter together, as peft merges them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from plo.backbone.adapters import share_kept
from plo.backbone.batch import collate
from plo.backbone.head import ModelError
from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.backbone.pretrained import pretrained
from plo.config import EvaluationConfig, ModelConfig
from plo.losses import get_loss
from plo.subjects.loading import load_subject

TARGETS = ["q_proj", "v_proj", "down_proj"]


def tokenizer_of(size, **settings):
    vocabulary = {f"w{i}": i for i in range(size)} | {"</s>": 1}
    del vocabulary["w1"]
    inner = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="w0", **settings)


@pytest.fixture
def base(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama(dtype=torch.float32).save_pretrained("base")
    tokenizer_of(61).save_pretrained("base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path):
    """Saves a random adapter as peft does; `on`: the model that it is trained on, in memory."""

    def save(name="sft", on=None, named=base, scale=0.2, seed=0, task="CAUSAL_LM", **settings):
        model = on or AutoModelForCausalLM.from_pretrained(base)
        settings = {"r": 3, "lora_alpha": 12, "target_modules": TARGETS, "task_type": task} | settings
        adapted = get_peft_model(model, LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in filter(lambda p: p.requires_grad, adapted.parameters()):
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(named)}))
        return tmp_path / name

    return save


def merged(*folders, base="base"):
    """The model by peft alone."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for folder in folders:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval()


def nll(model, pairs):
    """-log p(chosen | prompt), nats, by transformers alone."""
    found = []
    for pair in pairs:
        ids = torch.tensor([pair.prompt_ids + pair.chosen_ids])
        with torch.no_grad():
            each = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        found.append(-each[len(pair.prompt_ids) - 1 :].sum().item())
    return found


def reference_nll(backbone, pairs):
    found = []
    for pair in pairs:
        batch = collate([pair], packed=backbone.packed)
        with backbone.holding(backbone.reference):
            found.append(-backbone.measure(batch, ("logps",))["logps"][: len(pair.chosen_ids)].sum().item())
    return found


@pytest.mark.parametrize("peft", ["lora", "full"])
def test_policy_and_reference_start_from_base_and_adapter_together(adapter, tiny_pairs, peft):
    pairs, folder = tiny_pairs(4), adapter()
    expected, of_base = nll(merged(folder), pairs), nll(merged(), pairs)
    assert min(abs(a - b) for a, b in zip(expected, of_base, strict=True)) > 0.05
    backbone, _ = load_backbone(ModelConfig(name=str(folder), peft=peft, dtype="float32"))
    backbone.reset(0, get_loss("dpo"))
    assert reference_nll(backbone, pairs) == pytest.approx(expected, abs=1e-4)
    own = [-backbone.measure(collate([p], packed=backbone.packed), ("logps",))["logps"] for p in pairs]
    got = [values[: len(p.chosen_ids)].sum().item() for values, p in zip(own, pairs, strict=True)]
    assert got == pytest.approx(expected, abs=1e-4)
    assert (
        backbone.base.identity != load_backbone(ModelConfig(name="base", peft=peft, dtype="float32"))[0].base.identity
    )


def test_what_is_trained_on_it_names_it_as_its_base_and_is_found_again(adapter, tiny_pairs, tmp_path, recwarn):
    """A DPO adapter on an SFT adapter: neither is left out when the former is loaded, here or by its folder."""
    pairs, sft = tiny_pairs(4), adapter()
    backbone, _ = load_backbone(ModelConfig(name="sft", dtype="float32", lora_r=2))
    backbone.reset(0, get_loss("dpo"))
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter += 0.1
    backbone.save(tmp_path / "dpo")
    assert not [w for w in recwarn if "Could not find a config file" in str(w.message)]
    assert json.loads(Path("dpo/adapter_config.json").read_text())["base_model_name_or_path"] == str(sft)
    expected = nll(merged(sft, "dpo"), pairs)
    assert expected != pytest.approx(nll(merged("dpo"), pairs), abs=0.05)
    again, _ = load_backbone(ModelConfig(name="dpo", dtype="float32"))
    assert reference_nll(again, pairs) == pytest.approx(expected, abs=1e-4)


def test_its_tokenizer_is_its_own_or_its_bases(adapter):
    folder = adapter()
    assert len(pretrained(AutoModelForCausalLM, "sft", torch.float32)[1]) == 61
    tokenizer_of(50).save_pretrained(folder)
    assert len(pretrained(AutoModelForCausalLM, "sft", torch.float32)[1]) == 50


def test_an_adapter_on_the_hub(adapter, tmp_path, monkeypatch, tiny_pairs):
    """From the cache: as the hub's client lays out what it has downloaded."""
    folder, pairs = adapter(), tiny_pairs(2)
    repository, commit = tmp_path / "hub" / "models--someone--sft", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    backbone, _ = load_backbone(ModelConfig(name="someone/sft", dtype="float32"))
    backbone.reset(0)
    assert reference_nll(backbone, pairs) == pytest.approx(nll(merged(folder), pairs), abs=1e-4)
    assert backbone.policy.peft_config["default"].base_model_name_or_path == "someone/sft"


def test_a_reward_models_adapter_is_merged_with_its_head(base, adapter, tiny_llama):
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=61)
    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1, pad_token_id=0)).save_pretrained("scores")
    tokenizer_of(61).save_pretrained("scores")
    load = AutoModelForSequenceClassification.from_pretrained
    folder = adapter("reward", on=load("scores"), named="scores", task="SEQ_CLS")
    expected = PeftModel.from_pretrained(load("scores"), folder).eval()
    ids = torch.tensor([[3, 4, 5]])
    got, tokenizer = pretrained(AutoModelForSequenceClassification, str(folder), "float32")
    with torch.no_grad():
        torch.testing.assert_close(got.eval()(ids).logits, expected(ids).logits)
        assert abs(got(ids).logits - load("scores")(ids).logits).item() > 1e-3
    assert len(tokenizer) == 61
    with pytest.raises(ModelError, match='says task_type="SEQ_CLS", which plo does not know how to honour'):
        pretrained(AutoModelForCausalLM, str(folder), "float32")


def test_a_change_that_rounding_would_lose_is_said(adapter, recwarn):
    """By hand: of W = 1 and a change of .3 ulp nothing is left in bfloat16, of one of 3 ulp all."""
    for ulps, left in ((0.3, 0), (3, 1)):
        layer = get_peft_model(
            torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False)), LoraConfig(r=1, lora_alpha=1, target_modules=["0"])
        )
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.fill_(ulps * 2**-7 if "lora_B" in name else 1)
        assert share_kept(layer, torch.bfloat16) == pytest.approx(left)
        assert share_kept(layer, torch.float32) == pytest.approx(1, abs=1e-3)
    AutoModelForCausalLM.from_pretrained("base").bfloat16().save_pretrained(
        "base16"
    )  # its weights are bfloat16 numbers
    tokenizer_of(61).save_pretrained("base16")
    adapter(scale=1e-4, named="base16")
    pretrained(AutoModelForCausalLM, "sft", torch.float32)
    assert not [w for w in recwarn if "lost to rounding" in str(w.message)]
    with pytest.warns(
        UserWarning, match=r"sft: merged into weights in bfloat16, \d+% of what this adapter changes is left"
    ):
        pretrained(AutoModelForCausalLM, "sft", torch.bfloat16)


def test_what_cannot_be_told_apart_is_refused(adapter, base):
    folder = adapter()
    shutil.copy(base / "model.safetensors", folder)
    with pytest.raises(
        ModelError, match=r"holds an adapter \(adapter_config.json\) and a whole model \(model.safetensors\)"
    ):
        load_backbone(ModelConfig(name="sft"))
    injected = AutoModelForCausalLM.from_pretrained(adapter("other"))
    for model in (injected, PeftModel.from_pretrained(merged(), "other")):
        with pytest.raises(ModelError, match="has an adapter already. New adapters would replace it"):
            Backbone(model, ModelConfig())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./bas", r"The model folder ./bas is not there. Near it: base. Mend the path."),
        ("/no/such/folder", "The model folder /no/such/folder is not there. Mend the path."),
        ("runs/dpo", "The model folder runs/dpo is not there. Near it: runs/dpo-seed0. Mend"),
        (
            "runs/dpo-seed0",
            "holds no model: neither config.json nor adapter_config.json is there. .*dpo-seed0/model does",
        ),
        ("base/config.json", "is a file, and a model is a folder"),
        ("someone/model", "The model 'someone/model' cannot be loaded"),  # may be on the hub
        ("bas", "The model 'bas' cannot be loaded.* A folder of a near name is here: base"),
    ],
)
def test_a_mistyped_folder(base, name, said):
    shutil.copytree(base, "runs/dpo-seed0/model")
    with pytest.raises(ModelError, match=said) as raised:
        load_backbone(ModelConfig(name=name))
    assert "Repo id" not in str(raised.value)
    if not Path(name).is_file():  # `plo eval` takes a file for outputs
        with pytest.raises(ModelError, match=said):
            load_subject(name, 0, EvaluationConfig())


def test_the_base_of_an_adapter_is_not_there(adapter):
    adapter(named="gone/base/model")
    with pytest.raises(ModelError, match="The model folder gone/base/model is not there.* base of the adapter sft"):
        load_backbone(ModelConfig(name="sft"))


def test_an_adapter_that_is_its_own_base(adapter):
    adapter("one", named="two")
    adapter("two", named="one")
    with pytest.raises(
        ModelError, match="names as its base an adapter that is built on it: mend base_model_name_or_path"
    ):
        load_backbone(ModelConfig(name="one"))


@pytest.mark.parametrize("text", ['{"peft_type": "LOR', "[]", ""])
def test_an_adapter_s_settings_are_damaged(adapter, text):
    (adapter() / "adapter_config.json").write_text(text)
    for load in (lambda: load_backbone(ModelConfig(name="sft")), lambda: load_subject("sft", 0, EvaluationConfig())):
        with pytest.raises(ModelError, match="sft/adapter_config.json is damaged: .* Copy it again"):
            load()


def test_an_adapter_without_weights(adapter):
    (adapter() / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="sft has no weights: copy its adapter_model.safetensors there"):
        load_backbone(ModelConfig(name="sft"))


def test_a_model_whose_numbers_are_not_finite(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="answers with numbers that are not finite: its weights are damaged"):
        Backbone(model, ModelConfig())
