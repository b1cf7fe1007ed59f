"""Identities between losses that no single value could show."""

import pytest
import torch
from tester import LENGTHS, make_pairs, make_statistics, mask_of

from plo.losses import get_loss
from plo.pairs import Pairs, Side

NEEDS = ("ref_logps", "kl_ref_pi", "hidden")


def both(spec_a, spec_b, make):
    """Values and gradients (chosen and rejected logps) of two losses on the same pairs."""
    results = []
    for spec in (spec_a, spec_b):
        statistics = make()
        for side in statistics:
            side["logps"].requires_grad_()
        values = get_loss(spec)(make_pairs(statistics, NEEDS))
        values.sum().backward()
        results.append((values.detach(), *(side["logps"].grad for side in statistics)))
    return results


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_bpo_with_lr_is_dpo(beta):
    ours, dpo = both(f"bpo(generator=lr, beta={beta})", f"dpo(beta={beta})", lambda: make_statistics(NEEDS))
    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=1e-12)


def test_sba_with_s_4_starts_with_the_gradient_of_dpo():
    """At pi = ref, whatever lam."""

    def at_reference():
        sides = make_statistics(NEEDS)
        return [{**side, "logps": side["ref_logps"].clone()} for side in sides]

    for lam in (-1.0, -0.5, 0.0, 1.2):
        ours, dpo = both(f"bpo(lam={lam})", "dpo", at_reference)
        torch.testing.assert_close(ours[1:], dpo[1:])
        torch.testing.assert_close(ours[0], torch.zeros(4, dtype=torch.float64))


def equal_lengths():
    mask = mask_of((5, 1, 3, 4))
    chosen, rejected = make_statistics(NEEDS)
    return Pairs(chosen=Side(mask=mask, **chosen), rejected=Side(mask=mask, **rejected))


def test_log_R_of_tbpo_a_sums_to_minus_the_logit_of_tdpo1():
    pairs = equal_lengths()
    mean_minus_log_R = get_loss("tbpo_a(beta=0.3)").evaluate(pairs).metrics["margin"]
    logit = get_loss("tdpo1(beta=0.3)").evaluate(pairs).metrics["margin"]
    torch.testing.assert_close(mean_minus_log_R * pairs.chosen.lengths, logit)


def one_token_pairs(statistics):
    masks = [mask_of((1, 1, 1, 1))] * 2
    return make_pairs(statistics, NEEDS, masks)


def test_one_token_with_w_1_and_lr_is_dpo():
    """No baseline (its last layer 0): TBPO-Q on one token is DPO; so is TBPO-A with equal KLs."""
    pairs = one_token_pairs(make_statistics(NEEDS))
    dpo = get_loss("dpo")(pairs)
    q = get_loss("tbpo_q(generator=lr)").build(7).double()
    with torch.no_grad():
        for parameter in q.module.baseline[-1].parameters():
            parameter.zero_()
    torch.testing.assert_close(q(pairs), dpo)
    statistics = make_statistics(NEEDS)
    statistics[1]["kl_ref_pi"] = statistics[0]["kl_ref_pi"]
    torch.testing.assert_close(get_loss("tbpo_a(generator=lr)")(one_token_pairs(statistics)), dpo)


def test_tbpo_drops_the_tail():
    """Only the first min(T_w, T_l) tokens of each response count, in value and in gradient."""
    sides = make_statistics(NEEDS)
    for side in sides:
        side["logps"].requires_grad_()
    values = get_loss("tbpo_a")(make_pairs(sides, NEEDS))
    overlap = mask_of([min(lengths) for lengths in zip(*LENGTHS, strict=True)])
    shorter = get_loss("tbpo_a")(make_pairs(sides, NEEDS, [overlap, overlap]))
    torch.testing.assert_close(values, shorter)
    values.sum().backward()
    for side in sides:
        assert (side["logps"].grad[overlap] != 0).all()
        assert (side["logps"].grad[~overlap] == 0).all()


def test_tdpo_with_alpha_0_is_dpo_and_alpha_1_has_the_value_of_tdpo1():
    pairs = make_pairs(make_statistics(NEEDS), NEEDS)
    torch.testing.assert_close(get_loss("tdpo2(alpha=0)")(pairs), get_loss("dpo")(pairs))
    torch.testing.assert_close(get_loss("tdpo2(alpha=1)")(pairs), get_loss("tdpo1")(pairs))


def test_k3_is_the_kl_in_expectation_over_the_reference():
    """sum ref [(r_v - 1) - log r_v], r = pi/ref, is KL(ref || pi): off the margin, one token a pair."""
    torch.manual_seed(0)
    log_pi, log_ref = torch.randn(2, 6, dtype=torch.float64).log_softmax(-1)
    mask = torch.ones(6, 1, dtype=torch.bool)
    zeros = torch.zeros(6, 1, dtype=torch.float64)
    chosen = Side(mask=mask, logps=zeros, ref_logps=zeros)  # D = 0: its k3 is 0
    rejected = Side(mask=mask, logps=log_pi[:, None], ref_logps=log_ref[:, None])  # token v in pair v
    pairs = Pairs(chosen=chosen, rejected=rejected)
    margin = get_loss("tbpo_a(kl=k3, beta=1)").evaluate(pairs).metrics["margin"]
    k3 = -margin - (log_pi - log_ref)
    torch.testing.assert_close((log_ref.exp() * k3).sum(), (log_ref.exp() * (log_ref - log_pi)).sum())
