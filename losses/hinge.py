"""The hinge loss of SLiC and RSO bounds the difference of the responses' log-ratios."""

from torch import Tensor, relu

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "hinge",
    needs=("ref_logps",),
    assumes="a margin loss: beyond 1 / beta it is flat, so it orders responses and settles on no one policy",
    paper="2305.10425",
)
def hinge(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the margin of each pair until it reaches a target, and leave it alone beyond.

        max(0, 1 - beta h),  h = D(y_w) - D(y_l),  D(y) = sum_t log pi/ref

    Idea: DPO's margin under a hinge: a pair that is won by enough no longer pulls. The loss is simple and bounded in
        effect; where it stops depends on where it starts, because nothing is preferred beyond the target.
    Assumes: no probability model of preferences: a pair counts as learnt once its margin reaches 1 / beta nats.
    Dispute: SLiC's own margin is of log pi without a reference; the form with log-ratios is that of RSO (2309.06657)
        and TRL.

    Args:
        beta: scale of the log-ratios, > 0; the target margin is 1 / beta nats.

    Returns:
        (pairs,), 1 where pi is the reference; no gradient beyond the target. Metric `margin`: beta h.

    Source: arXiv 2305.10425; TRL's `hinge`.
    """
    margin = beta * pairs.log_ratio_margin()
    return relu(1 - margin), {"margin": margin}
