"""IPO is the squared distance of the log-ratio margin from 1 / (2 beta)."""

from typing import Literal

from torch import Tensor

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


def _assumes(reduction: str) -> str:
    if reduction == "sum":
        return "identity"
    return "log-ratios divided by length: the optimum known for IPO is that of reduction=sum"


def _target_margin(beta: float) -> float:
    return 1 / (2 * beta)


@register_loss("ipo", needs=("ref_logps",), assumes=_assumes, target_margin=_target_margin, paper="2310.12036")
def ipo(
    pairs: Pairs, *, beta: Positive = 0.1, reduction: Literal["mean", "sum"] = "mean"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Regress the log-ratio margin of each pair on a fixed target.

        (h - 1 / (2 beta))^2,  h = D(y_w) - D(y_l),  D(y) = the mean over t (or, by `reduction`, the sum) of log pi/ref

    Idea: The target keeps the margin of nearly deterministic labels finite, where DPO's grows for ever. A pair beyond
        the target is pulled back, and the target's unit depends on `reduction`.
    Assumes: no Bradley-Terry model: the preference probability itself is what the KL-regularised objective maximises.
    Dispute: whether D is the sum over the response or the mean; one beta does not fit both. Published comparisons went
        wrong on it, so it has a name here, and a table shows which one was used. With the mean, TRL's beta of .1 demands
        5 nats per token, which short trainings do not come near: until then the loss is linear. `plo compare` reports a
        training whose mean margin ends below a tenth of the target.

    Args:
        beta: weight of the KL to the reference, > 0; the target margin is 1 / (2 beta) nats. One beta does not mean
            the same under both reductions.
        reduction: "mean", each response's log-ratios divided by its own length (TRL, whose comment reports
            the authors' confirmation); "sum", over the response (the code of the paper's time).

    Returns:
        (pairs,) nats squared; 1 / (4 beta^2) where pi is the reference. Metric `margin`: h, nats, per token
        under "mean".

    Source: arXiv 2310.12036; the mean: TRL's `ipo`.
    """
    if reduction == "sum":
        margin = pairs.log_ratio_margin()
    else:
        chosen, rejected = (side.log_ratio() / side.lengths for side in (pairs.chosen, pairs.rejected))
        margin = chosen - rejected
    return (margin - 1 / (2 * beta)).square(), {"margin": margin}
