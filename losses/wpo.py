"""WPO is any loss of a pair, weighted by how likely the policy itself was to write the pair."""

import torch
from torch import Tensor

from plo.losses.get import get_loss
from plo.losses.loss import Loss
from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


def _base(base: str, beta: float) -> Loss:
    plain = get_loss(base)
    if "weights" in plain.needs:
        raise ValueError(
            f"base={base!r} needs token weights, and those of a pair would be in their place: take another base."
        )
    if plain.level != "pair" or plain.has_parameters or plain.entry is None or "beta" not in plain.params:
        raise ValueError(f"base={base!r} must be one loss of level 'pair' with a beta and no parameters of its own.")
    if plain.params["beta"] != get_loss(plain.entry.name).params["beta"]:
        raise ValueError(f"base={base!r}: set beta separately, wpo(base=..., beta=...).")
    return get_loss(base, beta=beta)


def _needs(base: str, beta: float) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*_base(base, beta).needs, "log_p2")))


def _target_margin(base: str, beta: float) -> float | None:
    return _base(base, beta).target_margin


@register_loss(
    "wpo",
    needs=_needs,
    check=_base,
    assumes="weights move with the policy and are held fixed in its gradient, so that it minimises no one loss",
    detached=("logps", "log_p2"),
    target_margin=_target_margin,
    paper="2406.11827",
)
def wpo(
    pairs: Pairs, *, base: str = "dpo", beta: Positive = 0.01, cap: Positive | None = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weight any loss of a pair by how likely the policy itself was to write the pair.

        min(w(y_w) w(y_l), cap) L(pair),  w(y) = sg[exp(mean_t (log pi(y_t) - log sum_v pi(v)^2))], L the base loss

    The second term is the log of the probability that two draws at s_t agree, so that a draw from the policy itself has
    w near 1.

    Idea: WPO makes logged data look on-policy: pairs that the policy of the moment might have written weigh more. Pairs
        unlike its own weigh little, and the step shrinks with them.
    Assumes: what the base loss assumes, on pairs drawn from the policy; the product of weights approximates the
        importance ratio of a pair.
    Dispute: whether a pair may weigh more than 1. The weight of a greedy response does (1.3 to 2.6 for a pair, measured);
        the authors' code cuts it at 1, as does the default here, and TRL's does not: `cap=None`.

    Args:
        base: the loss that is weighted: a name, or a name with hyper-parameters other than beta, "ipo(reduction=sum)".
        beta: beta of the base loss, > 0. The authors' .01 is for `dpo`; another base may need another one.
        cap: the largest weight of a pair, > 0; None (TRL): no bound.

    Returns:
        (pairs,) in the base's unit. Metrics: the base's, and `weight`: the pair's weight, capped.

    Source: arXiv 2406.11827, eq. 2, and its authors' code (beta, cap); TRL's `use_weighting`.
    """
    value = _base(base, beta).evaluate(pairs)
    weight = _weight(pairs.chosen) * _weight(pairs.rejected)
    if cap is not None:
        weight = weight.clamp(max=cap)
    return weight * value.values, {**value.metrics, "weight": weight}


def _weight(side: Side) -> Tensor:
    return torch.exp(side.mean((side.logps - side.log_p2).detach()))
