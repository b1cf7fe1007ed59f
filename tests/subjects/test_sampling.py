"""Sampling: the right distribution, the same noise for every policy and batch size, and the numbers beside it."""

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from transformers import AutoTokenizer

from plo.backbone.model import Backbone
from plo.config import EvaluationConfig, ModelConfig
from plo.embedded import embedded_model
from plo.subjects.noise import LIKELIEST, GumbelSampler, _uniform, noise_key
from plo.subjects.sampling import Draw, Prompt, continuations, sample

PROMPTS = [Prompt((5, 9), "a"), Prompt((7,), "b"), Prompt((11, 3, 4, 20), "c")]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model())


def backbone(tiny_llama, seed=0):
    return Backbone(tiny_llama(seed=seed, dtype=torch.float64), ModelConfig(peft="full"))


def drawn(scores, keys, config=EvaluationConfig(), position=0):  # noqa: B008
    """The tokens of `keys` continuations with these scores (rows or one for all, vocabulary) at a position."""
    ids = torch.zeros(len(keys), 3 + position, dtype=torch.long)
    return GumbelSampler(keys, 3, config)(ids, scores.expand(len(keys), -1)).argmax(-1)


def keys(count, seed=0):
    return torch.tensor([noise_key(seed, i, 0) for i in range(count)])


def test_tokens_come_from_the_models_distribution():
    rows = 20_000
    shares = torch.bincount(drawn(torch.tensor([[0.0, 1.0, 2.0, -1.0]]), keys(rows)), minlength=4) / rows
    expected = torch.tensor([0.0871443, 0.2368828, 0.6439143, 0.0320586])  # exp(s) / sum exp(s)
    assert (shares - expected).abs().max() < 4 * (0.25 / rows) ** 0.5


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_draws_are_exact_beyond_the_likeliest_tokens(spread):
    """Chi-square against softmax over 600 tokens, of which 344 have no noise of their own: 39% and 5% of the mass."""
    rows, size = 60_000, 600
    scores = spread * torch.randn(1, size, generator=torch.Generator().manual_seed(1))
    chances = scipy.special.softmax(scores[0].double().numpy())
    assert 0.03 < 1 - np.sort(chances)[-LIKELIEST:].sum() < 0.45
    found = np.bincount(torch.cat([drawn(scores, part) for part in keys(rows).split(5000)]), minlength=size)
    expected = rows * chances
    common = expected >= 5
    observed = [*found[common], found[~common].sum()]
    expected = [*expected[common], expected[~common].sum() + 1e-9]
    assert scipy.stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-3


def test_positions_and_tokens_have_independent_noise():
    one = keys(4000)
    a, b = drawn(torch.zeros(1, 2), one).float(), drawn(torch.zeros(1, 2), one, position=1).float()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / 4000**0.5
    noise = _uniform(one, 0, torch.arange(50).expand(4000, -1))
    assert scipy.stats.kstest(noise.flatten(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(50)).max() < 5 / 4000**0.5


def test_similar_policies_draw_the_same_token_as_often_as_gumbel_noise_lets_them():
    """KL .16 a token; P(same token i) = 1 / sum_j max(p_j / p_i, q_j / q_i), far above one uniform number for all tokens."""
    generator = torch.Generator().manual_seed(0)
    p = 1.5 * torch.randn(1, 2000, generator=generator)
    q = p + 0.5 * torch.randn(1, 2000, generator=generator)
    a, b = (scores[0].double().softmax(-1) for scores in (p, q))
    assert (a * (a / b).log()).sum() == pytest.approx(0.16, abs=0.01)
    rows = keys(8000)
    same = (drawn(p, rows) == drawn(q, rows)).double().mean().item()
    uniform = torch.rand(8000, 1, generator=generator).double()
    inverse = [torch.searchsorted(c.cumsum(-1), uniform) for c in (a, b)]  # what one number for all tokens gives
    assert same > 0.4 and same > 4 * (inverse[0] == inverse[1]).double().mean().item()
    few = [scores[:, :200] for scores in (p, q)]  # every token has noise of its own
    a, b = (scores[0].double().softmax(-1) for scores in few)
    expected = sum(1 / torch.maximum(a / a[i], b / b[i]).sum().item() for i in range(200))
    same = (drawn(few[0], rows) == drawn(few[1], rows)).double().mean().item()
    assert same == pytest.approx(expected, abs=4 * (0.25 / 8000) ** 0.5)


def test_top_p_and_temperature_are_honoured():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    assert set(drawn(scores, keys(5000), EvaluationConfig(top_p=0.6)).tolist()) == {2}
    cold = drawn(scores, keys(5000), EvaluationConfig(temperature=0.1))
    assert (cold == 2).float().mean() > 0.99  # softmax(10 s): .99995


def test_a_continuation_does_not_depend_on_its_batch(tiny_llama, tokenizer):
    policy = backbone(tiny_llama)
    whole = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=2, max_new_tokens=6), seed=3)
    alone = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=2, max_new_tokens=6, batch_size=1), seed=3)
    assert whole.text.tolist() == alone.text.tolist()
    torch.testing.assert_close(torch.tensor(whole.ref_nll.values), torch.tensor(alone.ref_nll.values))
    other = sample(policy, tokenizer, PROMPTS, EvaluationConfig(samples=2, max_new_tokens=6), seed=4)
    assert whole.text.tolist() != other.text.tolist()


