"""Losses with state: their buffers over two steps by hand, and what a class must have to keep one."""

from math import exp, log, log1p, sqrt

import pytest
import torch
from torch import nn

from plo.losses import LossError, get_loss, register_loss
from plo.pairs import Pairs, Side


def pairs_of(chosen, rejected):
    """Pairs of one token each, whose log-ratios are these; the reference is at -10."""
    sides = []
    for ratios in (chosen, rejected):
        ref = torch.full((len(ratios), 1), -10.0, dtype=torch.float64)
        logps = ref + torch.tensor(ratios, dtype=torch.float64)[:, None]
        sides.append(Side(logps=logps, ref_logps=ref, mask=torch.ones(len(ratios), 1, dtype=torch.bool)))
    return Pairs(chosen=sides[0], rejected=sides[1])


def built(spec):
    return get_loss(spec).build(1).double()


def stepped(loss, pairs):
    loss.update(loss.observe(pairs))
    return loss.evaluate(pairs)


def softplus(x):
    return log1p(exp(x))


def test_bco_shifts_by_the_mean_of_all_rewards_so_far():
    """beta .5; rewards 1 and -.5, then 2, 1 (chosen) and 0, .5 (rejected): means .25 of two, then 4/6 of six."""
    loss = built("bco(beta=0.5)")
    value = stepped(loss, pairs_of([2.0], [-1.0]))
    assert value.values.tolist() == pytest.approx([softplus(-0.75) + softplus(-0.75)], abs=1e-12)
    value = stepped(loss, pairs_of([4.0, 2.0], [0.0, 1.0]))
    delta = 4 / 6
    expected = [softplus(-(2 - delta)) + softplus(0 - delta), softplus(-(1 - delta)) + softplus(0.5 - delta)]
    assert value.values.tolist() == pytest.approx(expected, abs=1e-9)
    assert value.metrics["shift"].tolist() == pytest.approx([delta] * 2)
    assert value.metrics["margin"].tolist() == pytest.approx([2.0, 0.5])


def test_bco_without_a_step_is_bco_pair():
    pairs = pairs_of([2.0, 1.0], [-1.0, 3.0])
    assert torch.equal(get_loss("bco")(pairs), get_loss("bco_pair")(pairs))


def test_beta_dpo_by_hand():
    """Margins 0, 1, 2, 9: their mean is 3 and M = .1 * 3 = .3. Distances .3, .7, 1.7, 8.7: keep .5 keeps 0 and 1, m = .5."""
    loss = built("beta_dpo(beta=0.1, alpha=0.5, keep=0.5)")
    value = stepped(loss, pairs_of([0.0, 1.0, 2.0, 9.0], [0.0] * 4))
    beta = 0.1 * (1 + 0.5 * (0.5 - 0.3))
    assert value.metrics["beta"].tolist() == pytest.approx([beta] * 4, abs=1e-12)
    assert value.metrics["kept"].tolist() == [1, 1, 0, 0]
    assert value.values.tolist() == pytest.approx(
        [2 * log(2), 2 * softplus(-beta), 0, 0], abs=1e-9
    )  # twice: 4 pairs by 2
    stepped(loss, pairs_of([5.0, 7.0], [0.0, 0.0]))
    assert loss.module.running_mean.item() == pytest.approx(0.9 * 0.3 + 0.1 * 6, abs=1e-9)


def test_beta_dpo_keeps_all_pairs_of_equal_margin_and_its_least_beta():
    loss = built("beta_dpo(alpha=10)")
    value = stepped(loss, pairs_of([-5.0] * 5, [0.0] * 5))  # M = -.5, m = -5: 1 + 10 * -4.5 is below 0
    assert value.metrics["kept"].tolist() == [1] * 5
    assert value.values.tolist() == pytest.approx([softplus(1e-3 * 5)] * 5, abs=1e-9)


def test_beta_dpo_without_its_parts_is_dpo():
    loss, pairs = built("beta_dpo(alpha=0, keep=1)"), pairs_of([3.0, -1.0], [1.0, 2.0])
    assert stepped(loss, pairs).values.tolist() == pytest.approx(get_loss("dpo")(pairs).tolist(), abs=1e-12)


def test_alpha_dpo_by_hand():
    """Gaps 1 and 3: mean 2, std sqrt 2; M = .2, S = .1 sqrt 2. Log-probs differ by the gaps, as the references are equal."""
    loss = built("alpha_dpo(beta=2, gamma_beta_ratio=0.5, alpha=0.1)")
    value = stepped(loss, pairs_of([1.0, 3.0], [0.0, 0.0]))
    targets = [0.5 + 0.1 * (gap - 0.2) / (0.1 * sqrt(2)) for gap in (1, 3)]
    assert value.metrics["target"].tolist() == pytest.approx(targets, abs=1e-9)
    expected = [softplus(-2 * (gap - target)) for gap, target in zip((1, 3), targets, strict=True)]
    assert value.values.tolist() == pytest.approx(expected, abs=1e-9)


