"""Values, margins and gradients of losses on the pair of small_pair.py, worked out by hand."""

from math import exp, log, log1p, sqrt

import pytest
import torch
from small_pair import evaluate, hand, sba_0

from plo.losses import get_loss
from plo.pairs import Pairs, Side

# logit p = m - log(1 - e^m) with m the mean log-probability: -1.5 chosen, -4/3 rejected
LOGITS = (-1.5 - log(1 - exp(-1.5)), -4 / 3 - log(1 - exp(-4 / 3)))
LOG_ODDS = LOGITS[0] - LOGITS[1]
Q = 1 / (1 + exp(-1))  # sigma(1)
WPO = exp(0.75 + 1 / 6)
CHI = 0.5 * (exp(1) + 1 - (exp(-1) - 1))  # phi(e) = e + 1, phi(1/e) = 1/e - 1
LOG_RATIO_BY_RATIO = 0.5 * (exp(-1) + exp(1))  # log r / r = 1/e and -e
P, R = 1 / (1 + exp(-1)), 1 / (1 + exp(-1.5))  # sigma(beta h) = sigma(1), sigma(eta g) = sigma(.5 * 3)

# k3 = e^D - 1 - D. Chosen D = .5, .5; rejected D = -.5, 0. log w = k3 rejected - k3 chosen:
K3_LOG_W = ((exp(-0.5) - 0.5) - (exp(0.5) - 1.5), 0 - (exp(0.5) - 1.5))


