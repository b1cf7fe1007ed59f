"""The forward pass against `model(...).logits`, whatever family, padding or order of the batch."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from plo.backbone.batch import collate
from plo.backbone.model import Backbone, ModelError
from plo.config import ModelConfig
from plo.losses import get_loss

FULL = ModelConfig(peft="full")
SIZES = dict(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def families():
    torch.manual_seed(0)
    yield GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    )
    yield Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager", pad_token_id=0)
    )
    yield CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.5, pad_token_id=0))
    yield GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0, pad_token_id=0))


def by_hand(model, prompt, response):
    """(tokens,) log-probs of a response, from the model's own logits on one unpadded row."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("model", list(families()), ids=lambda m: type(m).__name__)
def test_log_probs_are_those_of_the_models_own_logits(model, tiny_pairs):
    model = model.double().eval()
    backbone = Backbone(model, FULL)
    pairs = tiny_pairs(4)
    got = backbone.measure(collate(pairs), ("logps",))["logps"]
    with torch.no_grad():
        expected = [by_hand(model, p.prompt_ids, p.chosen_ids) for p in pairs]
        expected += [by_hand(model, p.prompt_ids, p.rejected_ids) for p in pairs]
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-7, rtol=1e-7)  # Gemma2 rounds its norms to float32


def test_a_model_with_an_unknown_step_after_its_head_is_refused(tiny_llama):
    model = tiny_llama()
    inner = model.forward

    def doubled(*args, **kwargs):
        out = inner(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.forward = doubled
    with pytest.raises(ModelError, match="not those of its LM head"):
        Backbone(model, FULL)


@pytest.mark.parametrize(
    "name", ["dpo", "ipo", "simpo", "orpo", "bpo", "tdpo1", "tdpo2", "tbpo_q", "tbpo_a", "dpo + 0.2*sft"]
)
@pytest.mark.parametrize("peft", ["lora", "full"])
def test_the_order_of_pairs_changes_nothing(name, peft, tiny_llama, tiny_pairs):
    pairs = tiny_pairs(5)

    def run(order):
        backbone = Backbone(tiny_llama(), ModelConfig(peft=peft))
        backbone.reset(0, get_loss(name))
        backbone.double()
        _move(backbone)
        batch = collate([pairs[i] for i in order])
        with backbone.holding(backbone.reference):
            reference = backbone.measure(batch, ("logps",), hidden=True)
        out = backbone(replace(batch, ref_logps=reference["logps"], ref_hidden=reference["hidden"]))
        out["sums"].sum().backward()
        return out["sums"].detach(), {n: p.grad for n, p in backbone.trained().items()}

    sums, grads = run([0, 1, 2, 3, 4])
    other_sums, other_grads = run([3, 1, 4, 0, 2])
    torch.testing.assert_close(other_sums, sums, atol=1e-9, rtol=1e-9)
    for parameter, grad in grads.items():
        torch.testing.assert_close(other_grads[parameter], grad, atol=1e-9, rtol=1e-9)


def test_online_reference_equals_a_given_one(tiny_llama, tiny_pairs):
    for peft in ("lora", "full"):
        backbone = Backbone(tiny_llama(), ModelConfig(peft=peft))
        backbone.reset(0, get_loss("tdpo2"))
        backbone.double()
        _move(backbone)
        batch = collate(tiny_pairs(3))
        with backbone.holding(backbone.reference):
            reference = backbone.measure(batch, ("logps",), hidden=True)
        batch = replace(batch, ref_logps=reference["logps"])
        online = backbone(batch)["sums"]
        given = backbone(replace(batch, ref_hidden=reference["hidden"]))["sums"]
        torch.testing.assert_close(online, given, atol=1e-12, rtol=1e-12)


def test_an_adapter_on_the_lm_head_is_not_the_references(tiny_llama, tiny_pairs):
    batch = collate(tiny_pairs(3))
    backbone = Backbone(tiny_llama(tie_word_embeddings=False), ModelConfig(lora_targets=["q_proj", "lm_head"]))
    backbone.reset(0, get_loss("dpo"))
    backbone.double()
    _move(backbone)
    got = backbone.measure(batch, ("kl_pi_ref",))["kl_pi_ref"]

    def log_probs():
        with torch.no_grad():
            logits = backbone.causal_lm(
                **{k: getattr(batch, k) for k in ("input_ids", "attention_mask", "position_ids")}
            ).logits
        return logits.flatten(0, 1)[batch.positions].log_softmax(-1)

    pi = log_probs()
    with backbone.holding(backbone.reference):
        ref = log_probs()
    torch.testing.assert_close(got, (pi.exp() * (pi - ref)).sum(-1), atol=1e-6, rtol=1e-6)


def test_dropout_of_the_model_is_off(tiny_pairs):
    config = GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    backbone = Backbone(GPT2LMHeadModel(config).double(), FULL)
    backbone.reset(0, get_loss("tdpo2"))
    backbone.train()
    batch = collate(tiny_pairs(3))
    batch = replace(batch, ref_logps=backbone.measure(batch, ("logps",))["logps"])
    assert torch.equal(backbone(batch)["sums"], backbone(batch)["sums"])


def test_attention_dropout_of_the_model_is_off(tiny_llama, tiny_pairs):
    backbone = Backbone(tiny_llama(attention_dropout=0.5), FULL)
    backbone.reset(0, get_loss("dpo"))
    backbone.train()
    batch = collate(tiny_pairs(3))
    batch = replace(batch, ref_logps=backbone.measure(batch, ("logps",))["logps"])
    assert torch.equal(backbone(batch)["sums"], backbone(batch)["sums"])


def test_reset_brings_the_initial_policy_back(tiny_llama, tiny_pairs):
    batch = collate(tiny_pairs(3))
    for peft in ("lora", "full"):
        backbone = Backbone(tiny_llama(), ModelConfig(peft=peft))
        before = backbone.measure(batch, ("logps",))["logps"]
        backbone.reset(0, get_loss("dpo"))
        _move(backbone)
        assert (backbone.measure(batch, ("logps",))["logps"] - before).abs().max() > 1e-3
        with backbone.holding(backbone.reference):
            torch.testing.assert_close(backbone.measure(batch, ("logps",))["logps"], before, atol=1e-6, rtol=1e-6)
        backbone.reset(0, get_loss("dpo"))
        torch.testing.assert_close(backbone.measure(batch, ("logps",))["logps"], before, atol=1e-6, rtol=1e-6)


def test_a_seed_fixes_the_adapters_whatever_the_loss(tiny_llama):
    backbone = Backbone(tiny_llama(), ModelConfig())

    def adapters(seed, loss):
        backbone.reset(seed, get_loss(loss))
        return torch.cat([p.detach().flatten() for p in backbone.policy_parameters()])

    assert torch.equal(adapters(0, "dpo"), adapters(0, "tbpo_q"))
    assert not torch.equal(adapters(0, "dpo"), adapters(1, "dpo"))


def _move(backbone, scale=0.05):
    """The policy away from the reference: equality at step 0 proves little."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
