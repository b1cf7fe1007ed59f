"""Attention of packed groups: each prompt once with its responses after it, many groups in one row, nothing padded.

A token sees its own group's prompt and its own response up to itself. The layout takes the place of the attention mask:
transformers' models pass a 4-D mask on unchanged to every layer, also in the second pass of a checkpointed layer.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from plo.backbone.borrowed import sdpa_mask, softmax_backward
from plo.backbone.head import ModelError

PACKED = "plo_packed"  # the name of this attention in transformers' registry
BLOCK = 256  # query rows a matrix product of the backward pass: fewer waste work above the diagonal, more cost calls
LANES = 32  # bfloat16 numbers in a register of 512 bits: what is left of a row of scores after whole ones is slow

Lengths = Sequence[Sequence[int]]  # a group each: tokens of its prompt, and of each response


def layout(lengths: Lengths) -> Tensor:
    """Return the attention mask of a packed batch: the lengths as a (1, 1, groups, 1 + responses) int64 tensor."""
    return torch.tensor(lengths)[None, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **unused,
) -> tuple[Tensor, None]:
    """Attend within packed groups, as transformers' attention interface: (1, heads, tokens, head_dim) in, tokens first out.

    Args:
        attention_mask: a `layout`.
        scaling: factor of the scores; None: 1 / sqrt(head_dim).
        softcap: cap of the scores, which become softcap * tanh(scores / softcap) (Gemma2).
        unused: other arguments, such as dropout, which plo turns off for every model.

    Raises:
        ModelError: the model passes attention sinks or position biases, which know nothing of groups.
    """
    if s_aux is not None or position_bias is not None:
        raise ModelError("attention sinks and position biases cannot be packed")
    scaling = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings leave query and key in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if query.is_cuda:
        return _flex_attention(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
    inputs, groups = (query[0], key[0], value[0]), _groups(attention_mask, query.dtype)
    out = _capped(*inputs, groups, scaling, softcap) if softcap is not None else _Blocks.apply(*inputs, groups, scaling)
    return out[None], None


@lru_cache(maxsize=2)  # every layer of a pass asks with the same tensor
def _groups(layout: Tensor, dtype: torch.dtype) -> list[tuple[slice, Tensor]]:
    """Return each group's place in the row and its additive mask: 0 where token t sees token s, else -inf.

    A mask is (n, n), with columns of -inf up to a multiple of `LANES`.
    """
    groups, start = [], 0
    for lengths in layout[0, 0].tolist():
        total = sum(lengths)
        mask = torch.full((total, _whole_lanes(total)), -torch.inf, dtype=dtype).triu(1)
        prompt, *ends = accumulate(lengths)
        for first, end in zip([prompt, *ends], ends, strict=False):
            mask[end:, first:end] = -torch.inf  # later responses do not see this one
        groups.append((slice(start, start + total), mask))
        start += total
    return groups


class _Blocks(torch.autograd.Function):
    """Attention group by group: torch's flash attention forward, and a backward pass of few large matrix products.

    Nothing of the size of the scores is kept. On the CPU torch's own backward pass is two to three times slower.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, groups, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.groups, ctx.scaling = groups, scaling
        heads, tokens, _ = query.shape
        out = query.new_empty(tokens, heads, value.shape[-1])
        for span, mask in groups:
            out[span] = F.scaled_dot_product_attention(
                query[None, :, span],
                key[None, :, span],
                value[None, :, span],
                attn_mask=mask[:, : len(mask)],
                scale=scaling,
                enable_gqa=len(query) != len(key),
            )[0].transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor):
        query, key, value = ctx.saved_tensors
        heads, tokens, size = query.shape
        shared = len(key)  # key-value heads, each shared by heads // shared query heads
        key, value = (F.pad(tensor, (0, 0, 0, LANES)) for tensor in (key, value))  # the last group's columns end there
        d_query, d_key, d_value = (_tokens_first(tensor) for tensor in (query, key, value))
        d_out = d_out.transpose(0, 1)
        for span, mask in ctx.groups:
            for first, last in _row_blocks(len(mask)):
                # Columns beyond the group's end get a gradient of 0; those of the next group are overwritten with its own.
                width = _whole_lanes(last)
                rows, columns = slice(span.start + first, span.start + last), slice(span.start, span.start + width)
                q = (query[:, rows] * ctx.scaling).reshape(shared, -1, size)
                d_o = d_out[:, rows].reshape(shared, -1, value.shape[-1])
                k, v = key[:, columns], value[:, columns]
                scores = torch.bmm(q, k.transpose(1, 2))
                scores.view(heads, last - first, width).add_(mask[first:last, :width])
                p = scores.softmax(-1)
                d_p = torch.bmm(d_o, v.transpose(1, 2))
                d_scores = softmax_backward(d_p, p)
                torch.mul(torch.bmm(d_scores, k).view(heads, -1, size), ctx.scaling, out=d_query[:, rows])
                # The last block comes first and sees every column: it writes, the others add.
                _put(d_key[:, columns], torch.bmm(d_scores.transpose(1, 2), q), first=last == len(mask))
                _put(d_value[:, columns], torch.bmm(p.transpose(1, 2), d_o), first=last == len(mask))
        return d_query, d_key[:, :tokens], d_value[:, :tokens], None, None


