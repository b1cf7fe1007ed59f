"""Scorers that need no model: from positions, lengths and chance, and controls made of another scorer's weights."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from plo.scorers.scorer import Material, register_scorer

Decay = Annotated[float, Field(gt=0, le=1)]


@register_scorer("uniform", paper="every token alike")
def uniform(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """a_t = 1 for every token, EOS included.

    Idea: No weighting. `twdpo` is then `dpo`, to the last bit; what every other scorer is compared with.
    Assumes: every token carries as much of the preference as any other.

    Yields:
        (T_w,), (T_l,) ones; they sum to the response's length.
    """
    for pair in material.pairs:
        yield torch.ones(len(pair.chosen_ids)), torch.ones(len(pair.rejected_ids))


@register_scorer("position_decay", paper="2502.14340 (D2PO)")
def position_decay(material: Material, *, gamma: Decay = 0.98) -> Iterator[tuple[Tensor, ...]]:
    """a_t = gamma^t, t = 1, 2, ...: the first token has gamma already, EOS gamma^T.

    Idea: Early tokens count more than late ones, by a fixed discount. Free, and bounds what a long response can amount
        to; where the end decides (a result, a refusal after a preamble), it looks away.
    Assumes: the preference is decided early in a response, and equally fast in all of them.
    Dispute: whether the first token is discounted already: in the authors' code it is.

    Args:
        gamma: what is left of a weight a token later, in (0, 1]; 1 is `uniform`.

    Yields:
        (T_w,), (T_l,) weights; they sum to gamma (1 - gamma^T) / (1 - gamma), at most gamma / (1 - gamma) however
        long the response.

    Source: the authors' code, which discounts the first response token too: counted from 0, every weight would be larger
    by the factor 1 / gamma, as if beta were.
    """
    for pair in material.pairs:
        yield tuple(
            gamma ** torch.arange(1, 1 + len(ids), dtype=torch.float64) for ids in (pair.chosen_ids, pair.rejected_ids)
        )


@register_scorer("subsample", seeded=True, paper="2406.10957 (SamPO)")
def subsample(material: Material) -> Iterator[tuple[Tensor, ...]]:
    """1 on min(T_w, T_l) tokens of each response, 0 on the others: both weigh the same number of tokens.

    Of the longer response they are drawn without replacement, once per seed and pair; the shorter is kept whole. EOS
    is a token like any other.

    Idea: As many tokens of the longer response as the shorter one has, drawn by chance: sums of equally many terms are
        compared. Against the length in DPO's margin; it leaves tokens unused, and its noise comes with the seed.
    Assumes: any tokens of a response stand for it as well as any others.
    Dispute: the authors' code draws anew in each forward pass, for policy and reference apart; here one draw serves
        both, all along.

    Yields:
        (T_w,), (T_l,) zeros and ones; both sum to min(T_w, T_l).

    Source: arXiv 2406.10957. The authors' code draws in each forward pass, for policy and reference apart.
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
    """Independent uniform numbers in [0, 1), once per seed and pair: selecting by them selects tokens at random.

    Idea: A control: selection by chance. A loss that selects tokens (`sepo`) should beat itself with these.
    Assumes: nothing: no token is better than another.

    Yields:
        (T_w,), (T_l,) numbers; they sum to half of the response's length, on average.
    """
    for pair in material.pairs:
        generator = generator_of(material, pair, "random_scores")
        yield tuple(torch.rand(len(ids), generator=generator) for ids in (pair.chosen_ids, pair.rejected_ids))


@register_scorer("shuffled", seeded=True, paper="control: another scorer's weights on other tokens")
def shuffled(material: Material, *, of: str = "position_decay") -> Iterator[tuple[Tensor, ...]]:
    """Another scorer's weights, permuted within each response, EOS included, once per seed and pair.

    What a loss gains by these it gains by the weights' values; what it gains beyond, by the tokens they stand on.

    Idea: A control: another scorer's weights on the wrong tokens. A method whose tokens matter should lose by it.
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
    """A generator for one pair: fixed by seed, purpose and token ids, whatever the order or company of the pairs."""
    ids = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    text = repr((purpose, int(material.seed), tuple(tuple(map(int, part)) for part in ids)))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
