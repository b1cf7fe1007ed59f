"""MinorDPO and DPO-Shift count less of the rejected response's log-ratio, so that DPO pushes it down less."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Portion, Positive, positive_part
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "minor_dpo",
    needs=("ref_logps",),
    assumes="a rejected response below the reference counts as if it were at the reference: not the log-odds of a pair",
    paper="2408.09834",
)
def minor_dpo(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin, and stop pushing the rejected response once it is less likely than under the reference.

        -log sigma(beta [D(y_w) - max(0, D(y_l))])

    Where D(y_l) > 0 it is `dpo`. At pi = ref, where D(y_l) = 0, the rejected response has no gradient yet, nor
    up to 1e-3 nats, or rounding would decide about the gradient of the first step.

    Idea: DPO goes on lowering rejected responses for ever, which is where most of its drift from the reference comes
        from. MinorDPO lowers them to the reference's level alone, and what is left of the margin has to come from the
        chosen response.
    Assumes: Bradley-Terry preferences as in DPO, and that a rejected response need not become less probable than under
        the reference.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2408.09834, by its equation as secondary texts give it; no code of the authors was found.
    """
    margin = beta * (pairs.chosen.log_ratio() - positive_part(pairs.rejected.log_ratio()))
    return -logsigmoid(margin), {"margin": margin}


def _assumes_shift(lam: float, lam_end: float | None) -> str:
    if lam == 1 and lam_end in (None, 1):
        return "bradley_terry"
    return "the rejected response counts less than the chosen one: not the log-odds of a pair"


@register_loss("dpo_shift", needs=("ref_logps",), assumes=_assumes_shift, paper="2502.07599")
def dpo_shift(
    pairs: Pairs, *, beta: Positive = 0.1, lam: Portion = 0.95, lam_end: Portion | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fit DPO's margin with the rejected response's log-ratio scaled down, which lets the chosen one's rise.

        -log sigma(beta [D(y_w) - f D(y_l)]),  f = lam, or from lam to lam_end in a straight line over the training

    Idea: Under DPO the log-probs of chosen responses often fall together with those of rejected ones. DPO-Shift trades
        margin for likelihood: the smaller f, the higher the chosen responses and the smaller the margin between them.
    Assumes: Bradley-Terry preferences as in DPO; with f < 1 a common shift of both responses changes the loss, on
        purpose.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        lam: f in (0, 1] at the start; 1 is DPO. The authors try .5 to .95.
        lam_end: f at the end of the training; None: f stays at `lam`. The code's `increase_linear` is lam .75 and
            lam_end 1, its `decrease_linear` the reverse.

    Returns:
        (pairs,) nats; ln 2 where pi is the reference. Metric `margin`: the argument of sigma.

    Source: arXiv 2502.07599 and its authors' code.
    """
    factor = lam if lam_end is None else lam + (lam_end - lam) * pairs.progress
    margin = beta * (pairs.chosen.log_ratio() - factor * pairs.rejected.log_ratio())
    return -logsigmoid(margin), {"margin": margin}
