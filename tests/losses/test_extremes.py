"""At the ends of what a dtype holds: probabilities near 0 and 1, exponentials that overflow, equal tokens."""

from math import exp

import pytest
import torch

from plo.losses import get_loss
from plo.pairs import Pairs, Side


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logp", [0.0, -1e-30, -1e-10, -1e-3, -800.0])
def test_orpo_at_the_ends_of_probability(logp, dtype):
    """pbar -> 1 on either side, or 0: finite value and gradient, and the odds keep their order."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for which in (0, 1):
        logps = [torch.tensor([[-1.0]], dtype=dtype), torch.tensor([[-1.0]], dtype=dtype)]
        logps[which] = torch.tensor([[logp]], dtype=dtype)
        for values in logps:
            values.requires_grad_()
        chosen, rejected = (Side(mask=mask, logps=values) for values in logps)
        value = get_loss("orpo").evaluate(Pairs(chosen=chosen, rejected=rejected))
        value.values.sum().backward()
        assert value.values.isfinite().all()
        assert all(values.grad is None or values.grad.isfinite().all() for values in logps)
        ahead = (logp > -1) == (which == 0)
        assert (value.metrics["margin"].item() > 0) == ahead


def one_token(chosen, rejected):
    """float32, one token a response, the reference 0: D(y) is its log-probability."""
    mask, zeros = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    logps = [torch.tensor([[value]], requires_grad=True) for value in (chosen, rejected)]
    return Pairs(
        **{
            name: Side(mask=mask, logps=values, ref_logps=zeros)
            for name, values in zip(("chosen", "rejected"), logps, strict=True)
        }
    ), logps


@pytest.mark.parametrize(
    ("spec", "inside", "outside", "formula"),
    [
        # as long as the plain formula is finite in float32, it is what is computed
        ("f_dpo(divergence=forward_kl)", -88.5, -89.5, lambda d: 0.1 * (exp(-d) - 1)),
        ("f_dpo(divergence=forward_kl, beta=10)", -86.0, -89.5, lambda d: 10 * (exp(-d) - 1)),
        ("f_dpo(divergence=alpha)", -159.0, -161.0, lambda d: 0.1 * 2 * (exp(-d / 2) - 1)),
        ("squared_po", -83.5, -90.0, lambda d: -0.1 * d * exp(-d)),
        ("alphapo(alpha=1)", -87.0, -89.5, lambda d: 2 * (exp(-d) - 1) + 1),
        ("discopop(beta=1, tau=2)", -170.0, -180.0, lambda d: exp(-d / 2)),
    ],
)
def test_caps_begin_where_the_formula_ends(spec, inside, outside, formula):
    pairs, (chosen, _) = one_token(inside, 0.0)
    value = get_loss(spec)(pairs)
    assert value.item() == pytest.approx(formula(inside), rel=1e-4)
    value.sum().backward()
    assert chosen.grad.isfinite().all() and chosen.grad.item() < -1e30
    pairs, (chosen, _) = one_token(outside, 0.0)
    value = get_loss(spec)(pairs)
    value.sum().backward()
    assert value.isfinite().all() and abs(chosen.grad.item()) < 1e3


@pytest.mark.parametrize(
    ("spec", "inside", "outside", "formula", "least"),
    [
        ("f_dpo(divergence=chi2)", 87.5, 89.5, lambda d: 0.1 * 2 * exp(d), 1e30),
        ("chi_po", 22.5, 23.5, lambda d: 0.05 * (exp(d) + d - 1), 1e8),  # log(e^20 / .05) = 22.996
    ],
)
def test_a_likelier_rejected_response_meets_the_cap_of_the_ratio(spec, inside, outside, formula, least):
    """float32: the reference is at -100, so that D(y_l) > 0."""
    mask, logps = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, requires_grad=True)
    for ratio in (inside, outside):
        rejected = Side(mask=mask, logps=logps, ref_logps=torch.full((1, 1), -ratio))
        chosen = Side(mask=mask, logps=torch.zeros(1, 1), ref_logps=torch.zeros(1, 1))
        value = get_loss(spec)(Pairs(chosen=chosen, rejected=rejected))
        [slope] = torch.autograd.grad(value.sum(), logps)
        assert value.isfinite().all() and slope.isfinite().all() and slope >= 0
        if ratio == inside:
            assert value.item() == pytest.approx(formula(inside), rel=1e-4)
            assert slope.item() > least
        else:
            assert slope.item() < 1


def test_confpo_keeps_no_token_of_equal_ones():
    """Equal log-probabilities are not below their own mean, in whatever dtype; likelier ones alone are dropped."""
    mask = torch.tensor([[True] * 3, [True, False, False], [True] * 3])
    for dtype in (torch.float32, torch.float64):
        logps = torch.tensor([[-0.3] * 3, [-0.7, 0, 0], [-300.0, -200.0, -200.0]], dtype=dtype)
        other = torch.tensor([[-1.0, -2.0, -3.0]] * 3, dtype=dtype)
        chosen = Side(mask=mask, logps=logps)
        value = get_loss("confpo").evaluate(Pairs(chosen=chosen, rejected=Side(mask=~mask | True, logps=other)))
        assert value.values[:2].tolist() == [0, 0]
        # p = e^-200 (0, 1, 1): the mean is 2/3 e^-200; of e^-1, e^-2, e^-3 it is .18: the last two
        assert value.metrics["kept"].tolist() == pytest.approx([2 / 6, 2 / 4, 3 / 6])
        assert value.metrics["margin"][2].item() == pytest.approx(1.5 * (-300 + 2.5))
