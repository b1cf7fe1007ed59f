"""epsilon-DPO gives each pair a beta of its own, by whether its preference grows as the policy leaves the reference."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plo.losses.numbers import BelowOne, Positive
from plo.losses.register import register_loss
from plo.pairs import Pairs

ALIKE = 1e-4  # nats: z that differ by less may differ by rounding alone, as in the first step


def _needs(epsilon: float) -> tuple[str, ...]:
    return ("ref_logps", _beyond(epsilon), _beyond(-epsilon))


def _beyond(epsilon: float) -> str:
    return f"logps_beyond(epsilon={epsilon!r})"


@register_loss(
    "epsilon_dpo",
    needs=_needs,
    assumes="each pair has a beta of its own, so that no one weight of the KL belongs to its optimum",
    paper="2502.13177",
)
class EpsilonDPO(nn.Module):
    """Fit DPO with a beta that is a little smaller or larger for pairs whose preference would grow with it.

        -log sigma(beta_i h),  beta_i = beta / (1 + epsilon s_i),
        s_i = 1 if z(+epsilon) > z(0) > z(-epsilon), -1 if z(-epsilon) > z(0) > z(+epsilon), else 0,
        z(e) = log p_e(y_w) - log p_e(y_l),  p_e ~ pi^(1+e) ref^-e at every token

    After each step beta becomes beta / (1 + epsilon mean(s)).

    Idea: p_e is what the policy would be with another beta, to first order, and comes from logits that are there anyway.
        Where more distance from the reference makes the chosen response likelier relative to the rejected one, the pair
        gets a smaller beta, hence more freedom; where less distance does, a larger one.
    Assumes: Bradley-Terry preferences over a reward, with a weight of the KL that differs between pairs.
    Dispute: the released code compares z strictly; differences below 1e-4 nats count as none here, because in the first
        step all are 0 but for rounding. Its label smoothing has no effect (both of its terms have one sign) and is left out.

    Args:
        beta: beta before the first step, > 0.
        epsilon: size of a step, in [0, 1).

    Returns (forward):
        (pairs,) nats; ln 2 where pi is the reference. Metrics `margin`: beta_i h; `beta`: beta; `step`: s_i.

    Source: arXiv 2502.13177 and its code (oddqueue/e-dpo), whose settings are the defaults.
    """

    beta: Tensor

    def __init__(self, hidden_size: int, *, beta: Positive = 0.01, epsilon: BelowOne = 0.01):
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))

    def observe(self, pairs: Pairs) -> dict[str, Tensor]:
        return {"step": self._steps(pairs)}

    def after_step(self, step: Mapping[str, Tensor]) -> None:
        self.beta.div_(1 + self.epsilon * step["step"].mean())

    def forward(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        steps = self._steps(pairs)
        margin = self.beta / (1 + self.epsilon * steps) * pairs.log_ratio_margin()
        return -logsigmoid(margin), {"margin": margin, "beta": self.beta.to(margin).expand_as(margin), "step": steps}

    def _steps(self, pairs: Pairs) -> Tensor:
        further, nearer = (self._gain(pairs, _beyond(e)) for e in (self.epsilon, -self.epsilon))
        up = (further > ALIKE) & (nearer < -ALIKE)
        down = (nearer > ALIKE) & (further < -ALIKE)
        return up.to(further) - down.to(further)

    def _gain(self, pairs: Pairs, name: str) -> Tensor:
        """Return (pairs,) nats: z(e) - z(0), token by token, since sums over long responses round to more than ALIKE."""
        chosen, rejected = ((side[name] - side.logps).detach().sum(-1) for side in (pairs.chosen, pairs.rejected))
        return chosen - rejected
