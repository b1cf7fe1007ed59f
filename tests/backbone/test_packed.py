"""Packed pairs give the numbers of padded ones, in every family; what cannot be packed is found out."""

from dataclasses import replace

import pytest
import torch
import transformers as hf

from plo.backbone import attention, packing
from plo.backbone.batch import collate, collate_groups
from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.trainer import PreferenceTrainer
from plo.config import ModelConfig, TrainConfig
from plo.losses import get_loss

IDS = dict(vocab_size=61, pad_token_id=0, bos_token_id=0, eos_token_id=1)
LLAMA = dict(
    IDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
GPT2 = dict(IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64)

FAMILIES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"})
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**LLAMA, head_dim=8)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**LLAMA, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**LLAMA, head_dim=8, attn_logit_softcapping=0.5, final_logit_softcapping=2.0, sliding_window=64)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=None)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**LLAMA)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**LLAMA)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**LLAMA)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**LLAMA)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**LLAMA, logits_scaling=3.0)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**LLAMA, logit_scale=0.5)),
}


def model_of(family):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():  # the default weights are so small that attention hardly matters
            parameter += 0.2 * torch.randn_like(parameter)
    return model.float().eval()


def backbone_of(model, peft="full", name="tdpo2"):
    backbone = Backbone(model, ModelConfig(peft=peft))
    backbone.reset(0, get_loss(name))
    return backbone


@pytest.fixture
def pairs(tiny_pairs):
    """Uneven pairs; the first has a prompt and responses of one token each."""
    shortest = [p for p in tiny_pairs(1, seed=1)]
    one = [type(p)(p.prompt_ids[:1], (5,), (7,), p.prompt, p.where, p.columns) for p in shortest]
    return one + tiny_pairs(5, longest=20)


def value_and_gradient(backbone, pairs, packed):
    """Of a policy that has moved, beside its reference."""
    backbone.use_packed(packed)
    batch = collate(pairs, packed=packed)
    with backbone.holding(backbone.reference):
        reference = backbone.measure(batch, ("logps",), hidden=True)
    before = [p.detach().clone() for p in backbone.policy_parameters()]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)
    out = backbone(replace(batch, ref_logps=reference["logps"], ref_hidden=reference["hidden"]))
    out["sums"].sum().backward()
    gradient = {n: p.grad for n, p in backbone.trained().items() if p.grad is not None}
    backbone.zero_grad()
    with torch.no_grad():
        for parameter, value in zip(backbone.policy_parameters(), before, strict=True):
            parameter.copy_(value)
    return out, gradient


@pytest.mark.parametrize("peft", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_padded(family, peft, pairs):
    backbone = backbone_of(model_of(family), peft)
    padded, padded_gradient = value_and_gradient(backbone, pairs, packed=False)
    packed, packed_gradient = value_and_gradient(backbone, pairs, packed=True)
    assert (padded["metrics"]["margin"].abs() > 1e-2).any()  # the policy has moved
    torch.testing.assert_close(packed["sums"], padded["sums"], rtol=1e-5, atol=1e-5)
    largest = max(g.abs().max() for g in padded_gradient.values())
    assert padded_gradient.keys() == packed_gradient.keys()
    for name, gradient in padded_gradient.items():
        assert (packed_gradient[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo", "tbpo_q", "tbpo_a", "dpo + 0.2*sft"])
def test_every_kind_of_loss_takes_packed_pairs(name, pairs, tiny_llama):
    backbone = backbone_of(tiny_llama(dtype=torch.float32), name=name)
    padded, _ = value_and_gradient(backbone, pairs, packed=False)
    packed, _ = value_and_gradient(backbone, pairs, packed=True)
    torch.testing.assert_close(packed["sums"], padded["sums"], rtol=1e-5, atol=1e-5)
    for metric, values in padded["metrics"].items():
        torch.testing.assert_close(packed["metrics"][metric], values, rtol=1e-5, atol=1e-5)


def test_layers_computed_twice_see_the_same_layout(pairs, tiny_llama):
    backbone = backbone_of(tiny_llama(dtype=torch.float64))
    backbone.train()
    _, expected = value_and_gradient(backbone, pairs, packed=True)
    backbone.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    _, gradient = value_and_gradient(backbone, pairs, packed=True)
    for name, values in expected.items():
        torch.testing.assert_close(gradient[name], values)


@pytest.mark.parametrize(("block", "lanes", "longest"), [(4, 1, 12), (4, 2, 12), (32, 32, 40), (256, 32, 12)])
def test_rows_longer_than_a_block_of_the_backward_pass(block, lanes, longest, tiny_pairs, tiny_llama, monkeypatch):
    """Columns up to whole lanes reach into the next groups, and beyond the row's end."""
    monkeypatch.setattr(attention, "LANES", lanes)
    monkeypatch.setattr(attention, "BLOCK", block)
    pairs = tiny_pairs(3, longest=longest)
    backbone = backbone_of(tiny_llama(dtype=torch.float32))
    _, padded = value_and_gradient(backbone, pairs, packed=False)
    _, packed = value_and_gradient(backbone, pairs, packed=True)
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-5, atol=1e-5)


def test_groups_of_one_or_three_responses(tiny_llama):
    backbone = backbone_of(tiny_llama(dtype=torch.float32))
    for groups in (
        [([3, 4], [[5, 6]]), ([7], [[8]])],
        [([3, 4], [[5, 6], [7], [8, 9, 10]]), ([7], [[8], [9], [3, 3]])],
    ):
        got = {}
        for packed in (False, True):
            backbone.use_packed(packed)
            got[packed] = backbone.measure(collate_groups(groups, packed=packed), ("logps",))["logps"]
        torch.testing.assert_close(got[True], got[False], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_flex_attention_of_cuda_sees_what_the_blocks_see(softcap):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 17, 8), torch.randn(1, 2, 17, 8), torch.randn(1, 2, 17, 8)
    layout = attention.layout([(3, 2, 4), (1, 5, 2)])
    blocks, _ = attention.packed_attention(None, query, key, value, layout, scaling=0.3, softcap=softcap)
    flex = attention._flex_attention(query, key, value, layout, 0.3, softcap).transpose(1, 2)
    torch.testing.assert_close(blocks, flex, rtol=1e-5, atol=1e-5)


REFUSED = {
    "a window": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=16)), "sees 16 tokens back"),
    "windows in some layers": (
        lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=16)),
        "sees 16 tokens back",
    ),
    "ALiBi": (lambda: hf.BloomForCausalLM(hf.BloomConfig(**IDS, hidden_size=16, n_layer=2, n_head=2)), "interface"),
    "ALiBi of Falcon": (
        lambda: hf.FalconForCausalLM(
            hf.FalconConfig(**IDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=True)
        ),
        "ALiBi",
    ),
    "GPT": (
        lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
        "interface",
    ),
    "recurrence": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(**IDS, hidden_size=16, num_hidden_layers=2, state_size=4)),
        "recurrent",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_packed_is_read_off_the_config(case):
    make, reason = REFUSED[case]
    assert reason in packing.why_not(make(), 40)


