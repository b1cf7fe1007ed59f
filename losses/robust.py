"""Robust DPO is the DPO loss made unbiased under labels flipped at a known rate."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive, Smoothing
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss("robust", needs=("ref_logps",), assumes="flipped_bradley_terry", paper="2403.00409")
def robust(pairs: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's loss without the bias of labels that are flipped at a known rate.

        [-(1 - e) log sigma(beta h) + e log sigma(-beta h)] / (1 - 2e),  h = D(y_w) - D(y_l)

    Its mean over flips at rate e is DPO's loss on the true labels. `dpo(label_smoothing=e)` (conservative DPO) has no
    such property, and the other sign before its second term.

    Idea: Robust DPO is meant for data whose rate of wrong labels is roughly known. With too large a rate it rewards ever
        larger margins, because the loss is unbounded below.
    Assumes: Bradley-Terry preferences whose labels are flipped independently at the known rate e.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        label_smoothing: e in [0, .5); 0 is DPO.

    Returns:
        (pairs,) nats, ln 2 where pi is the reference; unbounded below as h grows (with e > 0). Metric
        `margin`: beta h.

    Source: arXiv 2403.00409; TRL's `robust`.
    """
    margin = beta * pairs.log_ratio_margin()
    clean, flipped = -logsigmoid(margin), -logsigmoid(-margin)
    loss = ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return loss, {"margin": margin}
