"""TDPO is DPO with the sequential forward KL of both responses in the margin."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _assumes_tdpo2(alpha: float) -> str:
    if alpha == 0:
        return "bradley_terry"
    return "part of its gradient is stopped, so that it is not the gradient of a loss that a policy could minimise"


@register_loss("tdpo1", needs=("ref_logps", "kl_ref_pi"), assumes="advantage", paper="2404.11999")
def tdpo1(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin corrected by the difference between the responses' sequential KL.

        -log sigma(beta [h - (K(y_l) - K(y_w))]),  K(y) = sum_t KL(ref || pi) at s_t,  h = D(y_w) - D(y_l)

    Gradient flows through both K.

    Idea: TDPO is what DPO becomes when rewards belong to tokens and each token is held near the reference. The loss also
        falls as the chosen response's own KL grows, which `tdpo2` forbids.
    Assumes: Bradley-Terry preferences over per-token rewards, with a KL constraint at every token.
    Dispute: which of the two "TDPO" is: the authors' function defaults to `tdpo2`, their yaml to this one. Say which one
        a table shows.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.

    Returns:
        (pairs,) nats. Metric `margin`: the argument of sigma.

    Source: arXiv 2404.11999 and its code (`if_tdpo2=False`).
    """
    kl_gap = pairs.rejected.kl_ref_pi.sum(-1) - pairs.chosen.kl_ref_pi.sum(-1)
    margin = beta * (pairs.log_ratio_margin() - kl_gap)
    return -logsigmoid(margin), {"margin": margin}


@register_loss(
    "tdpo2",
    needs=("ref_logps", "kl_ref_pi"),
    assumes=_assumes_tdpo2,
    detached=("chosen.kl_ref_pi",),
    paper="2404.11999",
)
def tdpo2(pairs: Pairs, *, beta: Positive = 0.1, alpha: float = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin and hold down the rejected response's sequential KL against the chosen one's.

        -log sigma(beta [h - alpha (K(y_l) - sg[K(y_w)])]),  K(y) = sum_t KL(ref || pi) at s_t,
        h = D(y_w) - D(y_l),  sg[.] the stop-gradient

    Gradient flows through the rejected response's K alone: the chosen response is not pushed towards a larger KL.

    Idea: TDPO2 is what the authors' function computes by default. Its gradient is that of no loss, so that its optimum is
        not known.
    Assumes: as `tdpo1`; the stop-gradient is a choice for stability and is not derived.
    Dispute: which of the two "TDPO" is: the authors' function defaults to this one, their yaml to `tdpo1`. Say which one
        a table shows.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        alpha: weight of the KL gap; 0 is DPO.

    Returns:
        (pairs,) nats. Metric `margin`: the argument of sigma.

    Source: arXiv 2404.11999 and its code (`if_tdpo2=True`).
    """
    kl_gap = pairs.rejected.kl_ref_pi.sum(-1) - pairs.chosen.kl_ref_pi.sum(-1).detach()
    margin = beta * (pairs.log_ratio_margin() - alpha * kl_gap)
    return -logsigmoid(margin), {"margin": margin}