CASES = [
    # beta h = .5 * 2 = 1; -log sigma(x) = log(1 + e^-x)
    ("dpo(beta=0.5)", log1p(exp(-1)), 1.0),
    ("dpo(beta=0.5, label_smoothing=0.1)", 0.9 * log1p(exp(-1)) + 0.1 * log1p(exp(1)), 1.0),
    # h of the windows: 1 | .5 | .5 (chosen has ended), 1.5 | .5 and 2
    ("adpo(beta=0.5)", log1p(exp(-0.5)) + 2 * log1p(exp(-0.25)), 1.0),
    ("adpo(beta=0.5, window=2)", log1p(exp(-0.75)) + log1p(exp(-0.25)), 1.0),
    ("adpo(beta=0.5, window=3)", log1p(exp(-1)), 1.0),
    ("adpo(beta=0.5, window=all)", log1p(exp(-1)), 1.0),
    # parts: chosen 0 1 and rejected 0 0 1 of two: 1 | 1; chosen 0 2 and rejected 0 1 2 of four: 1 | 0 | 1, and no fourth
    ("adpo(beta=0.5, segments=2)", 2 * log1p(exp(-0.5)), 1.0),
    ("adpo(beta=0.5, segments=4)", 2 * log1p(exp(-0.5)) + log(2), 1.0),
    # target 1 / (2 * .5) = 1: (2 - 1)^2; with means 1/2 - (-1/3) = 5/6: (5/6 - 1)^2
    ("ipo(beta=0.5, reduction=sum)", 1.0, 2.0),
    ("ipo(beta=0.5)", 1 / 36, 5 / 6),
    # means -3/2 and -4/3: 2 (-1/6) = -1/3, less gamma = 2 * .5: -4/3
    ("simpo", log1p(exp(4 / 3)), -1 / 3),
    ("simpo(beta=3, gamma_beta_ratio=0)", log1p(exp(1 / 2)), -1 / 2),
    ("simpo(loss_type=hinge)", 7 / 3, -1 / 3),
    ("simpo(label_smoothing=0.1)", 0.9 * log1p(exp(4 / 3)) + 0.1 * log1p(exp(-4 / 3)), -1 / 3),
    # pbar^-.5 = e^.75 and e^(2/3); r = 2 (1 - that). alpha -1: r = pbar - 1. gamma = 2 * .5
    ("alphapo(alpha=0.5)", log1p(exp(1 - 4 * (exp(2 / 3) - exp(0.75)))), 4 * (exp(2 / 3) - exp(0.75))),
    ("alphapo(alpha=-1)", log1p(exp(1 - 2 * (exp(-1.5) - exp(-4 / 3)))), 2 * (exp(-1.5) - exp(-4 / 3))),
    # mean probabilities .252 and .290: the tokens of logp -2 are kept on both sides
    ("confpo", log1p(exp(1.6)), 0.0),
    ("orpo", 1.5 + 0.1 * log1p(exp(-LOG_ODDS)), LOG_ODDS),
    # -log p_w - log(1 - p_l) = 1.5 - log(1 - e^(-4/3))
    ("asft", 1.5 - log(1 - exp(-4 / 3)), LOG_ODDS),
    ("asft(nll=0.5)", 2.25 - log(1 - exp(-4 / 3)), LOG_ODDS),
    ("asft(beta=2)", log1p(exp(-2 * LOGITS[0])) + log1p(exp(2 * LOGITS[1])), LOG_ODDS),
    # log pi: -3 and -4; NLL(y_w) = 3/2
    ("cpo(beta=0.5)", log1p(exp(-0.5)) + 1.5, 0.5),
    ("cpo(beta=0.5, alpha=0.2)", log1p(exp(-0.5)) + 0.3, 0.5),
    ("rpo(beta=0.5)", log1p(exp(-1)) + 1.5, 1.0),
    ("rpo(beta=0.5, alpha=0.2)", log1p(exp(-1)) + 0.3, 1.0),
    # D(y_l) = -1 counts 0; -.75; -.75, as no step is done (progress 0)
    ("minor_dpo(beta=0.5)", log1p(exp(-0.5)), 0.5),
    ("dpo_shift(beta=0.5, lam=0.75)", log1p(exp(-0.875)), 0.875),
    ("dpo_shift(beta=0.5, lam=0.75, lam_end=1)", log1p(exp(-0.875)), 0.875),
    # g = 3 or 7 - 4.5; e^(log g - 1) = g / e
    ("odpo(beta=0.5)", log1p(3 / exp(1)), 1.0),
    ("odpo(beta=0.5, alpha=0.5)", log1p(sqrt(3) / exp(1)), 1.0),
    ("odpo(beta=0.5, score=score_chosen, less=score_rejected)", log1p(2.5 / exp(1)), 1.0),
    ("odpo(beta=0.5, alpha=0.5, scale=linear)", log1p(exp(0.5)), 1.0),
    ("rpo_reward(beta=0.5, eta=0.5)", R * log(R / P) + (1 - R) * log((1 - R) / (1 - P)), 1.0),
    (
        "rpo_reward(beta=0.5, eta=0.5, distance=forward_kl)",
        P * log(P / R) + (1 - P) * log((1 - P) / (1 - R)),
        1.0,
    ),
    ("rpo_reward(beta=0.5, eta=0.5, distance=squared)", 0.25, 1.0),
    ("rpo_reward(beta=0.5, eta=2, distance=squared, score=score_chosen, less=score_rejected)", 16.0, 1.0),
    # g = .3, and 3 cut to 1
    ("mappo(beta=0.5, scale=0.1)", log1p(exp(-0.65)), 0.65),
    ("mappo(beta=0.5)", log1p(exp(-1)), 1.0),
    ("robust(beta=0.5)", (0.9 * log1p(exp(-1)) - 0.1 * log1p(exp(1))) / 0.8, 1.0),
    ("hinge(beta=0.25)", 0.5, 0.5),
    ("hinge(beta=0.75)", 0.0, 1.5),
    # D(y_w) = 1: no penalty
    ("dpop(beta=0.5)", log1p(exp(-1)), 1.0),
    ("length_dpo(beta=0.5, alpha=0.1)", log1p(exp(-0.9)), 1.0),
    # 3 (1/2 + 1/3)
    ("sigmoid_norm(beta=3)", log1p(exp(-2.5)), 2.5),
    # the third rejected token counts .4: D' = 1 and -.7
    ("ld_dpo(beta=0.5, alpha=0.4)", log1p(exp(-0.85)), 0.85),
    # r = e and 1/e. log sigma(1) - log sigma(-1) = 1
    ("f_dpo(beta=0.5)", log1p(exp(-0.5)), 0.5),
    ("f_dpo(beta=0.5, divergence=forward_kl)", log1p(exp(-0.5 * (exp(1) - exp(-1)))), 0.5 * (exp(1) - exp(-1))),
    ("f_dpo(beta=0.5, divergence=alpha)", log1p(exp(exp(-0.5) - exp(0.5))), exp(0.5) - exp(-0.5)),
    ("f_dpo(beta=0.5, divergence=alpha, alpha=2)", log1p(exp(-0.5 * (exp(1) - exp(-1)))), 0.5 * (exp(1) - exp(-1))),
    ("f_dpo(beta=0.5, divergence=chi2)", log1p(exp(-(exp(1) - exp(-1)))), exp(1) - exp(-1)),
    ("chi_po(beta=0.5)", log1p(exp(-CHI)), CHI),
    ("chi_po(beta=0.5, r_max=0.25)", log1p(exp(-0.5)), 0.5),
    ("squared_po(beta=0.5)", log1p(exp(-LOG_RATIO_BY_RATIO)), LOG_RATIO_BY_RATIO),
    ("exo_pair(beta=0.5, label_smoothing=0.1)", Q * log(Q / 0.9) + (1 - Q) * log((1 - Q) / 0.1), 1.0),
    # m = sigma(1/2)
    ("discopop(beta=0.5, tau=2)", (log1p(exp(-1)) * exp(-0.5) + exp(-1)) / (1 + exp(-0.5)), 1.0),
    # r = 1/2 and -1/2
    ("nca_pair(beta=0.5)", 1.5 * log1p(exp(-0.5)) + 0.5 * log1p(exp(0.5)), 1.0),
    ("bco_pair(beta=0.5)", 2 * log1p(exp(-0.5)), 1.0),
    # targets +-2: (1 - 2)^2 + (-1 + 2)^2
    ("sppo_hard(beta=0.25)", 2.0, 2.0),
    # -log sigma(2) and the squares above
    ("cal_dpo(beta=0.25)", log1p(exp(-2)) + 1.0, 2.0),
    ("cal_dpo(beta=0.25, weight=1)", log1p(exp(-2)) + 2.0, 2.0),
    ("apo_zero(beta=0.5)", 2 / (1 + exp(0.5)), 1.0),
    ("apo_down(beta=0.5)", 1 / (1 + exp(-0.5)) + 1 - Q, 1.0),
    ("aot(beta=0.5)", log1p(exp(-1)), 1.0),
    ("aot_unpaired(beta=0.5, label_smoothing=0.1)", 0.9 * log1p(exp(-1)) + 0.1 * log1p(exp(1)), 1.0),
    # WPO = 2.5: a pair weighs 1 at most by default
    ("wpo(beta=0.5)", log1p(exp(-1)), 1.0),
    ("wpo(beta=0.5, cap=2)", 2 * log1p(exp(-1)), 1.0),
    ("wpo(beta=0.5, cap=3)", WPO * log1p(exp(-1)), 1.0),
    ("wpo(beta=0.5, cap=None)", WPO * log1p(exp(-1)), 1.0),
    ("wpo(base=hinge, beta=0.25, cap=None)", WPO * 0.5, 0.5),
    ("wpo(base='ipo(reduction=sum)', beta=0.25)", 0.0, 2.0),
    # .5 (1.25 + 2); with lengths 1.25/2 + 2/3 = 31/24, less 1
    ("twdpo(beta=0.5)", log1p(exp(-1.625)), 1.625),
    ("twdpo(beta=0.5, loss_type=ipo)", (7 / 24) ** 2, 31 / 24),
    # .5 (3.25 - .5 (.65 - .5)), .5 (3.25 - 2 (.65 - .5))
    ("twdpo(beta=0.5, kl=0.5)", log1p(exp(-1.5875)), 1.5875),
    ("twdpo(beta=0.5, kl=2)", log1p(exp(-1.475)), 1.475),
    # kept: of 2 tokens the one that weighs 2 (logp -1), of 3 the one that weighs 0 (logp -1)
    ("sepo", log(2), 0.0),
    # all rejected ones: mean -4/3
    ("sepo(gamma=3, k_rejected=1)", log1p(exp(-1)), 1.0),
    # int(.7 * 2) = 1, int(.7 * 3) = 2: those that weigh 0 and 1
    ("sepo(k=0.7)", log(2), 0.0),
    # candidates are the second token (logp -2), and the last two, of which the one that weighs 0 (logp -1)
    ("sepo(skip_first=True)", log1p(exp(1)), -1.0),
    # R = e^-1
    ("bpo(beta=0.5)", exp(-0.5) - 1, 1.0),
    ("bpo(beta=0.5, lam=0)", sba_0(-1), 1.0),
    ("bpo(beta=0.5, generator=kliep)", exp(-1) - 1, 1.0),
    ("bpo(beta=0.5, generator=lsif)", exp(-2) - 2 * exp(1) + 1, 1.0),
    ("bpo(beta=0.5, generator=ba, lam=1)", exp(-2) - 2 * exp(1) + 1, 1.0),
    ("bpo(beta=0.5, clip=(0.5, None))", sqrt(0.5) - 1, 1.0),
    ("bpo(beta=0.5, clip=(None, 0.25))", sqrt(0.25) - 1, 1.0),
    # margin -1/3 less 1
    ("bpo(ratio=simpo, beta=2)", exp(2 / 3) - 1, -4 / 3),
    ("bpo(ratio=js, beta=0.5)", exp(-0.25) - 1, 0.5),
    ("bpo(ratio=forward_kl, beta=0.5, lam=0)", sba_0(0.5 * (exp(-1) - exp(1))), 0.5 * (exp(1) - exp(-1))),
    # .5 (2 - (.9 - .3)) = .7;  .5 (2 - .5 (.9 - .3)) = .85
    ("tdpo1(beta=0.5)", log1p(exp(-0.7)), 0.7),
    ("tdpo2(beta=0.5)", log1p(exp(-0.85)), 0.85),
    # T = 2: log R = .5 (-.5 - .5 + .2 - .1) = -.45 and .5 (0 - .5 + .3 - .2) = -.2; margin (.45 + .2) / 2
    ("tbpo_a(beta=0.5)", (sba_0(-0.45) + sba_0(-0.2)) / 2, 0.325),
    ("tbpo_a(beta=0.5, generator=lr)", (log1p(exp(-0.45)) + log1p(exp(-0.2))) / 2, 0.325),
    # log R clamped to -.3: (-.3, -.2)
    ("tbpo_a(beta=0.5, max_log_R=0.3)", (sba_0(-0.3) + sba_0(-0.2)) / 2, 0.325),
    (
        "tbpo_a(beta=0.5, kl=k3)",
        (sba_0(0.5 * (-1 + K3_LOG_W[0])) + sba_0(0.5 * (-0.5 + K3_LOG_W[1]))) / 2,
        -0.25 * (-1.5 + sum(K3_LOG_W)),
    ),
]


