"""DPO is the logistic loss on the difference of the responses' log-ratios."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive, Smoothing
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _assumes(label_smoothing: float) -> str:
    if not label_smoothing:
        return "bradley_terry"
    return "label smoothing e fits log-odds of (1-e) p + e (1-p), which are no differences of one reward"


@register_loss("dpo", needs=("ref_logps",), assumes=_assumes, paper="2305.18290")
def dpo(pairs: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit the log-odds of each preference by the difference between the responses' log-ratios.

        -(1 - e) log sigma(beta h) - e log sigma(-beta h),  h = D(y_w) - D(y_l),  D(y) = sum_t log pi/ref

    Idea: DPO is what other losses are compared with. Only the difference counts: the log-probs of both responses may
        fall while it grows, and with labels without noise nothing stops it.
    Assumes: Bradley-Terry preferences over a reward whose KL-regularised optimum is the policy.

    Args:
        beta: weight of the KL to the reference in the objective that DPO solves, > 0.
        label_smoothing: e in [0, .5), the share of labels believed to be flipped (conservative DPO); 0 is
            DPO.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: beta h.

    Source: arXiv 2305.18290; label smoothing: the authors' code.
    """
    margin = beta * pairs.log_ratio_margin()
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return loss, {"margin": margin}
