"""Identities between losses that no single value could show."""

import math

import pytest
import torch

from plo.losses import get_loss
from plo.pairs import Pairs, Side
from plo.verify.inputs import LENGTHS, make_pairs, make_statistics, mask_of

NEEDS = ("ref_logps", "kl_ref_pi", "kl_pi_ref", "weights", "log_p2", "hidden")


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


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("bpo(ratio=simpo, generator=lr, beta=3)", "simpo(beta=3)"),
        ("bpo(ratio=simpo, generator=lr, beta=3, gamma_beta_ratio=0.2)", "simpo(beta=3, gamma_beta_ratio=0.2)"),
        ("bpo(ratio=js, generator=lr)", "f_dpo(divergence=js)"),
        ("bpo(ratio=forward_kl, generator=lr)", "f_dpo(divergence=forward_kl)"),
        ("bpo(ratio=alpha, generator=lr, alpha=0.3)", "f_dpo(divergence=alpha, alpha=0.3)"),
        ("f_dpo(divergence=reverse_kl)", "dpo"),
        ("f_dpo(divergence=alpha, alpha=1)", "dpo"),
        ("f_dpo(divergence=alpha, alpha=0)", "f_dpo(divergence=forward_kl)"),
        ("robust(label_smoothing=0)", "dpo"),
        ("dpop(lam=0)", "dpo"),
        ("length_dpo(alpha=0)", "dpo"),
        ("ld_dpo(alpha=1)", "dpo"),
        ("sepo(k=1, gamma=2.5)", "simpo(beta=2.5, gamma_beta_ratio=0)"),
        ("alphapo(alpha=0)", "simpo"),
        ("rpo(alpha=0)", "dpo"),
        ("dpo_shift(lam=1)", "dpo"),
        ("dpo_shift(lam=0.5, lam_end=0.9)", "dpo_shift(lam=0.62)"),  # progress .3
        ("odpo(alpha=0)", "dpo"),
        ("cal_dpo(beta=0.2)", "dpo(beta=1) + 0.5*sppo_hard(beta=0.2)"),
        ("cal_dpo(weight=0)", "dpo(beta=1)"),
    ],
)
def test_two_names_of_one_loss(spec, same):
    ours, other = both(spec, same, lambda: make_statistics(NEEDS))
    torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "limit"),
    [("alphapo(alpha=1e-6)", "simpo"), ("f_dpo(divergence=alpha, alpha=1.000001)", "dpo")],
)
def test_limits(spec, limit):
    ours, other = both(spec, limit, lambda: make_statistics(NEEDS))
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.37, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twdpo_with_weights_1_is_dpo_bit_for_bit(dtype, beta):
    """Values and gradients, also on data where any other order of the same sums would round otherwise."""

    def statistics():
        generator = torch.Generator().manual_seed(1)
        sides = []
        for _ in range(2):
            logps, ref = (-20 * torch.rand(64, 300, generator=generator, dtype=dtype) for _ in range(2))
            sides.append({"logps": logps, "ref_logps": ref, "weights": torch.ones(64, 300, dtype=dtype)})
        return sides

    lengths = torch.Generator().manual_seed(2)
    masks = [torch.arange(300) < torch.randint(1, 301, (64, 1), generator=lengths) for _ in range(2)]
    results = []
    for spec in ("twdpo", "dpo"):
        sides = statistics()
        for side in sides:
            side["logps"].requires_grad_()
        values = get_loss(spec, beta=beta)(make_pairs(sides, (), masks))
        values.mean().backward()
        results.append([values, *(side["logps"].grad for side in sides)])
    for ours, dpo in zip(*results, strict=True):
        assert torch.equal(ours, dpo)


def test_robust_is_dpo_in_expectation_over_flips():
    sides = make_statistics(NEEDS)
    pairs = make_pairs(sides, NEEDS)
    flipped = Pairs(chosen=pairs.rejected, rejected=pairs.chosen)
    robust = get_loss("robust(label_smoothing=0.2)")
    torch.testing.assert_close(0.8 * robust(pairs) + 0.2 * robust(flipped), get_loss("dpo")(pairs))


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_of_one_pair_is_dpo(name):
    pairs = make_pairs(make_statistics(NEEDS), NEEDS)
    chosen, rejected = (
        Side(mask=side.mask[:1], logps=side.logps[:1], ref_logps=side.ref_logps[:1])
        for side in (pairs.chosen, pairs.rejected)
    )
    one = Pairs(chosen=chosen, rejected=rejected)
    torch.testing.assert_close(get_loss(name)(one), get_loss("dpo")(one))


def test_asft_bounds_the_alignment_term_of_orpo():
    """-log pbar_w - log(1 - pbar_l) >= -log sigma(log odds ratio), 2502.01237 appendix D."""
    pairs = make_pairs(make_statistics(NEEDS), NEEDS)
    orpo = get_loss("orpo(beta=1)")(pairs) + pairs.chosen.mean(pairs.chosen.logps)
    assert (get_loss("asft")(pairs) > orpo).all()


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


def test_tbpo_without_kl_is_tbpo_whose_kl_is_nought():
    """The ablation w = 1: log R_t = beta (D_t(y_l) - D_t(y_w)), worked out with plain arithmetic too."""
    statistics = make_statistics(("ref_logps", "kl_ref_pi"))
    for side in statistics:
        side["kl_ref_pi"] = torch.zeros_like(side["kl_ref_pi"])
    pairs = make_pairs(statistics, ("ref_logps", "kl_ref_pi"))
    got = get_loss("tbpo_a(kl=none, generator=lr)")(pairs)
    torch.testing.assert_close(got, get_loss("tbpo_a(generator=lr)")(pairs))
    ratios = [(side["logps"] - side["ref_logps"]).tolist() for side in statistics]
    for pair, (first, second) in enumerate(zip(*LENGTHS, strict=True)):
        tokens = range(min(first, second))
        terms = [math.log1p(math.exp(0.1 * (ratios[1][pair][t] - ratios[0][pair][t]))) for t in tokens]
        assert got[pair].item() == pytest.approx(sum(terms) / len(terms))
