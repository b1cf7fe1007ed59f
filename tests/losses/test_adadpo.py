"""AdaDPO: its numbers by hand, the balance of gradients that it is made for, and the losses that it wraps."""

from math import exp, log1p

import pytest
import torch

from plo.losses import LossError, get_loss
from plo.pairs import Pairs, Side

# D(y_w) = 1 over two tokens, D(y_l) = -.2 over one; log pi(y_w) = -3, log pi(y_l) = -3.
CHOSEN = ([-1.0, -2.0], [-1.5, -2.5])
REJECTED = ([-3.0, 0.0], [-2.8, 0.0])


def pair(lengths=(2, 1)):
    sides = []
    for (logps, ref), length in zip((CHOSEN, REJECTED), lengths, strict=True):
        values = torch.tensor([logps], dtype=torch.float64, requires_grad=True)
        mask = torch.arange(2)[None] < length
        sides.append(Side(logps=values, mask=mask, ref_logps=torch.tensor([ref], dtype=torch.float64)))
    return Pairs(chosen=sides[0], rejected=sides[1])


@pytest.mark.parametrize(
    ("settings", "coefficient", "loss"),
    [
        ("ceiling=1e6", exp(0.5 + 0.2), lambda c: log1p(exp(-0.1 * (c + 0.2)))),
        ("", 2.0, lambda c: log1p(exp(-0.22))),  # exp(.7) = 2.01
        ("ceiling=1", 1.0, lambda c: log1p(exp(-0.12))),
        ("length_norm=False, ceiling=1e6", exp(1.2), lambda c: log1p(exp(-0.1 * (c + 0.2)))),
        ("space=policy, ceiling=1e6", exp(-1.5 + 3), lambda c: log1p(exp(-0.1 * (c + 0.2)))),
        ("space=policy, length_norm=False", 1.0, lambda c: log1p(exp(-0.12))),
        ("base=hinge, beta=0.5", 2.0, lambda c: 1 - 0.5 * 2.2 if 0.5 * 2.2 < 1 else 0.0),
        ("base=ipo(reduction=sum), beta=0.5", 2.0, lambda c: (2.2 - 1) ** 2),
        ("base=length_dpo(alpha=0.25), beta=0.5", 2.0, lambda c: log1p(exp(-(0.5 * 2.2 + 0.25)))),
        # SimPO's means of log-probs, -1.5 and -3, beta 2, gamma 1: the chosen mean counts twice.
        ("base=simpo, beta=2", 2.0, lambda c: log1p(exp(-(2 * (2 * -1.5 + 3) - 1)))),
        ("base=cpo(alpha=0), beta=0.5, space=policy", 2.0, lambda c: log1p(exp(-0.5 * (2 * -3 + 3)))),
    ],
)
def test_by_hand(settings, coefficient, loss):
    value = get_loss(f"adadpo({settings})" if settings else "adadpo").evaluate(pair())
    assert float(value.metrics["coefficient"]) == pytest.approx(coefficient, abs=1e-9)
    assert float(value.values.detach()) == pytest.approx(loss(coefficient), abs=1e-9)


@pytest.mark.parametrize("space", ["ratio", "policy"])
def test_gradients_by_the_probabilities_balance(space):
    """dL/dp = (dL/dlog p) / p: equal and opposite for both responses. DPO's differ by the ratio of the probabilities."""
    pairs = pair()
    own = f"adadpo(space={space}, length_norm=False, ceiling=1e6)"
    for spec, balanced in ((own, True), ("dpo", False)):
        loss = get_loss(spec)(pairs).sum()
        chosen, rejected = torch.autograd.grad(loss, [pairs.chosen.logps, pairs.rejected.logps])
        levels = [side.log_ratio() if space == "ratio" else side.logp() for side in (pairs.chosen, pairs.rejected)]
        by_p = [float((g[0, 0] / level.exp()).detach()) for g, level in zip((chosen, rejected), levels, strict=True)]
        expected = 1.0 if balanced else exp(float((levels[1] - levels[0]).detach()))
        assert by_p[0] < 0 < by_p[1] and -by_p[0] / by_p[1] == pytest.approx(expected, rel=1e-9)


def test_the_coefficient_has_no_gradient():
    """dL/dD(y_w) is -beta_w sigma(-margin), as if beta_w were a constant."""
    pairs = pair()
    chosen, rejected = torch.autograd.grad(get_loss("adadpo")(pairs).sum(), [pairs.chosen.logps, pairs.rejected.logps])
    assert chosen[0].tolist() == pytest.approx([-0.2 / (1 + exp(0.22))] * 2, abs=1e-9)
    assert rejected[0].tolist() == pytest.approx([0.1 / (1 + exp(0.22)), 0], abs=1e-9)


def test_what_cannot_be_wrapped():
    for base, word in (
        ("orpo", "linear"),
        ("cpo", "alpha=0"),
        ("dpo(beta=0.2)", "separately"),
        ("dpo + sft", "linear"),
    ):
        with pytest.raises(LossError, match=word):
            get_loss("adadpo", base=base)
