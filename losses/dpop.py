"""DPO-Positive is DPO with a penalty where the chosen response falls below the reference."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive, positive_part
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _assumes(lam: float) -> str:
    return "the penalty moves the optimum where a chosen log-ratio is negative" if lam else "bradley_terry"


@register_loss("dpop", needs=("ref_logps",), assumes=_assumes, paper="2402.13228")
def dpop(pairs: Pairs, *, beta: Positive = 0.1, lam: NonNegative = 50.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin, and penalise a chosen response that becomes less likely than under the reference.

        -log sigma(beta [h - lam max(0, -D(y_w))]),  h = D(y_w) - D(y_l)

    The penalty has no gradient for D(y_w) down to -1e-3 nats: at pi = ref rounding would decide about one that is 51 times DPO's.

    Idea: DPO-Positive is meant for pairs that differ in a few tokens, where DPO lowers both responses. At its default
        weight the penalty drowns the preference of any pair whose D(y_w) is negative.
    Assumes: Bradley-Terry preferences as in DPO, and that a chosen response should never become less probable than
        under the reference.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0; it scales the penalty too.
        lam: weight of the penalty, >= 0; 0 is DPO.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma; `penalty`:
        max(0, -D(y_w)), nats.

    Source: arXiv 2402.13228 and its code (lam 50).
    """
    penalty = positive_part(-pairs.chosen.log_ratio())
    margin = beta * (pairs.log_ratio_margin() - lam * penalty)
    return -logsigmoid(margin), {"margin": margin, "penalty": penalty}
