"""ORPO is the chosen response's NLL plus a log-odds-ratio term, without a reference."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "orpo",
    assumes="no reference: likelihood and odds ratio pull apart, and where they settle is no model's optimum",
    paper="2403.07691",
)
def orpo(pairs: Pairs, *, beta: Positive = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Imitate the chosen response and raise its odds over the rejected one's, in one stage without a reference.

        NLL(y_w) - beta log sigma(logit pbar_w - logit pbar_l),  pbar = exp(mean_t log pi(y_t))

    NLL(y_w) = -mean_t log pi of the chosen response, per pair. TRL's experimental ORPO takes its NLL over prompt and
    batch, which is another loss.

    Idea: ORPO is SFT plus a preference, cheap in memory. At the default beta the SFT term dominates, so that it starts
        from a base model rather than from a tuned one.
    Assumes: Bradley-Terry preferences over the log-odds of the length-normalised probability, and that the chosen
        response is worth imitating.
    Dispute: the span of the NLL, see above.

    Args:
        beta: weight of the odds ratio (the paper's lambda), > 0.

    Returns:
        (pairs,) nats. Metric `margin`: the log odds ratio, nats.

    Source: arXiv 2403.07691.
    """
    mean_chosen = pairs.chosen.mean(pairs.chosen.logps)
    mean_rejected = pairs.rejected.mean(pairs.rejected.logps)
    margin = log_odds(mean_chosen) - log_odds(mean_rejected)
    return -mean_chosen - beta * logsigmoid(margin), {"margin": margin}


def log_odds(log_p: Tensor) -> Tensor:
    """Return log(p / (1 - p)) from log p <= 0, any shape, nats.

    p within rounding of 1 is taken as 1 - eps of the dtype, without gradient there: the slope 1 / (1 - p)
    diverges.
    """
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return log_p - torch.log(-torch.expm1(log_p))