@pytest.mark.parametrize(("spec", "expected", "margin"), CASES, ids=[case[0] for case in CASES])
def test_value_and_margin(spec, expected, margin):
    value = evaluate(spec)
    assert value.values.item() == pytest.approx(expected, abs=1e-12)
    assert value.metrics["margin"].item() == pytest.approx(margin, abs=1e-12)


def test_dpop_penalises_a_chosen_response_below_the_reference():
    """The same pair turned round: h = -2, D(y_w) = -1, so .5 (-2 - 3 * 1)."""
    pairs, _, rejected = hand()
    value = get_loss("dpop(beta=0.5, lam=3)").evaluate(Pairs(chosen=pairs.rejected, rejected=pairs.chosen))
    assert value.values.item() == pytest.approx(log1p(exp(2.5)), abs=1e-12)
    assert value.metrics["penalty"].item() == 1
    value.values.sum().backward()  # of what was the rejected side: slope -sigma(2.5) beta (1 + lam) a token
    torch.testing.assert_close(rejected["logps"].grad, torch.full((1, 3), -2 / (1 + exp(-2.5)), dtype=torch.float64))


def test_wpo_weights_carry_no_gradient():
    """The gradient is the weight times the base loss's."""
    gradients = []
    for spec in ("wpo(beta=0.5, cap=None)", "dpo(beta=0.5)"):
        pairs, chosen, rejected = hand()
        value = get_loss(spec).evaluate(pairs)
        value.values.sum().backward()
        gradients.append((chosen["logps"].grad, rejected["logps"].grad))
        assert chosen["log_p2"].grad is None
    torch.testing.assert_close(gradients[0], tuple(WPO * gradient for gradient in gradients[1]), rtol=1e-12, atol=0)
    assert evaluate("wpo", cap=None).metrics["weight"].item() == pytest.approx(WPO, abs=1e-12)
    assert evaluate("wpo").metrics["weight"].item() == 1.0


