"""Scorers that compare models which are trained first: log-ratios of DPO oracles, and weights made of them."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from plo.losses.numbers import Portion, Positive
from plo.scorers.scorer import Material, Stage, register_scorer


def _dpo(beta: float, lr: float | None, **stage: Any) -> Stage:
    return Stage(loss={"dpo": {"beta": beta}}, train={} if lr is None else {"lr": lr}, **stage)


def _oracle(model: str | None, share: float, oracle_beta: float, oracle_lr: float | None) -> dict[str, Stage]:
    return {"oracle": _dpo(oracle_beta, oracle_lr, model=model, share=share)}


def _two_oracles(model: str | None, share: float, oracle_beta: float, oracle_lr: float | None) -> dict[str, Stage]:
    shared = {"model": model, "share": share}
    return {
        "positive": _dpo(oracle_beta, oracle_lr, **shared),
        "negative": _dpo(oracle_beta, oracle_lr, **shared, reversed=True),
    }


@register_scorer("log_ratio", stages=_oracle, paper="2408.13518 (SePO)")
def log_ratio(
    material: Material,
    *,
    model: str | None = None,
    share: Portion = 0.5,
    oracle_beta: Positive = 0.1,
    oracle_lr: Positive | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Score each token by the log-ratio of an oracle that DPO trains first.

        a_t = log oracle(y_t|s_t) - log oracle_ref(y_t|s_t), nats, EOS included

    These are raw scores, not weights: the loss selects tokens by them.

    Idea: A DPO-trained oracle says which tokens carry the reward. It may be smaller than the policy; it has to be trained
        first, and what it learnt by mistake is selected too.
    Assumes: the log-ratio of a DPO-trained model is a token's share of the reward.

    Args:
        model: the oracle before its training, a (smaller) model of the same tokenizer; None: the policy's own.
        share: share of the training pairs that the oracle is trained on. Half costs half, and the other half is scored
            by a model that has not seen its labels.
        oracle_beta: beta of the oracle's DPO.
        oracle_lr: learning rate of the oracle; None: the experiment's.

    Yields:
        (T_w,), (T_l,) nats; they sum to the oracle's log-ratio of the response, its DPO reward over oracle_beta.

    Source: arXiv 2408.13518 and its code.
    """
    for before, after in zip(material.logps("oracle.reference"), material.logps("oracle"), strict=True):
        yield tuple(trained - initial for initial, trained in zip(before, after, strict=True))


