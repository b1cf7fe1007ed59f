"""Attention from the end of a response: its equation in plain Python, on a model's own attention."""

import pytest
import torch

from plo.scorers import get_scorer


def by_the_equation(model, prompt, response, sink_tokens):
    """Weights of one response, from a plain pass over prompt and response."""
    with torch.no_grad():
        attention = model(torch.tensor([[*prompt, *response]]), output_attentions=True).attentions[-1]
    row = attention[0].double().mean(0)[-1].tolist()[len(prompt) : -1]  # without the last position itself
    row = [value / sum(row) for value in row]
    if sink_tokens and len(row) >= 5:
        rest = sum(row[sink_tokens:])
        kept = 1 - sink_tokens / len(row)
        row = [1 / len(row)] * sink_tokens + [value * kept / rest for value in row[sink_tokens:]]
    return [value * len(row) for value in row] + [0.0]


@pytest.mark.parametrize("sink_tokens", [0, 1])
def test_weights_are_those_of_the_equation(material, tiny_pairs, tiny_llama, sink_tokens):
    model = tiny_llama(attn_implementation="eager", dtype=torch.float32).eval()
    pairs = tiny_pairs(6)
    scores = list(get_scorer(f"end_attention(sink_tokens={sink_tokens})")(material(pairs, model=model)))
    assert len(scores) == len(pairs)
    for pair, sides in zip(pairs, scores, strict=True):
        for ids, weights in zip((pair.chosen_ids, pair.rejected_ids), sides, strict=True):
            assert weights.tolist() == pytest.approx(
                by_the_equation(model, pair.prompt_ids, ids, sink_tokens), rel=1e-4
            )
            assert float(weights.sum()) == pytest.approx(len(ids) - 1, rel=1e-5)
