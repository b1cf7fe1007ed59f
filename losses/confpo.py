"""ConfPO is SimPO on the tokens of which the policy is less sure than of the rest of the response."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side


@register_loss(
    "confpo",
    assumes="no reference, and the tokens it counts change with the policy: it has no optimum relative to a reference",
    paper="2506.08712",
)
def confpo(pairs: Pairs, *, beta: Positive = 1.5, gamma: NonNegative = 1.6) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit SimPO's margin on the tokens that the policy finds less likely than the rest of their response.

        -log sigma(beta (m(y_w) - m(y_l)) - gamma),  m(y) = mean of log pi(y_t) over the kept tokens

    A token is kept if pi(y_t) is strictly below the (arithmetic) mean probability of its response. The choice is made
    anew in every step and carries no gradient.

    Idea: ConfPO is SimPO on unlikely tokens, and needs no other model to choose them. The choice moves with the policy,
        and a pair that keeps no token on one side teaches nothing.
    Assumes: Bradley-Terry preferences over SimPO's mean log-probability, and that unlikely tokens carry the preference.

    Args:
        beta: scale of the mean log-probabilities, > 0.
        gamma: target margin, >= 0 (SimPO's gamma itself, not its ratio to beta).

    Returns:
        (pairs,) nats; 0, without gradient, where one of the responses keeps no token: one of a single token, or
        of equal probabilities. Metrics `margin`: beta times the difference of means, before gamma; `kept`: share
        of both responses' tokens that were kept.

    Source: arXiv 2506.08712 and its code.
    """
    kept = [_below_mean(side) for side in (pairs.chosen, pairs.rejected)]
    counts = [mask.sum(-1) for mask in kept]
    chosen, rejected = (
        (side.logps * mask).sum(-1) / count.clamp(min=1)
        for side, mask, count in zip((pairs.chosen, pairs.rejected), kept, counts, strict=True)
    )
    margin = beta * (chosen - rejected)
    loss = -logsigmoid(margin - gamma)
    share = (counts[0] + counts[1]) / (pairs.chosen.lengths + pairs.rejected.lengths)
    none = (counts[0] == 0) | (counts[1] == 0)
    return loss.masked_fill(none, 0), {"margin": margin, "kept": share}


def _below_mean(side: Side) -> Tensor:
    """Return (pairs, tokens) bool, computed relative to the likeliest token: equal tokens compare equal in any dtype."""
    logps = side.logps.detach().masked_fill(~side.mask, -torch.inf)
    relative = logps - logps.max(-1, keepdim=True).values
    log_mean = torch.log(relative.exp().sum(-1, keepdim=True) / side.mask.sum(-1, keepdim=True))
    return side.mask & (relative < log_mean)
