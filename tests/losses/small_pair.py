"""One small pair, on which the tests of values and gradients work everything out by hand.

          chosen        rejected              D_t = logp - ref          chosen  .5  .5 : D(y_w) = 1
logp      -1   -2       -1    -1   -2                                   rejected -.5 0 -.5 : D(y_l) = -1
ref       -1.5 -2.5     -.5   -1   -1.5       h = 2
kl_ref_pi .1   .2       .2    .3   .4         K(y_w) = .3, K(y_l) = .9
hidden    1    3        2     3    0          lengths 2 and 3
kl_pi_ref .3   .1       .2    .5   .1
log_p2    -2   -2.5     -1.5  -2   -1         logp - log_p2: 1 .5 and .5 1 -1, their means .75 and 1/6
weights   2    .5       1     0    3          weighted D: 1.25 and -2; weighted kl_pi_ref: .65 and .5

columns: margin 3; score_chosen 7, score_rejected 4.5
"""

from math import exp

import torch

from plo.losses import get_loss
from plo.pairs import Pairs, Side


def side(mask, **statistics):
    values = {name: torch.tensor([row], dtype=torch.float64) for name, row in statistics.items()}
    values["hidden"] = values["hidden"][..., None]
    for name in ("logps", "kl_ref_pi"):
        values[name].requires_grad_()
    return values, Side(mask=torch.tensor([mask]), **values)


def hand():
    """(Pairs, chosen tensors, rejected tensors)"""
    chosen, chosen_side = side(
        [True, True, False],
        logps=[-1.0, -2.0, 0.0], ref_logps=[-1.5, -2.5, 0.0],
        kl_ref_pi=[0.1, 0.2, 0.0], hidden=[1.0, 3.0, 0.0], kl_pi_ref=[0.3, 0.1, 0.0],
        log_p2=[-2.0, -2.5, 0.0], weights=[2.0, 0.5, 0.0],
    )  # fmt: skip
    rejected, rejected_side = side(
        [True, True, True],
        logps=[-1.0, -1.0, -2.0], ref_logps=[-0.5, -1.0, -1.5],
        kl_ref_pi=[0.2, 0.3, 0.4], hidden=[2.0, 3.0, 0.0], kl_pi_ref=[0.2, 0.5, 0.1],
        log_p2=[-1.5, -2.0, -1.0], weights=[1.0, 0.0, 3.0],
    )  # fmt: skip
    columns = {"margin": 3.0, "score_chosen": 7.0, "score_rejected": 4.5}
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in columns.items()}
    return Pairs(chosen=chosen_side, rejected=rejected_side, columns=columns), chosen, rejected


def evaluate(spec, **params):
    return get_loss(spec, **params).evaluate(hand()[0])


def sba_0(log_R):
    """sba at lam 0, s 4, by hand: (R + log R - 1) / 4."""
    return (exp(log_R) + log_R - 1) / 4
