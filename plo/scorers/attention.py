"""AttentionPO's weights are the attention of the initial model to two answers when it judges which one is better."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from plo.data.offsets import Answer, Span, answers
from plo.scorers.judge_prompt import JudgePrompt, PromptWriter
from plo.scorers.scorer import Material, ScorerError, register_scorer

# The wording is part of the code, which identifies the weights.
INSTRUCTIONS = """You are an impartial judge. A user gave the prompt below, and two assistants answered it. Decide which answer \
serves the user better. Weigh first how helpful, how relevant and how concise each answer is; then whether it brings anything \
new; then whether something the user needs is missing from it. The order of the answers and their letters mean nothing. Reply \
with the single letter of the better answer, "A" or "B", and nothing else."""
PARTS = (  # texts before the question, the first answer and the second answer, and at the end
    f"{INSTRUCTIONS}\n\n=== User prompt begins ===\n",
    "\n=== User prompt ends ===\n\n=== Answer A begins ===\n",
    "\n=== Answer A ends ===\n\n=== Answer B begins ===\n",
    "\n=== Answer B ends ===\n\nYour choice:",
)

CHUNK = 64  # pairs whose prompts are sorted by length into batches
BUDGET = 2**26  # attention weights of one layer in a batch: 256 MB in float32

Natural = Annotated[int, Field(ge=0)]
Layer = Literal["last", "mean", "rollout"] | int


@register_scorer("attention_judge", reads=("texts", "model"), paper="2605.21883 (AttentionPO)")
def attention_judge(
    material: Material,
    *,
    layer: Layer = "last",
    sink_tokens: Natural = 1,
    sink_min_length: Natural = 5,
    length_norm: bool = True,
) -> Iterator[tuple[Tensor, ...]]:
    """Weight each token by how much the initial model attends to it when it judges the two answers.

        a_t = T * (p_t(A) + p_t(B)) / 2,  p(A) the attention to the answer's tokens when it is answer A, summing to 1

    The attention is that of the position which predicts the verdict, averaged over heads. Where T is at least
    `sink_min_length`, the first `sink_tokens` of the average get the mean, and the others are rescaled to keep the total.

    Idea: What a judge looks at when it gives its verdict counts more. Nothing is trained first; two long prompts per pair
        are read once, and a model too weak to judge looks anywhere.
    Assumes: attention of the verdict's position shows which tokens the verdict rests on, and the initial model can
        judge.
    Dispute: attention sinks: the authors' code corrects the first token alone, accounts of the paper say the first five
        (`sink_tokens=5`). Over several layers their code sums; `layer=mean` is a mean.

    Args:
        layer: "last", an index (negative: from the end), "mean" over all layers of the weights that each would give
            (the authors' code adds them up), or "rollout", the product of .5 A + .5 I over all layers.
        sink_tokens: number of first tokens that are attention sinks; 0: none.
        sink_min_length: in tokens; a shorter answer is left as it is.
        length_norm: whether to multiply by T.

    Yields:
        (T_w,), (T_l,) weights; they sum to the answer's tokens T (1 without `length_norm`). Tokens that are no part of the
        answer's text, template and EOS, have 0 and are not counted. The judge does not see what truncation cut.

    Raises:
        ScorerError: no attention weights, no such layer, or answers too long for the model's window.
        DataError: pairs without texts, or a tokenizer without offsets.

    Source: arXiv 2605.21883 and its code.
    """
    model = material.attending_model()
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    judge = PromptWriter(material.tokenizer, PARTS, window)
    pairs = iter(material.pairs)
    while chunk := list(islice(pairs, CHUNK)):
        texts = [answers(pair, material.tokenizer) for pair in chunk]
        prompts = []
        for pair, (chosen, rejected) in zip(chunk, texts, strict=True):
            prompts.append(judge.prompt(pair.row.prompt, chosen.text, rejected.text, pair.where))
            prompts.append(judge.prompt(pair.row.prompt, rejected.text, chosen.text, pair.where))
        rows = attention_rows(model, [prompt.ids for prompt in prompts], layer)
        for i, both in enumerate(texts):
            shown = list(zip(prompts[2 * i : 2 * i + 2], rows[2 * i : 2 * i + 2], strict=True))
            yield tuple(
                # In the second order the chosen answer is B, the rejected one A.
                _weights(answer, shown, (side, 1 - side), sink_tokens, sink_min_length, length_norm)
                for side, answer in enumerate(both)
            )


def _weights(
    answer: Answer,
    shown: Sequence[tuple[JudgePrompt, Tensor]],
    letters: tuple[int, int],
    sink_tokens: int,
    sink_min_length: int,
    length_norm: bool,
) -> Tensor:
    """Return (tokens,) weights of one response, which was answer `letters[i]` of prompt i, 0 for A."""
    inside = [i for i, span in enumerate(answer.spans) if span != (0, 0)]
    weights = torch.zeros(len(answer.spans), dtype=torch.float64)
    if not inside:
        return weights
    orders = []
    for (prompt, rows), letter in zip(shown, letters, strict=True):
        first, last = prompt.where[letter]
        spans = [answer.spans[i] for i in inside]
        orders.append(normalised(moved(normalised(rows[:, first:last]), prompt.spans[letter], spans)))
    weights[inside] = combined(*orders, sink_tokens, sink_min_length, length_norm)  # pyright: ignore[reportCallIssue]
    return weights


# From attention to weights; `layers` is 1 unless several are averaged.


def normalised(values: Tensor) -> Tensor:
    """Return (layers, tokens) values >= 0 divided by their sum in each layer; uniform where that is 0."""
    total = values.sum(-1, keepdim=True)
    uniform = torch.full_like(values, 1 / max(values.shape[-1], 1))
    return torch.where(total > 0, values / total.where(total > 0, 1), uniform)


def combined(first: Tensor, second: Tensor, sink_tokens: int, sink_min_length: int, length_norm: bool) -> Tensor:
    """Return (tokens,) weights from (layers, tokens) of both orders: their average, without sinks, averaged over layers."""
    average = mend_sinks((first + second) / 2, sink_tokens, sink_min_length)
    return average.mean(0) * (average.shape[-1] if length_norm else 1)


def mend_sinks(weights: Tensor, sink_tokens: int = 1, min_length: int = 5) -> Tensor:
    """Return (layers, tokens) with the first `sink_tokens` set to the layer's mean, the others rescaled to keep the sum."""
    length = weights.shape[-1]
    if length < max(min_length, sink_tokens + 1) or sink_tokens == 0:
        return weights
    mean = weights.mean(-1, keepdim=True)
    rest = weights[:, sink_tokens:]
    share = normalised(rest) * mean * (length - sink_tokens)
    return torch.cat([mean.expand(-1, sink_tokens), share], -1)


def moved(values: Tensor, spans: Sequence[Span], to: Sequence[Span]) -> Tensor:
    """Move (layers, tokens) values to the tokens of another tokenisation of the same text.

    A value is spread evenly over its token's characters, and a character's over the tokens that cover it. Values of characters
    that no target token covers are lost. Equal tokens keep their values.
    """
    if list(spans) == list(to):
        return values
    size = max((end for _, end in (*spans, *to)), default=0)
    characters = values.new_zeros(len(values), size)
    source, places = _characters(spans)
    lengths = torch.tensor([end - start for start, end in spans], dtype=values.dtype)
    characters.index_add_(1, places, values[:, source] / lengths[source])
    target, places = _characters(to)
    cover = torch.bincount(places, minlength=size)
    return values.new_zeros(len(values), len(to)).index_add_(1, target, characters[:, places] / cover[places])


def _characters(spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """Return, for every character of every span, (n,) the span's number and (n,) the character's."""
    flat = [(number, place) for number, span in enumerate(spans) for place in range(*span)]
    numbers = torch.tensor(flat, dtype=torch.long).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


# The forward passes.


@torch.no_grad()
def attention_rows(model: Any, prompts: Sequence[Sequence[int]], layer: Layer = "last") -> list[Tensor]:
    """Return, per prompt, (layers, tokens) attention of its last position, averaged over heads, on the CPU in float64.

    One layer for "last", an index and "rollout", all for "mean".

    Raises:
        ScorerError: the model returns no attention weights, or has no such layer.
    """
    rows: list[Tensor] = [torch.empty(0)] * len(prompts)
    heads = model.config.get_text_config().num_attention_heads
    # In float64 transformers' softmax, in float32, makes NaN of a padded row's mask.
    alone = layer == "rollout" or model.dtype == torch.float64
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    while order:
        size = 1 if alone else max(1, BUDGET // (heads * len(prompts[order[-1]]) ** 2))
        batch, order = order[-size:], order[:-size]
        ids = [prompts[i] for i in batch]
        found = [_rollout(model, ids[0])] if layer == "rollout" else _last_rows(model, ids, layer)
        for i, values in zip(batch, found, strict=True):
            rows[i] = values
    return rows


def _last_rows(model: Any, prompts: Sequence[Sequence[int]], layer: Any) -> list[Tensor]:
    """Return `attention_rows` of one batch. The last token has a forward pass of its own, which keeps one row per layer."""
    width, device = max(map(len, prompts)), model.device
    # Padded on the left, so that all last tokens are in one column.
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = model.base_model(
        input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], use_cache=True
    ).past_key_values
    attentions = _attentions(
        model,
        input_ids=ids[:, -1:],
        attention_mask=mask,
        position_ids=positions[:, -1:],
        past_key_values=cache,
        use_cache=True,
    )
    picked = attentions if layer == "mean" else [_pick(attentions, -1 if layer == "last" else layer)]
    rows = []
    for i, prompt in enumerate(prompts):
        row = torch.zeros(len(picked), len(prompt), dtype=torch.float64)
        for j, attention in enumerate(picked):  # a layer with a sliding window has fewer columns, the last ones
            values = attention[i, :, -1].double().mean(0).cpu()[-len(prompt) :]
            row[j, len(prompt) - len(values) :] = values
        rows.append(row)
    return rows


def _rollout(model: Any, prompt: Sequence[int]) -> Tensor:
    """Return (1, tokens): the last row of the product of .5 A + .5 I over all layers, whose attention is held whole."""
    attentions = _attentions(model, input_ids=torch.tensor([list(prompt)], device=model.device), use_cache=False)
    row = torch.zeros(len(prompt), dtype=torch.float64)
    row[-1] = 1
    for attention in reversed(attentions):
        row = 0.5 * row + 0.5 * row @ attention[0].mean(0).cpu().double()
    return row[None]


def _attentions(model: Any, **inputs: Any) -> Sequence[Tensor]:
    """Return attention per layer, (batch, heads, queries, keys)."""
    attentions = getattr(model.base_model(**inputs, output_attentions=True), "attentions", None)
    if not attentions or any(a is None or a.dim() != 4 for a in attentions):
        raise ScorerError(
            f"{type(model).__name__} returns no attention weights, which the scorer attention_judge reads."
        )
    return attentions


def _pick(attentions: Sequence[Tensor], index: int) -> Tensor:
    if not -len(attentions) <= index < len(attentions):
        raise ScorerError(f"layer={index}: the model has {len(attentions)} layers of attention.")
    return attentions[index]