def test_noise_is_fixed_by_seed_prompt_sample_position_and_token():
    assert [noise_key(0, 1, 2), noise_key(0, 1, 2)] == [-4655325665552881682] * 2  # on every machine
    tokens = torch.tensor([[7, 8, 9]])
    noise = _uniform(torch.tensor([noise_key(0, 1, 2)]), 5, tokens)
    assert torch.equal(
        noise.flip(1), _uniform(torch.tensor([noise_key(0, 1, 2)]), 5, tokens.flip(1))
    )  # whatever the order
    assert len({noise_key(*key) for key in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 12, 3), (0, 1, 23))}) == 6
    others = [
        _uniform(torch.tensor([noise_key(0, 1, 2)]), 6, tokens),
        _uniform(torch.tensor([noise_key(1, 1, 2)]), 5, tokens),
    ]
    assert all((noise - other).abs().min() > 1e-6 for other in others)


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
    whole = continuations(policy, tokenizer, PROMPTS, config, Draw(3, folder=tmp_path))
    assert len(drawn) == 3
    harm(tmp_path / "2.json")
    again = continuations(policy, tokenizer, PROMPTS, config, Draw(3, folder=tmp_path))
    pd.testing.assert_frame_equal(again, whole)
    assert len(drawn) == 4  # the damaged batch alone
    [line] = caplog.messages
    assert str(tmp_path / "2.json") in line and "damaged" in line


@pytest.mark.parametrize("scores_too", [True, False])
def test_where_memory_runs_out_half_are_sampled_at_a_time_and_nothing_changes(
    tiny_llama, tokenizer, tmp_path, monkeypatch, scores_too
):
    model, config = backbone(tiny_llama), EvaluationConfig(samples=3, max_new_tokens=4, batch_size=4)
    monkeypatch.setattr("plo.subjects.sampling.PASS_SEQUENCES", 6)
    expected = sample(model, tokenizer, PROMPTS, config, 0)
    kept = continuations(model, tokenizer, PROMPTS, config, Draw(0, folder=tmp_path / "undisturbed"))
    sizes = {"generate": [], "measure": []}

    def limited(name, most, rows):
        inner = getattr(model, name)

        def call(first, *arguments, **keywords):
            sizes[name].append(rows(first))
            if sizes[name][-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return inner(first, *arguments, **keywords)

        monkeypatch.setattr(model, name, call)

    limited("generate", 2, len)
    if scores_too:
        limited("measure", 3, lambda batch: len(batch.lengths))
    pd.testing.assert_frame_equal(sample(model, tokenizer, PROMPTS, config, 0), expected)
    assert sizes["generate"] == [4, 2, 2, 2, 2, 1]
    again = continuations(model, tokenizer, PROMPTS, config, Draw(0, folder=tmp_path / "halved"))
    pd.testing.assert_frame_equal(again, kept)
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("undisturbed", "halved")]
    assert names[0] == names[1]  # each of them can go on with the other's files
