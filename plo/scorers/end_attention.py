"""Attention of a response's last token to the others, for models that cannot be asked to judge."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from plo.scorers.attention import CHUNK, Layer, Natural, attention_rows, mend_sinks, normalised
from plo.scorers.scorer import Material, register_scorer


@register_scorer("end_attention", reads=("model",), paper="2605.21883 (AttentionPO) without its judge")
def end_attention(
    material: Material, *, layer: Layer = "last", sink_tokens: Natural = 1, sink_min_length: Natural = 5
) -> Iterator[tuple[Tensor, ...]]:
    """Weight each token by how much the initial model attends to it from the end of the response.

        a_t = T * p_t,  p the attention of the last position to the T tokens before it in the response, summing to 1

    The attention is averaged over heads, and sinks are corrected as in `attention_judge`.

    Idea: `attention_judge` asks the model in English which answer is better. A model that does not read English, as that of
        the pocket task, still attends to something when a response ends. Token ids alone are needed, no texts.
    Assumes: attention from the end shows which tokens matter, although no question was asked.
    Dispute: whether the scores say anything about a preference: the model sees one response at a time, and no verdict is
        asked for. Compare with `shuffled(of=end_attention)`.

    Args:
        layer: "last", an index (negative: from the end), "mean" over the weights of all layers, or "rollout", the
            product of .5 A + .5 I over all layers.
        sink_tokens: number of first tokens of the response that are attention sinks; 0: none.
        sink_min_length: in tokens; a shorter response is left as it is.

    Yields:
        (T_w + 1,), (T_l + 1,) weights; they sum to the tokens before the last one, which has 0 (EOS where the response is
        whole).

    Source: `attention_judge`, with another question.
    """
    model, pairs = material.attending_model(), iter(material.pairs)
    while chunk := list(islice(pairs, CHUNK)):
        responses = [(pair.prompt_ids, ids) for pair in chunk for ids in (pair.chosen_ids, pair.rejected_ids)]
        rows = attention_rows(model, [[*prompt, *ids] for prompt, ids in responses], layer)
        weights = [
            _weights(row[:, len(prompt) :], sink_tokens, sink_min_length)
            for row, (prompt, _) in zip(rows, responses, strict=True)
        ]
        yield from zip(weights[::2], weights[1::2], strict=True)


def _weights(attention: Tensor, sink_tokens: int, sink_min_length: int) -> Tensor:
    """Return (tokens,) weights of a response from (layers, tokens) of its last position's attention."""
    before = attention[:, :-1]
    weights = torch.zeros(attention.shape[-1], dtype=torch.float64)
    weights[:-1] = mend_sinks(normalised(before), sink_tokens, sink_min_length).mean(0) * before.shape[-1]
    return weights