def test_aot_compares_quantiles_over_the_batch():
    """log pi - log ref of three pairs, one token a response; chosen - rejected: pi 3 -1 1, ref 0 2 -2."""
    mask = torch.ones(3, 1, dtype=torch.bool)

    def column(*values):
        return torch.tensor(values, dtype=torch.float64)[:, None]

    pairs = Pairs(
        chosen=Side(mask=mask, logps=column(-1, -5, -2), ref_logps=column(-3, -2, -6)),
        rejected=Side(mask=mask, logps=column(-4, -4, -3), ref_logps=column(-3, -4, -4)),
    )
    # sorted: pi -1 1 3, ref -2 0 2: 1 at every quantile
    assert get_loss("aot(beta=1)")(pairs).tolist() == pytest.approx([log1p(exp(-1))] * 3, abs=1e-12)
    # D(y_w) = 2 -3 4, D(y_l) = -1 0 1; sorted -3 2 4 and -1 0 1: -2 2 3
    expected = [log1p(exp(2)), log1p(exp(-2)), log1p(exp(-3))]
    assert get_loss("aot_unpaired(beta=1)")(pairs).tolist() == pytest.approx(expected, abs=1e-12)
    assert get_loss("aot(beta=1)").evaluate(pairs).metrics["margin"].tolist() == [3, -3, 3]


