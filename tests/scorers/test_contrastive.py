"""Token rewards by contrastive prompts: the equation on a model's own log-probs, and what the model is asked."""

from math import exp

import pytest
import torch

from plo.data.rows import Row
from plo.scorers import get_scorer
from plo.scorers.contrastive import rewards


def test_rewards_by_hand():
    """sigma(log-odds) - 1/2: 0 where the prompts agree, +-.5 at most."""
    (got, other) = rewards(
        (torch.tensor([-1.0, -2.0, 0.0]).double(), torch.tensor([-3.0]).double()),
        (torch.tensor([-1.0, -4.5, -900.0]).double(), torch.tensor([-0.5]).double()),
    )
    assert got.tolist() == pytest.approx([0, 1 / (1 + exp(-2.5)) - 0.5, 0.5], abs=1e-12)
    assert other.tolist() == pytest.approx([1 / (1 + exp(2.5)) - 0.5], abs=1e-12)


@pytest.mark.parametrize("chat", [True, False])
def test_the_model_is_asked_to_revise_each_response(material, make_tokenizer, tiny_llama, tokenize_row, chat):
    tokenizer = make_tokenizer(**({} if chat else {"chat_template": None}))
    row = Row("Question {response}?", " Yes, it is.", " No.", where="row 0")  # marks in a text are text
    pair = tokenize_row(row, tokenizer)
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=900, dtype=torch.float32).eval()
    given = material([pair], tokenizer=tokenizer, model=model)
    asked, plain = [], given.logps_after

    def recorded(prompts):
        asked.append(prompts)
        return plain(prompts)

    given.logps_after = recorded
    (scored,) = get_scorer("contrastive_prompts")(given)
    texts = [[tokenizer.decode(ids) for ids in prompts[0]] for prompts in asked]
    for request, (qualities, chosen, rejected) in {
        "better": ("more correct, more coherent and more concise", *texts[0]),
        "worse": ("less correct, less coherent and more verbose", *texts[1]),
    }.items():
        for text, response, other in ((chosen, " Yes, it is.", " No."), (rejected, " No.", " Yes, it is.")):
            assert qualities in text and f"Reply with the {request} response" in text
            assert "=== Prompt begins ===\nQuestion {response}?\n=== Prompt ends" in text
            assert f"=== Response begins ===\n{response}\n=== Response ends" in text and f"\n{other}\n" not in text
            assert text.endswith("assistant\n") == chat
    better, worse = (plain(prompts)[0] for prompts in asked)
    for got, one, other in zip(scored, better, worse, strict=True):
        expected = [1 / (1 + exp(float(b - a))) - 0.5 for a, b in zip(one, other, strict=True)]
        assert got.tolist() == pytest.approx(expected, abs=1e-6) and got.abs().max() > 1e-4
