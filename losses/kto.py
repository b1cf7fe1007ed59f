"""KTO values each response by itself, relative to how far the policy has moved on other responses."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from plo.losses.numbers import NonNegative, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs, Side

MISMATCHED = {side: f"mismatched(side={side})" for side in ("chosen", "rejected")}


@register_loss(
    "kto",
    needs=("ref_logps", *(f"completion:{name}" for name in MISMATCHED.values())),
    assumes="each response has a value of its own, and the sigmoid saturates: not the log-odds of a pair",
    paper="2402.01306",
)
class KTO(nn.Module):
    """Raise the value of good responses and lower that of bad ones, as gains and losses from a baseline of the batch.

        desirable_weight (1 - sigma(beta (D(y_w) - z))) + undesirable_weight (1 - sigma(beta (z - D(y_l)))),
        z = max(0, mean of D(y') over a step),  y' = a response to another prompt, after the pair's own prompt

    Idea: People weigh gains and losses from where they stand, and saturate in both; z, an estimate of KL(pi || ref), is
        where they stand. Which of two responses was preferred is not used, so that KTO also learns from single responses.
    Assumes: a human value function (Kahneman and Tversky), a sigmoid of the implicit reward minus its expectation.
    Dispute: z has no gradient. The paper and TRL take it over a micro-batch (TRL over the micro-batches of all
        processes); here it is that of the whole optimiser step, so that it does not depend on how the step is divided.
        y' are both responses of the next pair of the data that has another prompt, which stays the same for the whole
        training; TRL rotates the responses within each fixed batch, so that a y' may belong to the same prompt. y' is cut
        where it would make a sequence longer than the longest of the data.

    Args:
        beta: scale of the log-ratios, in DPO the weight of the KL to the reference, > 0.
        desirable_weight, undesirable_weight: weights of chosen and rejected responses, >= 0.

    Returns (forward):
        (pairs,) between 0 and the sum of both weights; half of that where pi is the reference. Metrics `margin`:
        beta (D(y_w) - D(y_l)); `baseline`: z, nats.

    Source: arXiv 2402.01306, eq. 7-8; TRL's KTOTrainer, whose loss is half of it, a mean over responses.
    """

    baseline: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        beta: Positive = 0.1,
        desirable_weight: NonNegative = 1.0,
        undesirable_weight: NonNegative = 1.0,
    ):
        super().__init__()
        self.beta, self.weights = beta, (desirable_weight, undesirable_weight)
        self.register_buffer("baseline", torch.zeros((), dtype=torch.float64))

    def observe_completions(self, completions: Mapping[str, Side]) -> dict[str, Tensor]:
        return {side: completions[name].log_ratio() for side, name in MISMATCHED.items()}

    def before_step(self, step: Mapping[str, Tensor]) -> None:
        self.baseline.copy_(torch.cat([step[side] for side in MISMATCHED]).double().mean().clamp(min=0))

    def forward(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = pairs.chosen.log_ratio(), pairs.rejected.log_ratio()
        good, bad = self.weights
        losses = good * torch.sigmoid(-self.beta * (chosen - self.baseline))
        losses = losses + bad * torch.sigmoid(-self.beta * (self.baseline - rejected))
        metrics = {"margin": self.beta * (chosen - rejected), "baseline": self.baseline.to(chosen).expand_as(chosen)}
        return losses, metrics