@cache
def agrees() -> bool:
    """Return whether the backward pass by blocks gives the gradient that autograd gives, tried on two small groups."""
    generator = torch.Generator().manual_seed(0)
    groups = _groups(layout(((2, 3, 4), (1, 2, 2))), torch.float64)
    shapes = (2, 14, 4), (1, 14, 4), (1, 14, 4)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    d_out = torch.randn(14, 2, 4, generator=generator, dtype=torch.float64)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        q, k, v = inputs
        outs = _Blocks.apply(q, k, v, groups, 0.7), _capped(q, k, v, groups, 0.7, None)
        found = [torch.autograd.grad(out, inputs, d_out) for out in outs]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))


def _whole_lanes(columns: int) -> int:
    return -(-columns // LANES) * LANES


def _row_blocks(total: int) -> list[tuple[int, int]]:
    """Divide rows into blocks of about equal size, the last one first. Each ends at a multiple of `LANES`, or at `total`."""
    count = -(-total // BLOCK)
    edges = [min(total, _whole_lanes(total * i // count)) for i in range(count + 1)]
    return list(pairwise(edges))[::-1]


def _tokens_first(like: Tensor) -> Tensor:
    """Return an empty (heads, tokens, size) tensor, laid out as the projections that its gradient flows into."""
    heads, tokens, size = like.shape
    return like.new_empty(tokens, heads, size).transpose(0, 1)


def _put(target: Tensor, values: Tensor, first: bool) -> None:
    target.copy_(values) if first else target.add_(values)


def _capped(query: Tensor, key: Tensor, value: Tensor, groups, scaling: float, softcap: float | None) -> Tensor:
    """Attend as `_Blocks` does, by autograd and with scores that may be capped."""
    repeat = len(query) // len(key)
    out = []
    for span, mask in groups:
        k, v = (t[:, span].repeat_interleave(repeat, 0) for t in (key, value))
        scores = query[:, span] @ k.transpose(1, 2) * scaling
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        p = (scores + mask[:, : len(mask)]).softmax(-1, dtype=torch.float32).to(v.dtype)
        out.append((p @ v).transpose(0, 1))
    return torch.cat(out)


# CUDA: flex attention, whose compiled kernels skip the blocks that are masked as a whole.


def _flex_attention(query, key, value, layout: Tensor, scaling: float, softcap: float | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    attend = _compiled(flex_attention) if query.is_cuda else flex_attention
    cap = None if softcap is None else lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
    return attend(
        query,
        key,
        value,
        score_mod=cap,
        block_mask=_block_mask(layout),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@lru_cache(maxsize=1)
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)


@lru_cache(maxsize=1)  # all layers of a pass ask with the same tensor
def _block_mask(layout: Tensor):
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = layout[0, 0]
    tokens = int(lengths.sum())
    part = torch.repeat_interleave(torch.arange(lengths.numel(), device=layout.device), lengths.flatten())
    parts = lengths.shape[1]
    group, response = part // parts, part % parts  # response 0 is the prompt

    def sees(b, h, q, k):
        return (q >= k) & (group[q] == group[k]) & ((response[k] == 0) | (response[q] == response[k]))

    return create_block_mask(sees, None, None, tokens, tokens, device=layout.device)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
