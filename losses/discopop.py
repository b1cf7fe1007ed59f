"""DiscoPOP is a blend of the logistic and the exponential loss that a language model discovered."""

import torch
from torch import Tensor, sigmoid
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive, largest_exponent
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "discopop",
    needs=("ref_logps",),
    assumes="a loss found by search, without a model of preferences",
    paper="2406.08414",
)
def discopop(pairs: Pairs, *, beta: Positive = 0.05, tau: Positive = 0.05) -> tuple[Tensor, dict[str, Tensor]]:
    """Blend the logistic loss of lost pairs with the exponential loss of won ones, as a language model discovered.

        -(1 - m) log sigma(x) + m exp(-x),  x = beta h,  m = sigma(x / tau)

    m exp(-x) is computed in one exponent, so that it is 0 where both factors would leave the dtype. With tau > 1, where
    it really grows as x falls, it is cut at the dtype's largest number, with **zero** gradient beyond.

    Idea: A language model proposed this loss and benchmarks selected it. Near the reference it lowers the margin first.
    Assumes: nothing about preferences: the form was found by search over code, on benchmark scores.
    Dispute: not convex. At tau .05 the slope in x at pi = ref is +.78, so the first steps lower the margin, to a local
        minimum at x = -.12; the loss falls again only beyond x = .07.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0; TRL's default is .1.
        tau: width of the blend in units of x, > 0.

    Returns:
        (pairs,). Metric `margin`: beta h.

    Source: arXiv 2406.08414, eq. 5 (log-ratio modulated loss); TRL's `discopop`; beta from the authors' code.
    """
    margin = beta * pairs.log_ratio_margin()
    logistic = -logsigmoid(margin) * sigmoid(-margin / tau)
    exponent = logsigmoid(margin / tau) - margin
    return logistic + torch.exp(exponent.clamp(max=largest_exponent(margin.dtype))), {"margin": margin}
