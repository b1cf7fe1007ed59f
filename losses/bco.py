"""BCO trains a classifier of good and bad responses, whose rewards are shifted by their running mean."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plo.losses.numbers import Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs


@register_loss(
    "bco",
    needs=("ref_logps",),
    assumes="each response is classified on its own: its optimum depends on who is compared with whom",
    paper="2404.04656",
)
class BCO(nn.Module):
    """Classify each response as good or bad by how far its reward is from the mean reward so far.

        -log sigma(r_w - delta) - log sigma(delta - r_l),  r = beta D(y),  delta = mean of r over all responses so far

    Idea: The binary cross-entropy bounds DPO's loss from above, and the bound is tightest if the rewards of good and bad
        responses lie on either side of 0. The shift keeps them there while both drift; `bco_pair` is the same loss without.
    Assumes: a binary classifier of good and bad responses whose logit is the implicit reward minus its mean.
    Dispute: the mean runs over all responses of the training so far, those of the present step included, as in TRL's
        BCOTrainer, whose mean is over single processes and micro-batches where this one is over whole steps. With
        gradient accumulation that takes a pass without gradient a step. The paper's weights for prompts of good and bad
        responses that differ (underlying distribution matching) are left out: both responses of a pair have one prompt.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.

    Returns (forward):
        (pairs,) nats; 2 ln 2 where pi is the reference. Metrics `margin`: r_w - r_l; `shift`: delta.

    Source: arXiv 2404.04656; TRL's former BCOTrainer (not in TRL 1.16), whose loss is half of it, a mean over responses.
    """

    shift: Tensor
    count: Tensor

    def __init__(self, hidden_size: int, *, beta: Positive = 0.1):
        super().__init__()
        self.beta = beta
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def observe(self, pairs: Pairs) -> dict[str, Tensor]:
        return {name: self.beta * getattr(pairs, name).log_ratio() for name in ("chosen", "rejected")}

    def before_step(self, step: Mapping[str, Tensor]) -> None:
        rewards = torch.cat([step["chosen"], step["rejected"]])
        self.count += len(rewards)
        self.shift += (rewards - self.shift).sum() / self.count

    def forward(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = (self.beta * side.log_ratio() for side in (pairs.chosen, pairs.rejected))
        metrics = {"margin": chosen - rejected, "shift": self.shift.to(chosen).expand_as(chosen)}
        return -logsigmoid(chosen - self.shift) - logsigmoid(self.shift - rejected), metrics
