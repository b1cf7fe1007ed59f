"""T-REG: its numbers by hand, and its gradient, which is DPO's with token weights."""

from math import exp, log1p

import pytest
import torch

from plo.losses import get_loss
from plo.pairs import Pairs, Side

LOGPS = ([-1.0, -2.0], [-3.0, -0.5])
REFS = ([-1.5, -2.5], [-2.8, -0.7])
REWARDS = ([0.4, -0.1], [-0.5, 0.2])
MARGIN = 0.1 * (1.0 - 0.0)  # D(y_w) = .5 + .5, D(y_l) = -.2 + .2


def pair():
    mask = torch.ones(1, 2, dtype=torch.bool)
    sides = []
    for logps, ref, rewards in zip(LOGPS, REFS, REWARDS, strict=True):
        values = torch.tensor([logps], dtype=torch.float64, requires_grad=True)
        others = {"ref_logps": [ref], "weights": [rewards]}
        statistics = {name: torch.tensor(given, dtype=torch.float64) for name, given in others.items()}
        sides.append(Side(logps=values, mask=mask, **statistics))
    return Pairs(chosen=sides[0], rejected=sides[1])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5])
def test_by_hand(alpha):
    """R(y_w) = -.1 (-.4 + .2) = .02, R(y_l) = -.1 (1.5 - .1) = -.14."""
    value = get_loss("treg", alpha=alpha).evaluate(pair())
    spread = (0.02 - 0.14) / (1 + exp(MARGIN))
    assert float(value.values.detach()) == pytest.approx(log1p(exp(-MARGIN)) + alpha * spread, abs=1e-9)
    assert float(value.metrics["margin"]) == pytest.approx(MARGIN, abs=1e-12)
    if alpha:
        assert float(value.metrics["regulariser"]) == pytest.approx(spread, abs=1e-9)


def test_the_gradient_is_dpo_s_with_token_weights():
    """1 + alpha r_t on the chosen side, 1 - alpha r_t on the rejected one: the pair's weight has no gradient."""
    pairs, alpha = pair(), 0.5
    leaves = [pairs.chosen.logps, pairs.rejected.logps]
    ours, dpo = (torch.autograd.grad(get_loss(spec)(pairs).sum(), leaves) for spec in ("treg(alpha=0.5)", "dpo"))
    for sign, rewards, one, other in zip((1, -1), REWARDS, ours, dpo, strict=True):
        weights = torch.tensor([[1 + sign * alpha * r for r in rewards]], dtype=torch.float64)
        torch.testing.assert_close(one, weights * other, rtol=1e-12, atol=1e-15)
