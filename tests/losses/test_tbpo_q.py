"""TBPO-Q: its module, its centred and clamped weights, and its gradient, on the pair of small_pair.py."""

from math import exp

import pytest
import torch
from small_pair import hand, sba_0

from plo.losses import get_loss
from plo.pairs import Pairs, Side


@pytest.mark.parametrize(
    ("params", "log_w"),
    [
        ({"center": False}, (2.0, 0.0)),  # b = 2 hidden: 2 (2 - 1), 2 (3 - 3)
        ({}, (1.0, -1.0)),  # less the mean of 2 and 0
        ({"max_log_w": None}, (1.0, -1.0)),
        ({"max_log_w": 0.25}, (0.25, -0.25)),  # centred first, then clamped
    ],
)
def test_tbpo_q(params, log_w):
    loss = get_loss("tbpo_q", beta=0.5, **params).build(1)
    loss.module.baseline = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(loss.module.baseline.weight, 2.0)
    # log R = .5 (-1 + log w_1), .5 (-.5 + log w_2)
    expected = (sba_0(0.5 * (-1 + log_w[0])) + sba_0(0.5 * (-0.5 + log_w[1]))) / 2
    value = loss.evaluate(hand()[0])
    assert value.values.item() == pytest.approx(expected, abs=1e-12)
    metrics = {name: values.item() for name, values in value.metrics.items()}
    assert metrics["policy_margin"] == pytest.approx(0.5 * (1 + 0.5) / 2, abs=1e-12)
    assert metrics["log_w"] == pytest.approx(0.5 * sum(map(abs, log_w)) / 2, abs=1e-12)
    assert metrics["margin"] == pytest.approx(metrics["policy_margin"] - 0.5 * sum(log_w) / 2, abs=1e-12)
    value.values.sum().backward()
    assert (loss.module.baseline.weight.grad.item() == 0) == (params.get("max_log_w") == 0.25)  # the clamp cuts both


def test_tbpo_q_clamps_log_w_at_10_by_default():
    """b = 1000 hidden: centred log w is +-500, cut to +-10."""
    loss = get_loss("tbpo_q", beta=0.5).build(1)
    loss.module.baseline = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(loss.module.baseline.weight, 1000.0)
    assert loss.evaluate(hand()[0]).metrics["log_w"].item() == pytest.approx(0.5 * 10)


def test_tbpo_q_baseline_gradient():
    """dL/db: slope in log R is (R + 1)/4, log R_t = .5 (... + w (x_l - x_w)), x_l - x_w = 1 and 0."""
    loss = get_loss("tbpo_q", beta=0.5, center=False).build(1)
    loss.module.baseline = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(loss.module.baseline.weight, 2.0)
    loss(hand()[0]).sum().backward()
    expected = 0.5 * (exp(0.5 * (-1 + 2)) + 1) / 4 * 0.5 * 1  # mean over two tokens, of which one counts
    assert loss.module.baseline.weight.grad.item() == pytest.approx(expected, abs=1e-12)


def test_tbpo_q_module():
    loss = get_loss("tbpo_q", baseline_lr=3e-4)
    assert loss.has_parameters
    assert loss.learning_rate is None  # not built yet
    before = torch.get_rng_state()
    loss.build(5)
    assert torch.equal(before, torch.get_rng_state())  # the run's draws stay as they were
    assert loss.learning_rate == 3e-4
    shapes = [tuple(parameter.shape) for parameter in loss.module.baseline.parameters()]
    assert shapes == [(1024, 5), (1024,), (1, 1024), (1,)]
    assert isinstance(loss.module.baseline[1], torch.nn.GELU)
    assert any(name.startswith("module.baseline") for name in loss.state_dict())  # saved with the run


def test_tbpo_q_casts_hidden_states_to_its_own_dtype():
    """Hidden states come in the model's dtype: bfloat16 ones give float32 losses."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    logps = torch.full((2, 3), -1.0)
    hidden = torch.randn(2, 3, 5)
    values = []
    for states in (hidden.bfloat16(), hidden.bfloat16().float()):
        torch.manual_seed(0)
        one = Side(mask=mask, logps=logps, ref_logps=logps, hidden=states)
        other = Side(mask=mask, logps=logps, ref_logps=logps, hidden=-states)
        values.append(get_loss("tbpo_q").build(5)(Pairs(chosen=one, rejected=other)))
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(*values, rtol=0, atol=0)
