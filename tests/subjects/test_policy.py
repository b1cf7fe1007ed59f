"""What is evaluated: the model that was named, under an identity of its own, against what it is compared with."""

import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from plo.backbone.model import Backbone, ModelError
from plo.config import EvaluationConfig
from plo.data.rows import Row
from plo.subjects import SubjectError
from plo.subjects.loading import load_subject, weights_digest
from plo.subjects.policy import Policy, log_ratio_margins

CONFIG = EvaluationConfig()
ROWS = [Row("Case 1:", " fine fine", " bad!"), Row("word " * 300, "fine", "bad"), Row("Case 2:", " good", " not")]


@pytest.fixture
def float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.fixture
def models(tiny, tiny_llama, float32, tmp_path):
    """Saves another tiny model beside "tiny", with the tokenizer of that: `models("other", seed=1)`."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")

    def save(name, seed, **changes):
        sizes = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        tiny_llama(seed=seed, **sizes, **changes).float().save_pretrained(name)
        tokenizer.save_pretrained(name)
        return tmp_path / name

    return save


@pytest.fixture
def adapter(models, tmp_path):
    """Saves a random adapter of "tiny" or another base, as peft does."""

    def save(name="adapter", base="tiny", seed=0, **settings):
        settings = {
            "r": 4,
            "lora_alpha": 32,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
        } | settings
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base).float(), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def identity(what):
    return load_subject(str(what), 0, CONFIG).identity


def margins(policy, reference, rows):
    """log pi(chosen) - log pi(rejected), less the same of the reference, by transformers; the rows as conversations."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")

    def logp(model, row, said):
        asked = [{"role": "user", "content": row.prompt}]
        answer = {"role": "assistant", "content": said.strip()}
        texts = [
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True),
            tokenizer.apply_chat_template([*asked, answer], tokenize=False),
        ]
        start, ids = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        with torch.no_grad():
            each = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return each.gather(-1, torch.tensor(ids)[1:, None])[len(start) - 1 :].sum().item()

    return [
        logp(policy, r, r.chosen)
        - logp(policy, r, r.rejected)
        - logp(reference, r, r.chosen)
        + logp(reference, r, r.rejected)
        for r in rows
    ]


def against(what, other):
    subject = load_subject(str(what), 0, CONFIG)
    subject.reference = load_subject(str(other), 0, CONFIG)
    return subject


def test_margins_are_taken_to_the_model_that_is_compared_with(models):
    models("other", seed=1)
    found = against("tiny", "other").margins(ROWS)
    one, other = (AutoModelForCausalLM.from_pretrained(name).float().eval() for name in ("tiny", "other"))
    assert np.isnan(found).tolist() == [False, True, False]  # the second row is longer than the model's 128 tokens
    expected = margins(one, other, [ROWS[0], ROWS[2]])
    assert found[[0, 2]] == pytest.approx(expected, abs=1e-4) and min(map(abs, expected)) > 0.01
    with pytest.raises(SubjectError, match="none of the 1 rows can be scored"):
        against("tiny", "other").margins(ROWS[1:2])


def test_the_same_margins_are_computed_once(models, monkeypatch):
    """An evaluation runs once for each repeat of its judge, and asks for the margins of the same rows."""
    models("other", seed=1)
    models("third", seed=2)
    subject, passed = against("tiny", "other"), []

    def counted(backbone, pairs, reference):
        passed.append(len(pairs))
        return log_ratio_margins(backbone, pairs, reference)

    monkeypatch.setattr("plo.subjects.policy.log_ratio_margins", counted)
    first = subject.margins(ROWS[:1])
    again = subject.margins([Row("Case 1:", " fine fine", " bad!")])
    assert again.tolist() == first.tolist() and passed == [1]
    again[0] = 7.0  # what a caller does to them stays with the caller
    assert subject.margins(ROWS[:1]).tolist() == first.tolist() and passed == [1]
    assert subject.margins(ROWS[2:]).tolist() != first.tolist() and passed == [1, 1]
    subject.reference = load_subject("third", 0, CONFIG)
    assert subject.margins(ROWS[2:]).tolist() != first.tolist() and passed == [1, 1, 1]


def test_margins_of_a_policy_to_the_reference_in_its_own_backbone(models, adapter):
    subject = load_subject(str(adapter()), 0, CONFIG)
    common = {"seed": 0, "config": CONFIG, "chat": subject.chat}
    reference = Policy(
        subject.backbone, subject.tokenizer, name="reference", identity="base", as_reference=True, **common
    )
    subject.reference = reference.reference = reference
    base = AutoModelForCausalLM.from_pretrained("tiny").float().eval()
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("tiny").float(), "adapter").eval()
    assert subject.margins(ROWS[:1]) == pytest.approx(margins(tuned, base, ROWS[:1]), abs=1e-4)
    assert reference.margins(ROWS[:1]).tolist() == [0]


def test_margins_that_cannot_be_taken(models, tmp_path):
    folder = models("other", seed=1)
    (tmp_path / "said.json").write_text('[{"prompt": "Case 1:", "text": "x"}]')
    with pytest.raises(SubjectError, match="tiny has no reference"):
        load_subject("tiny", 0, CONFIG).margins(ROWS)
    with pytest.raises(SubjectError, match="said gives only texts, and the log-ratio of tiny needs the model"):
        against("tiny", tmp_path / "said.json").margins(ROWS)
    template = folder / "chat_template.jinja"
    template.write_text("Please: " + template.read_text())
    with pytest.raises(SubjectError, match="other tokenises the rows differently from tiny"):
        against("tiny", "other").margins(ROWS[:1])
    template.unlink()
    with pytest.raises(SubjectError, match="other cannot read the rows that tiny scores: .* no chat template"):
        against("tiny", "other").margins(ROWS[:1])


