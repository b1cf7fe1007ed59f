"""Sampling: the right distribution, the same noise for every policy and batch size, and the numbers beside it."""

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from plo.backbone.model import Backbone
from plo.config import EvaluationConfig, ModelConfig
from plo.embedded import embedded_model
from plo.subjects.sampling import Prompt, _noise, _Sampler, continuations, sample

PROMPTS = [Prompt((5, 9), "a"), Prompt((7,), "b"), Prompt((11, 3, 4, 20), "c")]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model())


def backbone(tiny_llama, seed=0):
    return Backbone(tiny_llama(seed=seed, dtype=torch.float64), ModelConfig(peft="full"))


def test_tokens_come_from_the_models_distribution():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    rows, config = 20_000, EvaluationConfig()
    noise = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0))
    drawn = _Sampler(noise, 3, config)(torch.zeros(rows, 3, dtype=torch.long), scores.expand(rows, 4)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / rows
    expected = torch.tensor([0.0871443, 0.2368828, 0.6439143, 0.0320586])  # exp(s) / sum exp(s)
    assert (shares - expected).abs().max() < 4 * (0.25 / rows) ** 0.5


def test_top_p_and_temperature_are_honoured():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(5000, 4)
    noise = torch.rand(5000, 1, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(5000, 1, dtype=torch.long)
    assert set(_Sampler(noise, 1, EvaluationConfig(top_p=0.6))(ids, scores).argmax(-1).tolist()) == {2}
    cold = _Sampler(noise, 1, EvaluationConfig(temperature=0.1))(ids, scores).argmax(-1)
    assert (cold == 2).float().mean() > 0.99  # softmax(10 s): .99995


def test_a_continuation_does_not_depend_on_its_batch(tiny_llama, tokenizer):
    policy = backbone(tiny_llama)
    whole = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=2, max_new_tokens=6), seed=3)
    alone = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=2, max_new_tokens=6, batch_size=1), seed=3)
    assert whole.text.tolist() == alone.text.tolist()
    torch.testing.assert_close(torch.tensor(whole.ref_nll.values), torch.tensor(alone.ref_nll.values))
    other = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=2, max_new_tokens=6), seed=4)
    assert whole.text.tolist() != other.text.tolist()


def test_noise_is_fixed_by_seed_prompt_and_sample():
    assert torch.equal(_noise(0, 1, 2, 5), _noise(0, 1, 2, 5))
    assert len({tuple(_noise(*key, 3).tolist()) for key in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3))}) == 4
    assert torch.equal(_noise(0, 1, 2, 5)[:3], _noise(0, 1, 2, 3))  # a longer continuation begins alike


def test_statistics_of_a_sample_against_the_models_own_logits(tiny_llama, tokenizer):
    policy, other = backbone(tiny_llama), tiny_llama(seed=1, dtype=torch.float64)
    reference = tiny_llama(dtype=torch.float64)
    policy.policy.load_state_dict(other.state_dict())
    frame = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=1, max_new_tokens=5), seed=0)
    for row, prompt in zip(frame.itertuples(), PROMPTS, strict=True):
        ids = tokenizer(row.text, add_special_tokens=False).input_ids
        if len(ids) != row.tokens:  # an EOS, or bytes that decode to something else: not to be had back from text
            continue
        whole = torch.tensor([[*prompt.ids, *ids]])
        span = slice(len(prompt.ids) - 1, -1)
        with torch.no_grad():
            pi, ref = (m(input_ids=whole).logits[0, span].log_softmax(-1) for m in (other, reference))
        assert row.kl == pytest.approx((pi.exp() * (pi - ref)).sum().item(), rel=1e-6)
        assert row.entropy == pytest.approx(-(pi.exp() * pi).sum(-1).mean().item(), rel=1e-6)
        assert row.ref_nll == pytest.approx(-ref.gather(-1, torch.tensor(ids)[:, None]).mean().item(), rel=1e-6)


def test_the_models_own_generation_settings_do_not_bend_the_samples(tiny_llama, tokenizer):
    config = EvaluationConfig(samples=2, max_new_tokens=8)
    plain = sample(backbone(tiny_llama), tokenizer, PROMPTS, config, seed=0)
    bent = backbone(tiny_llama)
    bent.causal_lm.generation_config.repetition_penalty = 5.0
    bent.causal_lm.generation_config.num_beams = 2
    assert sample(bent, tokenizer, PROMPTS, config, seed=0).text.tolist() == plain.text.tolist()
    assert bent.causal_lm.generation_config.repetition_penalty == 5.0


def test_kl_of_the_reference_with_itself_is_zero(tiny_llama, tokenizer):
    frame = sample(
        backbone(tiny_llama), tokenizer, PROMPTS, EvaluationConfig(max_new_tokens=4, temperature=0.5), seed=0
    )
    assert frame.kl.abs().max() == 0


def test_damaged_outputs_are_drawn_again(tiny_llama, tokenizer, tmp_path, harm, caplog, monkeypatch):
    policy, config = backbone(tiny_llama), EvaluationConfig(samples=2, max_new_tokens=6, batch_size=2)
    drawn = []
    generate = policy.generate
    monkeypatch.setattr(policy, "generate", lambda *a, **k: drawn.append(1) or generate(*a, **k))
    whole = continuations(policy, tokenizer, PROMPTS, config, 3, tmp_path)
    assert len(drawn) == 3
    harm(tmp_path / "2.json")
    again = continuations(policy, tokenizer, PROMPTS, config, 3, tmp_path)
    pd.testing.assert_frame_equal(again, whole)
    assert len(drawn) == 4  # the damaged batch alone
    [line] = caplog.messages
    assert str(tmp_path / "2.json") in line and "damaged" in line