def test_alpha_dpo_is_simpo_where_all_gaps_are_equal():
    loss, pairs = built("alpha_dpo"), pairs_of([1.0, 1.0], [0.0, 0.0])
    assert torch.equal(stepped(loss, pairs).values, get_loss("simpo(beta=2.5, gamma_beta_ratio=0.6)")(pairs))


def with_beyond(pairs, further, nearer):
    """The pairs with the sums of log-probs, chosen minus rejected, that they would have a step away from the reference."""
    sides = []
    for side, sign in ((pairs.chosen, 0.5), (pairs.rejected, -0.5)):
        moved = {f"logps_beyond(epsilon={e})": z for e, z in ((0.2, further), (-0.2, nearer))}
        moved = {name: sign * torch.tensor(z, dtype=torch.float64)[:, None] for name, z in moved.items()}
        sides.append(Side(logps=side.logps, ref_logps=side.ref_logps, mask=side.mask, **moved))
    return Pairs(chosen=sides[0], rejected=sides[1])


def test_epsilon_dpo_by_hand():
    """z = 1 for each pair. It grows with the distance (s 1), with nearness (-1), with both, and by 1e-6 nats (0)."""
    pairs = with_beyond(pairs_of([1.0] * 4, [0.0] * 4), [1.1, 0.9, 1.1, 1 + 1e-6], [0.9, 1.1, 1.1, 1 - 1e-6])
    loss = built("epsilon_dpo(beta=0.5, epsilon=0.2)")
    value = loss.evaluate(pairs)
    assert value.metrics["step"].tolist() == [1, -1, 0, 0]
    expected = [softplus(-0.5 / 1.2), softplus(-0.5 / 0.8), softplus(-0.5), softplus(-0.5)]
    assert value.values.tolist() == pytest.approx(expected, abs=1e-12)
    loss.update({"step": torch.tensor([1.0, 1.0, 0.0, -1.0]).double()})  # mean .25: .5 / 1.05
    assert loss.evaluate(pairs).metrics["beta"].tolist() == pytest.approx([0.5 / 1.05] * 4, abs=1e-12)


def test_epsilon_dpo_takes_no_step_by_rounding():
    """Log-probs of 600 tokens that differ by the last bit of float32, as in the first step: their sums differ by more."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(2):
        here = -10 * torch.rand(64, 600, generator=generator)
        moved = {
            f"logps_beyond(epsilon={e})": torch.nextafter(here, -20 * torch.rand(here.shape, generator=generator))
            for e in (0.01, -0.01)
        }
        sides.append(Side(logps=here, ref_logps=here, mask=torch.ones_like(here, dtype=torch.bool), **moved))
    value = get_loss("epsilon_dpo").build(1).evaluate(Pairs(chosen=sides[0], rejected=sides[1]))
    assert (value.metrics["step"] == 0).all()


@pytest.mark.parametrize("spec", ["bco", "beta_dpo", "alpha_dpo"])
def test_state_is_saved_and_reset(spec):
    loss, pairs = built(spec), pairs_of([1.0, 3.0], [0.0, -2.0])
    fresh = {name: value.clone() for name, value in loss.state_dict().items()}
    assert fresh
    stepped(loss, pairs)
    other = built(spec)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(pairs), loss(pairs))
    assert all(torch.equal(value, fresh[name]) for name, value in loss.build(1).double().state_dict().items())


class Observes(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()

    def observe(self, pairs):
        return {"margin": pairs.log_ratio_margin()}


class Updates(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()

    def after_step(self, step):
        pass


class Twice(Observes):
    def before_step(self, step):
        pass

    def after_step(self, step):
        pass


@pytest.mark.parametrize("kind", [Observes, Updates, Twice])
def test_a_class_that_observes_and_does_not_update_is_refused(kind):
    with pytest.raises(LossError, match=rf"{kind.__name__} has .*one of before_step\(step\) and after_step\(step\)"):
        register_loss("half_a_state")(kind)


def test_an_observation_is_one_number_a_pair():
    class Mean(Observes):
        def observe(self, pairs):
            return {"margin": pairs.log_ratio_margin().mean()}

        def after_step(self, step):
            pass

    register_loss("observes_a_mean", needs=("ref_logps",))(Mean)
    with pytest.raises(LossError, match=r"The observation 'margin' .* must be a tensor of shape \(2,\)"):
        get_loss("observes_a_mean").observe(pairs_of([1.0, 2.0], [0.0, 0.0]))
