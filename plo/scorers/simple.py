"""Scorers that need no model: they use positions, lengths, chance, or another scorer's weights."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plo.losses.numbers import Portion
from plo.scorers.scorer import Material, register_scorer


@register_scorer("uniform", paper="every token alike")
def uniform(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """Weight every token alike, EOS included.

        a_t = 1

    Idea: Without weighting `twdpo` is `dpo`, to the last bit. Every other scorer is compared with this one.
    Assumes: every token carries as much of the preference as any other.

    Yields:
        (T_w,), (T_l,) ones; they sum to the response's length.
    """
    for pair in material.pairs:
        yield torch.ones(len(pair.chosen_ids)), torch.ones(len(pair.rejected_ids))


@register_scorer("position_decay", paper="2502.14340 (D2PO)")
def position_decay(material: Material, *, gamma: Portion = 0.98) -> Iterator[tuple[Tensor, ...]]:
    """Weight early tokens more than late ones, by a fixed discount per token.

        a_t = gamma^t, t = 1, 2, ...: the first token has gamma already, EOS gamma^T

    Idea: The discount costs nothing, and bounds what a long response can amount to. Where the end decides (a result, a
        refusal after a preamble), the weights ignore it.
    Assumes: the preference is decided early in a response, and equally fast in all of them.
    Dispute: whether the first token is discounted already: in the authors' code it is.

    Args:
        gamma: factor from one token's weight to the next one's, in (0, 1]; 1 is `uniform`.

    Yields:
        (T_w,), (T_l,) weights; they sum to gamma (1 - gamma^T) / (1 - gamma), at most gamma / (1 - gamma) however
        long the response.

    Source: the authors' code. Counted from 0, every weight would be larger by 1 / gamma, like a larger beta.
    """
    for pair in material.pairs:
        yield tuple(
            gamma ** torch.arange(1, 1 + len(ids), dtype=torch.float64) for ids in (pair.chosen_ids, pair.rejected_ids)
        )


@register_scorer("subsample", seeded=True, paper="2406.10957 (SamPO)")
def subsample(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """Weight the same number of tokens in both responses, drawn by chance from the longer one.

        a_t = 1 on min(T_w, T_l) tokens of each response, 0 on the others

    The tokens of the longer response are drawn without replacement, once per seed and pair; the shorter response is kept
    whole. EOS is a token like any other.

    Idea: Sums of equally many terms are compared, against the length in DPO's margin. Some tokens stay unused, and the
        seed adds noise.
    Assumes: any tokens of a response represent it as well as any others.
    Dispute: the authors' code draws anew in each forward pass, for policy and reference separately; here one draw serves
        both throughout.

    Yields:
        (T_w,), (T_l,) zeros and ones; both sum to min(T_w, T_l).

    Source: arXiv 2406.10957.
    """
    for pair in material.pairs:
        generator = generator_of(material, pair, "subsample")
        kept = min(len(pair.chosen_ids), len(pair.rejected_ids))
        sides = []
        for ids in (pair.chosen_ids, pair.rejected_ids):
            weights = torch.zeros(len(ids))
            weights[torch.randperm(len(ids), generator=generator)[:kept]] = 1
            sides.append(weights)
        yield tuple(sides)


@register_scorer("random_scores", seeded=True, paper="control: chance instead of a score")
def random_scores(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """Score every token by chance, as a control for losses that select tokens.

        a_t uniform in [0, 1), independent, once per seed and pair

    Idea: Selecting by these scores selects tokens at random. A loss that selects tokens (`sepo`) should beat itself with
        these.
    Assumes: nothing: no token is better than another.

    Yields:
        (T_w,), (T_l,) numbers; they sum to half of the response's length, on average.
    """
    for pair in material.pairs:
        generator = generator_of(material, pair, "random_scores")
        yield tuple(torch.rand(len(ids), generator=generator) for ids in (pair.chosen_ids, pair.rejected_ids))


@register_scorer("shuffled", seeded=True, paper="control: another scorer's weights on other tokens")
def shuffled(material: Material, *, of: str = "position_decay") -> Iterator[tuple[Tensor, ...]]:
    """Permute another scorer's weights within each response, as a control.

        a_t = b_p(t), b the other scorer's weights, p a permutation of the response, EOS included, per seed and pair

    What a loss gains with these weights it gains by their values; what the other scorer gains beyond that, it gains by
    the choice of tokens.

    Idea: A method whose choice of tokens matters should lose by the permutation.
    Assumes: nothing beyond what the other scorer does; which token has which weight is chance.

    Args:
        of: the other scorer, `attention_judge(layer=mean)`.

    Yields:
        (T_w,), (T_l,) weights; they sum to what the other scorer's do.
    """
    for pair, scores in zip(material.pairs, material.scores(), strict=True):
        generator = generator_of(material, pair, "shuffled")
        yield tuple(weights[torch.randperm(len(weights), generator=generator)] for weights in scores)


def generator_of(material: Material, pair: Any, purpose: str) -> torch.Generator:
    """Return a random generator for one pair, which depends on seed, purpose and token ids alone."""
    ids = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    text = repr((purpose, int(material.seed), tuple(tuple(map(int, part)) for part in ids)))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