def test_discopop_first_lowers_the_margin():
    """At x = 0: -1/4 from the logistic half, -1/2 from the exponential, (1 - ln 2) / (4 tau) from the blend."""
    side = {"mask": torch.ones(1, 1, dtype=torch.bool), "ref_logps": torch.zeros(1, 1, dtype=torch.float64)}
    logps = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    pairs = Pairs(chosen=Side(logps=logps, **side), rejected=Side(logps=side["ref_logps"], **side))
    get_loss("discopop(beta=1)")(pairs).sum().backward()
    assert logps.grad.item() == pytest.approx(-0.75 + 5 * (1 - log(2)), abs=1e-12) == pytest.approx(0.784, abs=1e-3)


def test_sft():
    value = evaluate("sft")
    assert value.values.tolist() == [[1, 2, 0]]
    assert value.mask.tolist() == [[True, True, False]]


def gradients(spec):
    """Gradients of kl_ref_pi (chosen, rejected), None where none flows."""
    pairs, chosen, rejected = hand()
    get_loss(spec)(pairs).sum().backward()
    return chosen["kl_ref_pi"].grad, rejected["kl_ref_pi"].grad


def test_tdpo1_gradient_reaches_both_kls():
    """d/dK(y_l) = beta sigma(-.7), d/dK(y_w) the opposite."""
    slope = 0.5 / (1 + exp(0.7))
    chosen, rejected = gradients("tdpo1(beta=0.5)")
    torch.testing.assert_close(chosen, torch.tensor([[-slope, -slope, 0]], dtype=torch.float64))
    torch.testing.assert_close(rejected, torch.full((1, 3), slope, dtype=torch.float64))


def test_tdpo2_gradient_reaches_the_rejected_kl_alone():
    """d/dK(y_l) = alpha beta sigma(-.85)"""
    chosen, rejected = gradients("tdpo2(beta=0.5)")
    assert chosen is None
    torch.testing.assert_close(rejected, torch.full((1, 3), 0.25 / (1 + exp(0.85)), dtype=torch.float64))


def test_tbpo_a_gradient_reaches_the_kls_unless_detached():
    """Per token beta (R + 1) / 4 / T = .5 (R + 1) / 8, plus for rejected; its third token is dropped."""
    slopes = [0.5 * (exp(-0.45) + 1) / 8, 0.5 * (exp(-0.2) + 1) / 8, 0]
    chosen, rejected = gradients("tbpo_a(beta=0.5)")
    torch.testing.assert_close(rejected, torch.tensor([slopes], dtype=torch.float64))
    torch.testing.assert_close(chosen, -rejected)
    assert gradients("tbpo_a(beta=0.5, detach_kl=True)") == (None, None)


def test_a_clamp_shows_and_has_no_gradient():
    pairs, chosen, _ = hand()
    value = get_loss("tbpo_a(beta=0.5, max_log_R=0.3)").evaluate(pairs)
    assert value.metrics["clamped"].tolist() == [0.5]  # log R = -.45, -.2
    value.values.sum().backward()
    gradient = chosen["logps"].grad[0]
    assert gradient[0] == 0
    assert gradient[1] != 0
    pairs, chosen, _ = hand()
    value = get_loss("bpo(beta=0.5, clip=(0.5, None))").evaluate(pairs)
    assert value.metrics["clipped"].tolist() == [1.0]
    value.values.sum().backward()
    assert (chosen["logps"].grad == 0).all()
    assert evaluate("bpo(beta=0.5, clip=(0.1, None))").metrics["clipped"].tolist() == [0.0]
    assert "clipped" not in evaluate("bpo").metrics


def test_no_token_in_common_gives_zero():
    mask, none = torch.tensor([[True, True]]), torch.tensor([[False, False]])
    logps = torch.tensor([[-1.0, -2.0]])
    kl = {"kl_ref_pi": logps.abs(), "ref_logps": logps - 1}
    pairs = Pairs(chosen=Side(mask=mask, logps=logps, **kl), rejected=Side(mask=none, logps=logps, **kl))
    assert get_loss("tbpo_a")(pairs).tolist() == [0]