def test_a_window_that_no_sequence_fills_is_none():
    model = hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=64))
    assert packing.why_not(model, 40) is None
    assert packing.disagreement(backbone_of(model.float()), 40) is None


def test_the_self_test_finds_a_window_that_the_config_hides(pairs):
    """The model's own layers look 16 tokens back; nothing in its config says so."""
    torch.manual_seed(0)
    model = hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=16)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    backbone = backbone_of(model)
    assert "nats a token away" in packing.disagreement(backbone, 40)
    assert not backbone.packed
    short = backbone_of(model)
    assert packing.disagreement(short, 12) is None  # on short rows it is right: the test must be at full length
    assert short.packed


def test_a_model_that_cannot_be_packed_is_padded_with_one_warning(tmp_path):
    from tokenizers import Tokenizer, models

    hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=16)).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(61)}, unk_token="0"))
    hf.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1").save_pretrained(tmp_path)
    config = ModelConfig(name=str(tmp_path), dtype="float32")
    with pytest.warns(UserWarning, match="padded, not packed, which is slower: a layer sees 16") as caught:
        backbone, _ = load_backbone(config, longest=40)
    assert not backbone.packed
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert load_backbone(config, longest=12)[0].packed
    assert not load_backbone(config.model_copy(update={"packed": False}), longest=12)[0].packed


def test_the_self_test_keeps_to_the_positions_that_the_model_has():
    backbone = backbone_of(model_of("gpt2"))  # 64 positions
    assert packing.disagreement(backbone, 80) is None


def test_pairs_longer_than_packing_was_tried_with_are_refused(tiny_llama, tiny_pairs, tmp_path):
    backbone, pairs = backbone_of(tiny_llama(), name="dpo"), tiny_pairs(4)
    backbone.use_packed(True)
    backbone.longest = 5
    reference = ReferenceStore(tmp_path).get(backbone, pairs)
    with pytest.raises(ValueError, match="packing was tried with 5: load_backbone"):
        PreferenceTrainer(backbone, pairs, reference, TrainConfig(), seed=0, folder=tmp_path)


def test_the_self_test_finds_attention_sinks():
    config = hf.GptOssConfig(**LLAMA, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=64)
    backbone = backbone_of(hf.GptOssForCausalLM(config).float())
    assert "attention sinks" in packing.disagreement(backbone, 40)


def test_that_a_model_may_be_packed_is_tried_once_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    tried, inner = [], packing.disagreement
    monkeypatch.setattr(packing, "disagreement", lambda *given: tried.append(given[1]) or inner(*given))
    packed = []
    for longest in (16, 16, 17):
        backbone = backbone_of(model_of("llama"))
        assert packing.use_if_agreed(backbone, longest) is None
        packed.append(backbone.packed)
    assert tried == [16, 17] and packed == [True] * 3
    other = model_of("llama")
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    packing.use_if_agreed(backbone_of(other), 16)
    assert tried == [16, 17, 16]


def test_a_model_that_may_not_be_packed_is_tried_each_time(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    tried = []
    monkeypatch.setattr(packing, "disagreement", lambda *given: tried.append(1) or "it differs")
    for _ in range(2):
        backbone = backbone_of(model_of("llama"))
        assert packing.use_if_agreed(backbone, 16) == "it differs" and not backbone.packed
    assert len(tried) == 2
