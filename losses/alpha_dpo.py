"""alpha-DPO gives SimPO a target margin for each pair, which follows the policy's log-ratio to the reference."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plo.losses.numbers import NonNegative, Positive, Share, Smoothing
from plo.losses.register import register_loss
from plo.pairs import Pairs

LEAST_SPREAD = 1e-4  # nats a token: below it gaps may differ by rounding alone, as in the first step


@register_loss(
    "alpha_dpo",
    needs=("ref_logps",),
    assumes="rewards are means over tokens, and the margin follows the policy: it has no optimum relative to a reference",
    detached=("logps",),
    paper="2410.10148",
)
class AlphaDPO(nn.Module):
    """Fit SimPO with a target margin that is larger for pairs on which the policy has already left the reference.

        -log sigma(beta (m - gamma_beta_ratio - alpha sg[(g - M) / S])),
        m = mean_t log pi(y_w) - mean_t log pi(y_l),  g = mean_t D_t(y_w) - mean_t D_t(y_l),
        M = decay M + (1 - decay) mean(g),  S = decay S + (1 - decay) std(g),  over the pairs of a step

    Idea: One margin for all pairs is too large for some and too small for others. The gap g between policy and reference
        says where the policy stands; in units of its running spread it becomes part of the margin. With `alpha=0` this
        is `simpo`.
    Assumes: Bradley-Terry preferences over the mean log-probability of a token, with a margin for each pair.
    Dispute: log-probs and gaps are means over tokens, as in the released settings (`ln: true`). M and S contain the step
        itself, as in the code: with gradient accumulation that takes a pass without gradient a step. Where S is below
        1e-4 nats the target margin is `gamma_beta_ratio` alone: in the first step g is 0 for all pairs, and the code
        divides 0 by 0. The code starts M and S at 0 without correcting for it, and so does this.

    Args:
        beta: scale of the length-normalised reward, > 0.
        gamma_beta_ratio: target margin of a pair with the mean gap, in nats per token.
        alpha: how much the margin grows per standard deviation of the gap, in nats per token, >= 0.
        decay: weight of the past in M and S.
        label_smoothing: e in [0, .5): (1-e) of the loss above plus e of its mirror image.

    Returns (forward):
        (pairs,) nats. Metrics `margin`: beta m; `target`: the target margin, nats per token.

    Source: arXiv 2410.10148 and its code (junkangwu/alpha-DPO), with the settings for Llama-3-8B-Instruct as defaults.
    """

    running_mean: Tensor
    running_spread: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        beta: Positive = 2.5,
        gamma_beta_ratio: float = 0.6,
        alpha: NonNegative = 0.2,
        decay: Share = 0.9,
        label_smoothing: Smoothing = 0.0,
    ):
        super().__init__()
        self.beta, self.gamma_beta_ratio, self.alpha = beta, gamma_beta_ratio, alpha
        self.decay, self.label_smoothing = decay, label_smoothing
        self.register_buffer("running_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("running_spread", torch.zeros((), dtype=torch.float64))

    def observe(self, pairs: Pairs) -> dict[str, Tensor]:
        return {"gap": _gap(pairs)}

    def before_step(self, step: Mapping[str, Tensor]) -> None:
        gaps = step["gap"]
        spread = gaps.std() if len(gaps) > 1 else gaps.new_zeros(())
        self.running_mean.mul_(self.decay).add_((1 - self.decay) * gaps.mean())
        self.running_spread.mul_(self.decay).add_((1 - self.decay) * spread)

    def forward(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        m = pairs.chosen.mean(pairs.chosen.logps) - pairs.rejected.mean(pairs.rejected.logps)
        units = (_gap(pairs).detach() - self.running_mean) / self.running_spread.clamp(min=LEAST_SPREAD)
        target = self.gamma_beta_ratio + self.alpha * units * (self.running_spread >= LEAST_SPREAD)
        logit, e = self.beta * (m - target), self.label_smoothing
        return -(1 - e) * logsigmoid(logit) - e * logsigmoid(-logit), {"margin": self.beta * m, "target": target}


def _gap(pairs: Pairs) -> Tensor:
    return pairs.chosen.mean(pairs.chosen.log_ratios) - pairs.rejected.mean(pairs.rejected.log_ratios)
