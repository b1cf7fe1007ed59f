"""ASFT raises the odds of chosen responses and lowers those of rejected ones, without a reference."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive
from plo.losses.orpo import log_odds
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "asft",
    assumes="no reference, and each response is classified on its own: it has no optimum relative to a reference",
    paper="2409.10571",
)
def asft(pairs: Pairs, *, beta: Positive = 1.0, nll: NonNegative = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the odds of the chosen response and lower those of the rejected one, each by itself, without a reference.

        -log sigma(beta logit pbar_w) - log sigma(-beta logit pbar_l) + nll * NLL(y_w),  pbar = exp(mean_t log pi)

    At beta 1 and nll 0 it is -log pbar_w - log(1 - pbar_l): cross-entropy, of which ORPO's odds ratio is the pairwise
    counterpart. `nll=1` is the published one-stage objective, NLL + lambda * alignment, at lambda 1; another lambda is
    nll = 1 / lambda, up to scale. NLL(y_w) = -log pbar_w.

    Idea: ASFT is ORPO with each response judged by itself instead of in a pair. It needs no reference; the chosen
        response's probability rises whatever the rejected one's is.
    Assumes: every response is good or bad by itself, with probability pbar of being good; no Bradley-Terry.
    Dispute: 2502.01237 finds the NLL term redundant after an SFT stage, because the first term contains it already, and
        adds beta; both are options here.

    Args:
        beta: tempering of the log-odds, > 0; 1 is the published loss.
        nll: weight of the SFT term, >= 0.

    Returns:
        (pairs,) nats. Metric `margin`: the log odds ratio of the two responses, nats, without beta.

    Source: arXiv 2409.10571, its objective as restated in 2502.01237, section 2.4.
    """
    mean_chosen = pairs.chosen.mean(pairs.chosen.logps)
    chosen, rejected = log_odds(mean_chosen), log_odds(pairs.rejected.mean(pairs.rejected.logps))
    loss = -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected) - nll * mean_chosen
    return loss, {"margin": chosen - rejected}