@register_scorer("tis_rank", stages=_two_oracles, reads=("tokenizer",), paper="2410.04350 (TIS-DPO)")
def tis_rank(
    material: Material,
    *,
    transform: Literal["rank", "binary", "threshold", "threshold_and_scale"] = "rank",
    low: float = 0.7,
    high: float = 1.3,
    clip: Positive = 1.5,
    keep: Portion = 0.5,
    model: str | None = None,
    share: Portion = 1.0,
    oracle_beta: Positive = 0.1,
    oracle_lr: Positive | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Weight each token by the rank of a log-ratio between a model of good and a model of bad answers.

        a_t = transform of log pi+ / pi- (chosen), of log pi- / pi+ (rejected); 0 for EOS and what follows it

    pi+ is a DPO model, pi- a DPO model of the pairs reversed. EOS and what a chat template writes after it (a newline)
    take part in the transform before they are set to 0. Where a turn ends in another special token than EOS, that token
    counts as EOS; a response that truncation left without an end keeps all its weights.

    Idea: Tokens that a model of good answers finds likelier than a model of bad ones count more, in a narrow range.
        Ranks keep outliers harmless; two models have to be trained first, and a rank says nothing of how far apart
        tokens are.
    Assumes: the ratio of the two models is the importance of a token under the ideal data, in which every token of an
        answer has the same reward.
    Dispute: the paper's objective has a weighted KL (its code's `token_level`), which the released configuration leaves
        out, as does the default here; `kl=0.5` of the loss adds it. The code ranks log-ratios rounded to two decimals;
        here they are not rounded, as ties are ranked by position.

    Args:
        transform: map from a response's log-ratios to weights. "rank": their ranks, evenly from `low` to `high`;
            "binary": 1 for the highest, at most the share `keep` of the tokens, 0 for the others; "threshold": the log-ratios, cut off at
            +-clip; "threshold_and_scale": these, mapped linearly from `low` to `high`.
        low, high: weights of the lowest and the highest rank ("rank"), of -clip and clip ("threshold_and_scale").
        clip: nats, where "threshold" and "threshold_and_scale" cut the log-ratios off.
        keep: share of a response's tokens with weight 1 ("binary").
        model, share, oracle_beta, oracle_lr: settings of both models, as in `log_ratio`.

    Yields:
        (T_w,), (T_l,) weights. By rank they sum to T (low + high) / 2 less those of EOS and what follows, which is T
        less about 1 for .7 and 1.3 where EOS is last.

    Source: the authors' code.
    """
    transforms = {
        "rank": lambda raw: ranks(raw, low, high),
        "binary": lambda raw: top_share(raw, keep),
        "threshold": lambda raw: clipped(raw, -clip, clip),
        "threshold_and_scale": lambda raw: scaled(raw, -clip, clip, low, high),
    }
    models = (material.logps("positive"), material.logps("negative"))
    for pair, positive, negative in zip(material.pairs, *models, strict=True):
        sides = []
        for ids, sign, plus, minus in zip(
            (pair.chosen_ids, pair.rejected_ids), (1, -1), positive, negative, strict=True
        ):
            weights = transforms[transform](sign * (plus - minus))
            weights[end_of_turn(ids, material.tokenizer) :] = 0
            sides.append(weights)
        yield tuple(sides)


@register_scorer("tgdpo", stages=_oracle, paper="2506.14574")
def tgdpo(
    material: Material,
    *,
    alpha: float = 0.5,
    beta: Positive = 0.1,
    model: str | None = None,
    share: Portion = 1.0,
    oracle_beta: Positive = 0.1,
    oracle_lr: Positive | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Weight each token by the reward that a DPO-trained guide gives it.

        a_t = 1 + alpha r_t (chosen), 1 - alpha r_t (rejected),  r_t = beta log oracle(y_t|s_t) / oracle_ref(y_t|s_t)

    Weights are neither clamped nor normalised, so that they may be negative. EOS is a token like any other.

    Idea: The guide's rewards stretch or shrink each token's part in the margin. They are finer than ranks, and
        unbounded: with a guide that is far from its reference weights turn negative.
    Assumes: the guide's token reward is the reward of the token, small enough that 1 + alpha r_t stays positive.

    Args:
        alpha: how much the guide counts; 0 is `uniform`.
        beta: of the guide's reward; in the recipe `tgdpo` it is the loss's beta too, as in the authors' code.
        model, share, oracle_beta, oracle_lr: settings of the guide, as in `log_ratio`.

    Yields:
        (T_w,), (T_l,) weights; they sum to T plus (chosen) or less (rejected) alpha beta times the oracle's log-ratio of
        the response.

    Source: arXiv 2506.14574 and its code.
    """
    for before, after in zip(material.logps("oracle.reference"), material.logps("oracle"), strict=True):
        sides = zip((1, -1), before, after, strict=True)
        yield tuple(1 + sign * alpha * beta * (trained - initial) for sign, initial, trained in sides)


def end_of_turn(ids: Sequence[int], tokenizer: Any) -> int:
    """Return the index of a response's first EOS, else that of its last special token, else its length."""
    if tokenizer.eos_token_id in ids:
        return ids.index(tokenizer.eos_token_id)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return max((place for place, id in enumerate(ids) if id in special), default=len(ids))


# Transforms of a response's (tokens,) log-ratios to (tokens,) weights, of the same dtype.


def ranks(raw: Tensor, low: float, high: float) -> Tensor:
    """Return low + (high - low) r / (T - 1), r = 0 for the lowest value, T - 1 for the highest.

    Of equal values the earlier token has the lower rank. A single token has weight 1. They sum to T (low + high) / 2.
    """
    if len(raw) == 1:
        return torch.ones_like(raw)
    rank = raw.argsort(stable=True).argsort()
    return low + (high - low) * rank.to(raw) / (len(raw) - 1)


def top_share(raw: Tensor, share: float) -> Tensor:
    """Return 1 where at most int(share T) of the values are as high or higher, the token's own counted; 0 elsewhere.

    Equal values are kept together or not at all, so that they sum to int(share T) at most; a single token has 0.
    """
    as_high = (raw[None, :] >= raw[:, None]).sum(-1)
    return (as_high <= int(share * len(raw))).to(raw)


def clipped(raw: Tensor, lower: float, upper: float) -> Tensor:
    """Return the log-ratios, nats, cut off at both ends; a weight may be negative."""
    return raw.clamp(lower, upper)


def scaled(raw: Tensor, lower: float, upper: float, low: float, high: float) -> Tensor:
    """Return the log-ratios cut off at `lower` and `upper` and mapped linearly to `low` and `high`."""
    return low + (high - low) * (raw.clamp(lower, upper) - lower) / (upper - lower)
