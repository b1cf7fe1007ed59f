"""EXO is the reverse KL from the policy's preference in a pair to the smoothed label."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor, sigmoid
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs

SMOOTHING = math.exp(-10)


@register_loss(
    "exo_pair",
    needs=("ref_logps",),
    assumes="it fits smoothed hard labels: its margin is (2 p - 1) log((1 - e) / e), not the log-odds of p",
    paper="2402.00856",
)
def exo_pair(
    pairs: Pairs, *, beta: Positive = 0.5, label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = SMOOTHING
) -> tuple[Tensor, dict[str, Tensor]]:
    """Match the policy's preference in a pair to the smoothed label by the reverse KL, which seeks the mode.

        KL(q || p) = q log(q / (1-e)) + (1-q) log((1-q) / e),  q = sigma(beta h),  p = (1-e, e)

    DPO with smoothing e is the cross-entropy in the other direction, which covers the label's distribution.

    Idea: EXO compares the same two distributions as DPO, in the other direction. The gradient vanishes where a pair is
        badly wrong, so that such pairs are slow to turn.
    Assumes: a label distribution (1-e, e) over the two responses, which the policy's own distribution over them,
        sigma(beta h), matches.
    Dispute: that DPO optimises the wrong direction of the KL is EXO's reading of the alignment objective, which is
        contested. The authors' code gives the chosen response the label 1, not 1-e, which moves the loss by less than e.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0; the default is the authors' on
            dialogue, TRL's is .1.
        label_smoothing: e in (0, .5), > 0 because log e enters. The default is that of the authors' code, e^-10; TRL recommends 1e-3.

    Returns:
        (pairs,) nats, >= 0, 0 where sigma(beta h) = 1 - e. Metric `margin`: beta h.

    Source: arXiv 2402.00856, eq. 16, and its authors' code (beta, e); TRL's `exo_pair`.
    """
    margin = beta * pairs.log_ratio_margin()
    won = sigmoid(margin) * (logsigmoid(margin) - math.log1p(-label_smoothing))
    lost = sigmoid(-margin) * (logsigmoid(-margin) - math.log(label_smoothing))
    return won + lost, {"margin": margin}