def test_an_adapter_is_the_model_that_peft_makes_of_it(models, adapter):
    models("biased", seed=0, attention_bias=True)
    base, ids = AutoModelForCausalLM.from_pretrained("biased").float().eval(), torch.tensor([[5, 6, 7, 8]])
    reference = load_subject("biased", 0, CONFIG)
    for settings in (
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}},
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"layers_to_transform": [1], "init_lora_weights": "gaussian"},
        {"target_modules": "all-linear", "exclude_modules": ["lm_head", "k_proj"]},
        {"trainable_token_indices": [5, 6]},
    ):
        folder = adapter("-".join(settings), base="biased", **settings)
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("biased").float(), folder).eval()
        subject = load_subject(str(folder), 0, CONFIG)
        subject.reference = reference
        expected = margins(tuned, base, ROWS[:1])
        assert abs(expected[0]) > 1e-3
        assert subject.margins(ROWS[:1]) == pytest.approx(expected, abs=1e-4), settings
        with torch.no_grad():
            torch.testing.assert_close(subject.causal_lm()[0](ids).logits, tuned(ids).logits)


def test_an_adapter_that_is_more_than_its_layers_is_refused(adapter):
    folder = adapter()
    file = folder / "adapter_config.json"
    edit(file, something_newer=None, something_off=False)
    load_subject(str(folder), 0, CONFIG)
    usual = file.read_text()
    for name, value in (
        ("init_lora_weights", "pissa"),
        ("alora_invocation_tokens", [5]),
        ("layer_replication", [[0, 2], [0, 2]]),
        ("task_type", "SEQ_CLS"),
        ("revision", "v2"),
        ("use_something_new", True),
    ):
        file.write_text(usual)
        edit(file, **{name: value})
        said = re.escape(f"{name}={json.dumps(value)}")
        with pytest.raises(ModelError, match=f"says {said}, which plo does not know how to honour. Merge it"):
            load_subject(str(folder), 0, CONFIG)


def test_an_adapter_that_does_not_fit(adapter):
    folder = adapter(r=4)
    edit(folder / "adapter_config.json", r=8)
    with pytest.raises(ModelError, match="does not fit its base .* size mismatch"):
        load_subject(str(folder), 0, CONFIG)
    edit(folder / "adapter_config.json", r=4, target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(ModelError, match=r"lacks .*o_proj.*are of two adapters"):
        load_subject(str(folder), 0, CONFIG)
    edit(folder / "adapter_config.json", target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"has .*v_proj.*which its settings do not make"):
        load_subject(str(folder), 0, CONFIG)
    edit(folder / "adapter_config.json", peft_type="IA3")
    with pytest.raises(ModelError, match="is no LoRA adapter"):
        load_subject(str(folder), 0, CONFIG)


def test_whatever_an_adapter_depends_on_is_in_its_identity(models, adapter, monkeypatch):
    folder = adapter()
    seen = [identity(folder)]
    assert identity(folder) == seen[0]
    edit(folder / "adapter_config.json", lora_alpha=64)
    seen.append(identity(folder))
    models("other", seed=1)
    edit(folder / "adapter_config.json", base_model_name_or_path="other")
    seen.append(identity(folder))
    seen.append(identity(adapter(seed=1)))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    seen.append(identity(folder))
    template = AutoTokenizer.from_pretrained("tiny").chat_template
    (folder.parent / "tiny" / "chat_template.jinja").write_text("Please: " + template)
    seen.append(identity(folder))
    assert len(set(seen)) == len(seen)


def test_weights_in_the_older_format_and_none(adapter):
    folder = adapter()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"no weights")
    with pytest.raises(SubjectError, match=r"adapter has no weights, neither \*model\*.safetensors nor"):
        load_subject(str(folder), 0, CONFIG)
    digests = set()
    for content in (b"one", b"other"):
        (folder / "adapter_model.bin").write_bytes(content)
        digests.add(weights_digest(folder))
    assert len(digests) == 2


def test_samples_of_other_adapters_seeds_and_samplers_are_drawn_anew(adapter, monkeypatch):
    calls, inner = [], Backbone.generate
    monkeypatch.setattr(Backbone, "generate", lambda self, *a, **k: calls.append(1) or inner(self, *a, **k))
    folder = adapter()

    def drawn(subject, **settings):
        before = len(calls)
        texts = subject.sample(["Case 1:"], samples=4, max_new_tokens=8, **settings)["text"].tolist()
        return texts, len(calls) - before

    subject = load_subject(str(folder), 0, CONFIG)
    first, asked = drawn(subject)
    assert asked == 1 and drawn(subject) == (first, 0)
    subject.seed = 1
    second, asked = drawn(subject)
    assert asked == 1 and second != first and drawn(load_subject(str(folder), 1, CONFIG)) == (second, 0)
    edit(folder / "adapter_config.json", lora_alpha=640)
    other, asked = drawn(load_subject(str(folder), 0, CONFIG))
    assert asked == 1 and other != first
    monkeypatch.setattr("plo.subjects.policy.VERSION", 1000)
    assert drawn(subject) == (second, 1)
    subject.backbone.causal_lm.generation_config.eos_token_id = 7
    assert drawn(subject)[1] == 1
