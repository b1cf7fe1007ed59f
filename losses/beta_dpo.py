"""beta-DPO sets DPO's beta anew in every step, by how the margins of its pairs compare with those so far."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Portion, Positive, Share
from plo.losses.register import register_loss
from plo.pairs import Pairs

LEAST_BETA = 1e-3  # of the released code
ALIKE = 1e-3  # nats: margins that rounding could exchange are kept together


@register_loss(
    "beta_dpo",
    needs=("ref_logps",),
    assumes="beta follows the margins of a step, so that no one weight of the KL belongs to its optimum",
    paper="2407.08639",
)
class BetaDPO(nn.Module):
    """Fit DPO with a beta for each step, larger where its margins are large, on the pairs whose margin is not unusual.

        -log sigma(beta_s h) on the `keep` n pairs of a step whose h is nearest to M, 0 on the others,
        beta_s = max(beta (1 + alpha (m - M)), 1e-3),  m = mean of h over the pairs that are kept,
        M = decay M + (1 - decay) (mean of h over the step),  h = D(y_w) - D(y_l)

    Values are scaled such that the mean over the step is that over the pairs that are kept.

    Idea: Pairs that differ little deserve a small beta, which lets the policy move far, and pairs that differ much a large
        one; beta is chosen for whole steps, because one for each pair is unstable. Pairs with unusual margins are left out
        as likely errors of labelling.
    Assumes: Bradley-Terry preferences, whose labels are wrong where the implicit margin is far from the others'.
    Dispute: the released code draws the pairs that are kept, without replacement, with weights exp(-(h - M)^2 / 2 S^2), S
        the running standard deviation; here the likeliest of them are kept, so that a step does not depend on how it is
        divided, and nothing is left out where all margins are equal, as in the first step (there the code divides 0 by
        0). As in the code, M and m contain the step itself: with gradient accumulation that takes a pass without
        gradient a step. The code starts M at 0 without correcting for it, and so does this.

    Args:
        beta: beta of a step whose margins are those so far, > 0.
        alpha: how strongly beta follows the margins, per nat, >= 0 (the code's `a`); 0 keeps beta.
        keep: share of a step's pairs that are kept, rounded down (at least 1 pair); the code's 1 - `mode_weight`. 1: all.
        decay: weight of the past in M.

    Returns (forward):
        (pairs,) nats; ln 2 where pi is the reference. Metrics `margin`: beta_s h; `beta`: beta_s; `kept`: 1 or 0.

    Source: arXiv 2407.08639 and its code (junkangwu/beta-DPO).
    """

    running_mean: Tensor
    step_beta: Tensor
    reach: Tensor
    scale: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        beta: Positive = 0.1,
        alpha: NonNegative = 0.6,
        keep: Portion = 0.8,
        decay: Share = 0.9,
    ):
        super().__init__()
        self.beta, self.alpha, self.keep, self.decay = beta, alpha, keep, decay
        self.register_buffer("running_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("step_beta", torch.tensor(beta, dtype=torch.float64))
        self.register_buffer(
            "reach", torch.tensor(float("inf"))
        )  # nats from the running mean to the last pair that is kept
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))  # pairs of the step by pairs that are kept

    def observe(self, pairs: Pairs) -> dict[str, Tensor]:
        return {"margin": pairs.log_ratio_margin()}

    def before_step(self, step: Mapping[str, Tensor]) -> None:
        margins = step["margin"]
        self.running_mean.mul_(self.decay).add_((1 - self.decay) * margins.mean())
        distances = (margins - self.running_mean).abs()
        count = max(1, int(self.keep * len(margins)))
        self.reach.copy_(distances.sort().values[count - 1] + ALIKE)
        kept = distances <= self.reach
        self.scale.copy_(len(margins) / kept.sum())
        beta = self.beta * (1 + self.alpha * (margins[kept].mean() - self.running_mean))
        self.step_beta.copy_(beta.clamp(min=LEAST_BETA))

    def forward(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        h = pairs.log_ratio_margin()
        kept = ((h.detach() - self.running_mean).abs() <= self.reach).to(h)
        margin = self.step_beta * h
        metrics = {"margin": margin, "beta": self.step_beta.to(h).expand_as(h), "kept": kept}
        return -logsigmoid(margin) * kept * self.scale, metrics
